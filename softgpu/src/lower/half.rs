//! Arithmetic and comparison of f16 and bf16, alone and in pairs.

use super::arithmetic::{ROUNDINGS, half_format};
use super::opcode::{Opcode, Type};
use super::{Lowering, Result};
use crate::number::arithmetic::{
    Modifiers, half_add, half_extremum, half_fma, half_mul, half_sub, packed,
};
use crate::number::{Format, Overflow, Rounding, approximate};
use crate::parse::Operand;
use crate::registers::{Action, binary, compare, ternary, unary};

impl Lowering<'_> {
    /// Decodes an instruction on half-precision types; `None` if it has no such type.
    pub(super) fn half(
        &mut self,
        opcode: &mut Opcode,
        operands: &[Operand],
    ) -> Result<Option<Action>> {
        let Some(kind) = opcode.last_type() else {
            return Ok(None);
        };
        let Some(format) = half_format(kind) else {
            return Ok(None);
        };
        if matches!(opcode.base, "mov" | "selp") {
            return Ok(None);
        }
        if matches!(opcode.base, "setp" | "set") {
            return self.half_comparison(opcode, operands, format).map(Some);
        }
        let base = opcode.base;
        opcode.take("approx");
        let rounding = opcode.take_any(&ROUNDINGS);
        let modifiers = Modifiers {
            ftz: opcode.take("ftz"),
            sat: opcode.take("sat"),
            relu: opcode.take("relu"),
        };
        let propagate = opcode.take("NaN");
        let kind = opcode.take_type()?;
        if !matches!(rounding, None | Some(Rounding::NearestEven)) {
            return Err(opcode.unsupported());
        }
        let one = move |f: fn(f32) -> f32| {
            move |x: u32| {
                let value = f(format.decode(x) as f32);
                format.encode(value.into(), Rounding::NearestEven, Overflow::Infinity)
            }
        };
        let nan_or = move |x: u32, bits: u32| if format.is_nan(x) { format.nan() } else { bits };
        Ok(Some(match base {
            "abs" | "neg" | "ex2" | "tanh" => {
                let r = self.registers(opcode, operands, [kind; 2])?;
                match base {
                    "abs" => on_one(r, kind, move |x| nan_or(x, x & 0x7fff)),
                    "neg" => on_one(r, kind, move |x| nan_or(x, x ^ 0x8000)),
                    "ex2" if modifiers.ftz => on_one(r, kind, one(|x| approximate::ex2(x, true))),
                    "ex2" => on_one(r, kind, one(|x| approximate::ex2(x, false))),
                    _ => on_one(r, kind, one(approximate::tanh)),
                }
            }
            "fma" => {
                let r = self.registers(opcode, operands, [kind; 4])?;
                if kind.size() == 4 {
                    ternary(r, move |a: u32, b: u32, c: u32| {
                        packed([a, b, c], |[a, b, c]| half_fma(format, a, b, c, modifiers))
                    })
                } else {
                    ternary(r, move |a: u16, b: u16, c: u16| {
                        half_fma(format, a.into(), b.into(), c.into(), modifiers) as u16
                    })
                }
            }
            "add" | "sub" | "mul" | "min" | "max" => {
                let r = self.registers(opcode, operands, [kind; 3])?;
                match base {
                    "add" => on_two(r, kind, move |a, b| half_add(format, a, b, modifiers)),
                    "sub" => on_two(r, kind, move |a, b| half_sub(format, a, b, modifiers)),
                    "mul" => on_two(r, kind, move |a, b| half_mul(format, a, b, modifiers)),
                    _ => {
                        let maximum = base == "max";
                        on_two(r, kind, move |a, b| {
                            half_extremum(format, a, b, maximum, propagate, modifiers)
                        })
                    }
                }
            }
            _ => return Err(opcode.unsupported()),
        }))
    }

    fn half_comparison(
        &mut self,
        opcode: &mut Opcode,
        operands: &[Operand],
        format: Format,
    ) -> Result<Action> {
        let relation = relation(opcode.next().unwrap_or_default());
        let relation = relation.ok_or_else(|| opcode.unsupported())?;
        let ftz = opcode.take("ftz");
        let combine: fn(u32, u32) -> u32 = match opcode.take_any(&[("and", 0), ("or", 1)]) {
            None => |found, _| found,
            Some(0) => |found, c| found & c,
            Some(_) => |found, c| found | c,
        };
        let result = if opcode.base == "set" {
            Some(opcode.take_type()?)
        } else {
            None
        };
        let kind = opcode.take_type()?;
        let value = move |bits: u32| {
            format.decode(if ftz {
                format.flush(bits & 0xffff)
            } else {
                bits & 0xffff
            })
        };
        let [d, a, b, rest @ ..] = operands else {
            return Err(opcode.unsupported());
        };
        let a = self.source(opcode, a, kind)?;
        let b = self.source(opcode, b, kind)?;
        if let Some(result) = result {
            if !rest.is_empty() {
                return Err(opcode.unsupported());
            }
            let d = self.target(opcode, d, result)?;
            // True is 1.0 for a floating-point result, all ones for an integer one (of a pair in each half).
            if kind.size() == 2 && matches!(result, Type::U32 | Type::S32) {
                return Ok(binary([d, a, b], move |a: u16, b: u16| {
                    if relation(value(a.into()), value(b.into())) {
                        u32::MAX
                    } else {
                        0
                    }
                }));
            }
            let truth = match half_format(result) {
                Some(format) => format.encode(1.0, Rounding::NearestEven, Overflow::Infinity),
                None => 0xffff,
            };
            return Ok(on_two([d, a, b], kind, move |a, b| {
                if relation(value(a), value(b)) {
                    truth
                } else {
                    0
                }
            }));
        }
        let c = match rest {
            [] => self.truth,
            [c] => self.predicate(opcode, c)?,
            _ => return Err(opcode.unsupported()),
        };
        let targets = match d {
            Operand::Pair(p, q) => [
                self.target(opcode, p, Type::Pred)?,
                self.target(opcode, q, Type::Pred)?,
            ],
            p => [self.target(opcode, p, Type::Pred)?, self.discard[2]],
        };
        if kind.size() == 2 {
            let test = move |a: u16, b: u16| relation(value(a.into()), value(b.into()));
            return Ok(compare(targets, [a, b, c], test, combine));
        }
        // Pairs give one predicate for each half.
        let [p, q] = targets;
        let scratch = self.discard[2];
        let low = compare(
            [p, scratch],
            [a, b, c],
            move |a: u32, b: u32| relation(value(a), value(b)),
            combine,
        );
        let high = compare(
            [q, scratch],
            [a, b, c],
            move |a: u32, b: u32| relation(value(a >> 16), value(b >> 16)),
            combine,
        );
        Ok(Box::new(move |registers, mask| {
            low(registers, mask);
            high(registers, mask);
        }))
    }
}

fn relation(name: &str) -> Option<fn(f64, f64) -> bool> {
    Some(match name {
        "eq" => |a, b| a == b,
        "ne" => |a, b| a != b && !a.is_nan() && !b.is_nan(),
        "lt" => |a, b| a < b,
        "le" => |a, b| a <= b,
        "gt" => |a, b| a > b,
        "ge" => |a, b| a >= b,
        "equ" => |a, b| a == b || a.is_nan() || b.is_nan(),
        "neu" => |a, b| a != b,
        "ltu" => |a, b| a < b || a.is_nan() || b.is_nan(),
        "leu" => |a, b| a <= b || a.is_nan() || b.is_nan(),
        "gtu" => |a, b| a > b || a.is_nan() || b.is_nan(),
        "geu" => |a, b| a >= b || a.is_nan() || b.is_nan(),
        "num" => |a, b| !a.is_nan() && !b.is_nan(),
        "nan" => |a, b| a.is_nan() || b.is_nan(),
        _ => return None,
    })
}

fn on_one(r: [u32; 2], kind: Type, f: impl Fn(u32) -> u32 + Send + Sync + 'static) -> Action {
    if kind.size() == 4 {
        unary(r, move |a: u32| packed([a], |[a]| f(a)))
    } else {
        unary(r, move |a: u16| f(a.into()) as u16)
    }
}

fn on_two(r: [u32; 3], kind: Type, f: impl Fn(u32, u32) -> u32 + Send + Sync + 'static) -> Action {
    if kind.size() == 4 {
        binary(r, move |a: u32, b: u32| packed([a, b], |[a, b]| f(a, b)))
    } else {
        binary(r, move |a: u16, b: u16| f(a.into(), b.into()) as u16)
    }
}

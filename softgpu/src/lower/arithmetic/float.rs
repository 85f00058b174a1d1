//! Arithmetic on f32 and f64, and their approximate functions.

use super::super::opcode::{Opcode, Type};
use super::super::{Lowering, Result};
use super::ROUNDINGS;
use crate::number::{Rounding, approximate, arithmetic};
use crate::parse::Operand;
use crate::registers::{Action, binary, ternary, unary};

/// Modifiers of f32 arithmetic.
#[derive(Clone, Copy)]
struct Float {
    rounding: Rounding,
    ftz: bool,
    sat: bool,
}

impl Float {
    fn take(opcode: &mut Opcode) -> Self {
        let rounding = opcode.take_any(&ROUNDINGS).unwrap_or(Rounding::NearestEven);
        Self {
            rounding,
            ftz: opcode.take("ftz"),
            sat: opcode.take("sat"),
        }
    }

    fn is_plain(self) -> bool {
        self.rounding == Rounding::NearestEven && !self.ftz && !self.sat
    }

    fn input(self, x: f32) -> f32 {
        if self.ftz { arithmetic::flush(x) } else { x }
    }

    fn output(self, x: f32) -> f32 {
        let x = if self.ftz { arithmetic::flush(x) } else { x };
        if self.sat { arithmetic::saturate(x) } else { x }
    }
}

/// An f32 result with the canonical NaN, in a form that vectorises.
#[inline(always)]
fn clean(x: f32) -> f32 {
    f32::from_bits(if x.is_nan() { 0x7fff_ffff } else { x.to_bits() })
}

impl Lowering<'_> {
    pub(super) fn single(
        &mut self,
        opcode: &mut Opcode,
        operands: &[Operand],
    ) -> Result<Option<Action>> {
        let base = opcode.base;
        let approximate = base == "div" && opcode.take("approx");
        let full = base == "div" && opcode.take("full");
        let nan = matches!(base, "min" | "max") && opcode.take("NaN");
        let xorsign = matches!(base, "min" | "max") && opcode.take("xorsign");
        if xorsign {
            return Ok(None);
        }
        let m = Float::take(opcode);
        let kind = Type::F32;
        Ok(Some(match base {
            "abs" => {
                let r = self.registers(opcode, operands, [kind; 2])?;
                unary(r, move |a: f32| m.input(a).abs())
            }
            "neg" => {
                let r = self.registers(opcode, operands, [kind; 2])?;
                unary(r, move |a: f32| -m.input(a))
            }
            "fma" | "mad" => {
                let r = self.registers(opcode, operands, [kind; 4])?;
                if m.is_plain() {
                    fused(r)
                } else {
                    ternary(r, move |a: f32, b: f32, c: f32| {
                        let (a, b, c) = (m.input(a), m.input(b), m.input(c));
                        m.output(arithmetic::fma(a, b, c, m.rounding))
                    })
                }
            }
            _ => {
                let r = self.registers(opcode, operands, [kind; 3])?;
                let with = |f: fn(f32, f32, Rounding) -> f32| {
                    binary(r, move |a: f32, b: f32| {
                        m.output(f(m.input(a), m.input(b), m.rounding))
                    })
                };
                match base {
                    "add" if m.is_plain() => binary(r, |a: f32, b: f32| clean(a + b)),
                    "sub" if m.is_plain() => binary(r, |a: f32, b: f32| clean(a - b)),
                    "mul" if m.is_plain() => binary(r, |a: f32, b: f32| clean(a * b)),
                    "add" => with(arithmetic::add),
                    "sub" => with(|a, b, rounding| arithmetic::add(a, -b, rounding)),
                    "mul" => with(arithmetic::mul),
                    "div" if approximate => {
                        binary(r, move |a, b| m.output(approximate::div(a, b, m.ftz)))
                    }
                    "div" if full => {
                        binary(r, move |a, b| m.output(approximate::full_div(a, b, m.ftz)))
                    }
                    "div" => with(arithmetic::div),
                    "min" | "max" => {
                        let maximum = base == "max";
                        binary(r, move |a: f32, b: f32| {
                            extremum(m.input(a), m.input(b), maximum, nan)
                        })
                    }
                    _ => return Ok(None),
                }
            }
        }))
    }

    pub(super) fn double(
        &mut self,
        opcode: &mut Opcode,
        operands: &[Operand],
    ) -> Result<Option<Action>> {
        let base = opcode.base;
        let rounding = opcode.take_any(&ROUNDINGS).unwrap_or(Rounding::NearestEven);
        let kind = Type::F64;
        match rounding {
            Rounding::NearestEven => {}
            Rounding::Zero if base == "add" => {
                let r = self.registers(opcode, operands, [kind; 3])?;
                return Ok(Some(binary(r, arithmetic::add_toward_zero)));
            }
            _ => return Ok(None),
        }
        Ok(Some(match base {
            "abs" => unary(self.registers(opcode, operands, [kind; 2])?, f64::abs),
            "neg" => unary(self.registers(opcode, operands, [kind; 2])?, |a: f64| -a),
            "fma" | "mad" => {
                let r = self.registers(opcode, operands, [kind; 4])?;
                ternary(r, f64::mul_add)
            }
            _ => {
                let r = self.registers(opcode, operands, [kind; 3])?;
                match base {
                    "add" => binary(r, |a: f64, b: f64| a + b),
                    "sub" => binary(r, |a: f64, b: f64| a - b),
                    "mul" => binary(r, |a: f64, b: f64| a * b),
                    "div" => binary(r, |a: f64, b: f64| a / b),
                    "min" => binary(r, |a, b| arithmetic::extremum(a, b, false, false)),
                    "max" => binary(r, |a, b| arithmetic::extremum(a, b, true, false)),
                    _ => return Ok(None),
                }
            }
        }))
    }

    pub(super) fn transcendental(
        &mut self,
        opcode: &mut Opcode,
        operands: &[Operand],
    ) -> Result<Option<Action>> {
        let approx = opcode.take("approx");
        let m = Float::take(opcode);
        let kind = opcode.take_type()?;
        let r = self.registers(opcode, operands, [kind; 2])?;
        let f: fn(f32, bool) -> f32 = match (kind, opcode.base, approx) {
            (Type::F64, "sqrt", false) => return Ok(Some(unary(r, f64::sqrt))),
            (Type::F64, "rcp", false) => return Ok(Some(unary(r, |x: f64| 1.0 / x))),
            // `rcp.approx.ftz.f64` and `rsqrt.approx.f64` keep the upper 32 bits' worth.
            (Type::F64, "rcp", true) => return Ok(Some(unary(r, |x: f64| coarse(1.0 / x)))),
            (Type::F64, "rsqrt", true) => {
                return Ok(Some(unary(r, |x: f64| coarse(1.0 / x.sqrt()))));
            }
            (Type::F32, "rcp", false) => {
                return Ok(Some(unary(r, move |x: f32| {
                    m.output(arithmetic::div(1.0, m.input(x), m.rounding))
                })));
            }
            (Type::F32, "sqrt", false) => {
                return Ok(Some(unary(r, move |x: f32| {
                    m.output(arithmetic::sqrt(m.input(x), m.rounding))
                })));
            }
            (Type::F32, "rcp", true) => approximate::rcp,
            (Type::F32, "sqrt", true) => approximate::sqrt,
            (Type::F32, "rsqrt", true) => approximate::rsqrt,
            (Type::F32, "sin", true) => approximate::sin,
            (Type::F32, "cos", true) => approximate::cos,
            (Type::F32, "ex2", true) => approximate::ex2,
            (Type::F32, "lg2", true) => approximate::lg2,
            (Type::F32, "tanh", true) => |x, _| approximate::tanh(x),
            _ => return Ok(None),
        };
        let ftz = m.ftz;
        Ok(Some(unary(r, move |x: f32| f(x, ftz))))
    }
}

/// `fma.rn.f32`, with the processor's own instruction where it has one.
fn fused(r: [u32; 4]) -> Action {
    ternary(r, |a: f32, b: f32, c: f32| clean(a.mul_add(b, c)))
}

/// min or max of f32 in a form that vectorises; -0 orders below +0.
#[inline(always)]
fn extremum(a: f32, b: f32, maximum: bool, propagate: bool) -> f32 {
    if a.is_nan() || b.is_nan() {
        return arithmetic::extremum_f32(a, b, maximum, propagate);
    }
    let key = |x: f32| {
        let bits = x.to_bits() as i32;
        bits ^ ((bits >> 31) as u32 >> 1) as i32
    };
    if (key(a) < key(b)) == maximum { b } else { a }
}

/// Keeps the upper 32 bits of an f64: what the approximate f64 instructions deliver.
fn coarse(x: f64) -> f64 {
    f64::from_bits(x.to_bits() & !0xffff_ffff)
}

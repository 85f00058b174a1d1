//! Comparisons, selections, and logic on predicates.

use super::super::opcode::{Opcode, Type};
use super::super::{Lowering, Result};
use crate::number::arithmetic;
use crate::parse::Operand;
use crate::registers::{Action, binary, compare, logic, select, set, ternary};

impl Lowering<'_> {
    pub(super) fn predicate_logic(
        &mut self,
        opcode: &Opcode,
        operands: &[Operand],
    ) -> Result<Option<Action>> {
        let [d, sources @ ..] = operands else {
            return Ok(None);
        };
        let d = self.target(opcode, d, Type::Pred)?;
        let mut index = [self.truth; 3];
        let mut flip = [0; 3];
        for (at, source) in sources.iter().enumerate().take(3) {
            let (register, negated) = self.signed_predicate(opcode, source)?;
            index[at] = register;
            flip[at] = if negated { !0 } else { 0 };
        }
        let r = [d, index[0], index[1], index[2]];
        Ok(match (opcode.base, sources.len()) {
            ("and", 2) => Some(logic(r, move |a, b, _| (a ^ flip[0]) & (b ^ flip[1]))),
            ("or", 2) => Some(logic(r, move |a, b, _| a ^ flip[0] | b ^ flip[1])),
            ("xor", 2) => Some(logic(r, move |a, b, _| a ^ flip[0] ^ b ^ flip[1])),
            ("not", 1) => Some(logic(r, move |a, _, _| !(a ^ flip[0]))),
            _ => None,
        })
    }

    pub(super) fn comparison(
        &mut self,
        opcode: &mut Opcode,
        operands: &[Operand],
    ) -> Result<Option<Action>> {
        match opcode.base {
            "selp" => {
                let kind = opcode.take_type()?;
                let [d, a, b, p] = operands else {
                    return Ok(None);
                };
                let d = self.target(opcode, d, kind)?;
                let a = self.source(opcode, a, kind)?;
                let b = self.source(opcode, b, kind)?;
                let (p, negated) = self.signed_predicate(opcode, p)?;
                let r = if negated { [d, b, a, p] } else { [d, a, b, p] };
                Ok(Some(if kind.is_wide() {
                    select::<u64>(r)
                } else {
                    select::<u32>(r)
                }))
            }
            "slct" => {
                opcode.take("ftz");
                let kind = opcode.take_type()?;
                let sign = opcode.take_type()?;
                let r = self.registers(opcode, operands, [kind, kind, kind, sign])?;
                Ok(match (kind.is_wide(), sign) {
                    (false, Type::S32) => Some(ternary(
                        r,
                        |a: u32, b: u32, c: i32| if c >= 0 { a } else { b },
                    )),
                    (false, Type::F32) => Some(ternary(
                        r,
                        |a: u32, b: u32, c: f32| if c >= 0.0 { a } else { b },
                    )),
                    (true, Type::S32) => Some(ternary(
                        r,
                        |a: u64, b: u64, c: i32| if c >= 0 { a } else { b },
                    )),
                    (true, Type::F32) => Some(ternary(
                        r,
                        |a: u64, b: u64, c: f32| if c >= 0.0 { a } else { b },
                    )),
                    _ => None,
                })
            }
            "testp" => self.classify(opcode, operands),
            "copysign" => {
                let kind = opcode.take_type()?;
                let r = self.registers(opcode, operands, [kind; 3])?;
                // The sign comes from the first operand.
                Ok(match kind {
                    Type::F32 => Some(binary(r, |a: f32, b: f32| b.copysign(a))),
                    Type::F64 => Some(binary(r, |a: f64, b: f64| b.copysign(a))),
                    _ => None,
                })
            }
            _ => self.set_predicate(opcode, operands),
        }
    }

    fn classify(&mut self, opcode: &mut Opcode, operands: &[Operand]) -> Result<Option<Action>> {
        let class = opcode.next().unwrap_or_default();
        let kind = opcode.take_type()?;
        let [p, a] = operands else { return Ok(None) };
        let p = self.target(opcode, p, Type::Pred)?;
        let a = self.source(opcode, a, kind)?;
        let test: fn(f64, bool) -> bool = match class {
            "finite" => |x, _| x.is_finite(),
            "infinite" => |x, _| x.is_infinite(),
            "number" => |x, _| !x.is_nan(),
            "notanumber" => |x, _| x.is_nan(),
            "normal" => |_, normal| normal,
            "subnormal" => |x, normal| x != 0.0 && x.is_finite() && !normal,
            _ => return Ok(None),
        };
        let keep: fn(u32, u32) -> u32 = |found, _| found;
        let (targets, sources) = ([p, self.discard[2]], [a, a, self.truth]);
        Ok(match kind {
            Type::F32 => Some(compare(
                targets,
                sources,
                move |x: f32, _| test(x.into(), x.is_normal()),
                keep,
            )),
            Type::F64 => Some(compare(
                targets,
                sources,
                move |x: f64, _| test(x, x.is_normal()),
                keep,
            )),
            _ => None,
        })
    }

    /// `setp` and `set`.
    fn set_predicate(
        &mut self,
        opcode: &mut Opcode,
        operands: &[Operand],
    ) -> Result<Option<Action>> {
        let Some(relation) = opcode.next() else {
            return Ok(None);
        };
        let combine = [("and", 0), ("or", 1), ("xor", 2)];
        let combine = opcode.take_any(&combine);
        let ftz = opcode.take("ftz");
        let is_set = opcode.base == "set";
        let result = if is_set {
            Some(opcode.take_type()?)
        } else {
            None
        };
        let kind = opcode.take_type()?.as_unsigned();
        let [d, a, b, rest @ ..] = operands else {
            return Ok(None);
        };
        let a = self.source(opcode, a, kind)?;
        let b = self.source(opcode, b, kind)?;
        let (c, negated) = match (combine, rest) {
            (None, []) => (self.truth, false),
            (Some(_), [c]) => self.signed_predicate(opcode, c)?,
            _ => return Err(opcode.malformed("the wrong number of operands")),
        };
        let combine: fn(u32, u32) -> u32 = match (combine, negated) {
            (None, _) => |found, _| found,
            (Some(0), false) => |found, c| found & c,
            (Some(0), true) => |found, c| found & !c,
            (Some(1), false) => |found, c| found | c,
            (Some(1), true) => |found, c| found | !c,
            (_, false) => |found, c| found ^ c,
            (_, true) => |found, c| found ^ !c,
        };
        if let Some(result) = result {
            let d = self.target(opcode, d, result)?;
            return Ok(set_by(relation, kind, ftz, result, d, [a, b, c], combine));
        }
        let targets = match d {
            Operand::Pair(p, q) => [
                self.target(opcode, p, Type::Pred)?,
                self.target(opcode, q, Type::Pred)?,
            ],
            p => [self.target(opcode, p, Type::Pred)?, self.discard[2]],
        };
        Ok(compare_by(relation, kind, ftz, targets, [a, b, c], combine))
    }
}

/// Instantiates `$make` with the relation and type of a comparison.
macro_rules! relations {
    ($relation:expr, $kind:expr, $ftz:expr; $T:ident, $f:ident => $make:expr) => {{
        macro_rules! float {
            ($rust:ty, $g:expr) => {{
                type $T = $rust;
                let g = $g;
                let number = |a: $rust, b: $rust| !a.is_nan() && !b.is_nan();
                match $relation {
                    "eq" => { let $f = move |a, b| g(a) == g(b); Some($make) }
                    "ne" => { let $f = move |a, b| number(a, b) && g(a) != g(b); Some($make) }
                    "lt" => { let $f = move |a, b| g(a) < g(b); Some($make) }
                    "le" => { let $f = move |a, b| g(a) <= g(b); Some($make) }
                    "gt" => { let $f = move |a, b| g(a) > g(b); Some($make) }
                    "ge" => { let $f = move |a, b| g(a) >= g(b); Some($make) }
                    "equ" => { let $f = move |a, b| !number(a, b) || g(a) == g(b); Some($make) }
                    "neu" => { let $f = move |a, b| g(a) != g(b); Some($make) }
                    "ltu" => { let $f = move |a, b| !number(a, b) || g(a) < g(b); Some($make) }
                    "leu" => { let $f = move |a, b| !number(a, b) || g(a) <= g(b); Some($make) }
                    "gtu" => { let $f = move |a, b| !number(a, b) || g(a) > g(b); Some($make) }
                    "geu" => { let $f = move |a, b| !number(a, b) || g(a) >= g(b); Some($make) }
                    "num" => { let $f = number; Some($make) }
                    "nan" => { let $f = move |a, b| !number(a, b); Some($make) }
                    _ => None,
                }
            }};
        }
        match $kind {
            Type::F32 if $ftz => float!(f32, arithmetic::flush),
            Type::F32 => float!(f32, |x: f32| x),
            Type::F64 => float!(f64, |x: f64| x),
            _ => match $relation {
                "eq" => integers!($kind; $T => { let $f = |a: $T, b: $T| a == b; $make }),
                "ne" => integers!($kind; $T => { let $f = |a: $T, b: $T| a != b; $make }),
                "lt" | "lo" => integers!($kind; $T => { let $f = |a: $T, b: $T| a < b; $make }),
                "le" | "ls" => integers!($kind; $T => { let $f = |a: $T, b: $T| a <= b; $make }),
                "gt" | "hi" => integers!($kind; $T => { let $f = |a: $T, b: $T| a > b; $make }),
                "ge" | "hs" => integers!($kind; $T => { let $f = |a: $T, b: $T| a >= b; $make }),
                _ => None,
            },
        }
    }};
}

fn compare_by(
    relation: &str,
    kind: Type,
    ftz: bool,
    targets: [u32; 2],
    sources: [u32; 3],
    combine: fn(u32, u32) -> u32,
) -> Option<Action> {
    relations!(relation, kind, ftz; T, f => compare::<T>(targets, sources, f, combine))
}

fn set_by(
    relation: &str,
    kind: Type,
    ftz: bool,
    result: Type,
    d: u32,
    sources: [u32; 3],
    combine: fn(u32, u32) -> u32,
) -> Option<Action> {
    match result {
        Type::F32 => {
            relations!(relation, kind, ftz; T, f => set::<T, f32>(d, sources, 1.0, f, combine))
        }
        Type::U32 | Type::S32 | Type::B32 => {
            relations!(relation, kind, ftz; T, f => set::<T, u32>(d, sources, !0, f, combine))
        }
        _ => None,
    }
}

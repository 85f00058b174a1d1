//! Integer, f32 and f64 arithmetic, logic and comparison: what each opcode computes in a lane.

use super::opcode::{Opcode, Type};
use super::{Lowering, Result};
use crate::number::{self, Rounding, approximate, arithmetic};
use crate::parse::Operand;
use crate::registers::{Action, binary, compare, logic, quaternary, select, set, ternary, unary};

/// Picks the Rust types of an action by the PTX type: `by_type!(ty; U32 => unary::<u32, u32>…)`.
macro_rules! by_type {
    ($kind:expr; $($name:ident $rust:ty),*; $T:ident => $action:expr) => {
        match $kind {
            $(Type::$name => { type $T = $rust; Some($action) })*
            _ => None,
        }
    };
}

/// The integer types that arithmetic works on.
macro_rules! integers {
    ($kind:expr; $T:ident => $action:expr) => {
        by_type!($kind; U16 u16, S16 i16, U32 u32, S32 i32, U64 u64, S64 i64; $T => $action)
    };
}

/// Untyped bits by width.
macro_rules! bits {
    ($kind:expr; $T:ident => $action:expr) => {
        by_type!($kind.as_bits(); U16 u16, U32 u32, U64 u64; $T => $action)
    };
}

pub(super) const ROUNDINGS: [(&str, Rounding); 5] = [
    ("rn", Rounding::NearestEven),
    ("rz", Rounding::Zero),
    ("rm", Rounding::Down),
    ("rp", Rounding::Up),
    ("rna", Rounding::NearestAway),
];

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
    pub(super) fn arithmetic(
        &mut self,
        opcode: &mut Opcode,
        operands: &[Operand],
    ) -> Result<Action> {
        let action = match opcode.base {
            "add" | "sub" | "mul" | "mad" | "fma" | "div" | "rem" | "min" | "max" | "abs"
            | "neg" | "mul24" | "mad24" | "sad" => self.number(opcode, operands)?,
            "add3" => None,
            "addc" | "subc" | "madc" => None,
            "and" | "or" | "xor" | "not" | "cnot" | "lop3" | "shl" | "shr" | "shf" | "prmt"
            | "bfe" | "bfi" | "bfind" | "brev" | "popc" | "clz" | "bmsk" | "szext" | "fns" => {
                self.bitwise(opcode, operands)?
            }
            "setp" | "set" | "selp" | "slct" | "testp" | "copysign" => {
                self.comparison(opcode, operands)?
            }
            "mov" => self.mov(opcode, operands)?,
            "dp4a" | "dp2a" => self.dot(opcode, operands)?,
            "rcp" | "sqrt" | "rsqrt" | "sin" | "cos" | "tanh" | "ex2" | "lg2" => {
                self.transcendental(opcode, operands)?
            }
            _ => None,
        };
        action.ok_or_else(|| opcode.unsupported())
    }

    /// `add` to `abs`: dispatch on integer or float.
    fn number(&mut self, opcode: &mut Opcode, operands: &[Operand]) -> Result<Option<Action>> {
        let kind = opcode.take_type()?.as_unsigned();
        match kind {
            Type::F32 => self.single(opcode, operands),
            Type::F64 => self.double(opcode, operands),
            _ => self.integer(opcode, operands, kind),
        }
    }

    fn integer(
        &mut self,
        opcode: &mut Opcode,
        operands: &[Operand],
        kind: Type,
    ) -> Result<Option<Action>> {
        let base = opcode.base;
        if matches!(base, "mul" | "mad") && opcode.take("wide") {
            return self.wide_product(opcode, operands, kind);
        }
        let high = matches!(base, "mul" | "mad") && !opcode.take("lo") && opcode.take("hi");
        let sat = matches!(base, "add" | "sub") && opcode.take("sat");
        Ok(match base {
            "abs" | "neg" => {
                let r = self.registers(opcode, operands, [kind; 2])?;
                match base {
                    "abs" => by_type!(kind; S16 i16, S32 i32, S64 i64;
                        T => unary(r, T::wrapping_abs)),
                    _ => integers!(kind; T => unary(r, T::wrapping_neg)),
                }
            }
            "mad" | "sad" => {
                let r = self.registers(opcode, operands, [kind; 4])?;
                match base {
                    "mad" if high => {
                        by_type!(kind; U16 u16, S16 i16, U32 u32, S32 i32, U64 u64, S64 i64;
                            T => ternary(r, |a: T, b: T, c: T| a.high(b).wrapping_add(c)))
                    }
                    "mad" => bits!(kind; T => ternary(r, |a: T, b: T, c: T| {
                        a.wrapping_mul(b).wrapping_add(c)
                    })),
                    _ => integers!(kind; T => ternary(r, |a: T, b: T, c: T| {
                        (a.max(b).wrapping_sub(a.min(b))).wrapping_add(c)
                    })),
                }
            }
            _ => {
                let r = self.registers(opcode, operands, [kind; 3])?;
                match base {
                    "add" if sat => by_type!(kind; S32 i32; T => binary(r, T::saturating_add)),
                    "sub" if sat => by_type!(kind; S32 i32; T => binary(r, T::saturating_sub)),
                    "add" => bits!(kind; T => binary(r, T::wrapping_add)),
                    "sub" => bits!(kind; T => binary(r, T::wrapping_sub)),
                    "mul" if high => integers!(kind; T => binary(r, |a: T, b: T| a.high(b))),
                    "mul" => bits!(kind; T => binary(r, T::wrapping_mul)),
                    "min" => integers!(kind; T => binary::<T, T, T>(r, Ord::min)),
                    "max" => integers!(kind; T => binary::<T, T, T>(r, Ord::max)),
                    // Division by zero is left open; the hardware gives all ones.
                    "div" => integers!(kind; T => binary(r, |a: T, b: T| {
                        if b == 0 { !0 } else { a.wrapping_div(b) }
                    })),
                    "rem" => integers!(kind; T => binary(r, |a: T, b: T| {
                        if b == 0 { a } else { a.wrapping_rem(b) }
                    })),
                    _ => None,
                }
            }
        })
    }

    fn wide_product(
        &mut self,
        opcode: &mut Opcode,
        operands: &[Operand],
        kind: Type,
    ) -> Result<Option<Action>> {
        let to = match kind {
            Type::U16 => Type::U32,
            Type::S16 => Type::S32,
            Type::U32 => Type::U64,
            Type::S32 => Type::S64,
            _ => return Ok(None),
        };
        if opcode.base == "mul" {
            let r = self.registers(opcode, operands, [to, kind, kind])?;
            return Ok(Some(match kind {
                Type::U16 => binary(r, |a: u16, b: u16| u32::from(a) * u32::from(b)),
                Type::S16 => binary(r, |a: i16, b: i16| i32::from(a) * i32::from(b)),
                Type::U32 => binary(r, |a: u32, b: u32| u64::from(a) * u64::from(b)),
                _ => binary(r, |a: i32, b: i32| i64::from(a) * i64::from(b)),
            }));
        }
        let r = self.registers(opcode, operands, [to, kind, kind, to])?;
        Ok(Some(match kind {
            Type::U16 => ternary(r, |a: u16, b: u16, c: u32| {
                (u32::from(a) * u32::from(b)).wrapping_add(c)
            }),
            Type::S16 => ternary(r, |a: i16, b: i16, c: i32| {
                (i32::from(a) * i32::from(b)).wrapping_add(c)
            }),
            Type::U32 => ternary(r, |a: u32, b: u32, c: u64| {
                (u64::from(a) * u64::from(b)).wrapping_add(c)
            }),
            _ => ternary(r, |a: i32, b: i32, c: i64| {
                (i64::from(a) * i64::from(b)).wrapping_add(c)
            }),
        }))
    }

    fn single(&mut self, opcode: &mut Opcode, operands: &[Operand]) -> Result<Option<Action>> {
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

    fn double(&mut self, opcode: &mut Opcode, operands: &[Operand]) -> Result<Option<Action>> {
        let base = opcode.base;
        let rounding = opcode.take_any(&ROUNDINGS).unwrap_or(Rounding::NearestEven);
        if rounding != Rounding::NearestEven {
            return Ok(None);
        }
        let kind = Type::F64;
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

    fn bitwise(&mut self, opcode: &mut Opcode, operands: &[Operand]) -> Result<Option<Action>> {
        let base = opcode.base;
        let shiftamt = base == "bfind" && opcode.take("shiftamt");
        let wrap = opcode.take("wrap");
        let clamp = opcode.take("clamp");
        let left = base == "shf" && opcode.take("l");
        let right = base == "shf" && opcode.take("r");
        if base == "prmt" {
            return self.permute(opcode, operands);
        }
        let kind = opcode.take_type()?.as_unsigned();
        let three = [kind; 3];
        if kind == Type::Pred {
            return self.predicate_logic(opcode, operands);
        }
        Ok(match base {
            "and" | "or" | "xor" => {
                let r = self.registers(opcode, operands, three)?;
                match base {
                    "and" => bits!(kind; T => binary(r, |a: T, b: T| a & b)),
                    "or" => bits!(kind; T => binary(r, |a: T, b: T| a | b)),
                    _ => bits!(kind; T => binary(r, |a: T, b: T| a ^ b)),
                }
            }
            "not" => {
                let r = self.registers(opcode, operands, [kind; 2])?;
                bits!(kind; T => unary(r, |a: T| !a))
            }
            "cnot" => {
                let r = self.registers(opcode, operands, [kind; 2])?;
                bits!(kind; T => unary(r, |a: T| T::from(a == 0)))
            }
            "lop3" => {
                let Some(Operand::Integer(table)) = operands.last() else {
                    return Err(opcode.malformed("the table is no number"));
                };
                let table = *table as u8;
                let r = self.registers(opcode, &operands[..operands.len() - 1], [kind; 4])?;
                Some(lop3(r, table))
            }
            "shl" | "shr" => {
                let r = self.registers(opcode, operands, [kind, kind, Type::U32])?;
                let most = kind.size() * 8 - 1;
                match base {
                    "shl" => bits!(kind; T => binary(r, move |a: T, n: u32| {
                        if n > most { 0 } else { a << n }
                    })),
                    _ if kind.is_signed() => by_type!(kind; S16 i16, S32 i32, S64 i64;
                        T => binary(r, move |a: T, n: u32| a >> n.min(most))),
                    _ => bits!(kind; T => binary(r, move |a: T, n: u32| {
                        if n > most { 0 } else { a >> n }
                    })),
                }
            }
            "shf" if left != right && wrap != clamp => {
                let r = self.registers(opcode, operands, [kind; 4])?;
                Some(ternary(r, move |low: u32, high: u32, n: u32| {
                    let n = if wrap { n & 31 } else { n.min(32) };
                    let both = u64::from(high) << 32 | u64::from(low);
                    if left {
                        (both << n >> 32) as u32
                    } else {
                        (both >> n) as u32
                    }
                }))
            }
            "bfe" => {
                let r = self.registers(opcode, operands, [kind, kind, Type::U32, Type::U32])?;
                match kind {
                    Type::U32 => Some(ternary(r, |a: u32, at: u32, n: u32| {
                        extract(a.into(), 32, false, at, n) as u32
                    })),
                    Type::S32 => Some(ternary(r, |a: u32, at: u32, n: u32| {
                        extract(a.into(), 32, true, at, n) as u32
                    })),
                    Type::U64 => Some(ternary(r, |a: u64, at: u32, n: u32| {
                        extract(a, 64, false, at, n)
                    })),
                    Type::S64 => Some(ternary(r, |a: u64, at: u32, n: u32| {
                        extract(a, 64, true, at, n)
                    })),
                    _ => None,
                }
            }
            "bfi" => {
                let kinds = [kind, kind, kind, Type::U32, Type::U32];
                let r = self.registers(opcode, operands, kinds)?;
                by_type!(kind; U32 u32, U64 u64; T => quaternary(r, |a: T, b: T, at: u32, n: u32| {
                    let (at, n) = (at & 0xff, n & 0xff);
                    let ones = if n >= T::BITS { !0 } else { (1 << n) - 1 };
                    let field: T = if at >= T::BITS { 0 } else { ones << at };
                    let moved = if at >= T::BITS { 0 } else { a << at };
                    b & !field | moved & field
                }))
            }
            "bfind" => {
                let r = self.registers(opcode, operands, [Type::U32, kind])?;
                by_type!(kind; U32 u32, S32 i32, U64 u64, S64 i64; T => unary(r, move |a: T| {
                    // The sign of a negative number is looked for from its first zero.
                    #[allow(unused_comparisons, clippy::absurd_extreme_comparisons)]
                    let a = if a < 0 { !a } else { a };
                    let zeros = a.leading_zeros();
                    if zeros == T::BITS { !0 } else if shiftamt { zeros } else { T::BITS - 1 - zeros }
                }))
            }
            "brev" => {
                let r = self.registers(opcode, operands, [kind; 2])?;
                by_type!(kind; U32 u32, U64 u64; T => unary(r, T::reverse_bits))
            }
            "popc" => {
                let r = self.registers(opcode, operands, [Type::U32, kind])?;
                by_type!(kind; U32 u32, U64 u64; T => unary(r, T::count_ones))
            }
            "clz" => {
                let r = self.registers(opcode, operands, [Type::U32, kind])?;
                by_type!(kind; U32 u32, U64 u64; T => unary(r, T::leading_zeros))
            }
            "bmsk" => {
                let r = self.registers(opcode, operands, three)?;
                Some(binary(r, move |at: u32, n: u32| {
                    let (at, n) = if wrap {
                        (at & 31, n & 31)
                    } else {
                        (at.min(32), n.min(32))
                    };
                    (((1_u64 << n) - 1) << at) as u32
                }))
            }
            "szext" => {
                let r = self.registers(opcode, operands, [kind, kind, Type::U32])?;
                let signed = kind.is_signed();
                Some(binary(r, move |a: u32, n: u32| {
                    let n = if wrap { n & 31 } else { n.min(32) };
                    match n {
                        0 => 0,
                        _ if signed => ((a << (32 - n)) as i32 >> (32 - n)) as u32,
                        _ => a << (32 - n) >> (32 - n),
                    }
                }))
            }
            "fns" => {
                let r = self.registers(opcode, operands, [kind, kind, kind, Type::S32])?;
                Some(ternary(r, nth_set))
            }
            _ => None,
        })
    }

    fn permute(&mut self, opcode: &mut Opcode, operands: &[Operand]) -> Result<Option<Action>> {
        opcode.take_type()?;
        let mode = opcode.next();
        let r = self.registers(opcode, operands, [Type::U32; 4])?;
        let selector: fn(u32) -> u32 = match mode {
            None => |s| s,
            Some("f4e") => |s| 0x3210 + (s & 3) * 0x1111,
            Some("b4e") => {
                |s| (0..4).fold(0, |all, i| all | ((s & 3).wrapping_sub(i) & 7) << (4 * i))
            }
            Some("rc8") => |s| (s & 3) * 0x1111,
            Some("ecl") => |s| (0..4).fold(0, |all, i| all | i.max(s & 3) << (4 * i)),
            Some("ecr") => |s| (0..4).fold(0, |all, i| all | i.min(s & 3) << (4 * i)),
            Some("rc16") => |s| if s & 1 == 0 { 0x1010 } else { 0x3232 },
            Some(_) => return Ok(None),
        };
        Ok(Some(ternary(r, move |a: u32, b: u32, s: u32| {
            let both = u64::from(b) << 32 | u64::from(a);
            let s = selector(s);
            (0..4).fold(0, |all, i| {
                let nibble = s >> (4 * i);
                let byte = (both >> (8 * (nibble & 7))) as u8;
                let byte = if nibble & 8 == 0 {
                    byte
                } else {
                    (byte as i8 >> 7) as u8
                };
                all | u32::from(byte) << (8 * i)
            })
        })))
    }

    fn predicate_logic(&mut self, opcode: &Opcode, operands: &[Operand]) -> Result<Option<Action>> {
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

    fn comparison(&mut self, opcode: &mut Opcode, operands: &[Operand]) -> Result<Option<Action>> {
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

    fn mov(&mut self, opcode: &mut Opcode, operands: &[Operand]) -> Result<Option<Action>> {
        let kind = opcode.take_type()?;
        let [d, a] = operands else { return Ok(None) };
        match (d, a) {
            (Operand::Vector(parts), a) => self.unpack(opcode, kind, parts, a),
            (d, Operand::Vector(parts)) => self.pack(opcode, kind, d, parts),
            _ if kind == Type::Pred => {
                let d = self.target(opcode, d, kind)?;
                let (a, negated) = self.signed_predicate(opcode, a)?;
                let flip = if negated { !0 } else { 0 };
                Ok(Some(logic([d, a, a, a], move |a, _, _| a ^ flip)))
            }
            (d, Operand::Name(name, 0)) if name.starts_with("%clock") => {
                let _ = d;
                Ok(None)
            }
            (d, a) => {
                let d = self.target(opcode, d, kind)?;
                let a = self.source(opcode, a, kind)?;
                Ok(match kind.size() {
                    8 => Some(unary([d, a], |a: u64| a)),
                    2 => Some(unary([d, a], |a: u16| a)),
                    4 => Some(unary([d, a], |a: u32| a)),
                    _ => None,
                })
            }
        }
    }

    /// `mov.b64 d, {low, high}`.
    fn pack(
        &mut self,
        opcode: &Opcode,
        kind: Type,
        d: &Operand,
        parts: &[Operand],
    ) -> Result<Option<Action>> {
        let d = self.target(opcode, d, kind)?;
        let part = if parts.len() == 4 || kind.size() == 4 {
            Type::B16
        } else {
            Type::B32
        };
        let part = if kind.size() as usize == parts.len() {
            Type::B8
        } else {
            part
        };
        let sources: Vec<u32> = parts
            .iter()
            .map(|operand| self.source(opcode, operand, part))
            .collect::<Result<_>>()?;
        Ok(match (kind.size(), sources.as_slice()) {
            (8, &[a, b]) => Some(binary([d, a, b], |a: u32, b: u32| {
                u64::from(b) << 32 | u64::from(a)
            })),
            (8, &[a, b, c, e]) => Some(quaternary(
                [d, a, b, c, e],
                |a: u16, b: u16, c: u16, e: u16| {
                    let low = u64::from(b) << 16 | u64::from(a);
                    (u64::from(e) << 16 | u64::from(c)) << 32 | low
                },
            )),
            (4, &[a, b]) => Some(binary([d, a, b], |a: u16, b: u16| {
                u32::from(b) << 16 | u32::from(a)
            })),
            (4, &[a, b, c, e]) => {
                Some(quaternary([d, a, b, c, e], |a: u8, b: u8, c: u8, e: u8| {
                    u32::from_le_bytes([a, b, c, e])
                }))
            }
            _ => None,
        })
    }

    /// `mov.b64 {low, high}, a`.
    fn unpack(
        &mut self,
        opcode: &Opcode,
        kind: Type,
        parts: &[Operand],
        a: &Operand,
    ) -> Result<Option<Action>> {
        let a = self.source(opcode, a, kind)?;
        let bits = kind.size() * 8 / parts.len().max(1) as u32;
        let part = match bits {
            8 => Type::B8,
            16 => Type::B16,
            32 => Type::B32,
            _ => return Ok(None),
        };
        let targets: Vec<u32> = parts
            .iter()
            .map(|operand| self.target(opcode, operand, part))
            .collect::<Result<_>>()?;
        let is_wide = kind.is_wide();
        let ones = if bits == 32 { !0 } else { (1_u32 << bits) - 1 };
        Ok(Some(Box::new(move |registers, mask| {
            let whole: [u64; 32] = if is_wide {
                *registers.row::<u64>(a)
            } else {
                registers.row::<u32>(a).map(u64::from)
            };
            for (at, target) in targets.iter().enumerate() {
                let out = whole.map(|x| (x >> (at as u32 * bits)) as u32 & ones);
                registers.put(*target, mask, &out);
            }
        })))
    }

    fn dot(&mut self, opcode: &mut Opcode, operands: &[Operand]) -> Result<Option<Action>> {
        let high = opcode.take("hi");
        opcode.take("lo");
        let a = opcode.take_type()?;
        let b = opcode.take_type()?;
        let d = if a == Type::S32 || b == Type::S32 {
            Type::S32
        } else {
            Type::U32
        };
        let r = self.registers(opcode, operands, [d, Type::U32, Type::U32, d])?;
        let (a_signed, b_signed) = (a.is_signed(), b.is_signed());
        let byte = |x: u32, i: u32, signed: bool| {
            let byte = (x >> (8 * i)) as u8;
            if signed {
                i32::from(byte as i8)
            } else {
                i32::from(byte)
            }
        };
        let half = |x: u32, i: u32, signed: bool| {
            let half = (x >> (16 * i)) as u16;
            if signed {
                i32::from(half as i16)
            } else {
                i32::from(half)
            }
        };
        Ok(Some(if opcode.base == "dp4a" {
            ternary(r, move |x: u32, y: u32, c: i32| {
                (0..4).fold(c, |sum, i| {
                    sum.wrapping_add(byte(x, i, a_signed) * byte(y, i, b_signed))
                })
            })
        } else {
            let start = if high { 2 } else { 0 };
            ternary(r, move |x: u32, y: u32, c: i32| {
                (0..2).fold(c, |sum, i| {
                    let product = half(x, i, a_signed) * byte(y, start + i, b_signed);
                    sum.wrapping_add(product)
                })
            })
        }))
    }

    fn transcendental(
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

/// `bfe`.
fn extract(a: u64, bits: u32, signed: bool, at: u32, n: u32) -> u64 {
    let (at, n) = (at & 0xff, n & 0xff);
    if n == 0 {
        return 0;
    }
    let sign = signed && a >> (at + n - 1).min(bits - 1) & 1 != 0;
    let moved = if at >= bits { 0 } else { a >> at };
    let kept = n.min(bits.saturating_sub(at));
    let ones = if kept >= 64 { !0 } else { (1 << kept) - 1 };
    moved & ones | if sign { !ones } else { 0 }
}

/// `fns`: the position of the n-th set bit from `base`, upwards or downwards.
fn nth_set(mask: u32, base: u32, offset: i32) -> u32 {
    let mut positions: Vec<u32> = (0..32).filter(|bit| mask >> bit & 1 != 0).collect();
    let n = match offset {
        0 => {
            return if base < 32 && mask >> base & 1 != 0 {
                base
            } else {
                !0
            };
        }
        1.. => {
            positions.retain(|bit| *bit >= base);
            offset as usize
        }
        _ => {
            positions.retain(|bit| *bit <= base);
            positions.reverse();
            offset.unsigned_abs() as usize
        }
    };
    positions.get(n - 1).copied().unwrap_or(!0)
}

/// `lop3` through the sum of its minterms.
fn lop3(r: [u32; 4], table: u8) -> Action {
    macro_rules! common {
        ($($value:literal => |$a:ident, $b:ident, $c:ident| $e:expr;)*) => {
            match table {
                $($value => ternary(r, |$a: u32, $b: u32, $c: u32| $e),)*
                _ => ternary(r, move |a: u32, b: u32, c: u32| {
                    (0..8).filter(|i| table >> i & 1 != 0).fold(0, |all, i| {
                        let a = if i & 4 != 0 { a } else { !a };
                        let b = if i & 2 != 0 { b } else { !b };
                        let c = if i & 1 != 0 { c } else { !c };
                        all | a & b & c
                    })
                }),
            }
        };
    }
    common! {
        0x80 => |a, b, c| a & b & c;
        0xfe => |a, b, c| a | b | c;
        0x96 => |a, b, c| a ^ b ^ c;
        0xea => |a, b, c| a & b | c;
        0xf8 => |a, b, c| a | b & c;
        0xca => |a, b, c| a & b | !a & c;
        0xe2 => |a, b, c| b & a | !b & c;
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

/// The upper half of a product.
trait High {
    fn high(self, other: Self) -> Self;
}

macro_rules! high {
    ($($type:ty, $double:ty;)*) => {$(
        impl High for $type {
            #[inline(always)]
            fn high(self, other: Self) -> Self {
                (<$double>::from(self) * <$double>::from(other) >> Self::BITS) as Self
            }
        }
    )*};
}

high! { u16, u32; i16, i32; u32, u64; i32, i64; u64, u128; i64, i128; }

/// Conversions used by other decoders.
pub(super) fn half_format(kind: Type) -> Option<number::Format> {
    match kind {
        Type::F16 | Type::F16x2 => Some(number::F16),
        Type::BF16 | Type::BF16x2 => Some(number::BF16),
        _ => None,
    }
}

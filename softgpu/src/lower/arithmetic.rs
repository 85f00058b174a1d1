//! Arithmetic, logic and comparison: what each opcode computes in a lane. Integers are here.

use super::opcode::{Opcode, Type};
use super::{Lowering, Result};
use crate::number::{self, Rounding};
use crate::parse::Operand;
use crate::registers::{Action, binary, ternary, unary};

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

mod bitwise;
mod carry;
mod comparison;
mod float;
mod movement;

pub(super) const ROUNDINGS: [(&str, Rounding); 5] = [
    ("rn", Rounding::NearestEven),
    ("rz", Rounding::Zero),
    ("rm", Rounding::Down),
    ("rp", Rounding::Up),
    ("rna", Rounding::NearestAway),
];

impl Lowering<'_> {
    pub(super) fn arithmetic(
        &mut self,
        opcode: &mut Opcode,
        operands: &[Operand],
    ) -> Result<Action> {
        let action = match opcode.base {
            "addc" | "subc" | "madc" => self.carrying(opcode, operands)?,
            "add" | "sub" | "mad" if opcode.has("cc") => self.carrying(opcode, operands)?,
            "add" | "sub" | "mul" | "mad" | "fma" | "div" | "rem" | "min" | "max" | "abs"
            | "neg" | "mul24" | "mad24" | "sad" => self.number(opcode, operands)?,
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

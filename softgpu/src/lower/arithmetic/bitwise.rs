//! Bits: logic, shifts, fields, counts and permutations.

use super::super::opcode::{Opcode, Type};
use super::super::{Lowering, Result};
use crate::parse::Operand;
use crate::registers::{Action, binary, quaternary, ternary, unary};

impl Lowering<'_> {
    pub(super) fn bitwise(
        &mut self,
        opcode: &mut Opcode,
        operands: &[Operand],
    ) -> Result<Option<Action>> {
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

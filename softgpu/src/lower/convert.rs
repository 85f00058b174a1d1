//! `cvt`: between integers, floats, and packed narrow floats.

use super::arithmetic::{ROUNDINGS, half_format};
use super::opcode::{Opcode, Type};
use super::{Lowering, Result};
use crate::ir::Width;
use crate::number::format::{integer_to_f64, integer_to_format, round_to_integral};
use crate::number::{self, E4M3, E5M2, F32, Format, Integer, Overflow, Rounding, TF32, arithmetic};
use crate::parse::Operand;
use crate::registers::{Action, binary, unary};

const INTEGRAL: [(&str, Rounding); 4] = [
    ("rni", Rounding::NearestEven),
    ("rzi", Rounding::Zero),
    ("rmi", Rounding::Down),
    ("rpi", Rounding::Up),
];

/// The modifiers of a conversion.
#[derive(Clone, Copy)]
struct Modifiers {
    rounding: Rounding,
    /// Rounding to an integral value, where the target is a float.
    integral: bool,
    overflow: Overflow,
    ftz: bool,
    sat: bool,
    relu: bool,
}

impl Lowering<'_> {
    pub(super) fn convert(&mut self, opcode: &mut Opcode, operands: &[Operand]) -> Result<Action> {
        if opcode.take("pack") {
            return self.saturating_pack(opcode, operands);
        }
        let integral = opcode.take_any(&INTEGRAL);
        let rounding = opcode.take_any(&ROUNDINGS);
        let saturates = opcode.take("satfinite");
        let modifiers = Modifiers {
            rounding: integral.or(rounding).unwrap_or(Rounding::NearestEven),
            integral: integral.is_some(),
            overflow: if saturates {
                Overflow::Saturate
            } else {
                Overflow::Infinity
            },
            ftz: opcode.take("ftz"),
            sat: opcode.take("sat"),
            relu: opcode.take("relu"),
        };
        let to = opcode.take_type()?;
        let from = opcode.take_type()?;
        if let [d, a, b] = operands {
            return self.convert_pair(opcode, modifiers, [to, from], [d, a, b]);
        }
        let [d, a] = operands else {
            return Err(opcode.malformed("two operands are expected"));
        };
        if let Some(action) = self.unpack_fp8(opcode, modifiers, [to, from], d, a)? {
            return Ok(action);
        }
        let target = self.any_target(opcode, d)?;
        let (d, width) = target.unwrap_or((self.discard[0], Width::B32));
        let (a, is_wide) = self.any_source(opcode, a, from)?;
        let action = match (float(from), float(to)) {
            (None, None) => integer_to_integer(from, to, modifiers, [d, a], width, is_wide),
            (None, Some(_)) => integer_to_float(from, to, modifiers, [d, a], is_wide),
            (Some(source), None) => float_to_integer(source, to, modifiers, [d, a], width),
            (Some(source), Some(_)) => float_to_float(source, to, modifiers, [d, a]),
        };
        action.ok_or_else(|| opcode.unsupported())
    }

    /// `cvt.rn.f16x2.f32 d, a, b`: `a` in the upper half.
    fn convert_pair(
        &mut self,
        opcode: &Opcode,
        m: Modifiers,
        [to, from]: [Type; 2],
        [d, a, b]: [&Operand; 3],
    ) -> Result<Action> {
        let format = match to {
            Type::E4M3x2 => E4M3,
            Type::E5M2x2 => E5M2,
            _ => half_format(to).ok_or_else(|| opcode.unsupported())?,
        };
        if from != Type::F32 {
            return Err(opcode.unsupported());
        }
        let r = [
            self.target(
                opcode,
                d,
                if to.size() == 2 { Type::B16 } else { Type::B32 },
            )?,
            self.source(opcode, a, from)?,
            self.source(opcode, b, from)?,
        ];
        let shift = to.size() * 4;
        Ok(binary(r, move |a: f32, b: f32| {
            let [a, b] = [a, b].map(|x| encode(format, x.into(), m));
            a << shift | b
        }))
    }

    /// `cvt.rn.f16x2.e4m3x2`, and `cvt.rn.satfinite.e4m3x2.f16x2`.
    fn unpack_fp8(
        &mut self,
        opcode: &Opcode,
        m: Modifiers,
        [to, from]: [Type; 2],
        d: &Operand,
        a: &Operand,
    ) -> Result<Option<Action>> {
        let narrow = |kind| match kind {
            Type::E4M3x2 => Some(E4M3),
            Type::E5M2x2 => Some(E5M2),
            _ => None,
        };
        if let (Some(format), Some(half)) = (narrow(from), half_format(to)) {
            let r = [
                self.target(opcode, d, Type::B32)?,
                self.source(opcode, a, Type::B16)?,
            ];
            return Ok(Some(unary(r, move |x: u16| {
                let [low, high] = x
                    .to_le_bytes()
                    .map(|byte| encode(half, format.decode(byte.into()), m));
                high << 16 | low
            })));
        }
        if let (Some(format), Some(half)) = (narrow(to), half_format(from)) {
            let r = [
                self.target(opcode, d, Type::B16)?,
                self.source(opcode, a, Type::B32)?,
            ];
            return Ok(Some(unary(r, move |x: u32| {
                let [low, high] =
                    [x & 0xffff, x >> 16].map(|bits| encode(format, half.decode(bits), m));
                (high << 8 | low) as u16
            })));
        }
        Ok(None)
    }

    /// `cvt.pack.sat.u8.s32.b32 d, a, b, c` and its relatives.
    fn saturating_pack(&mut self, opcode: &mut Opcode, operands: &[Operand]) -> Result<Action> {
        opcode.take("sat");
        let to = opcode.take_type()?;
        let from = opcode.take_type()?;
        let merge = opcode.optional_type().is_some();
        let [d, a, b, rest @ ..] = operands else {
            return Err(opcode.unsupported());
        };
        if from != Type::S32 || merge != (rest.len() == 1) || !matches!(to.size(), 1 | 2) {
            return Err(opcode.unsupported());
        }
        let d = self.target(opcode, d, Type::B32)?;
        let a = self.source(opcode, a, from)?;
        let b = self.source(opcode, b, from)?;
        let c = match rest {
            [c] => self.source(opcode, c, Type::B32)?,
            _ => self.constant(false, 0),
        };
        let bits = to.size() * 8;
        let integer = Integer {
            bits,
            signed: to.is_signed(),
        };
        Ok(crate::registers::ternary(
            [d, a, b, c],
            move |a: i32, b: i32, c: u32| {
                let [a, b] = [a, b].map(|x| integer.clamp(x.into()) as u32 & ((1 << bits) - 1));
                let kept = u64::from(c) << (2 * bits);
                kept as u32 | a << bits | b
            },
        ))
    }
}

/// A floating-point source.
#[derive(Clone, Copy)]
enum Float {
    Narrow(Format),
    Double,
}

fn float(kind: Type) -> Option<Float> {
    match kind {
        Type::F64 => Some(Float::Double),
        Type::F32 => Some(Float::Narrow(F32)),
        Type::TF32 => Some(Float::Narrow(TF32)),
        Type::F16 | Type::BF16 => half_format(kind).map(Float::Narrow),
        _ => None,
    }
}

/// A value in a narrow format, with the modifiers of the conversion.
fn encode(format: Format, value: f64, m: Modifiers) -> u32 {
    let value = match m.sat {
        true if value > 0.0 => value.min(1.0),
        true => 0.0,
        false => value,
    };
    let bits = format.encode(value, m.rounding, m.overflow);
    // `.ftz` is about f32 alone.
    let bits = if m.ftz && format == F32 {
        format.flush(bits)
    } else {
        bits
    };
    if m.relu { format.relu(bits) } else { bits }
}

/// An integer sign- or zero-extended from its type's width.
#[inline(always)]
fn extend(x: u64, kind: Type) -> u64 {
    let shift = 64 - kind.size() * 8;
    if kind.is_signed() {
        ((x << shift) as i64 >> shift) as u64
    } else {
        x << shift >> shift
    }
}

/// Instantiates an action for a source in either file and a target of any width.
fn from_bits(
    [d, a]: [u32; 2],
    width: Width,
    is_wide: bool,
    f: impl Fn(u64) -> u64 + Send + Sync + 'static,
) -> Action {
    match (is_wide, width) {
        (false, Width::B64) => unary([d, a], move |x: u32| f(x.into())),
        (false, Width::B32) => unary([d, a], move |x: u32| f(x.into()) as u32),
        (false, Width::B16) => unary([d, a], move |x: u32| f(x.into()) as u16),
        (false, Width::B8) => unary([d, a], move |x: u32| f(x.into()) as u8),
        (true, Width::B64) => unary([d, a], f),
        (true, Width::B32) => unary([d, a], move |x: u64| f(x) as u32),
        (true, Width::B16) => unary([d, a], move |x: u64| f(x) as u16),
        (true, Width::B8) => unary([d, a], move |x: u64| f(x) as u8),
    }
}

fn integer_to_integer(
    from: Type,
    to: Type,
    m: Modifiers,
    r: [u32; 2],
    width: Width,
    is_wide: bool,
) -> Option<Action> {
    let (from, to) = (from.as_unsigned(), to.as_unsigned());
    if from.size() == 0 || to.size() == 0 || from.size() > 8 || to.size() > 8 {
        return None;
    }
    if m.sat {
        let integer = Integer {
            bits: to.size() * 8,
            signed: to.is_signed(),
        };
        return Some(from_bits(r, width, is_wide, move |x| {
            let x = extend(x, from);
            let x = if from.is_signed() {
                i128::from(x as i64)
            } else {
                i128::from(x)
            };
            integer.clamp(x)
        }));
    }
    Some(match (from, to, width) {
        (Type::U32, Type::U64 | Type::S64, Width::B64) if !is_wide => {
            unary(r, |x: u32| u64::from(x))
        }
        (Type::S32, Type::U64 | Type::S64, Width::B64) if !is_wide => {
            unary(r, |x: i32| i64::from(x))
        }
        _ => from_bits(r, width, is_wide, move |x| extend(extend(x, from), to)),
    })
}

fn integer_to_float(
    from: Type,
    to: Type,
    m: Modifiers,
    r: [u32; 2],
    is_wide: bool,
) -> Option<Action> {
    let from = from.as_unsigned();
    let plain = m.rounding == Rounding::NearestEven && !m.sat;
    let value = move |x: u64| {
        let x = extend(x, from);
        if from.is_signed() {
            i128::from(x as i64)
        } else {
            i128::from(x)
        }
    };
    Some(match (from, to) {
        (Type::U32, Type::F32) if plain && !is_wide => unary(r, |x: u32| x as f32),
        (Type::S32, Type::F32) if plain && !is_wide => unary(r, |x: i32| x as f32),
        (_, Type::F64) => from_bits(r, Width::B64, is_wide, move |x| {
            let result = integer_to_f64(value(x), m.rounding);
            if m.sat {
                result.clamp(0.0, 1.0).to_bits()
            } else {
                result.to_bits()
            }
        }),
        (_, Type::F32 | Type::F16 | Type::BF16) => {
            let Some(Float::Narrow(format)) = float(to) else {
                return None;
            };
            from_bits(r, Width::B32, is_wide, move |x| {
                let value = value(x);
                let value = if m.sat { value.clamp(0, 1) } else { value };
                u64::from(integer_to_format(value, format, m.rounding))
            })
        }
        _ => return None,
    })
}

fn float_to_integer(
    source: Float,
    to: Type,
    m: Modifiers,
    r: [u32; 2],
    width: Width,
) -> Option<Action> {
    if !matches!(to.size(), 1 | 2 | 4 | 8) || float(to).is_some() {
        return None;
    }
    let integer = Integer {
        bits: to.size() * 8,
        signed: to.is_signed(),
    };
    Some(match source {
        Float::Double => from_bits(r, width, true, move |x| {
            integer.from_float(f64::from_bits(x), m.rounding, true)
        }),
        Float::Narrow(format) => from_bits(r, width, false, move |x| {
            let x = x as u32;
            let x = if m.ftz { format.flush(x) } else { x };
            integer.from_float(format.decode(x), m.rounding, false)
        }),
    })
}

fn float_to_float(source: Float, to: Type, m: Modifiers, r: [u32; 2]) -> Option<Action> {
    Some(match (source, float(to)?) {
        (Float::Double, Float::Double) => unary(r, move |x: f64| {
            let x = if m.integral {
                round_to_integral(x, m.rounding)
            } else {
                x
            };
            match m.sat {
                true if x > 0.0 => x.min(1.0),
                true => 0.0,
                false => x,
            }
        }),
        (Float::Double, Float::Narrow(format)) => unary(r, move |x: f64| encode(format, x, m)),
        (Float::Narrow(format), Float::Double) => unary(r, move |x: u32| {
            let x = if m.ftz { format.flush(x) } else { x };
            let x = format.decode(x);
            if x.is_nan() {
                f64::from_bits(0x7fff_ffff_ffff_ffff)
            } else {
                x
            }
        }),
        (Float::Narrow(F32), Float::Narrow(F32)) => unary(r, move |x: f32| {
            let x = if m.ftz { arithmetic::flush(x) } else { x };
            let x = if m.integral {
                round_to_integral(x.into(), m.rounding) as f32
            } else {
                x
            };
            let x = arithmetic::canonical(x);
            if m.sat { arithmetic::saturate(x) } else { x }
        }),
        (Float::Narrow(number::BF16), Float::Narrow(F32)) => {
            unary(r, |x: u16| arithmetic::canonical(number::bf16_to_f32(x)))
        }
        (Float::Narrow(from), Float::Narrow(to)) => unary(r, move |x: u32| {
            let x = if m.ftz && from == F32 {
                from.flush(x)
            } else {
                x
            };
            let x = from.decode(x);
            let x = if m.integral {
                round_to_integral(x, m.rounding)
            } else {
                x
            };
            encode(to, x, m)
        }),
    })
}

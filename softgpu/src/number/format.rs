//! Conversions between formats: PTX ISA, "Data Movement and Conversion Instructions: cvt".

/// How a result that is not representable is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rounding {
    /// `.rn`, `.rni`: to nearest, ties to even.
    NearestEven,
    /// `.rna`: to nearest, ties away from zero.
    NearestAway,
    /// `.rz`, `.rzi`: towards zero.
    Zero,
    /// `.rm`, `.rmi`: towards negative infinity.
    Down,
    /// `.rp`, `.rpi`: towards positive infinity.
    Up,
}

/// What becomes of a magnitude beyond the largest finite value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Overflow {
    /// IEEE 754: infinity or the largest finite value, as the rounding mode says.
    Infinity,
    /// `.satfinite`: the largest finite value with the sign kept.
    Saturate,
}

/// A binary floating-point format of at most 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Format {
    exponent: u32,
    mantissa: u32,
    infinities: bool,
    /// Low bits of the storage that hold nothing (tf32 lies in the upper bits of an f32).
    padding: u32,
}

/// IEEE half precision.
pub const F16: Format = Format::ieee(5, 10);
/// bfloat16: the upper half of an f32.
pub const BF16: Format = Format::ieee(8, 7);
/// TensorFloat-32: an f32 with a mantissa of 10 bits, stored in 32 bits.
pub const TF32: Format = Format {
    exponent: 8,
    mantissa: 10,
    infinities: true,
    padding: 13,
};
/// IEEE single precision.
pub const F32: Format = Format::ieee(8, 23);
/// FP8 with 4 exponent bits: no infinities, one NaN for each sign, largest value 448.
pub const E4M3: Format = Format {
    exponent: 4,
    mantissa: 3,
    infinities: false,
    padding: 0,
};
/// FP8 with 5 exponent bits.
pub const E5M2: Format = Format::ieee(5, 2);

impl Format {
    const fn ieee(exponent: u32, mantissa: u32) -> Self {
        Format {
            exponent,
            mantissa,
            infinities: true,
            padding: 0,
        }
    }

    const fn bias(self) -> i32 {
        (1 << (self.exponent - 1)) - 1
    }

    /// Exponent of one unit in the last place of subnormal numbers.
    const fn smallest_quantum(self) -> i32 {
        1 - self.bias() - self.mantissa as i32
    }

    const fn magnitude_mask(self) -> u32 {
        (1 << (self.exponent + self.mantissa)) - 1
    }

    const fn sign_bit(self) -> u32 {
        1 << (self.exponent + self.mantissa)
    }

    const fn infinity_magnitude(self) -> u32 {
        ((1 << self.exponent) - 1) << self.mantissa
    }

    const fn largest_magnitude(self) -> u32 {
        if self.infinities {
            self.infinity_magnitude() - 1
        } else {
            self.magnitude_mask() - 1
        }
    }

    /// The canonical NaN: every magnitude bit set.
    #[must_use]
    pub const fn nan(self) -> u32 {
        self.magnitude_mask() << self.padding
    }

    /// The value of `bits`, exactly. Bits above and below the format's own are ignored.
    #[must_use]
    pub fn decode(self, bits: u32) -> f64 {
        let bits = bits >> self.padding;
        let magnitude = bits & self.magnitude_mask();
        let absolute = if magnitude > self.largest_magnitude() {
            if self.infinities && magnitude == self.infinity_magnitude() {
                f64::INFINITY
            } else {
                return f64::NAN;
            }
        } else {
            let field = magnitude >> self.mantissa;
            let fraction = magnitude & ((1 << self.mantissa) - 1);
            let (significand, scale) = if field == 0 {
                (fraction, 0)
            } else {
                (fraction | 1 << self.mantissa, field as i32 - 1)
            };
            f64::from(significand) * power_of_two(self.smallest_quantum() + scale)
        };
        if bits & self.sign_bit() != 0 {
            -absolute
        } else {
            absolute
        }
    }

    /// Whether `bits` is a NaN of this format.
    #[must_use]
    pub fn is_nan(self, bits: u32) -> bool {
        let magnitude = (bits >> self.padding) & self.magnitude_mask();
        magnitude > self.largest_magnitude()
            && !(self.infinities && magnitude == self.infinity_magnitude())
    }

    /// `bits` with a subnormal replaced by a zero of the same sign (`.ftz`).
    #[must_use]
    pub fn flush(self, bits: u32) -> u32 {
        if bits & (self.infinity_magnitude() << self.padding) == 0 {
            bits & (self.sign_bit() << self.padding)
        } else {
            bits
        }
    }

    /// The bits of `value` rounded to this format; NaN gives the canonical NaN.
    ///
    /// E4M3 has no infinity: without saturation what overflows becomes its NaN.
    #[must_use]
    pub fn encode(self, value: f64, rounding: Rounding, overflow: Overflow) -> u32 {
        if value.is_nan() {
            return self.nan();
        }
        let negative = value.is_sign_negative();
        let sign = if negative { self.sign_bit() } else { 0 };
        let magnitude = if value.is_infinite() {
            match overflow {
                Overflow::Saturate => self.largest_magnitude(),
                Overflow::Infinity if self.infinities => self.infinity_magnitude(),
                Overflow::Infinity => self.magnitude_mask(),
            }
        } else {
            self.encode_finite(value.abs(), negative, rounding, overflow)
        };
        (sign | magnitude) << self.padding
    }

    fn encode_finite(
        self,
        absolute: f64,
        negative: bool,
        rounding: Rounding,
        overflow: Overflow,
    ) -> u32 {
        let bits = absolute.to_bits();
        let field = (bits >> 52) as i32;
        let fraction = bits & ((1 << 52) - 1);
        let (significand, exponent) = if field == 0 {
            (fraction, -1074)
        } else {
            (fraction | 1 << 52, field - 1075)
        };
        // The quantum is one unit in the last place of the result.
        let smallest = self.smallest_quantum();
        let quantum = (exponent + 52 - self.mantissa as i32).max(smallest);
        let shift = (quantum - exponent).min(63) as u32;
        let kept = significand >> shift;
        let rest = significand & ((1 << shift) - 1);
        let half = 1_u64 << (shift - 1);
        let increment = match rounding {
            Rounding::NearestEven => rest > half || (rest == half && kept & 1 == 1),
            Rounding::NearestAway => rest >= half,
            Rounding::Zero => false,
            Rounding::Down => negative && rest != 0,
            Rounding::Up => !negative && rest != 0,
        };
        // A normal significand carries its implicit bit, which adds the missing one to the
        // exponent field; a carry out of the rounding does the same.
        let magnitude = (((quantum - smallest) as u64) << self.mantissa) + kept + increment as u64;
        if magnitude <= u64::from(self.largest_magnitude()) {
            return magnitude as u32;
        }
        let saturates = match rounding {
            Rounding::NearestEven | Rounding::NearestAway => false,
            Rounding::Zero => true,
            Rounding::Down => !negative,
            Rounding::Up => negative,
        };
        if saturates || overflow == Overflow::Saturate {
            self.largest_magnitude()
        } else if self.infinities {
            self.infinity_magnitude()
        } else {
            self.magnitude_mask()
        }
    }

    /// `.relu`: zero for a negative number, the canonical NaN for any NaN.
    #[must_use]
    pub fn relu(self, bits: u32) -> u32 {
        if self.is_nan(bits) {
            self.nan()
        } else if bits & (self.sign_bit() << self.padding) != 0 {
            0
        } else {
            bits
        }
    }
}

/// 2^exponent for the exponents that a 32-bit format can need, all normal in f64.
fn power_of_two(exponent: i32) -> f64 {
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

/// The value of an f16, exactly.
#[must_use]
pub fn f16_to_f32(bits: u16) -> f32 {
    let magnitude = u32::from(bits & 0x7fff) << 13;
    let sign = u32::from(bits & 0x8000) << 16;
    let absolute = if magnitude >= 0x7c00 << 13 {
        magnitude | 0x7f80_0000
    } else {
        // Multiplying by 2^112 moves the exponent bias from 15 to 127, subnormals included.
        (f32::from_bits(magnitude) * f32::from_bits((127 + 112) << 23)).to_bits()
    };
    f32::from_bits(sign | absolute)
}

/// The value of a bf16, exactly.
#[must_use]
pub fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// `cvt.rn.f16.f32`.
#[must_use]
pub fn f32_to_f16(value: f32) -> u16 {
    F16.encode(f64::from(value), Rounding::NearestEven, Overflow::Infinity) as u16
}

/// `cvt.rn.bf16.f32`.
#[must_use]
pub fn f32_to_bf16(value: f32) -> u16 {
    if value.is_nan() {
        return BF16.nan() as u16;
    }
    let bits = value.to_bits();
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// What a tensor core reads of an f32 register given as tf32: the low 13 bits are ignored.
#[must_use]
pub fn tf32_truncate(bits: u32) -> f32 {
    f32::from_bits(bits & !0x1fff)
}

/// An integer type that a conversion targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Integer {
    /// Width: 8, 16, 32 or 64.
    pub bits: u32,
    /// Whether the type is signed.
    pub signed: bool,
}

impl Integer {
    fn range(self) -> (i128, i128) {
        if self.signed {
            (-(1 << (self.bits - 1)), (1 << (self.bits - 1)) - 1)
        } else {
            (0, (1 << self.bits) - 1)
        }
    }

    /// `value` rounded to an integral value and clamped to the type, sign-extended to 64 bits.
    ///
    /// A NaN gives 0, or the lone top bit where the source is f64 or the target has 64 bits.
    #[must_use]
    pub fn from_float(self, value: f64, rounding: Rounding, source_is_f64: bool) -> u64 {
        if value.is_nan() {
            return if source_is_f64 || self.bits == 64 {
                1 << (self.bits - 1)
            } else {
                0
            };
        }
        let (low, high) = self.range();
        // `as` saturates at the bounds of i128, which lie beyond those of any type here.
        (round_to_integral(value, rounding) as i128).clamp(low, high) as u64
    }

    /// `value` clamped to the type (`cvt.sat`), sign-extended to 64 bits.
    #[must_use]
    pub fn clamp(self, value: i128) -> u64 {
        let (low, high) = self.range();
        value.clamp(low, high) as u64
    }
}

/// `value` rounded to an integral value; the sign of a zero is kept.
#[must_use]
pub fn round_to_integral(value: f64, rounding: Rounding) -> f64 {
    match rounding {
        Rounding::NearestEven => value.round_ties_even(),
        Rounding::NearestAway => value.round(),
        Rounding::Zero => value.trunc(),
        Rounding::Down => value.floor(),
        Rounding::Up => value.ceil(),
    }
}

/// An integer (of at most 64 bits and a sign) as an f64.
#[must_use]
pub fn integer_to_f64(value: i128, rounding: Rounding) -> f64 {
    let nearest = value as f64;
    let error = value - nearest as i128;
    let step = match (error.signum(), rounding) {
        (0, _) | (_, Rounding::NearestEven) => 0,
        // Only the nearest value's ties differ, and `as` breaks them to even.
        (_, Rounding::NearestAway) => return nearest_away(value, nearest, error),
        (1, Rounding::Up) => 1,
        (-1, Rounding::Down) => -1,
        (1, Rounding::Zero) if value < 0 => 1,
        (-1, Rounding::Zero) if value > 0 => -1,
        _ => 0,
    };
    match step {
        1 => nearest.next_up(),
        -1 => nearest.next_down(),
        _ => nearest,
    }
}

fn nearest_away(value: i128, nearest: f64, error: i128) -> f64 {
    let outward = if value > 0 {
        nearest.next_up()
    } else {
        nearest.next_down()
    };
    let outward_error = value - outward as i128;
    if outward_error.abs() <= error.abs() {
        outward
    } else {
        nearest
    }
}

/// An integer (of at most 64 bits and a sign) rounded once to a narrow format.
#[must_use]
pub fn integer_to_format(value: i128, format: Format, rounding: Rounding) -> u32 {
    let truncated = integer_to_f64(value, Rounding::Zero);
    let inexact = truncated as i128 != value;
    // Rounding to odd keeps the information that a second rounding needs.
    let odd = f64::from_bits(truncated.to_bits() | u64::from(inexact));
    format.encode(odd, rounding, Overflow::Infinity)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Overflow::{Infinity, Saturate};
    use Rounding::{Down, NearestAway, NearestEven, Up, Zero};

    const MODES: [Rounding; 5] = [NearestEven, NearestAway, Zero, Down, Up];

    /// Every finite value of a 16-bit or smaller format, ascending, by the textbook formula.
    fn finite_values(format: Format) -> Vec<(f64, u32)> {
        let mut all = Vec::new();
        for bits in 0..=format.largest_magnitude() {
            let field = bits >> format.mantissa;
            let fraction =
                f64::from(bits & ((1 << format.mantissa) - 1)) / f64::from(1 << format.mantissa);
            let value = if field == 0 {
                fraction * 2_f64.powi(1 - format.bias())
            } else {
                (1.0 + fraction) * 2_f64.powi(field as i32 - format.bias())
            };
            all.push((value, bits));
        }
        all
    }

    #[test]
    fn every_bit_pattern_decodes_to_its_textbook_value_and_back() {
        for format in [F16, BF16, E4M3, E5M2] {
            for (value, bits) in finite_values(format) {
                assert_eq!(format.decode(bits), value, "{format:?} {bits:#x}");
                for mode in MODES {
                    assert_eq!(
                        format.encode(value, mode, Infinity),
                        bits,
                        "{format:?} {bits:#x}"
                    );
                    let negative = bits | format.sign_bit();
                    assert_eq!(format.encode(-value, mode, Infinity), negative);
                }
            }
        }
    }

    #[test]
    fn values_between_neighbours_round_as_the_mode_says() {
        for format in [F16, BF16, E4M3, E5M2] {
            let values = finite_values(format);
            for pair in values.windows(2) {
                let [(low, low_bits), (high, high_bits)] = [pair[0], pair[1]];
                let middle = low + (high - low) / 2.0;
                let even = if low_bits & 1 == 0 {
                    low_bits
                } else {
                    high_bits
                };
                let below = low + (high - low) / 4.0;
                let above = low + (high - low) / 4.0 * 3.0;
                for (value, nearest_even, nearest_away) in [
                    (below, low_bits, low_bits),
                    (middle, even, high_bits),
                    (above, high_bits, high_bits),
                ] {
                    let expected = [nearest_even, nearest_away, low_bits, low_bits, high_bits];
                    let mirrored = [nearest_even, nearest_away, low_bits, high_bits, low_bits];
                    for (mode, (up, down)) in MODES.iter().zip(expected.iter().zip(&mirrored)) {
                        assert_eq!(format.encode(value, *mode, Infinity), *up);
                        let negative = down | format.sign_bit();
                        assert_eq!(format.encode(-value, *mode, Infinity), negative);
                    }
                }
            }
        }
    }

    #[test]
    fn f32_to_f16_and_bf16_agree_with_the_half_crate() {
        // Every exponent and the top 12 mantissa bits, with tails around a tie.
        for upper in 0..=0xffff_u32 {
            for lower in [0, 1, 0x0fff, 0x1000, 0x1001, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let value = f32::from_bits(upper << 16 | lower);
                if value.is_nan() {
                    assert_eq!((f32_to_f16(value), f32_to_bf16(value)), (0x7fff, 0x7fff));
                    continue;
                }
                assert_eq!(
                    f32_to_f16(value),
                    half::f16::from_f32(value).to_bits(),
                    "{value}"
                );
                assert_eq!(
                    f32_to_bf16(value),
                    half::bf16::from_f32(value).to_bits(),
                    "{value}"
                );
            }
        }
    }

    #[test]
    fn every_f16_and_bf16_widens_as_the_half_crate_does() {
        for bits in 0..=u16::MAX {
            let (f16, bf16) = (half::f16::from_bits(bits), half::bf16::from_bits(bits));
            assert_eq!(f16_to_f32(bits).is_nan(), f16.is_nan());
            assert_eq!(F16.decode(bits.into()).is_nan(), f16.is_nan());
            assert_eq!(F16.is_nan(bits.into()), f16.is_nan());
            assert_eq!(BF16.is_nan(bits.into()), bf16.is_nan());
            if !f16.is_nan() {
                assert_eq!(f16_to_f32(bits).to_bits(), f16.to_f32().to_bits());
                assert_eq!(F16.decode(bits.into()).to_bits(), f16.to_f64().to_bits());
            }
            assert_eq!(bf16_to_f32(bits).to_bits() >> 16, u32::from(bits));
            if !bf16.is_nan() {
                assert_eq!(BF16.decode(bits.into()).to_bits(), bf16.to_f64().to_bits());
            }
        }
    }

    #[test]
    fn overflow_follows_the_mode_and_satfinite() {
        assert_eq!(F16.encode(65519.0, NearestEven, Infinity), 0x7bff);
        assert_eq!(F16.encode(65520.0, NearestEven, Infinity), 0x7c00);
        assert_eq!(F16.encode(65520.0, NearestEven, Saturate), 0x7bff);
        assert_eq!(F16.encode(1e9, Zero, Infinity), 0x7bff);
        assert_eq!(F16.encode(-1e9, Down, Infinity), 0xfc00);
        assert_eq!(F16.encode(-1e9, Up, Infinity), 0xfbff);
        assert_eq!(E4M3.encode(1e9, NearestEven, Saturate), 0x7e);
        assert_eq!(E4M3.decode(0x7e), 448.0);
        assert_eq!(E4M3.encode(f64::NAN, NearestEven, Saturate), 0x7f);
        assert_eq!(E5M2.encode(f64::NEG_INFINITY, NearestEven, Saturate), 0xfb);
        assert_eq!(E5M2.decode(0xfb), -57344.0);
    }

    #[test]
    fn tf32_keeps_ten_mantissa_bits_of_an_f32() {
        let one_and_half_step = f64::from(f32::from_bits(0x3f80_1000));
        assert_eq!(
            TF32.encode(one_and_half_step, NearestAway, Infinity),
            0x3f80_2000
        );
        assert_eq!(
            TF32.encode(one_and_half_step, NearestEven, Infinity),
            0x3f80_0000
        );
        assert_eq!(TF32.encode(one_and_half_step, Zero, Infinity), 0x3f80_0000);
        assert_eq!(TF32.decode(0x3f80_3fff), 1.0 + 2_f64.powi(-10));
        assert_eq!(tf32_truncate(0x3f80_3fff), 1.0 + 2_f32.powi(-10));
        assert_eq!(TF32.nan(), 0x7fff_e000);
    }

    #[test]
    fn f64_rounds_to_f32_in_every_mode() {
        let value = 1.0 + 2_f64.powi(-30);
        assert_eq!(F32.encode(value, NearestEven, Infinity), 1_f32.to_bits());
        assert_eq!(F32.encode(value, Up, Infinity), 1_f32.next_up().to_bits());
        assert_eq!(
            F32.encode(-value, Down, Infinity),
            (-1_f32).next_down().to_bits()
        );
        for exponent in [-1074, -1000, -150, -149, -127, -126, 0, 127, 128, 1023] {
            for value in [2_f64.powi(exponent), 1.7 * 2_f64.powi(exponent)] {
                let expected = (value as f32).to_bits();
                assert_eq!(
                    F32.encode(value, NearestEven, Infinity),
                    expected,
                    "{value:e}"
                );
            }
        }
    }

    #[test]
    fn floats_become_integers_with_clamping() {
        let s32 = Integer {
            bits: 32,
            signed: true,
        };
        let u8 = Integer {
            bits: 8,
            signed: false,
        };
        let s64 = Integer {
            bits: 64,
            signed: true,
        };
        let u64 = Integer {
            bits: 64,
            signed: false,
        };
        assert_eq!(s32.from_float(2.5, NearestEven, false), 2);
        assert_eq!(s32.from_float(3.5, NearestEven, false), 4);
        assert_eq!(s32.from_float(-2.5, Down, false) as i64, -3);
        assert_eq!(s32.from_float(-2.5, Zero, false) as i64, -2);
        assert_eq!(
            s32.from_float(1e30, Zero, false) as i64,
            i64::from(i32::MAX)
        );
        assert_eq!(
            s32.from_float(f64::NEG_INFINITY, Zero, false) as i64,
            i64::from(i32::MIN)
        );
        assert_eq!(u8.from_float(-4.0, Zero, false), 0);
        assert_eq!(u8.from_float(300.0, Zero, false), 255);
        assert_eq!(u64.from_float(1e30, Zero, false), u64::MAX);
        assert_eq!(s64.from_float(-1e30, Zero, false) as i64, i64::MIN);
        assert_eq!(s32.from_float(f64::NAN, Zero, false), 0);
        assert_eq!(s32.from_float(f64::NAN, Zero, true), 0x8000_0000);
        assert_eq!(u64.from_float(f64::NAN, Zero, false), 1 << 63);
    }

    #[test]
    fn integers_become_floats_with_one_rounding() {
        // 2^53 + 1 lies between two f64; 2^60 + 2^36 + 1 is a tie of f32 broken by its last bit.
        let value = (1 << 53) + 1;
        assert_eq!(integer_to_f64(value, NearestEven), 2_f64.powi(53));
        assert_eq!(integer_to_f64(value, NearestAway), 2_f64.powi(53) + 2.0);
        assert_eq!(integer_to_f64(value, Up), 2_f64.powi(53) + 2.0);
        assert_eq!(integer_to_f64(value, Zero), 2_f64.powi(53));
        assert_eq!(integer_to_f64(-value, Down), -(2_f64.powi(53) + 2.0));
        assert_eq!(integer_to_f64(-value, Zero), -2_f64.powi(53));
        let tie = (1_i128 << 60) + (1 << 36);
        let even = integer_to_format(tie, F32, NearestEven);
        assert_eq!(even, (2_f32.powi(60)).to_bits());
        assert_eq!(integer_to_format(tie + 1, F32, NearestEven), even + 1);
        assert_eq!(
            integer_to_format(i128::from(u64::MAX), F32, Zero),
            0x5f7f_ffff
        );
        for value in [
            0,
            1,
            -1,
            12345,
            -65504,
            i128::from(u64::MAX),
            i128::from(i64::MIN),
        ] {
            assert_eq!(
                integer_to_format(value, F32, NearestEven),
                (value as f32).to_bits(),
                "{value}"
            );
        }
    }

    #[test]
    fn relu_and_flush_act_on_bits() {
        assert_eq!(BF16.relu(0xbf80), 0);
        assert_eq!(BF16.relu(0x3f80), 0x3f80);
        assert_eq!(BF16.relu(0xffc1), 0x7fff);
        assert_eq!(F16.flush(0x8001), 0x8000);
        assert_eq!(F16.flush(0x0400), 0x0400);
        assert_eq!(TF32.relu(0xbf80_0000), 0);
    }
}

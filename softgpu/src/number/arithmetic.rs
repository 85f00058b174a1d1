//! Exactly rounded arithmetic: f32 in every rounding mode, f16 and bf16 scalars and pairs.
//!
//! Results are computed in f64 *rounded to odd* (truncated, with the last bit set when inexact),
//! which a second rounding to at most 51 bits turns into the correctly rounded result.

use super::format::{F32, Format, Overflow, Rounding};

/// The sum of two f64 rounded to odd; exact in the sense of the module's note.
fn sum_to_odd(a: f64, b: f64) -> f64 {
    let sum = a + b;
    if !sum.is_finite() {
        return sum;
    }
    // Knuth's two-sum: `error` is the exact difference between the true sum and `sum`.
    let part = sum - a;
    let error = (a - (sum - part)) + (b - part);
    step_to_odd(sum, error)
}

/// `value`, moved to its neighbour in the direction of `error` if it is inexact and even.
fn step_to_odd(value: f64, error: f64) -> f64 {
    if error == 0.0 || value.to_bits() & 1 == 1 {
        value
    } else if error > 0.0 {
        value.next_up()
    } else {
        value.next_down()
    }
}

/// Whether a sum is an exact zero that IEEE 754 makes negative when rounding down.
fn cancels(a: f64, b: f64) -> bool {
    a.is_finite() && a == -b && (a != 0.0 || a.is_sign_negative() || b.is_sign_negative())
}

fn to_f32(value: f64, rounding: Rounding) -> f32 {
    f32::from_bits(F32.encode(value, rounding, Overflow::Infinity))
}

/// The f32 with its NaN payload replaced by the canonical one.
#[must_use]
pub fn canonical(value: f32) -> f32 {
    if value.is_nan() {
        f32::from_bits(F32.nan())
    } else {
        value
    }
}

/// `value` with a subnormal replaced by a zero of the same sign (`.ftz`).
#[must_use]
pub fn flush(value: f32) -> f32 {
    if value.abs() < f32::MIN_POSITIVE {
        0_f32.copysign(value)
    } else {
        value
    }
}

/// `.sat`: clamped to [0, 1]; a NaN gives +0.
#[must_use]
pub fn saturate(value: f32) -> f32 {
    // Not `clamp`: a NaN must give +0, and so must -0.
    if value > 0.0 { value.min(1.0) } else { 0.0 }
}

/// `add.f32`.
#[must_use]
pub fn add(a: f32, b: f32, rounding: Rounding) -> f32 {
    match rounding {
        Rounding::NearestEven => canonical(a + b),
        Rounding::Down if cancels(a.into(), b.into()) => -0.0,
        _ => to_f32(sum_to_odd(a.into(), b.into()), rounding),
    }
}

/// `add.rz.f64`: the exact sum, cut off.
#[must_use]
pub fn add_toward_zero(a: f64, b: f64) -> f64 {
    let sum = a + b;
    if sum.is_infinite() && a.is_finite() && b.is_finite() {
        return f64::MAX.copysign(sum);
    }
    if !sum.is_finite() {
        return sum;
    }
    // What the nearest sum leaves out, exactly (Knuth, TAOCP 2, 4.2.2, Theorem B).
    let of_b = sum - a;
    let rest = (a - (sum - of_b)) + (b - of_b);
    if rest != 0.0 && rest.is_sign_negative() != sum.is_sign_negative() {
        return f64::from_bits(sum.to_bits() - 1);
    }
    sum
}

/// `mul.f32`.
#[must_use]
pub fn mul(a: f32, b: f32, rounding: Rounding) -> f32 {
    match rounding {
        Rounding::NearestEven => canonical(a * b),
        _ => to_f32(f64::from(a) * f64::from(b), rounding),
    }
}

/// `fma.f32`: a·b + c with one rounding.
#[must_use]
pub fn fma(a: f32, b: f32, c: f32, rounding: Rounding) -> f32 {
    if rounding == Rounding::NearestEven {
        return canonical(a.mul_add(b, c));
    }
    let product = f64::from(a) * f64::from(b);
    let addend = f64::from(c);
    if rounding == Rounding::Down && cancels(product, addend) {
        return -0.0;
    }
    to_f32(sum_to_odd(product, addend), rounding)
}

/// `div.f32` with a rounding mode.
#[must_use]
pub fn div(a: f32, b: f32, rounding: Rounding) -> f32 {
    if rounding == Rounding::NearestEven {
        return canonical(a / b);
    }
    let (dividend, divisor) = (f64::from(a), f64::from(b));
    let quotient = dividend / divisor;
    if !quotient.is_finite() || quotient == 0.0 {
        return to_f32(quotient, rounding);
    }
    // The remainder of a correctly rounded division is representable, so its sign is exact.
    let remainder = (-quotient).mul_add(divisor, dividend);
    to_f32(
        step_to_odd(quotient, remainder * divisor.signum()),
        rounding,
    )
}

/// `sqrt.f32` with a rounding mode.
#[must_use]
pub fn sqrt(a: f32, rounding: Rounding) -> f32 {
    if rounding == Rounding::NearestEven {
        return canonical(a.sqrt());
    }
    let argument = f64::from(a);
    let root = argument.sqrt();
    if !root.is_finite() || root == 0.0 {
        return to_f32(root, rounding);
    }
    to_f32(step_to_odd(root, (-root).mul_add(root, argument)), rounding)
}

/// `min` or `max` of two f64, in which narrower formats embed: -0 orders below +0; one NaN gives
/// the other operand, or a NaN with `propagate` (`.NaN`).
#[must_use]
pub fn extremum(a: f64, b: f64, maximum: bool, propagate: bool) -> f64 {
    match (a.is_nan(), b.is_nan()) {
        (true, true) => f64::NAN,
        (true, false) | (false, true) if propagate => f64::NAN,
        (true, false) => b,
        (false, true) => a,
        (false, false) => {
            let a_below = a < b || (a == b && a.is_sign_negative());
            if a_below == maximum { b } else { a }
        }
    }
}

/// `min.f32` or `max.f32`: see [`extremum`].
#[must_use]
pub fn extremum_f32(a: f32, b: f32, maximum: bool, propagate: bool) -> f32 {
    canonical(extremum(a.into(), b.into(), maximum, propagate) as f32)
}

/// The modifiers of f16 and bf16 arithmetic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Modifiers {
    /// `.ftz`: subnormal inputs and results become zero.
    pub ftz: bool,
    /// `.sat`: the result is clamped to [0, 1], a NaN to +0.
    pub sat: bool,
    /// `.relu`: a negative result becomes 0, a NaN the canonical one.
    pub relu: bool,
}

impl Modifiers {
    fn input(self, format: Format, bits: u32) -> f64 {
        format.decode(if self.ftz { format.flush(bits) } else { bits })
    }

    fn output(self, format: Format, value: f64) -> u32 {
        let clamped = match self.sat {
            true if value > 0.0 => value.min(1.0),
            true => 0.0,
            false => value,
        };
        let mut bits = format.encode(clamped, Rounding::NearestEven, Overflow::Infinity);
        if self.ftz {
            bits = format.flush(bits);
        }
        if self.relu { format.relu(bits) } else { bits }
    }
}

/// `add.rn` of one f16 or bf16.
#[must_use]
pub fn half_add(format: Format, a: u32, b: u32, modifiers: Modifiers) -> u32 {
    let (a, b) = (modifiers.input(format, a), modifiers.input(format, b));
    modifiers.output(format, sum_to_odd(a, b))
}

/// `sub.rn` of one f16 or bf16.
#[must_use]
pub fn half_sub(format: Format, a: u32, b: u32, modifiers: Modifiers) -> u32 {
    let (a, b) = (modifiers.input(format, a), modifiers.input(format, b));
    modifiers.output(format, sum_to_odd(a, -b))
}

/// `mul.rn` of one f16 or bf16.
#[must_use]
pub fn half_mul(format: Format, a: u32, b: u32, modifiers: Modifiers) -> u32 {
    modifiers.output(
        format,
        modifiers.input(format, a) * modifiers.input(format, b),
    )
}

/// `fma.rn` of one f16 or bf16: one rounding.
#[must_use]
pub fn half_fma(format: Format, a: u32, b: u32, c: u32, modifiers: Modifiers) -> u32 {
    let product = modifiers.input(format, a) * modifiers.input(format, b);
    modifiers.output(format, sum_to_odd(product, modifiers.input(format, c)))
}

/// `min` or `max` of one f16 or bf16: see [`extremum`].
#[must_use]
pub fn half_extremum(
    format: Format,
    a: u32,
    b: u32,
    maximum: bool,
    propagate: bool,
    modifiers: Modifiers,
) -> u32 {
    let (a, b) = (modifiers.input(format, a), modifiers.input(format, b));
    modifiers.output(format, extremum(a, b, maximum, propagate))
}

/// Applies a 16-bit operation to both halves of packed operands (`.f16x2`, `.bf16x2`).
#[must_use]
pub fn packed<const OPERANDS: usize>(
    operands: [u32; OPERANDS],
    operation: impl Fn([u32; OPERANDS]) -> u32,
) -> u32 {
    let low = operation(operands.map(|pair| pair & 0xffff)) & 0xffff;
    let high = operation(operands.map(|pair| pair >> 16)) & 0xffff;
    high << 16 | low
}

#[cfg(test)]
mod tests {
    use super::super::format::{BF16, F16};
    use super::*;
    use Rounding::{Down, NearestEven, Up, Zero};

    const PLAIN: Modifiers = Modifiers {
        ftz: false,
        sat: false,
        relu: false,
    };

    /// A stream of bit patterns that covers all exponents.
    fn patterns(mut state: u64) -> impl Iterator<Item = u32> {
        std::iter::repeat_with(move || {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 32) as u32
        })
    }

    #[test]
    fn a_sum_of_f64_is_cut_off() {
        let ulp = f64::EPSILON;
        for (a, b, expected) in [
            (1.0, ulp / 4.0, 1.0),
            (1.0, ulp * 0.75, 1.0),
            (1.0, -ulp / 8.0, 1.0 - ulp / 2.0),
            (-1.0, -ulp * 0.75, -1.0),
            (-1.0, ulp / 8.0, -1.0 + ulp / 2.0),
            (1.5, 2.25, 3.75),
            (f64::MAX, f64::MAX, f64::MAX),
            (f64::MIN, f64::MIN, f64::MIN),
            (f64::INFINITY, 1.0, f64::INFINITY),
            (f64::MIN_POSITIVE, -f64::MIN_POSITIVE, 0.0),
        ] {
            let sum = add_toward_zero(a, b);
            assert_eq!(sum.to_bits(), expected.to_bits(), "{a:e} + {b:e} = {sum:e}");
        }
        assert!(add_toward_zero(f64::INFINITY, f64::NEG_INFINITY).is_nan());
    }

    /// f32 values whose exponents lie close together, so that sums have something to round.
    fn close(bits: u32) -> f32 {
        f32::from_bits((bits & 0x8fff_ffff) | 0x3000_0000)
    }

    /// Checks a directed result against the nearest one, with the sign of the exact error known.
    fn check_directed(
        exact_minus_nearest: i32,
        nearest: f32,
        [zero, down, up]: [f32; 3],
        context: &str,
    ) {
        let (low, high) = match exact_minus_nearest {
            0 => (nearest, nearest),
            1 => (nearest, nearest.next_up()),
            _ => (nearest.next_down(), nearest),
        };
        assert_eq!((down, up), (low, high), "{context}");
        assert_eq!(zero, if nearest > 0.0 { low } else { high }, "{context}");
    }

    /// The sign of a·b + c − nearest in integer arithmetic; operands scaled by 2^60 each.
    fn exact_sign(a: f32, b: f32, c: f32, nearest: f32) -> i32 {
        let fixed = |value: f32| -> i128 {
            let scaled = f64::from(value) * 2_f64.powi(56);
            assert_eq!(scaled.fract(), 0.0);
            scaled as i128
        };
        (fixed(a) * fixed(b) + ((fixed(c) - fixed(nearest)) << 56)).signum() as i32
    }

    /// Whether `bits` is the value of its format nearest to `exact`, the even one of two.
    fn assert_nearest(format: Format, exact: f64, bits: u32) {
        let largest = format.encode(f64::MAX, Zero, Overflow::Infinity);
        let last_place = format.decode(largest) - format.decode(largest - 1);
        if exact.abs() >= format.decode(largest) + last_place / 2.0 {
            assert_eq!(format.decode(bits), f64::INFINITY.copysign(exact));
            return;
        }
        let distance = |bits: u32| (format.decode(bits) - exact).abs();
        assert_eq!(bits >> 15 == 1, exact.is_sign_negative());
        for neighbour in [bits.wrapping_sub(1), bits + 1] {
            if neighbour & 0x7fff <= largest {
                let (here, there) = (distance(bits), distance(neighbour));
                assert!(
                    here < there || here == there && bits & 1 == 0,
                    "{exact:e} {bits:#x}"
                );
            }
        }
    }

    #[test]
    fn directed_f32_sums_products_and_fmas_bracket_the_exact_value() {
        let mut stream = patterns(1);
        let mut next = || {
            let bits = stream.next().unwrap();
            // Exponents of 2^-7 to 2^0 and 20 mantissa bits: exact in the fixed point above.
            f32::from_bits((bits & 0x83ff_fff8) | 0x3c00_0000)
        };
        for _ in 0..20_000 {
            let (a, b, c) = (next(), next(), next());
            let all = |f: &dyn Fn(Rounding) -> f32| [f(Zero), f(Down), f(Up)];
            let context = format!("{a:e} {b:e} {c:e}");
            let nearest = fma(a, b, c, NearestEven);
            if nearest.abs() > 2_f32.powi(-30) {
                let sign = exact_sign(a, b, c, nearest);
                check_directed(sign, nearest, all(&|r| fma(a, b, c, r)), &context);
            }
            let sum = add(a, c, NearestEven);
            if sum != 0.0 {
                let sign = exact_sign(a, 1.0, c, sum);
                check_directed(sign, sum, all(&|r| add(a, c, r)), &context);
            }
            let product = mul(a, b, NearestEven);
            let sign = exact_sign(a, b, 0.0, product);
            check_directed(sign, product, all(&|r| mul(a, b, r)), &context);
            // For a quotient or root q, the sign of (a − q·b)·b or a − q² tells the side.
            let quotient = div(a, b, NearestEven);
            let sign = exact_sign(-quotient, b, a, 0.0) * if b > 0.0 { 1 } else { -1 };
            check_directed(sign, quotient, all(&|r| div(a, b, r)), &context);
            let root = sqrt(a.abs(), NearestEven);
            let sign = exact_sign(-root, root, a.abs(), 0.0);
            check_directed(sign, root, all(&|r| sqrt(a.abs(), r)), &context);
        }
    }

    #[test]
    fn cancelling_sums_are_negative_zero_only_when_rounding_down() {
        for mode in [NearestEven, Zero, Up] {
            assert_eq!(add(1.0, -1.0, mode).to_bits(), 0);
            assert_eq!(fma(1.0, 1.0, -1.0, mode).to_bits(), 0);
        }
        assert_eq!(add(1.0, -1.0, Down).to_bits(), (-0_f32).to_bits());
        assert_eq!(fma(1.0, 1.0, -1.0, Down).to_bits(), (-0_f32).to_bits());
        assert_eq!(add(0.0, 0.0, Down).to_bits(), 0);
        assert_eq!(fma(0.0, 1.0, 0.0, Down).to_bits(), 0);
        assert_eq!(add(-0.0, -0.0, Zero).to_bits(), (-0_f32).to_bits());
    }

    #[test]
    fn infinities_and_nans_pass_through_directed_arithmetic() {
        let (infinity, nan) = (f32::INFINITY, f32::NAN);
        for mode in [NearestEven, Zero, Down, Up] {
            assert_eq!(add(infinity, 1.0, mode), infinity);
            assert_eq!(add(infinity, -infinity, mode).to_bits(), 0x7fff_ffff);
            assert_eq!(mul(0.0, infinity, mode).to_bits(), 0x7fff_ffff);
            assert_eq!(fma(nan, 1.0, 1.0, mode).to_bits(), 0x7fff_ffff);
            assert_eq!(div(1.0, 0.0, mode), infinity);
            assert_eq!(div(0.0, 0.0, mode).to_bits(), 0x7fff_ffff);
            assert_eq!(sqrt(-1.0, mode).to_bits(), 0x7fff_ffff);
            assert_eq!(sqrt(infinity, mode), infinity);
        }
        assert_eq!(add(f32::MAX, f32::MAX, Zero), f32::MAX);
        assert_eq!(mul(f32::MAX, -2.0, Up), -f32::MAX);
    }

    #[test]
    fn half_sums_are_the_nearest_values() {
        // Every f16 is a multiple of 2^-24 below 2^16, so the f64 sum is exact.
        for (a, b) in patterns(2).zip(patterns(3)).take(300_000) {
            let (a, b) = (a & 0xffff, b & 0xffff);
            let exact = F16.decode(a) + F16.decode(b);
            if exact.is_nan() {
                assert_eq!(half_add(F16, a, b, PLAIN), 0x7fff);
            } else if exact != 0.0 {
                assert_nearest(F16, exact, half_add(F16, a, b, PLAIN));
                assert_nearest(F16, exact, half_sub(F16, a, b ^ 0x8000, PLAIN));
            }
        }
    }

    #[test]
    fn half_products_are_the_nearest_values() {
        for (a, b) in patterns(4).zip(patterns(5)).take(300_000) {
            let (a, b) = (a & 0xffff, b & 0xffff);
            let exact = F16.decode(a) * F16.decode(b);
            if !exact.is_nan() {
                assert_nearest(F16, exact, half_mul(F16, a, b, PLAIN));
            }
            let exact = BF16.decode(a) * BF16.decode(b);
            if !exact.is_nan() {
                assert_nearest(BF16, exact, half_mul(BF16, a, b, PLAIN));
            }
        }
    }

    #[test]
    fn half_fma_rounds_once() {
        for ((a, b), c) in patterns(6).zip(patterns(7)).zip(patterns(8)).take(300_000) {
            // Exponents 2^-7 to 2^0: everything is a multiple of 2^-34 and fits in i64.
            let place = |bits: u32| (bits & 0x9fff) | 0x2000;
            let (a, b, c) = (place(a), place(b), place(c));
            let integer = |bits: u32| (F16.decode(bits) * 2_f64.powi(17)) as i64;
            let exact = integer(a) * integer(b) + (integer(c) << 17);
            if exact != 0 {
                // |exact| < 2^36, so the conversion to f64 is exact.
                let value = exact as f64 * 2_f64.powi(-34);
                assert_nearest(F16, value, half_fma(F16, a, b, c, PLAIN));
            }
        }
        // 1.5 · (1 + 2^-7) lies half way between two bf16; an addend of 2^-133 breaks the tie.
        assert_eq!(
            half_fma(BF16, 0x3fc0, 0x3f81, 0x0001, PLAIN),
            0x3fc2,
            "tie broken upwards"
        );
        assert_eq!(
            half_fma(BF16, 0x3fc0, 0x3f81, 0x8001, PLAIN),
            0x3fc1,
            "tie broken downwards"
        );
    }

    #[test]
    fn modifiers_flush_clamp_and_rectify() {
        let ftz = Modifiers { ftz: true, ..PLAIN };
        let sat = Modifiers { sat: true, ..PLAIN };
        let relu = Modifiers {
            relu: true,
            ..PLAIN
        };
        assert_eq!(half_add(F16, 0x0001, 0x0001, PLAIN), 0x0002);
        assert_eq!(half_add(F16, 0x0001, 0x0001, ftz), 0);
        assert_eq!(half_mul(F16, 0x4000, 0x4000, sat), 0x3c00);
        assert_eq!(half_mul(F16, 0xc000, 0x4000, sat), 0);
        assert_eq!(half_add(F16, 0x7e00, 0x4000, sat), 0);
        assert_eq!(half_fma(BF16, 0xbf80, 0x3f80, 0, relu), 0);
        assert_eq!(half_fma(BF16, 0xffc0, 0x3f80, 0, relu), 0x7fff);
    }

    #[test]
    fn extremum_orders_zeros_and_handles_nans() {
        assert_eq!(extremum_f32(-0.0, 0.0, true, false).to_bits(), 0);
        assert_eq!(extremum_f32(0.0, -0.0, true, false).to_bits(), 0);
        assert_eq!(
            extremum_f32(0.0, -0.0, false, false).to_bits(),
            (-0_f32).to_bits()
        );
        assert_eq!(extremum_f32(f32::NAN, 2.0, true, false), 2.0);
        assert_eq!(
            extremum_f32(2.0, f32::NAN, false, true).to_bits(),
            0x7fff_ffff
        );
        assert_eq!(
            half_extremum(F16, 0x3c00, 0x4000, true, false, PLAIN),
            0x4000
        );
        assert_eq!(
            half_extremum(F16, 0x7e01, 0x7e01, true, false, PLAIN),
            0x7fff
        );
    }

    #[test]
    fn packed_operations_keep_the_halves_apart() {
        let sum = packed([0x3c00_4000, 0x4000_3c00], |[a, b]| {
            half_add(F16, a, b, PLAIN)
        });
        assert_eq!(sum, 0x4200_4200);
        let overflow = packed([0x0000_7bff, 0x0000_7bff], |[a, b]| {
            half_add(F16, a, b, PLAIN)
        });
        assert_eq!(overflow, 0x0000_7c00);
    }

    #[test]
    fn saturate_and_flush_are_documented_corner_cases() {
        assert_eq!(saturate(f32::NAN).to_bits(), 0);
        assert_eq!(saturate(-0.0).to_bits(), 0);
        assert_eq!((saturate(2.0), saturate(0.25)), (1.0, 0.25));
        assert_eq!(flush(-1e-40).to_bits(), (-0_f32).to_bits());
        assert_eq!(flush(close(5)), close(5));
    }
}

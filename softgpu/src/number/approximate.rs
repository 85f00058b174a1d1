//! Instructions whose result the PTX ISA only bounds (`.approx`, `.full`).
//!
//! Each is computed in f64 and rounded to nearest, so its error (at most 0.501 units in the last
//! place) lies within the bound that the ISA documents for the hardware, stated at each function.
//! The hardware's own bits differ within that bound: nothing exact may be expected of them.
//! Special values follow the ISA's tables. `ftz` flushes subnormal inputs and results to zero.

use super::arithmetic::{canonical, flush};

fn with_ftz(x: f32, ftz: bool, function: impl Fn(f64) -> f64) -> f32 {
    let x = if ftz { flush(x) } else { x };
    let result = canonical(function(x.into()) as f32);
    if ftz { flush(result) } else { result }
}

/// `ex2.approx.f32`: 2^x. ISA bound: 2 ulp.
#[must_use]
pub fn ex2(x: f32, ftz: bool) -> f32 {
    with_ftz(x, ftz, f64::exp2)
}

/// `lg2.approx.f32`: log₂ x. ISA bound: absolute 2^-22 for x in (0.5, 2), relative 2^-22 elsewhere.
#[must_use]
pub fn lg2(x: f32, ftz: bool) -> f32 {
    with_ftz(x, ftz, |x| {
        if x == 0.0 {
            f64::NEG_INFINITY
        } else {
            x.log2()
        }
    })
}

/// `rcp.approx.f32`: 1/x. ISA bound: 1 ulp.
#[must_use]
pub fn rcp(x: f32, ftz: bool) -> f32 {
    with_ftz(x, ftz, f64::recip)
}

/// `sqrt.approx.f32`. ISA bound: relative 2^-23.
#[must_use]
pub fn sqrt(x: f32, ftz: bool) -> f32 {
    with_ftz(x, ftz, f64::sqrt)
}

/// `rsqrt.approx.f32`: 1/√x. ISA bound: relative 2^-22.9.
#[must_use]
pub fn rsqrt(x: f32, ftz: bool) -> f32 {
    with_ftz(x, ftz, |x| x.sqrt().recip())
}

/// `sin.approx.f32`, radians. ISA bound: absolute 2^-20.5 in [-2π, 2π].
#[must_use]
pub fn sin(x: f32, ftz: bool) -> f32 {
    with_ftz(x, ftz, f64::sin)
}

/// `cos.approx.f32`, radians. ISA bound: absolute 2^-20.5 in [-2π, 2π].
#[must_use]
pub fn cos(x: f32, ftz: bool) -> f32 {
    with_ftz(x, ftz, f64::cos)
}

/// `tanh.approx.f32`. ISA bound: relative 2^-11. It has no `.ftz`; subnormals are supported.
#[must_use]
pub fn tanh(x: f32) -> f32 {
    with_ftz(x, false, f64::tanh)
}

/// `div.approx.f32`: a/b. ISA bound: 2 ulp for |b| in [2^-126, 2^126].
///
/// Beyond that range the ISA documents what the multiplication by a reciprocal gives: for
/// 2^126 < |b| < 2^128 a finite a gives 0 and an infinite a gives NaN.
#[must_use]
pub fn div(a: f32, b: f32, ftz: bool) -> f32 {
    if b.abs() > 2_f32.powi(126) && b.is_finite() {
        return mul_by_zero(a, b);
    }
    full_div(a, b, ftz)
}

fn mul_by_zero(a: f32, b: f32) -> f32 {
    canonical(a * 0_f32.copysign(b))
}

/// `div.full.f32`: a/b over the full range. ISA bound: 2 ulp.
#[must_use]
pub fn full_div(a: f32, b: f32, ftz: bool) -> f32 {
    let (a, b) = if ftz { (flush(a), flush(b)) } else { (a, b) };
    let quotient = canonical(a / b);
    if ftz { flush(quotient) } else { quotient }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_values_follow_the_tables_of_the_isa() {
        let (infinity, nan) = (f32::INFINITY, 0x7fff_ffff);
        assert_eq!(ex2(-infinity, true), 0.0);
        assert_eq!(ex2(-0.0, true), 1.0);
        assert_eq!(ex2(infinity, true), infinity);
        assert_eq!(ex2(f32::NAN, true).to_bits(), nan);
        assert_eq!(ex2(-130.0, true), 0.0);
        assert_eq!(ex2(-130.0, false), 2_f32.powi(-130));
        assert_eq!(lg2(0.0, true), -infinity);
        assert_eq!(lg2(-0.0, true), -infinity);
        assert_eq!(lg2(-1.0, true).to_bits(), nan);
        assert_eq!(lg2(1e-40, true), -infinity);
        assert_eq!(lg2(2_f32.powi(-140), false), -140.0);
        assert_eq!(rcp(-0.0, true), -infinity);
        assert_eq!(rcp(infinity, true), 0.0);
        assert_eq!(rcp(2_f32.powi(127), true), 0.0);
        assert_eq!(rcp(2_f32.powi(127), false), 2_f32.powi(-127));
        assert_eq!(rsqrt(-0.0, true), -infinity);
        assert_eq!(rsqrt(-1.0, true).to_bits(), nan);
        assert_eq!(sqrt(-0.0, true).to_bits(), (-0_f32).to_bits());
        assert_eq!(sin(infinity, true).to_bits(), nan);
        assert_eq!(cos(0.0, true), 1.0);
        assert_eq!(tanh(-infinity), -1.0);
        assert_eq!(div(1.0, 2_f32.powi(127), false), 0.0);
        assert_eq!(div(infinity, 2_f32.powi(127), false).to_bits(), nan);
        assert_eq!(full_div(1.0, 2_f32.powi(127), false), 2_f32.powi(-127));
    }

    #[test]
    fn exact_arguments_give_exact_results() {
        for exponent in -126..=127 {
            let power = 2_f32.powi(exponent);
            assert_eq!(ex2(exponent as f32, true), power);
            assert_eq!(lg2(power, true), exponent as f32);
        }
        assert_eq!((sqrt(49.0, true), rsqrt(16.0, true)), (7.0, 0.25));
    }
}

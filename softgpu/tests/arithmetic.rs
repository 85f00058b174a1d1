//! Arithmetic in every type that hardmix's kernels compute in, against Rust: to the bit where IEEE 754
//! or PTX fixes the result.

mod common;

use common::{Gpu, Random, flat};
use half::{bf16, f16};

#[test]
fn integer_arithmetic() {
    let Some(gpu) = Gpu::load("arithmetic") else {
        return;
    };
    let mut random = Random::new(4);
    let (mut a, mut b) = (random.words(200), random.words(200));
    a[..6].copy_from_slice(&[0, 1, !0, 1 << 31, 5, 1 << 31]);
    b[..6].copy_from_slice(&[0, !0, !0, 1, 63, !0]);
    let output = gpu.unwritten::<u32>(200 * 24);
    launch!(gpu, "integers", flat(2, 128); &gpu.upload(&a), &gpu.upload(&b), &output, &200u32);
    let found = gpu.download(&output);
    for (i, (&x, &y)) in a.iter().zip(&b).enumerate() {
        let wide = u64::from(x) << 32 | u64::from(y);
        let (signed_x, signed_y) = (x as i32, y as i32);
        let shift = y & 63;
        let both = u64::from(y) << 32 | u64::from(x);
        let bytes = both.to_le_bytes();
        let expected = [
            x / (y | 1),
            x % (y | 1),
            signed_x.wrapping_div((y | 1) as i32) as u32,
            ((u64::from(x) * u64::from(y)) >> 32) as u32,
            ((i64::from(signed_x) * i64::from(signed_y)) >> 32) as u32,
            x.count_ones() + wide.count_ones() * 256,
            x.leading_zeros() + wide.leading_zeros() * 256,
            first_set(u64::from(x)) + first_set(wide) * 256,
            x.reverse_bits(),
            u32::from_le_bytes([bytes[1], bytes[2], bytes[7], bytes[4]]),
            ((both << (shift & 31)) >> 32) as u32,
            (both >> shift.min(32)) as u32,
            x << if shift != 0 { 7 } else { 9 },
            (signed_x >> (y & 31)) as u32,
            (wide % 1_000_003) as u32,
            (wide / u64::from(y | 1)) as u32,
            signed_x.min(signed_y) as u32,
            x.max(y),
            signed_x.abs_diff(signed_y).wrapping_add(3),
            ((u128::from(wide) * u128::from(wide)) >> 71) as u32,
            (x & !y) ^ (x | 0x55),
            u32::from(x as u16) * u32::from(y as u16),
            (x as i8 as u32).wrapping_add(y as i16 as u32),
            u32::from_le_bytes(std::array::from_fn(|i| {
                x.to_le_bytes()[i].saturating_sub(y.to_le_bytes()[i])
            }))
            .wrapping_add(if x > y { 3 } else { 5 }),
        ];
        assert_eq!(found[i * 24..][..24], expected, "{x:#x}, {y:#x}");
    }
}

#[test]
fn sums_and_products_in_several_words() {
    let Some(gpu) = Gpu::load("arithmetic") else {
        return;
    };
    let mut random = Random::new(9);
    let (mut a, mut b) = (random.words(4 * 200), random.words(4 * 200));
    // Carries that run through all words, and none.
    a[..12].copy_from_slice(&[!0, !0, !0, !0, 0, 0, 0, 0, !0, !0, !0, 1 << 31]);
    b[..12].copy_from_slice(&[1, 0, 0, 0, 1, 0, 0, 0, !0, !0, !0, 1 << 31]);
    let output = gpu.unwritten::<u32>(200 * 12);
    launch!(gpu, "carries", flat(2, 128); &gpu.upload(&a), &gpu.upload(&b), &output, &200u32);
    let found = gpu.download(&output);
    let number = |words: &[u32]| {
        let words = words.iter().rev();
        words.fold(0u128, |sum, &word| sum << 32 | u128::from(word))
    };
    for (i, found) in found.chunks_exact(12).enumerate() {
        let (x, y) = (number(&a[4 * i..][..4]), number(&b[4 * i..][..4]));
        let (low_x, low_y) = (u128::from(x as u64), u128::from(y as u64));
        let expected = [x.wrapping_add(y), x.wrapping_sub(y), low_x * low_y];
        assert_eq!(
            [0, 4, 8].map(|at| number(&found[at..][..4])),
            expected,
            "{x:#x}, {y:#x}"
        );
    }
}

/// The place of the lowest bit that is set, from 1; 0 without one.
fn first_set(x: u64) -> u32 {
    if x == 0 { 0 } else { x.trailing_zeros() + 1 }
}

/// The sum rounded toward zero or down.
fn directed_sum(x: f32, y: f32, down: bool) -> f32 {
    let exact = f64::from(x) + f64::from(y);
    let near = exact as f32;
    let too_far = match f64::from(near) {
        wide if down || exact > 0.0 => wide > exact,
        wide => wide < exact,
    };
    match (too_far, down || exact > 0.0) {
        (false, _) => near,
        (true, true) => near.next_down(),
        (true, false) => near.next_up(),
    }
}

#[test]
fn float_arithmetic_to_the_bit() {
    let Some(gpu) = Gpu::load("arithmetic") else {
        return;
    };
    let mut random = Random::new(5);
    let (mut a, mut b) = (random.floats(200), random.floats(200));
    for (x, y) in a.iter_mut().zip(&mut b) {
        *x *= 1000.0;
        *y *= 3.0;
    }
    let special = [f32::NAN, f32::INFINITY, -0.0, 0.5, 1e-41, -f32::INFINITY];
    a[..6].copy_from_slice(&special);
    b[4] = 3e-41;
    let output = gpu.unwritten::<f32>(200 * 20);
    launch!(gpu, "floats", flat(2, 128); &gpu.upload(&a), &gpu.upload(&b), &output, &200u32);
    let found = gpu.download(&output);
    for (i, (&x, &y)) in a.iter().zip(&b).enumerate() {
        let bits = |x: u32| f32::from_bits(x);
        // A NaN is converted to 0.
        let product = f64::from(x) * f64::from(y);
        let mut up = product as f32;
        if f64::from(up) < product {
            up = up.next_up();
        }
        let toward_zero = |x: u32| {
            let near = x as f32;
            if f64::from(near) > f64::from(x) {
                near.next_down()
            } else {
                near
            }
        };
        let expected = [
            x / y,
            x.abs().sqrt(),
            x.mul_add(y, -x),
            x.min(y),
            x.max(y),
            directed_sum(x, y, false),
            up,
            directed_sum(x, y, true),
            bits((x * 100.0).round_ties_even() as i32 as u32),
            bits((x * 100.0) as i32 as u32),
            bits((x * 1e12).ceil() as i32 as u32),
            bits((x * 100.0).round_ties_even() as u32),
            x.to_bits() as i32 as f32,
            toward_zero(y.to_bits()),
            (x * 3.0).round_ties_even(),
            (x * 3.0).floor() + (y * 3.0).ceil() + (x * 5.0).trunc(),
            if x.is_nan() { 0.0 } else { x.clamp(0.0, 1.0) },
            x.copysign(-y),
            (f64::from(x) * f64::from(y)) as f32,
            match x {
                x if x.is_nan() => 1.0,
                x if x.is_infinite() => 2.0,
                x if x < y => 3.0,
                _ => 4.0,
            },
        ];
        for (at, expected) in expected.into_iter().enumerate() {
            let got = found[i * 20 + at];
            let same = got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan();
            // −0 against +0 is open in a minimum, a clamp and a conversion through zero.
            assert!(
                same || got == 0.0 && expected == 0.0,
                "{x}, {y}, {at}: {got}, not {expected}"
            );
        }
    }
}

#[test]
fn approximations_are_as_close_as_ptx_allows() {
    let Some(gpu) = Gpu::load("arithmetic") else {
        return;
    };
    let mut input = Random::new(6).floats(300);
    input.iter_mut().for_each(|x| *x = *x * 3.0 + 0.01);
    let output = gpu.unwritten::<f32>(300 * 10);
    launch!(gpu, "approximations", flat(3, 128); &gpu.upload(&input), &output, &300u32);
    let found = gpu.download(&output);
    for (i, &x) in input.iter().enumerate() {
        let wide = f64::from(x);
        let relative = |y: f64, error: f64| (y, y.abs() * error);
        // The errors that the PTX manual and the CUDA programming guide state.
        let ulps = |y: f64, count: f64| relative(y, count * 2f64.powi(-23));
        let expected = [
            ulps(wide.exp2(), 2.0),
            (
                wide.abs().log2(),
                wide.abs().log2().abs() * 2f64.powi(-22) + 2f64.powi(-22),
            ),
            ulps(wide.recip(), 1.0),
            relative(wide.abs().sqrt().recip(), 2f64.powf(-22.9)),
            relative(wide.abs().sqrt(), 2f64.powi(-22)),
            relative(wide.tanh(), 2f64.powi(-11)),
            (wide.sin(), 2f64.powf(-20.5)),
            (wide.cos(), 2f64.powf(-20.5)),
            ulps(wide.exp(), 2.0),
            (
                wide.abs().ln(),
                wide.abs().ln().abs() * 2f64.powi(-22) + 2f64.powi(-22),
            ),
        ];
        for (at, (expected, tolerance)) in expected.into_iter().enumerate() {
            let got = f64::from(found[i * 10 + at]);
            assert!(
                (got - expected).abs() <= tolerance,
                "{x}, {at}: {got}, not {expected}"
            );
        }
    }
}

#[test]
fn sums_in_double_precision() {
    let Some(gpu) = Gpu::load("arithmetic") else {
        return;
    };
    let mut random = Random::new(7);
    let (a, b) = (random.floats(1000), random.floats(1000));
    let output = gpu.unwritten::<f64>(6);
    launch!(gpu, "doubles", flat(1, 32); &gpu.upload(&a), &gpu.upload(&b), &output, &1000u32);
    let found = gpu.download(&output);
    let wide = |x: &[f32]| x.iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
    let (a, b) = (wide(&a), wide(&b));
    // Multiples of 2⁻⁴⁶ whose sums stay below 2⁷: every order of additions is exact.
    let sum: f64 = a.iter().sum();
    let dot: f64 = a.iter().zip(&b).map(|(x, y)| x * y).sum();
    let largest = a.iter().copied().fold(f64::MIN, f64::max);
    let root = dot.abs().sqrt() / (1.0 + sum.abs());
    let whole = (sum * 1e6) as i64 as f64;
    assert_eq!(
        found,
        [
            sum,
            dot,
            largest,
            root,
            whole,
            (sum * 8.0).round_ties_even() + dot.floor()
        ]
    );
}

#[test]
fn philox_gives_its_known_answers() {
    let Some(gpu) = Gpu::load("arithmetic") else {
        return;
    };
    let counters = [
        [0u32; 4],
        [!0; 4],
        [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
    ];
    let keys = [[0u32; 2], [!0; 2], [0xa4093822, 0x299f31d0]];
    let answers = [
        [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8],
        [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd],
        [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1u32],
    ];
    let words = gpu.unwritten::<u32>(12);
    let (counters, keys) = (
        gpu.upload(counters.as_flattened()),
        gpu.upload(keys.as_flattened()),
    );
    launch!(gpu, "philox", flat(1, 32); &counters, &keys, &words, &3u32);
    assert_eq!(gpu.download(&words), answers.as_flattened());
}

#[test]
fn packed_arithmetic_rounds_once() {
    let Some(gpu) = Gpu::load("arithmetic") else {
        return;
    };
    let mut random = Random::new(10);
    let halves: Vec<f16> = random
        .floats(400)
        .iter()
        .map(|x| f16::from_f32(*x))
        .collect();
    let brains: Vec<bf16> = random
        .floats(400)
        .iter()
        .map(|x| bf16::from_f32(*x))
        .collect();
    let (hs, bs) = (
        gpu.unwritten::<f16>(100 * 20),
        gpu.unwritten::<bf16>(100 * 16),
    );
    launch!(gpu, "packed", flat(1, 128);
        &gpu.upload(&halves), &gpu.upload(&brains), &hs, &bs, &100u32);
    let (hs, bs) = (gpu.download(&hs), gpu.download(&bs));
    for i in 0..100 {
        let found = &hs[i * 20..];
        for lane in 0..2 {
            let (x, y) = (halves[i * 4 + lane], halves[i * 4 + 2 + lane]);
            let (wide_x, wide_y) = (x.to_f64(), y.to_f64());
            let expected = [
                wide_x + wide_y,
                wide_x * wide_y,
                wide_x.mul_add(wide_y, wide_x),
                wide_x - wide_y,
                wide_x.max(wide_y),
                wide_x.min(wide_y),
                -wide_x,
                wide_y.abs(),
            ];
            for (at, expected) in expected.into_iter().enumerate() {
                assert_eq!(
                    found[at * 2 + lane],
                    f16::from_f64(expected),
                    "{x}, {y}, {at}"
                );
            }
        }
        let (x, y) = (
            [halves[i * 4], halves[i * 4 + 1]],
            [halves[i * 4 + 2], halves[i * 4 + 3]],
        );
        assert_eq!(found[16], f16::from_f32(x[0].to_f32() * 1.0001));
        assert_eq!(found[17], f16::from_f32(y[1].to_f32() / 3.0));
        assert_eq!(found[18], if x[0] > y[0] { x[0] } else { y[1] });
        assert_eq!(found[19], f16_toward_zero(x[1].to_f32() * 1.001));

        let found = &bs[i * 16..];
        for lane in 0..2 {
            let (x, y) = (brains[i * 4 + lane], brains[i * 4 + 2 + lane]);
            let (wide_x, wide_y) = (x.to_f64(), y.to_f64());
            let expected = [
                wide_x + wide_y,
                wide_x * wide_y,
                wide_x.mul_add(wide_y, wide_x),
                wide_x.max(wide_y),
                wide_x.min(wide_y),
                -wide_x,
            ];
            for (at, expected) in expected.into_iter().enumerate() {
                assert_eq!(
                    found[at * 2 + lane],
                    bf16::from_f64(expected),
                    "{x}, {y}, {at}"
                );
            }
        }
        let (x, y) = (brains[i * 4], brains[i * 4 + 2]);
        assert_eq!(found[12], bf16::from_f32(x.to_f32() * 1.01));
        assert_eq!(found[13], bf16::from_f32(brains[i * 4 + 3].to_f32() / 3.0));
        let truncated = ((y.to_f32() * 1.01).to_bits() >> 16) as u16;
        assert_eq!(found[14], bf16::from_bits(truncated));
        assert_eq!(found[15], brains[i * 4 + 1]);
    }
}

fn f16_toward_zero(x: f32) -> f16 {
    let near = f16::from_f32(x);
    if near.to_f32().abs() > x.abs() {
        f16::from_bits(near.to_bits() - 1)
    } else {
        near
    }
}

//! Every mma.sync form that hardmix plans, and ldmatrix: exact on small integers, where a wrong
//! layout cannot hide behind a tolerance.

mod common;

use common::{Gpu, Random, flat};
use half::{bf16, f16};

/// D = A·Bᵀ + C for A [16×k], B [8×k], C [16×8].
fn expected(a: &[f32], b: &[f32], c: &[f32], k: usize) -> Vec<f32> {
    let dot = |i: usize| {
        (0..k)
            .map(|at| a[i / 8 * k + at] * b[i % 8 * k + at])
            .sum::<f32>()
            + c[i]
    };
    (0..128).map(dot).collect()
}

/// A, B and C of small integers.
fn inputs(k: usize) -> [Vec<f32>; 3] {
    let mut random = Random::new(k as u64);
    [
        random.small(7, 16 * k),
        random.small(7, 8 * k),
        random.small(7, 128),
    ]
}

/// Runs a kernel whose A and B are 16 bits wide.
fn run(gpu: &Gpu, kernel: &str, k: usize, encode: fn(f32) -> u16) {
    let [a, b, c] = inputs(k);
    let [given_a, given_b] =
        [&a, &b].map(|matrix| gpu.upload(&matrix.iter().copied().map(encode).collect::<Vec<_>>()));
    let (given_c, d) = (gpu.upload(&c), gpu.unwritten::<f32>(128));
    launch!(gpu, kernel, flat(1, 32); &given_a, &given_b, &given_c, &d);
    assert_eq!(gpu.download(&d), expected(&a, &b, &c, k), "{kernel}");
}

#[test]
fn sixteen_bit_forms() {
    let Some(gpu) = Gpu::load("mma") else { return };
    let (to_bf16, to_f16) = (
        |x| bf16::from_f32(x).to_bits(),
        |x| f16::from_f32(x).to_bits(),
    );
    run(&gpu, "mma_bf16_k16", 16, to_bf16);
    run(&gpu, "mma_bf16_k8", 8, to_bf16);
    run(&gpu, "mma_f16_k16", 16, to_f16);
    run(&gpu, "mma_f16_k8", 8, to_f16);
}

#[test]
fn accumulator_in_f16() {
    let Some(gpu) = Gpu::load("mma") else { return };
    let [a, b, c] = inputs(16);
    let encode =
        |matrix: &[f32]| gpu.upload(&matrix.iter().map(|x| f16::from_f32(*x)).collect::<Vec<_>>());
    let d = gpu.unwritten::<f16>(128);
    launch!(gpu, "mma_f16_f16", flat(1, 32); &encode(&a), &encode(&b), &encode(&c), &d);
    let found: Vec<f32> = gpu.download(&d).iter().map(|x| x.to_f32()).collect();
    assert_eq!(found, expected(&a, &b, &c, 16));
}

#[test]
fn tf32_forms() {
    let Some(gpu) = Gpu::load("mma") else { return };
    for (kernel, k) in [("mma_tf32_k8", 8), ("mma_tf32_k4", 4)] {
        let [a, b, c] = inputs(k);
        let d = gpu.unwritten::<f32>(128);
        launch!(gpu, kernel, flat(1, 32); &gpu.upload(&a), &gpu.upload(&b), &gpu.upload(&c), &d);
        assert_eq!(gpu.download(&d), expected(&a, &b, &c, k), "{kernel}");
    }
}

#[test]
fn matrices_load_by_rows_and_by_columns() {
    let Some(gpu) = Gpu::load("mma") else { return };
    let words: Vec<u16> = (0..256).collect();
    let (input, output) = (gpu.upload(&words), gpu.unwritten::<u32>(32 * 12));
    launch!(gpu, "load_matrix", flat(1, 32); &input, &output);
    let found = gpu.download(&output);
    let element = |matrix: u32, row: u32, column: u32| matrix * 64 + row * 8 + column;
    for lane in 0..32u32 {
        let (row, column) = (lane / 4, lane % 4 * 2);
        let straight = |m| element(m, row, column) | element(m, row, column + 1) << 16;
        let transposed = |m| element(m, column, row) | element(m, column + 1, row) << 16;
        let expected = [
            straight(1),
            transposed(2),
            transposed(3),
            straight(0),
            straight(1),
            straight(2),
            straight(3),
            transposed(0),
            transposed(1),
            transposed(2),
            transposed(3),
            transposed(0),
        ];
        assert_eq!(found[lane as usize * 12..][..12], expected, "lane {lane}");
    }
}

//! The kernel shapes that have planted defects: each runs one kernel of its family on inputs made
//! for it and compares the result with what the family computes, in Rust.

use std::fmt;

use cudarc::driver::sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
use cudarc::driver::{DriverError, LaunchConfig, PushKernelArg};
use half::bf16;

use super::tensor_map::{TensorMap, tensor_map};
use super::{Gpu, Random, flat};
use crate::try_launch;

/// Why a run is not right.
pub enum Failure {
    /// The driver refused the launch or the kernel faulted.
    Device(DriverError),
    /// The kernel ran to its end and computed something else.
    Result(String),
}

impl From<DriverError> for Failure {
    fn from(error: DriverError) -> Self {
        Self::Device(error)
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(error) => write!(f, "{error}"),
            Self::Result(sentence) => f.write_str(sentence),
        }
    }
}

/// The bits of a run's result, to compare between schedules.
pub type Outcome = Result<Vec<u32>, Failure>;

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// `found` if it is `expected` to the bit.
fn exactly(what: &str, found: Vec<u32>, expected: &[u32]) -> Outcome {
    match (0..expected.len()).find(|i| found[*i] != expected[*i]) {
        None => Ok(found),
        Some(at) => Err(Failure::Result(format!(
            "{what}: element {at} is {:#x} and should be {:#x}",
            found[at], expected[at]
        ))),
    }
}

/// `found` if each element is within `tolerance` of `expected`.
fn within(what: &str, found: &[f32], expected: &[f64], tolerance: &[f64]) -> Outcome {
    let off = |i: &usize| {
        let error = (f64::from(found[*i]) - expected[*i]).abs();
        error.is_nan() || error > tolerance[*i]
    };
    match (0..expected.len()).find(off) {
        None => Ok(bits(found)),
        Some(at) => Err(Failure::Result(format!(
            "{what}: element {at} is {} and should be {} ± {:.1e}",
            found[at], expected[at], tolerance[at]
        ))),
    }
}

/// The sum of each block's `threads` of `n` integers. `shared` bytes are given to the kernel.
pub fn sum(gpu: &Gpu, kernel: &str, n: u32, threads: u32, shared: u32) -> Outcome {
    let blocks = n.div_ceil(threads);
    let input = Random::new(1).small(8, n as usize);
    let (given, sums) = (gpu.upload(&input), gpu.unwritten::<f32>(blocks as usize));
    let configuration = LaunchConfig {
        shared_mem_bytes: shared,
        ..flat(blocks, threads)
    };
    try_launch!(gpu, gpu.function(kernel), configuration; &given, &sums, &n)?;
    let expected: Vec<f32> = input
        .chunks(threads as usize)
        .map(|part| part.iter().sum())
        .collect();
    exactly(
        "sum",
        bits(&gpu.stream.clone_dtoh(&sums)?),
        &bits(&expected),
    )
}

/// The transpose of a rows × columns matrix.
pub fn transpose(gpu: &Gpu, kernel: &str, rows: u32, columns: u32) -> Outcome {
    let input = Random::new(2).words((rows * columns) as usize);
    let (given, output) = (gpu.upload(&input), gpu.unwritten::<u32>(input.len()));
    let configuration = LaunchConfig {
        block_dim: (32, 8, 1),
        ..flat(rows.div_ceil(32), 1)
    };
    try_launch!(gpu, gpu.function(kernel), configuration; &given, &output, &rows, &columns)?;
    let at = |i: u32| input[(i % rows * columns + i / rows) as usize];
    let expected: Vec<u32> = (0..rows * columns).map(at).collect();
    exactly("transpose", gpu.stream.clone_dtoh(&output)?, &expected)
}

/// The sum over `count` blocks of 32 integers each, twice in a row.
pub fn blocks(gpu: &Gpu, kernel: &str, count: u32) -> Outcome {
    let input: Vec<f32> = Random::new(3)
        .below(9, 32 * count as usize)
        .iter()
        .map(|x| *x as f32)
        .collect();
    let partial = gpu.unwritten::<f32>(count as usize);
    let (done, total) = (gpu.zeros::<u32>(1), gpu.zeros::<f32>(1));
    let mut found = Vec::new();
    for _ in 0..2 {
        let given = gpu.upload(&input);
        try_launch!(gpu, gpu.function(kernel), flat(count, 32); &given, &partial, &done, &total)?;
        found.push(gpu.stream.clone_dtoh(&total)?[0]);
        // ATOMIC_SUM leaves its sum here, and every other kernel nothing.
        found.push(gpu.stream.clone_dtoh(&done)?[0] as f32);
    }
    let sum: f32 = input.iter().sum();
    let expected = match kernel {
        "blocks_atomic_sum" => [0.0, sum, 0.0, 2.0 * sum],
        _ => [sum, 0.0, sum, 0.0],
    };
    exactly("blocks", bits(&found), &bits(&expected))
}

/// The sum over `count` blocks of 32 integers each, in every block, by a cooperative launch.
pub fn together(gpu: &Gpu, kernel: &str, count: u32) -> Outcome {
    together_with(gpu, kernel, count, 0)
}

/// The same with `shared` bytes of dynamic shared memory, which the kernel leaves alone.
pub fn together_with(gpu: &Gpu, kernel: &str, count: u32, shared: u32) -> Outcome {
    let input = Random::new(4).small(9, 32 * count as usize);
    let given = gpu.upload(&input);
    let (partial, totals) = (
        gpu.unwritten::<f32>(count as usize),
        gpu.unwritten::<f32>(count as usize),
    );
    let function = gpu.function(kernel);
    function.set_attribute(
        CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
        shared as i32,
    )?;
    let configuration = LaunchConfig {
        shared_mem_bytes: shared,
        ..flat(count, 32)
    };
    let mut builder = gpu.stream.launch_builder(&function);
    builder.arg(&given).arg(&partial).arg(&totals);
    // SAFETY: as in `try_launch`.
    unsafe { builder.launch_cooperative(configuration) }?;
    let sum: f32 = input.iter().sum();
    exactly(
        "together",
        bits(&gpu.stream.clone_dtoh(&totals)?),
        &vec![sum.to_bits(); count as usize],
    )
}

/// The sums of 64 columns over `tiles` rows.
pub fn relay(gpu: &Gpu, kernel: &str, tiles: u32) -> Outcome {
    let input = Random::new(5).small(100, 64 * tiles as usize);
    let (given, output) = (gpu.upload(&input), gpu.unwritten::<f32>(64));
    try_launch!(gpu, gpu.function(kernel), flat(1, 128); &given, &output, &tiles)?;
    let column = |lane: usize| input.iter().skip((lane + 33) % 64).step_by(64).sum::<f32>();
    let expected: Vec<f32> = (0..64).map(column).collect();
    exactly(
        "relay",
        bits(&gpu.stream.clone_dtoh(&output)?),
        &bits(&expected),
    )
}

/// 64 rows of 16 words, each sorted.
pub fn insertion(gpu: &Gpu, kernel: &str) -> Outcome {
    let mut input = Random::new(6).words(64 * 16);
    let (given, output) = (gpu.upload(&input), gpu.unwritten::<u32>(input.len()));
    try_launch!(gpu, gpu.function(kernel), flat(1, 64); &given, &output, &16u32)?;
    input.chunks_mut(16).for_each(<[u32]>::sort_unstable);
    exactly("insertion", gpu.stream.clone_dtoh(&output)?, &input)
}

/// Scores of 16 queries with `keys` keys of 128 dimensions in splits of `split_tiles` tiles of 64.
///
/// Scores are multiples of 2⁻⁸ below 2⁵, exact in f32, so the maxima are exact too. Each exponential
/// is off by at most 2⁻²² (ex2.approx), each of the `n` additions and rescalings by 2⁻²⁴, and the
/// weighted sums by the rounding of the probabilities to bf16, 2⁻⁹, besides.
pub fn scores(gpu: &Gpu, kernel: &str, keys: u32, split_tiles: u32, stages: u32) -> Outcome {
    const DIM: usize = 128;
    let weighted = kernel.starts_with("weighted");
    let splits = keys.div_ceil(64 * split_tiles);
    let grid = |seed, rows: usize| -> Vec<bf16> {
        let integers = Random::new(seed).small(2, rows * DIM);
        integers.iter().map(|x| bf16::from_f32(x / 16.0)).collect()
    };
    let (q, k) = (grid(7, 16), grid(8, keys as usize));
    let rows = 16 * splits as usize;
    let (queries, given) = (gpu.upload(&q), gpu.upload(&k));
    let (maxima, sums) = (gpu.unwritten::<f32>(rows), gpu.unwritten::<f32>(rows));
    let sums_of_keys = gpu.unwritten::<f32>(if weighted { rows * DIM } else { 1 });
    let function = gpu.function(kernel);
    let shared = stages * 64 * 256;
    function.set_attribute(
        CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
        shared as i32,
    )?;
    let configuration = LaunchConfig {
        shared_mem_bytes: shared,
        ..flat(splits, 128)
    };
    let scale = 4.0f32;
    try_launch!(gpu, function, configuration;
        &queries, &given, &keys, &split_tiles, &scale, &maxima, &sums, &sums_of_keys)?;

    let wide = |x: &[bf16]| x.iter().map(|x| x.to_f64()).collect::<Vec<_>>();
    let (q, k) = (wide(&q), wide(&k));
    let (mut tops, mut expected, mut tolerance) = (Vec::new(), Vec::new(), Vec::new());
    let (mut expected_keys, mut tolerance_keys) = (Vec::new(), Vec::new());
    for part in k.chunks(64 * split_tiles as usize * DIM) {
        let n = (part.len() / DIM) as f64;
        let each = (n + 16.0) * 2f64.powi(-24) + 2f64.powi(-22);
        for query in q.chunks(DIM) {
            let dot = |key: &[f64]| query.iter().zip(key).map(|(x, y)| x * y).sum::<f64>();
            let scaled: Vec<f64> = part
                .chunks(DIM)
                .map(|key| dot(key) * f64::from(scale))
                .collect();
            let top = scaled.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let powers: Vec<f64> = scaled.iter().map(|x| (x - top).exp2()).collect();
            let total: f64 = powers.iter().sum();
            tops.push(top as f32);
            expected.push(total);
            tolerance.push(2.0 * total * each);
            for d in 0..if weighted { DIM } else { 0 } {
                let terms = || {
                    powers
                        .iter()
                        .zip(part.chunks(DIM))
                        .map(|(p, key)| p * key[d])
                };
                expected_keys.push(terms().sum());
                let size: f64 = terms().map(f64::abs).sum();
                tolerance_keys.push(size * (2f64.powi(-9) + 2.0 * each));
            }
        }
    }
    let mut found = exactly(
        "maxima",
        bits(&gpu.stream.clone_dtoh(&maxima)?),
        &bits(&tops),
    )?;
    found.extend(within(
        "sums",
        &gpu.stream.clone_dtoh(&sums)?,
        &expected,
        &tolerance,
    )?);
    if weighted {
        let keys = gpu.stream.clone_dtoh(&sums_of_keys)?;
        found.extend(within(
            "weighted sums",
            &keys,
            &expected_keys,
            &tolerance_keys,
        )?);
    }
    Ok(found)
}

/// The `n` largest of each row of `columns` values, many of them equal, in column order; of equal
/// values the first columns.
pub fn top_n(gpu: &Gpu, kernel: &str, rows: u32, columns: u32, n: u32) -> Outcome {
    let values = Random::new(9).small(60, (rows * columns) as usize);
    let len = (rows * n) as usize;
    let given = gpu.upload(&values);
    let (indices, selected) = (gpu.unwritten::<u32>(len), gpu.unwritten::<f32>(len));
    try_launch!(gpu, gpu.function(kernel), flat(rows, 128); &given, &columns, &n, &indices, &selected)?;
    let (mut expected, mut expected_values) = (Vec::new(), Vec::new());
    for row in values.chunks(columns as usize) {
        let mut order: Vec<u32> = (0..columns).collect();
        order.sort_by(|a, b| row[*b as usize].total_cmp(&row[*a as usize]));
        order.truncate(n as usize);
        order.sort_unstable();
        expected_values.extend(order.iter().map(|at| row[*at as usize].to_bits()));
        expected.extend(order);
    }
    let mut found = exactly("indices", gpu.stream.clone_dtoh(&indices)?, &expected)?;
    let selected = bits(&gpu.stream.clone_dtoh(&selected)?);
    found.extend(exactly("values", selected, &expected_values)?);
    Ok(found)
}

/// Small integers as bf16.
fn integers(seed: u64, len: usize) -> Vec<bf16> {
    Random::new(seed)
        .small(4, len)
        .into_iter()
        .map(bf16::from_f32)
        .collect()
}

/// A · Bᵀ for two 64×64 matrices by one warpgroup; A · B with `b_transposed`.
pub fn product(gpu: &Gpu, kernel: &str) -> Outcome {
    let (a, b) = (
        Random::new(10).small(4, 64 * 64),
        Random::new(11).small(4, 64 * 64),
    );
    let encode = |x: &f32| match kernel {
        "wgmma_f16" => half::f16::from_f32(*x).to_bits(),
        _ => bf16::from_f32(*x).to_bits(),
    };
    let [given_a, given_b] =
        [&a, &b].map(|matrix| gpu.upload(&matrix.iter().map(encode).collect::<Vec<_>>()));
    let output = gpu.unwritten::<f32>(64 * 64);
    try_launch!(gpu, gpu.function(kernel), flat(1, 128); &given_a, &given_b, &output)?;
    let (step, column) = if kernel == "wgmma_b_transposed" {
        (64, 1)
    } else {
        (1, 64)
    };
    let element = |i: usize| {
        (0..64)
            .map(|k| a[i / 64 * 64 + k] * b[i % 64 * column + k * step])
            .sum::<f32>()
            .to_bits()
    };
    let expected: Vec<u32> = (0..64 * 64).map(element).collect();
    exactly("product", bits(&gpu.stream.clone_dtoh(&output)?), &expected)
}

/// bf16 scores of 64·`query_tiles` queries with 64·`key_tiles` keys of 64 dimensions, through TMA.
pub fn pipeline(gpu: &Gpu, kernel: &str, query_tiles: u32, key_tiles: u32, splits: u32) -> Outcome {
    const SHARED: u32 = 5 * 8192 + 128;
    let (rows, columns) = (64 * query_tiles as usize, 64 * key_tiles as usize);
    // Integers up to 3 in 64 dimensions: a product sum that bf16 holds only where it is below 256,
    // so one in four dimensions is left.
    let sparse = |seed, rows: usize| -> Vec<bf16> {
        let mut all = integers(seed, rows * 64);
        all.iter_mut().enumerate().for_each(|(i, x)| {
            if i % 4 != 0 {
                *x = bf16::ZERO;
            }
        });
        all
    };
    let (q, k) = (sparse(12, rows), sparse(13, columns));
    let (queries, keys) = (gpu.upload(&q), gpu.upload(&k));
    let output = gpu.unwritten::<bf16>(rows * columns);
    let key_rows = if CLUSTERED.contains(&kernel) { 32 } else { 64 };
    let maps = [
        tensor_map(&gpu.stream, &queries, 64, rows),
        tensor_map(&gpu.stream, &keys, 64, columns).rows(key_rows),
        tensor_map(&gpu.stream, &output, columns, rows),
    ]
    .map(TensorMap::encode);
    let function = gpu.function(kernel);
    function.set_attribute(
        CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
        SHARED as i32,
    )?;
    let configuration = LaunchConfig {
        grid_dim: (query_tiles, splits, 1),
        block_dim: (256, 1, 1),
        shared_mem_bytes: SHARED,
    };
    try_launch!(gpu, function, configuration; &maps[0], &maps[1], &maps[2], &key_tiles)?;
    let dot = |i: usize| {
        let (query, key) = (&q[i / columns * 64..][..64], &k[i % columns * 64..][..64]);
        let sum: f32 = query
            .iter()
            .zip(key)
            .map(|(x, y)| x.to_f32() * y.to_f32())
            .sum();
        u32::from(bf16::from_f32(sum).to_bits())
    };
    let expected: Vec<u32> = (0..rows * columns).map(dot).collect();
    let found = gpu
        .stream
        .clone_dtoh(&output)?
        .iter()
        .map(|x| u32::from(x.to_bits()))
        .collect();
    exactly("scores", found, &expected)
}

/// The pipelines whose blocks come in clusters of two and load half a tile each.
const CLUSTERED: [&str; 4] = [
    "pipeline2",
    "pipeline_no_cluster_sync",
    "pipeline_release_own_only",
    "pipeline_no_last_cluster_sync",
];

/// For each lane of a cluster of four, the sum of the next lane's value over the blocks.
pub fn exchange(gpu: &Gpu, kernel: &str, clusters: u32) -> Outcome {
    let len = 128 * clusters as usize;
    let input = Random::new(14).small(50, len);
    let (given, output) = (gpu.upload(&input), gpu.unwritten::<f32>(len));
    try_launch!(gpu, gpu.function(kernel), flat(4 * clusters, 32); &given, &output)?;
    let sum = |i: usize| {
        (0..4)
            .map(|peer| input[i / 128 * 128 + peer * 32 + (i + 1) % 32])
            .sum::<f32>()
            .to_bits()
    };
    let expected: Vec<u32> = (0..len).map(sum).collect();
    exactly(
        "exchange",
        bits(&gpu.stream.clone_dtoh(&output)?),
        &expected,
    )
}

/// One more than each word, 1024 a block.
pub fn bulk(gpu: &Gpu, kernel: &str, blocks: u32) -> Outcome {
    let input = Random::new(15).below(1 << 20, 1024 * blocks as usize);
    let (given, output) = (gpu.upload(&input), gpu.unwritten::<u32>(input.len()));
    try_launch!(gpu, gpu.function(kernel), flat(blocks, 128); &given, &output)?;
    let expected: Vec<u32> = input.iter().map(|x| x + 1).collect();
    exactly("bulk", gpu.stream.clone_dtoh(&output)?, &expected)
}

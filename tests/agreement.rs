//! The GPU path against the CPU path, row by row. Where rounding decides which rows are the N hardest,
//! the CPU is given the GPU's.
#![cfg(feature = "cuda")]

mod common;

use common::Backend;
use common::cases::{Case, Labels, Recipe, Ties};
use common::cuda::CUDA;
use common::oracle::boundary_gap;
use common::reference::{Problem, RowDraws, norm};
use common::tolerance::{Arithmetic, bounds, golden, golden_synthetic};
use hardmix::{DType, Draws, NO_ROW, Output, Queue, Rows, cpu};

/// The CPU's output over the lists of the GPU's.
fn over_the_lists_of(gpu: &Output, case: &Case) -> Output {
    let n = case.config.hardest();
    let logits = case.queries.chunks_exact(case.queue.dim());
    let logits = logits
        .zip(gpu.hardest.chunks_exact(n))
        .flat_map(|(q, list)| {
            list.iter().map(|&j| match case.queue.row(j as usize) {
                Some(row) => q.iter().zip(row).map(|(a, b)| a * b).sum(),
                None => f32::NEG_INFINITY,
            })
        });
    let count = |list: &[u32]| list.iter().filter(|&&j| j != NO_ROW).count() as u32;
    let ranked = cpu::Ranked {
        hardest: n,
        logits: logits.collect(),
        counts: gpu.hardest.chunks_exact(n).map(count).collect(),
        indices: gpu.hardest.clone(),
    };
    let draws = Draws::given(gpu.draws.clone());
    let synthetic = cpu::mix(&case.batch(), &case.queue, &ranked, &case.config, &draws);
    let synthetic = synthetic.expect("the lists are valid");
    cpu::info_nce(&case.batch(), &case.queue, &synthetic, &case.config).expect("a valid case")
}

/// How many rows have other hardest on the GPU, after everything has been compared.
fn compare(case: &Case) -> usize {
    let problem = Problem::new(case);
    let (dim, n) = (case.queue.dim(), problem.hardest);
    let gpu = CUDA.step(case).expect("a valid case");
    let own = cpu::Step::new(case.config.clone())
        .run(&case.batch(), &case.queue, &case.draws)
        .expect("a valid case");
    let given = over_the_lists_of(&gpu, case);
    let (tolerance, of_synthetics) = (golden(&problem), golden_synthetic(&problem));
    let mut differ = 0;
    let (mut error, mut size) = (0.0, 0.0);
    for b in 0..case.rows() {
        let list = b * n..(b + 1) * n;
        let same = gpu.hardest[list.clone()] == own.hardest[list];
        if !same {
            let row = problem.row(b, &RowDraws::default(), None);
            let logit = |arithmetic| bounds(&problem, b, &row, arithmetic).logit;
            let bound = logit(Arithmetic::F32) + logit(Arithmetic::TENSOR);
            let gap = boundary_gap(&row.logits, n);
            assert!(gap <= 2.0 * bound, "row {b} differs over a gap of {gap:e}");
            differ += 1;
        }
        let cpu = if same { &own } else { &given };
        let off = f64::from(gpu.loss_rows[b] - cpu.loss_rows[b]).abs();
        assert!(off <= tolerance, "row {b}, loss: {off:e} of {tolerance:e}");
        for (ours, theirs, width) in [
            (&gpu.mixed_logits, &cpu.mixed_logits, problem.mixed),
            (
                &gpu.query_mixed_logits,
                &cpu.query_mixed_logits,
                problem.query_mixed,
            ),
        ] {
            let row = b * width..(b + 1) * width;
            for (a, b) in ours[row.clone()].iter().zip(&theirs[row]) {
                let off = f64::from(a - b).abs();
                assert!(
                    a == b || off <= of_synthetics,
                    "a synthetic logit: {a}, {b}"
                );
            }
        }
        let row = b * dim..(b + 1) * dim;
        let theirs: Vec<f64> = cpu.grad_queries[row.clone()]
            .iter()
            .map(|&g| g.into())
            .collect();
        let ours = gpu.grad_queries[row].iter();
        let off: Vec<f64> = ours.zip(&theirs).map(|(&a, b)| f64::from(a) - b).collect();
        error += norm(&off).powi(2);
        size += norm(&theirs).powi(2);
    }
    let relative = (error / size).sqrt();
    assert!(relative <= tolerance, "gradient: {relative:e}");
    differ
}

/// Copies of a row that differ from it in last bits only: their logits lie within rounding.
fn nudged(queue: &Queue, rng: &mut fastrand::Rng) -> Queue {
    let mut rows = queue.rows().to_f32();
    let nudge = |x: &mut f32| *x = f32::from_bits(x.to_bits() + rng.u32(..2));
    rows.iter_mut().for_each(nudge);
    let labels = queue.labels().map(<[u32]>::to_vec);
    let queue = Queue::from_rows(Rows::F32(rows), queue.dim()).expect("a queue");
    match labels {
        Some(labels) => queue.with_labels(labels).expect("one label a row"),
        None => queue,
    }
}

#[test]
fn the_gpu_agrees_with_the_cpu_row_by_row() {
    let rng = &mut fastrand::Rng::with_seed(13);
    let (mut rows, mut close) = (0, 0);
    for dtype in [DType::F32, DType::F16, DType::Bf16] {
        for labels in [Labels::None, Labels::Oracle(3)] {
            for (dim, temperature) in [(24, 0.2), (130, 0.05)] {
                let case = Recipe {
                    rows: 9,
                    capacity: 211,
                    dim,
                    dtype,
                    labels,
                    temperature,
                    seed: rng.u64(..),
                    ..Recipe::default()
                };
                assert_eq!(compare(&case.build()), 0, "distinct rows differ");
                rows += 9;
                if dtype == DType::F32 {
                    // Some twenty copies of each row: a boundary in the midst of them.
                    let mut case = Recipe {
                        ties: Ties::Few(9),
                        ..case
                    }
                    .build();
                    case.queue = nudged(&case.queue, rng);
                    close += compare(&case);
                    rows += 9;
                }
            }
        }
    }
    println!("{rows} rows: {close} have other hardest on the GPU, within rounding of the boundary");
    assert!(close > 0, "no boundary was decided by rounding");
}

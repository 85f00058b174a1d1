//! The fused path beyond what the shared tests ask of every backend.
#![cfg(feature = "cuda")]

mod common;

use common::cases::{Case, unit_rows};
use common::cuda::{CUDA, Cuda, device, is_softgpu, under_all_schedules};
use common::reference::{Problem, norm, rows_of_draws};
use common::tolerance::bounds;
use common::{Backend, compare, row_bits};
use hardmix::cuda::{self, FusedTuning, Path};
use hardmix::{Config, DType, Draws, Output, QueryGradient, Queue, Reduction, Rows};

const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::Bf16];
const FUSED: Cuda = Cuda { fused: true };

/// Plain MoCo; every third query is thirty times as long, so that its shift is its largest logit and
/// not the bound.
fn case(rows: usize, capacity: usize, dim: usize, dtype: DType) -> Case {
    let rng = &mut fastrand::Rng::with_seed((rows * capacity * dim) as u64);
    let mut queries = unit_rows(rng, rows, dim);
    for query in queries.chunks_exact_mut(dim).skip(1).step_by(3) {
        query.iter_mut().for_each(|x| *x *= 30.0);
    }
    let keys = unit_rows(rng, rows, dim);
    let stored = Rows::from_f32(dtype, &unit_rows(rng, capacity, dim));
    Case {
        queries,
        keys,
        query_labels: None,
        row_offset: 0,
        queue: Queue::from_rows(stored, dim).expect("a queue"),
        config: diagnosed(Config::moco()),
        draws: Draws::seeded(0, 0).expect("draws"),
    }
}

fn diagnosed(config: Config) -> Config {
    config
        .with_reduction(Reduction::Sum)
        .with_uniformity(true)
        .with_matching_probability(true)
}

/// The same with synthetic negatives.
fn mochi(shape: (usize, usize, usize), counts: (usize, usize, usize), dtype: DType) -> Case {
    let ((rows, capacity, dim), (hardest, mixed, query_mixed)) = (shape, counts);
    let config = Config::mochi(hardest, mixed, query_mixed).expect("settings");
    Case {
        config: diagnosed(config).with_query_gradient(QueryGradient::Attached),
        draws: Draws::seeded(11, 5).expect("draws"),
        ..case(rows, capacity, dim, dtype)
    }
}

fn agrees(case: &Case, what: &str) {
    let output = FUSED.step(case).expect("a step");
    compare::step(case, &output, FUSED.arithmetic()).unwrap_or_else(|why| panic!("{what}: {why}"));
}

/// Queues shorter than a tile and longer than a split's ring, dimensions that are multiples of nothing.
#[test]
fn every_shape_and_type_agrees_with_the_reference() {
    for dtype in DTYPES {
        for (rows, capacity, dim) in [
            (1, 1, 1),
            (3, 31, 5),
            (7, 33, 16),
            (65, 600, 9),
            (5, 1100, 128),
            (5, 600, 129),
            (3, 130, 256),
        ] {
            let case = case(rows, capacity, dim, dtype);
            agrees(&case, &format!("{dtype:?}, {rows} × {capacity} × {dim}"));
        }
    }
}

/// Lists shorter than the groups of a block and longer than their runs, rows that fill no block of
/// dimensions and several, each kind of synthetic negatives alone.
#[test]
fn synthetic_negatives_of_every_shape_and_type_agree_with_the_reference() {
    for dtype in DTYPES {
        for (shape, counts) in [
            ((1, 1, 1), (1, 2, 1)),
            ((4, 40, 5), (40, 60, 0)),
            ((3, 300, 24), (50, 0, 70)),
            ((2, 1200, 7), (1100, 900, 200)),
            ((2, 200, 128), (100, 120, 40)),
            ((2, 200, 200), (100, 120, 40)),
        ] {
            let case = mochi(shape, counts, dtype);
            agrees(&case, &format!("{dtype:?}, {shape:?}, {counts:?}"));
        }
    }
}

/// Synthetic logits hundreds of τ above the real ones (short queue rows beside unit mixtures) and as
/// far below (long ones), on rows whose shift is the bound and on rows whose shift is their largest
/// logit: the shifts of the two kinds lie so far apart that one factor between them vanishes.
#[test]
fn shifts_far_apart_lose_nothing() {
    for (length, temperature) in [
        (1e-3, 0.2),
        (0.05, 0.02),
        (5.0, 0.02),
        (5.0, 0.2),
        (100.0, 0.2),
    ] {
        for dtype in [DType::F32, DType::Bf16] {
            let mut case = mochi((6, 150, 12), (20, 25, 9), dtype);
            for query in case.queries.chunks_exact_mut(12).step_by(2) {
                query.iter_mut().for_each(|x| *x *= 5.0);
            }
            let mut stored = case.queue.rows().to_f32();
            stored.iter_mut().for_each(|x| *x *= length);
            case.queue = Queue::from_rows(Rows::from_f32(dtype, &stored), 12).expect("a queue");
            case.config = case.config.with_temperature(temperature).expect("τ");
            agrees(
                &case,
                &format!("{dtype:?}, rows of {length}, τ {temperature}"),
            );
        }
    }
}

/// The two paths make the same logits: hardest, draws, synthetic logits and hits are the same to the
/// bit. What they add up differs by twice what either may be off.
#[test]
fn the_paths_agree() {
    for dtype in DTYPES {
        let case = mochi((9, 700, 40), (60, 80, 30), dtype);
        let (fused, unfused) = (
            FUSED.step(&case).expect("a step"),
            CUDA.step(&case).expect("a step"),
        );
        assert_eq!(fused.hardest, unfused.hardest);
        assert_eq!(fused.hits, unfused.hits);
        assert_eq!(fused.hits_with_synthetic, unfused.hits_with_synthetic);
        assert_eq!(
            common::bits(&fused.mixed_logits),
            common::bits(&unfused.mixed_logits)
        );
        assert_eq!(
            common::bits(&fused.query_mixed_logits),
            common::bits(&unfused.query_mixed_logits)
        );
        assert_eq!(fused.metrics.mixed_harder, unfused.metrics.mixed_harder);
        assert_eq!(
            fused.metrics.query_mixed_harder,
            unfused.metrics.query_mixed_harder
        );

        let problem = Problem::new(&case);
        let draws = rows_of_draws(&fused.draws, case.rows());
        for (b, draws) in draws.iter().enumerate() {
            let row = problem.row(b, draws, None);
            let bounds = bounds(&problem, b, &row, FUSED.arithmetic());
            let off = f64::from(fused.loss_rows[b] - unfused.loss_rows[b]).abs();
            assert!(off <= 2.0 * bounds.loss, "{dtype:?}, row {b}: loss {off:e}");
            let of_row = b * 40..(b + 1) * 40;
            let pairs = fused.grad_queries[of_row.clone()]
                .iter()
                .zip(&unfused.grad_queries[of_row]);
            let off: Vec<f64> = pairs.map(|(a, b)| f64::from(a - b)).collect();
            assert!(
                norm(&off) <= 2.0 * bounds.grad_query,
                "{dtype:?}, row {b}: {off:?}"
            );
        }
    }
}

#[test]
fn neither_schedule_nor_batch_changes_a_bit() {
    for whole in [
        case(67, 700, 24, DType::Bf16),
        mochi((67, 200, 24), (33, 40, 17), DType::Bf16),
        mochi((6, 1200, 7), (1100, 40, 17), DType::F32),
    ] {
        let expected = under_all_schedules(|| row_bits(&FUSED.step(&whole).expect("a step")));
        let rows = whole.rows();
        let parts = [(0, 1), (1, 5), (5, rows)].map(|(from, to)| whole.shard(from, to));
        let cut: Vec<_> = parts
            .iter()
            .flat_map(|part| row_bits(&FUSED.step(part).expect("a step")))
            .collect();
        assert!(cut == expected, "a row depends on its batch");
    }
}

/// Which path a step takes that was asked for none.
#[test]
fn auto_is_the_unfused_path() {
    if !is_softgpu() {
        return;
    }
    let case = case(4, 100, 8, DType::F32);
    let kernels = |step: cuda::Step| {
        softgpu::take_launches();
        let mut step = step;
        common::Step::run(&mut step, &case.batch(), &case.queue, &case.draws).expect("a step");
        let launches = softgpu::take_launches();
        launches
            .into_iter()
            .map(|(name, _)| name)
            .collect::<Vec<_>>()
    };
    let step = || cuda::Step::new(device(), case.config.clone()).expect("a step");
    let auto = kernels(step());
    assert_eq!(auto, kernels(step().with_path(Path::Auto)));
    assert_eq!(auto, kernels(step().with_path(Path::Unfused)));
    assert_ne!(auto, kernels(step().with_path(Path::Fused)));
}

/// The path that was asked for is taken, and writes neither a logit nor a weight of the queue.
#[test]
fn one_pass_makes_neither_logits_nor_weights() {
    if !is_softgpu() || !common::cuda::alone("one_pass_makes_neither_logits_nor_weights") {
        return;
    }
    for (case, mixes, pass) in [
        (case(4, 100, 8, DType::F32), false, "contrast_f32_exact_128"),
        (
            mochi((4, 100, 8), (9, 5, 3), DType::F32),
            true,
            "contrast_f32_exact_128_ranked",
        ),
        (mochi((4, 100, 257), (9, 5, 3), DType::F32), true, "score"),
    ] {
        softgpu::take_launches();
        FUSED.step(&case).expect("a step");
        let launches = softgpu::take_launches();
        let names: Vec<_> = launches.iter().map(|(kernel, _)| kernel.as_str()).collect();
        assert!(names.contains(&pass), "{names:?}");
        for kernel in ["maxima", "exponentials"] {
            assert!(!names.contains(&kernel), "{names:?}");
        }
        // One tile of logits is the products of queries and keys; a slice has logits and weights.
        let slices = if pass == "score" { 1 } else { 0 };
        let count = |prefix| names.iter().filter(|name| name.starts_with(prefix)).count();
        assert_eq!(count("weigh_"), slices, "{names:?}");
        assert_eq!(count("direction_"), usize::from(mixes), "{names:?}");
        // With the pass that no row here is hot enough for.
        assert_eq!(count("logits_"), 1 + 2 * slices, "{names:?}");
    }
}

/// More dimensions than a pass takes: slices, of lengths that end anywhere, for plain MoCo and MoCHi, hot
/// rows and masked ones. How the queue is sliced changes rounding alone.
#[test]
fn slices_agree_with_the_reference() {
    for dtype in DTYPES {
        for slice in [None, Some(96)] {
            let mut labelled = mochi((5, 340, 257), (60, 40, 10), dtype);
            let labels = |count| (0..count).map(|at| at as u32 % 4).collect::<Vec<_>>();
            labelled.query_labels = Some(labels(5));
            labelled.queue = labelled.queue.with_labels(labels(340)).expect("labels");
            labelled.config = labelled.config.with_oracle(true);
            for case in [
                case(3, 300, 512, dtype),
                labelled,
                mochi((66, 100, 260), (100, 20, 30), dtype),
            ] {
                let output = sliced(&case, slice);
                let what = format!("{dtype:?}, slices of {slice:?}, {}", case.queue.dim());
                compare::step(&case, &output, FUSED.arithmetic())
                    .unwrap_or_else(|why| panic!("{what}: {why}"));
            }
        }
    }
}

fn sliced(case: &Case, slice: Option<usize>) -> Output {
    tuned(
        case,
        FusedTuning {
            slice,
            ..FusedTuning::default()
        },
    )
}

fn tuned(case: &Case, tuning: FusedTuning) -> Output {
    let mut step = cuda::Step::new(device(), case.config.clone())
        .expect("a step")
        .with_path(Path::Fused)
        .with_fused_tuning(tuning);
    common::Step::run(&mut step, &case.batch(), &case.queue, &case.draws).expect("a step")
}

/// Where a block has no more than 99 KiB of shared memory, as with compute capability 8.9, the pass takes 256
/// dimensions of some types only, and slices do for the others.
#[test]
fn little_shared_memory_agrees_with_the_reference() {
    if is_softgpu() && !common::cuda::alone("little_shared_memory_agrees_with_the_reference") {
        return;
    }
    let tuning = FusedTuning {
        shared: Some(99 << 10),
        slice: Some(96),
        ..FusedTuning::default()
    };
    for (dtype, in_slices) in [(DType::F32, true), (DType::F16, false), (DType::Bf16, true)] {
        for (dim, in_slices) in [(128, false), (129, in_slices), (256, in_slices)] {
            let case = mochi((3, 230, dim), (40, 20, 10), dtype);
            if is_softgpu() {
                softgpu::take_launches();
            }
            let output = tuned(&case, tuning);
            compare::step(&case, &output, FUSED.arithmetic())
                .unwrap_or_else(|why| panic!("{dtype:?}, {dim} dimensions: {why}"));
            if is_softgpu() {
                let launches = softgpu::take_launches();
                let sliced = launches.iter().any(|(kernel, _)| kernel == "score");
                assert_eq!(sliced, in_slices, "{dtype:?}, {dim} dimensions");
            }
        }
    }
}

/// The gradient of synthetic negatives has a grid with a block for each 128 bytes of a row.
#[test]
fn rows_that_no_grid_covers_are_refused() {
    const DIM: usize = 65535 * 32 + 1;
    let case = case(1, 1, DIM, DType::F32);
    let error = FUSED.step(&case).expect_err("refused");
    assert_eq!(
        error.to_string(),
        "dim is 2097121; expected rows of at most 65535 · 128 bytes on the fused path"
    );
}

/// No schedule and no batch changes a bit of what slices add up to.
#[test]
fn neither_schedule_nor_batch_changes_a_bit_of_slices() {
    let whole = mochi((7, 200, 264), (33, 40, 17), DType::Bf16);
    let run = |case: &Case| row_bits(&sliced(case, Some(96)));
    let expected = under_all_schedules(|| run(&whole));
    let parts = [(0, 1), (1, 5), (5, 7)].map(|(from, to)| whole.shard(from, to));
    let cut: Vec<_> = parts.iter().flat_map(run).collect();
    assert!(cut == expected, "a row depends on its batch");
}

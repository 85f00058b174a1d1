//! The fused path beyond what the shared tests ask of every backend.
#![cfg(feature = "cuda")]

mod common;

use common::cases::{Case, unit_rows};
use common::cuda::{Cuda, device, is_softgpu, under_all_schedules};
use common::{Backend, compare, row_bits};
use hardmix::cuda::{self, Path};
use hardmix::{Config, DType, Draws, Queue, Reduction, Rows};

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
        config: Config::moco()
            .with_reduction(Reduction::Sum)
            .with_uniformity(true)
            .with_matching_probability(true),
        draws: Draws::seeded(0, 0).expect("draws"),
    }
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
        ] {
            let case = case(rows, capacity, dim, dtype);
            let output = FUSED.step(&case).expect("a step");
            compare::step(&case, &output, FUSED.arithmetic())
                .unwrap_or_else(|why| panic!("{dtype:?}, {rows} × {capacity} × {dim}: {why}"));
        }
    }
}

#[test]
fn neither_schedule_nor_batch_changes_a_bit() {
    let whole = case(67, 700, 24, DType::Bf16);
    let expected = under_all_schedules(|| row_bits(&FUSED.step(&whole).expect("a step")));
    let parts = [(0, 1), (1, 5), (5, 67)].map(|(from, to)| whole.shard(from, to));
    let cut: Vec<_> = parts
        .iter()
        .flat_map(|part| row_bits(&FUSED.step(part).expect("a step")))
        .collect();
    assert!(cut == expected, "a row depends on its batch");
}

/// The path that was asked for is taken, and makes no logits.
#[test]
fn one_pass_makes_no_logits() {
    if !is_softgpu() || !common::cuda::alone("one_pass_makes_no_logits") {
        return;
    }
    softgpu::take_launches();
    FUSED.step(&case(4, 100, 8, DType::F32)).expect("a step");
    let launches = softgpu::take_launches();
    let names: Vec<_> = launches.iter().map(|(kernel, _)| kernel.as_str()).collect();
    assert!(names.contains(&"contrast_f32_exact"), "{names:?}");
    for kernel in ["maxima", "exponentials", "weigh_f32_exact"] {
        assert!(!names.contains(&kernel), "{names:?}");
    }
}

#[test]
fn a_path_that_cannot_be_is_an_error() {
    for (dim, config) in [
        (129, Config::moco()),
        (8, Config::mochi(4, 2, 0).expect("valid")),
    ] {
        let case = case(2, 20, dim, DType::F32);
        let mut step = cuda::Step::new(device(), config)
            .expect("a step")
            .with_path(Path::Fused);
        let error = common::Step::run(&mut step, &case.batch(), &case.queue, &case.draws)
            .expect_err("refused");
        assert!(
            error
                .to_string()
                .ends_with("expected no synthetic negatives and at most 128 dimensions"),
            "{error}"
        );
    }
}

//! The hardest as the fused path finds them, to the bit those of the unfused path: by a threshold from a
//! sample, a filter in the pass, and a repair of the rows for which these did not do.
#![cfg(feature = "cuda")]

mod common;

use common::bits;
use common::cases::unit_rows;
use common::cuda::{alone, device, is_softgpu, under_all_schedules};
use hardmix::cuda::{self, FusedTuning, Path, Precision};
use hardmix::{Batch, Config, DType, Draws, Output, Queue, Rows};

struct Input {
    queries: Vec<f32>,
    keys: Vec<f32>,
    labels: Option<Vec<u32>>,
    queue: Queue,
    config: Config,
}

/// N hardest, and a few synthetic negatives, whose logits follow from the hardest logits.
fn input(rows: usize, dim: usize, hardest: usize, queue: Queue) -> Input {
    let rng = &mut fastrand::Rng::with_seed((rows * dim + hardest) as u64);
    Input {
        queries: unit_rows(rng, rows, dim),
        keys: unit_rows(rng, rows, dim),
        labels: None,
        queue,
        config: Config::mochi(hardest, 20, 8).expect("settings"),
    }
}

fn random(capacity: usize, dim: usize, dtype: DType) -> Queue {
    Queue::random(capacity, dim, dtype, 7).expect("a queue")
}

fn from_rows(rows: Vec<f32>, dim: usize, dtype: DType) -> Queue {
    Queue::from_rows(Rows::from_f32(dtype, &rows), dim).expect("a queue")
}

fn run(input: &Input, path: Path, precision: Precision, tuning: FusedTuning) -> Output {
    let device = device();
    let dim = input.queue.dim();
    let queue = cuda::Queue::from_host(device, &input.queue).expect("a copy");
    let mut batch = Batch::new(&input.queries, &input.keys, dim).expect("a batch");
    if let Some(labels) = &input.labels {
        batch = batch.with_labels(labels).expect("labels");
    }
    cuda::Step::new(device, input.config.clone())
        .expect("a step")
        .with_path(path)
        .with_precision(precision)
        .with_fused_tuning(tuning)
        .run_from_host(&batch, &queue, &Draws::seeded(3, 4).expect("draws"))
        .expect("an output")
}

#[track_caller]
fn same(input: &Input, precision: Precision, tunings: &[FusedTuning], what: &str) {
    let expected = run(input, Path::Unfused, precision, FusedTuning::default());
    for tuning in tunings {
        let own = run(input, Path::Fused, precision, *tuning);
        let what = format!("{what}, {precision:?}, {tuning:?}");
        assert_eq!(own.hardest, expected.hardest, "{what}");
        // Functions of the logits of the hardest: one bit of those would show.
        assert_eq!(
            bits(&own.mixed_logits),
            bits(&expected.mixed_logits),
            "{what}"
        );
        let synthetic = [&own.query_mixed_logits, &expected.query_mixed_logits];
        assert_eq!(bits(synthetic[0]), bits(synthetic[1]), "{what}");
    }
}

const ALL: FusedTuning = FusedTuning {
    slice: None,
    shared: None,
    sample: None,
    room: None,
    forced: None,
};
const SAMPLED: FusedTuning = FusedTuning {
    sample: Some(96),
    ..ALL
};

fn forced(threshold: f32, every: u32) -> FusedTuning {
    FusedTuning {
        forced: Some((threshold, every)),
        ..SAMPLED
    }
}

fn room(room: usize) -> FusedTuning {
    FusedTuning {
        room: Some(room),
        ..SAMPLED
    }
}

#[test]
fn every_branch_gives_the_hardest_of_every_type() {
    let tunings = [
        ALL,
        SAMPLED,
        // Nothing passes and all rows are repaired; everything passes; single rows.
        forced(f32::INFINITY, 1),
        forced(f32::NEG_INFINITY, 1),
        forced(f32::INFINITY, 3),
        // Clipped: all rows, or those with a crowded split.
        room(1),
        room(24),
    ];
    for dtype in [DType::F32, DType::F16, DType::Bf16] {
        let input = input(5, 20, 40, random(1100, 20, dtype));
        same(&input, Precision::Exact, &tunings, &format!("{dtype:?}"));
    }
    for dtype in [DType::F32, DType::Bf16] {
        let input = input(5, 20, 40, random(1100, 20, dtype));
        same(&input, Precision::Tensor, &tunings, &format!("{dtype:?}"));
    }
}

/// With more dimensions than a pass takes, in slices shorter than a split's tiles lie apart.
#[test]
fn every_branch_gives_the_hardest_of_slices() {
    let tunings = [
        ALL,
        forced(f32::INFINITY, 3),
        forced(f32::NEG_INFINITY, 1),
        room(24),
    ]
    .map(|tuning| FusedTuning {
        slice: Some(160),
        ..tuning
    });
    for dtype in [DType::F32, DType::F16, DType::Bf16] {
        let input = input(3, 258, 40, random(1100, 258, dtype));
        same(&input, Precision::Exact, &tunings, &format!("{dtype:?}"));
    }
}

#[test]
fn hostile_queues() {
    const DIM: usize = 8;
    let rng = &mut fastrand::Rng::with_seed(9);
    let base = unit_rows(rng, 700, DIM);
    let row = |at: usize| &base[at * DIM..(at + 1) * DIM];
    let of = |pick: &dyn Fn(usize) -> Vec<f32>| (0..700).flat_map(pick).collect::<Vec<f32>>();
    let mut sorted: Vec<usize> = (0..700).collect();
    sorted.sort_by(|&a, &b| base[a * DIM].total_cmp(&base[b * DIM]));
    let queues = [
        ("all equal", of(&|_| row(0).to_vec())),
        ("eight values", of(&|at| row(at * 7 % 8).to_vec())),
        (
            "zeros of both signs",
            of(&|at| vec![if at % 2 == 0 { 0.0 } else { -0.0 }; DIM]),
        ),
        ("sorted", of(&|at| row(sorted[at]).to_vec())),
        (
            "a hot spot",
            of(&|at| {
                if (320..352).contains(&at) {
                    row(1).to_vec()
                } else {
                    row(at).iter().map(|x| x * 1e-3).collect()
                }
            }),
        ),
        (
            "a period of the sample's",
            of(&|at| {
                if at % 7 == 0 {
                    row(2).to_vec()
                } else {
                    row(at).to_vec()
                }
            }),
        ),
    ];
    for (what, rows) in queues {
        let input = input(3, DIM, 60, from_rows(rows, DIM, DType::F32));
        same(&input, Precision::Exact, &[ALL, SAMPLED], what);
    }
}

#[test]
fn shapes_that_are_multiples_of_nothing() {
    for (rows, capacity, dim, hardest) in [
        (1, 1, 1, 1),
        (2, 31, 5, 31),
        (65, 33, 3, 1),
        (1, 600, 128, 600),
        (2, 300, 250, 40),
        (3, 4200, 4, 50),
    ] {
        let input = input(rows, dim, hardest, random(capacity, dim, DType::Bf16));
        let what = format!("{rows} × {capacity} × {dim}, {hardest} hardest");
        same(
            &input,
            Precision::Exact,
            &[ALL, forced(f32::INFINITY, 2)],
            &what,
        );
    }
}

/// Rows with hardly a negative, and with none: the threshold of the sample is then −∞.
#[test]
fn masked_rows() {
    for others in [20, 0] {
        let labels = (0..900).map(|at| u32::from(at >= others)).collect();
        let queue = random(900, 12, DType::F32).with_labels(labels);
        let mut input = input(6, 12, 30, queue.expect("labels"));
        input.labels = Some(vec![0, 1, 2, 1, 0, 1]);
        input.config = input.config.with_oracle(true);
        let tunings = [ALL, SAMPLED, forced(f32::INFINITY, 2), room(2)];
        let what = format!("{others} of another label");
        same(&input, Precision::Exact, &tunings, &what);
    }
}

/// A queue that is sampled without being told to, with more tiles than `rank_passed` has threads.
#[test]
fn a_long_queue() {
    let input = input(1, 4, 100, random(17_500, 4, DType::Bf16));
    same(&input, Precision::Exact, &[ALL], "17500 rows");
}

/// More hardest than can be listed of what passes: their logits are made beside the pass.
#[test]
fn more_hardest_than_candidates_can_be() {
    let input = input(1, 3, 8500, random(9000, 3, DType::F32));
    same(&input, Precision::Exact, &[ALL], "8500 of 9000");
}

/// A threshold that let too little or too much pass would be repaired, at the cost of another pass.
#[test]
fn thresholds_of_a_sample_need_no_repair() {
    if !is_softgpu() || !alone("thresholds_of_a_sample_need_no_repair") {
        return;
    }
    const CAPACITY: usize = 17_500;
    // As `Ranking` has it for so many rows.
    const SAMPLE: usize = 4096;
    let rng = &mut fastrand::Rng::with_seed(10);
    let mut rows: Vec<[f32; 4]> = unit_rows(rng, CAPACITY, 4)
        .chunks_exact(4)
        .map(|row| row.try_into().expect("four"))
        .collect();
    let of_rows = |rows: &[[f32; 4]]| from_rows(rows.concat(), 4, DType::Bf16);
    let plain = input(4, 4, 100, of_rows(&rows));
    let along_an_axis = |queue| {
        let mut input = input(4, 4, 100, queue);
        input.queries = [1.0, 0.0, 0.0, 0.0].repeat(4);
        input
    };
    // A sample that always took the first of a stride would see none but the least hard.
    let mut periodic = rows.clone();
    for stride in 0..SAMPLE {
        periodic[stride * CAPACITY / SAMPLE] = [-1.0, 0.0, 0.0, 0.0];
    }
    // One that was not spread evenly would see too many of the hardest or too few.
    rows.sort_by(|a, b| b[0].total_cmp(&a[0]));
    let sorted = along_an_axis(of_rows(&rows));
    let periodic = along_an_axis(of_rows(&periodic));
    for (what, input, tuning, repaired) in [
        ("a random queue", &plain, ALL, false),
        ("a threshold of +∞", &plain, forced(f32::INFINITY, 4), true),
        ("a sorted queue", &sorted, ALL, false),
        ("a queue of the sample's period", &periodic, ALL, false),
    ] {
        softgpu::take_launches();
        run(input, Path::Fused, Precision::Exact, tuning);
        let launches = softgpu::take_launches();
        let repair = launches
            .iter()
            .find(|(kernel, _)| kernel == "repair_bf16_exact");
        let (_, counters) = repair.expect("always launched");
        assert_eq!(counters.tensor_operations > 0, repaired, "{what}");
    }
}

/// All logits of a row with a fault are as good as any other: it has no hardest, and what would find them is
/// spared.
#[test]
fn rows_with_a_fault_are_not_repaired() {
    if !is_softgpu() || !alone("rows_with_a_fault_are_not_repaired") {
        return;
    }
    let mut input = input(3, 4, 20, random(9000, 4, DType::F32));
    input.queries[0] = f32::NAN;
    input.keys[2 * 4] = f32::INFINITY;
    softgpu::take_launches();
    let output = run(&input, Path::Fused, Precision::Exact, ALL);
    let launches = softgpu::take_launches();
    let repair = launches
        .iter()
        .find(|(kernel, _)| kernel == "repair_f32_exact");
    assert_eq!(repair.expect("launched").1.tensor_operations, 0);
    let none = [hardmix::NO_ROW; 20];
    assert_eq!(
        [&output.hardest[..20], &output.hardest[40..]],
        [&none[..]; 2]
    );
    assert!(!output.hardest[20..40].contains(&hardmix::NO_ROW));
}

#[test]
fn every_schedule_gives_the_same_bits() {
    under_all_schedules(|| {
        let input = input(4, 12, 30, random(600, 12, DType::F32));
        let own = run(
            &input,
            Path::Fused,
            Precision::Exact,
            forced(f32::INFINITY, 2),
        );
        (own.hardest, bits(&own.mixed_logits))
    });
}

//! What only the GPU path has: schedules, views, workspace that is used again, and its own errors.
#![cfg(feature = "cuda")]

mod common;

use std::sync::Arc;

use common::cases::{Case, DrawKind, Labels, Recipe, gaussian, small_integers, unit_rows};
use common::cuda::{CUDA, alone, device, is_softgpu, to_host, under_all_schedules};
use common::oracle::exact;
use common::{Backend, assert_same_bits, bits};
use cudarc::driver::{
    CudaSlice, CudaStream, CudaView, DevicePtr, DeviceRepr, DeviceSlice, SyncOnDrop,
};
use hardmix::cpu;
use hardmix::cuda::{self, Device, Precision, Ranked, Workspace};
use hardmix::{Config, DType, Draws, Error, NO_LABEL, QueryGradient, Queue, Result, Rows};

const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::Bf16];
const PRECISIONS: [Precision; 2] = [Precision::Exact, Precision::Tensor];

fn upload<T: DeviceRepr>(values: &[T]) -> CudaSlice<T> {
    device().upload("test data", values).expect("an upload")
}

/// The values where no vector of them would be aligned: one element into an allocation, the element
/// before being `poison`.
fn upload_shifted<T: DeviceRepr + Copy>(values: &[T], poison: T) -> CudaSlice<T> {
    upload(&[&[poison], values].concat())
}

fn queue_of(dtype: DType, rows: &[f32], dim: usize) -> Queue {
    Queue::from_rows(Rows::from_f32(dtype, rows), dim).expect("a queue")
}

/// One call of `cuda::rank` with fresh memory.
fn rank(
    queries: &dyn DevicePtr<f32>,
    queue: &cuda::Queue,
    hardest: usize,
    precision: Precision,
) -> cpu::Ranked {
    let mut workspace = Workspace::new(device()).expect("a workspace");
    let mut ranked = Ranked::new(device(), 0, 0).expect("lists");
    let (work, out) = (&mut workspace, &mut ranked);
    cuda::rank(
        device(),
        queries,
        queue,
        hardest,
        None,
        precision,
        work,
        out,
    )
    .expect("ranked");
    to_host(&ranked).expect("finite")
}

/// All that a list holds, as bits.
fn bits_of(ranked: &cpu::Ranked) -> [Vec<u32>; 3] {
    let (indices, counts) = (ranked.indices.clone(), ranked.counts.clone());
    [indices, bits(&ranked.logits), counts]
}

/// Two tiles of the queue and eight stages of dimensions, which wrap the ring of three twice; batches
/// of both tiles of queries.
#[test]
fn every_schedule_gives_the_same_bits() {
    const DIM: usize = 250;
    let rng = &mut fastrand::Rng::with_seed(1);
    let stored = unit_rows(rng, 140, DIM);
    let queries = upload(&unit_rows(rng, 66, DIM));
    for dtype in DTYPES {
        let host = queue_of(dtype, &stored, DIM);
        let queue = cuda::Queue::from_host(device(), &host).expect("a copy");
        for precision in PRECISIONS {
            for rows in [2, 66] {
                let queries = queries.slice(..rows * DIM);
                under_all_schedules(|| bits_of(&rank(&queries, &queue, 30, precision)));
            }
        }
    }
}

#[test]
fn every_schedule_lists_the_same() {
    let rng = &mut fastrand::Rng::with_seed(2);
    let logits = upload(&small_integers(rng, 3 * 5000));
    let mut ranked = Ranked::new(device(), 3, 700).expect("lists");
    under_all_schedules(|| {
        cuda::rank_logits(device(), &logits, 5000, 700, None, &mut ranked).expect("ranked");
        bits_of(&to_host(&ranked).expect("finite"))
    });
}

/// With N = K the list is all logits. Tiles of 32 and of 128 queries, whole and ragged.
#[test]
fn the_bits_of_a_row_do_not_depend_on_its_batch() {
    const DIM: usize = 40;
    let rng = &mut fastrand::Rng::with_seed(3);
    let queries = unit_rows(rng, 131, DIM);
    let stored = unit_rows(rng, 67, DIM);
    for dtype in DTYPES {
        let host = queue_of(dtype, &stored, DIM);
        let queue = cuda::Queue::from_host(device(), &host).expect("a copy");
        for precision in PRECISIONS {
            let all = rank(&upload(&queries), &queue, 67, precision);
            let mut start = 0;
            for rows in [1, 33, 64, 33] {
                let shard = upload(&queries[start * DIM..(start + rows) * DIM]);
                let own = rank(&shard, &queue, 67, precision);
                let expected = &all.logits[start * 67..(start + rows) * 67];
                assert_eq!(bits(&own.logits), bits(expected), "{rows} rows");
                start += rows;
            }
        }
    }
}

/// Exact sums of small integers are the same on every device, in every precision and alignment; the
/// dimensions are those that take another path, and the ends of what is supported.
#[test]
fn small_integers_give_the_bits_of_the_host() {
    let rng = &mut fastrand::Rng::with_seed(4);
    for (rows, capacity, dim) in [
        (3, 50, 1),
        (2, 130, 8),
        (5, 33, 31),
        (1, 40, 36),
        (4, 20, 100),
        (70, 9, 24),
        (1, 9, 2048),
    ] {
        let queries = small_integers(rng, rows * dim);
        let stored = small_integers(rng, capacity * dim);
        for dtype in DTYPES {
            let host = queue_of(dtype, &stored, dim);
            let queue = cuda::Queue::from_host(device(), &host).expect("a copy");
            let expected = cpu::rank(&queries, &host, capacity, None).expect("ranked");
            // Sums of both signs may be −0 in one order and +0 in another.
            let expected = expected.logits.iter().map(|x| x + 0.0).collect::<Vec<_>>();
            let shifted = upload_shifted(&queries, f32::NAN);
            for precision in PRECISIONS {
                let plain = rank(&upload(&queries), &queue, capacity, precision);
                let moved = rank(&shifted.slice(1..), &queue, capacity, precision);
                for own in [plain, moved] {
                    let own: Vec<f32> = own.logits.iter().map(|x| x + 0.0).collect();
                    let what = format!("{dtype:?}, {precision:?}, {rows} × {capacity} × {dim}");
                    assert_eq!(bits(&own), bits(&expected), "{what}");
                }
            }
        }
    }
}

/// The precision that is asked for is the one that is used: exact logits are as near the true ones as
/// f32's, those of one product are not, and are within their own bound.
#[test]
fn each_precision_keeps_its_bound_and_no_better() {
    const DIM: usize = 64;
    let rng = &mut fastrand::Rng::with_seed(5);
    let queries = unit_rows(rng, 20, DIM);
    let stored = unit_rows(rng, 50, DIM);
    for dtype in DTYPES {
        let host = queue_of(dtype, &stored, DIM);
        let queue = cuda::Queue::from_host(device(), &host).expect("a copy");
        let rows = host.rows().to_f32();
        let worst = PRECISIONS.map(|precision| {
            let own = rank(&upload(&queries), &queue, 50, precision).logits;
            let true_logits = queries.chunks_exact(DIM).flat_map(|q| {
                rows.chunks_exact(DIM).map(move |n| -> f64 {
                    q.iter()
                        .zip(n)
                        .map(|(&a, &b)| f64::from(a) * f64::from(b))
                        .sum()
                })
            });
            own.iter()
                .zip(true_logits)
                .map(|(&own, exact)| (f64::from(own) - exact).abs())
                .fold(0.0, f64::max)
        });
        let bound = common::tolerance::Arithmetic::TENSOR.gamma(DIM);
        assert!(worst[0] <= bound, "{dtype:?}: {} of {bound}", worst[0]);
        // Half a unit in the last place of what is rounded: both in TF32, or the query alone, in bf16 too.
        let rounded = match dtype {
            DType::F32 => 2.0 / 2048.0,
            DType::F16 => 1.0 / 2048.0,
            DType::Bf16 => 1.0 / 256.0,
        };
        assert!(
            worst[1] <= rounded * 1.001 + bound,
            "{dtype:?}: {}",
            worst[1]
        );
        assert!(worst[1] > 20.0 * worst[0], "{dtype:?}: {worst:?}");
    }
}

/// Beside rows that are all zeros but for a 1, a logit is one element of the query: an exact product keeps it
/// whole where bf16 is multiplied, and all but 2⁻²² of it in TF32.
#[test]
fn an_exact_product_keeps_what_it_says_of_a_query() {
    const DIM: usize = 40;
    let rng = &mut fastrand::Rng::with_seed(8);
    let queries: Vec<f32> = unit_rows(rng, 9, DIM)
        .iter()
        .map(|x| x * 2f32.powi(rng.i32(-20..20)))
        .collect();
    let unit: Vec<f32> = (0..DIM * DIM)
        .map(|at| f32::from(u8::from(at / DIM == at % DIM)))
        .collect();
    for dtype in DTYPES {
        let queue = cuda::Queue::from_host(device(), &queue_of(dtype, &unit, DIM)).expect("a copy");
        let own = rank(&upload(&queries), &queue, DIM, Precision::Exact).logits;
        for (own, query) in own.iter().zip(&queries) {
            let lost = match dtype {
                DType::F32 | DType::F16 => query.abs() / (1u32 << 22) as f32,
                DType::Bf16 => 0.0,
            };
            assert!((own - query).abs() <= lost, "{dtype:?}: {own} of {query}");
        }
    }
}

#[test]
fn columns_of_the_rows_label_are_left_out() {
    let rng = &mut fastrand::Rng::with_seed(6);
    let (rows, capacity) = (7, 333);
    let logits = small_integers(rng, rows * capacity);
    // The last query's label is everywhere.
    let query_labels = [0, 1, NO_LABEL, 2, 0, 77, 9];
    let mut labels: Vec<u32> = (0..capacity)
        .map(|_| [0, 1, 2, NO_LABEL][rng.usize(..4)])
        .collect();
    for everywhere in [false, true] {
        if everywhere {
            labels.fill(9);
        }
        for hardest in [1, 100, 300, capacity] {
            let mut ranked = Ranked::new(device(), 0, 0).expect("lists");
            // Every input one element into its allocation.
            let all = upload_shifted(&logits, f32::NAN);
            let own = upload_shifted(&query_labels, 1);
            let theirs = upload_shifted(&labels, 1);
            let pair: [&dyn DevicePtr<u32>; 2] = [&own.slice(1..), &theirs.slice(1..)];
            let view = all.slice(1..);
            cuda::rank_logits(device(), &view, capacity, hardest, Some(pair), &mut ranked)
                .expect("ranked");
            let ranked = to_host(&ranked).expect("finite");
            for (b, row) in logits.chunks_exact(capacity).enumerate() {
                let masked = |j: usize| query_labels[b] != NO_LABEL && query_labels[b] == labels[j];
                let list = &ranked.indices[b * hardest..(b + 1) * hardest];
                exact(row, masked, hardest, list).unwrap_or_else(|reason| panic!("{b}: {reason}"));
                let count = (0..capacity).filter(|&j| !masked(j)).count().min(hardest);
                assert_eq!(ranked.counts[b] as usize, count);
                for (at, &j) in list.iter().enumerate() {
                    let logit = ranked.logits[b * hardest + at];
                    let expected = if at < count {
                        row[j as usize]
                    } else {
                        f32::NEG_INFINITY
                    };
                    assert_eq!(logit.to_bits(), expected.to_bits(), "{b}, {at}");
                }
            }
        }
    }
}

/// More candidates than shared memory holds: too many are asked for, or too many share the top bits
/// of the boundary.
#[test]
fn candidates_that_do_not_fit_are_ranked_from_memory() {
    let rng = &mut fastrand::Rng::with_seed(7);
    let capacity = 20_003;
    let near_one = |rng: &mut fastrand::Rng| 1.0 + rng.f32() / 16.0;
    let narrow: Vec<f32> = (0..capacity).map(|_| near_one(rng)).collect();
    let wide: Vec<f32> = gaussian(rng, capacity).iter().map(|&x| x as f32).collect();
    for (logits, hardest) in [
        (narrow, 5),
        (wide.clone(), 9000),
        (vec![-0.0; capacity], 8193),
        (wide, 8000),
    ] {
        let there = upload_shifted(&logits, f32::NAN);
        let mut ranked = Ranked::new(device(), 1, hardest).expect("lists");
        cuda::rank_logits(
            device(),
            &there.slice(1..),
            capacity,
            hardest,
            None,
            &mut ranked,
        )
        .expect("ranked");
        let ranked = to_host(&ranked).expect("finite");
        exact(&logits, |_| false, hardest, &ranked.indices).expect("exact");
    }
}

/// The row's logits are read twice where the candidates fit, and never written.
#[test]
fn a_row_is_read_twice() {
    if !is_softgpu() {
        return;
    }
    let capacity = 10_000;
    let logits = gaussian(&mut fastrand::Rng::with_seed(8), capacity);
    let logits = upload(&logits.iter().map(|&x| x as f32).collect::<Vec<_>>());
    let mut ranked = Ranked::new(device(), 1, 50).expect("lists");
    softgpu::take_launches();
    cuda::rank_logits(device(), &logits, capacity, 50, None, &mut ranked).expect("ranked");
    let launches = softgpu::take_launches();
    let [(kernel, counted)] = &launches[..] else {
        panic!("{launches:?}");
    };
    assert_eq!(kernel, "rank_logits");
    let twice = 2 * capacity as u64 * 4;
    // The rest is the status.
    let read = counted.bytes_read;
    assert!((twice..twice + 100).contains(&read), "{read} bytes read");
    assert!(counted.bytes_written < 50 * 8 + 100);
}

/// The paper's shape, which softgpu would take minutes for: every list is right for the logits it was
/// taken from, and those are the host's to within rounding.
#[test]
fn the_papers_shape_is_ranked_on_hardware() {
    const DIM: usize = 128;
    if is_softgpu() {
        return;
    }
    let queries = unit_rows(&mut fastrand::Rng::with_seed(10), 256, DIM);
    let there = upload(&queries);
    for dtype in DTYPES {
        let host = Queue::random(65_536, DIM, dtype, 10).expect("a queue");
        let queue = cuda::Queue::from_host(device(), &host).expect("a copy");
        let all = rank(&there, &queue, 65_536, Precision::Exact);
        let own = rank(&there, &queue, 1024, Precision::Exact);
        let expected = cpu::rank(&queries, &host, 65_536, None).expect("ranked");
        let bound = common::tolerance::Arithmetic::TENSOR.gamma(DIM) * 1.01;
        for b in 0..256 {
            let logits = &all.logits[b * 65_536..(b + 1) * 65_536];
            let list = &own.indices[b * 1024..(b + 1) * 1024];
            exact(logits, |_| false, 1024, list).unwrap_or_else(|reason| panic!("{b}: {reason}"));
        }
        for (own, expected) in all.logits.iter().zip(&expected.logits) {
            assert!(
                (own - expected).abs() as f64 <= 2.0 * bound,
                "{own}, {expected}"
            );
        }
    }
}

/// Lists and workspace that have served other shapes give what fresh ones give.
#[test]
fn used_memory_gives_the_same_bits() {
    let rng = &mut fastrand::Rng::with_seed(9);
    let mut workspace = Workspace::new(device()).expect("a workspace");
    let mut ranked = Ranked::new(device(), 1, 1).expect("lists");
    for (rows, capacity, dim, hardest) in [
        (40, 90, 20, 50),
        (3, 200, 33, 7),
        (70, 30, 8, 30),
        (1, 5, 2, 1),
    ] {
        let queries = upload(&unit_rows(rng, rows, dim));
        let host = queue_of(DType::Bf16, &unit_rows(rng, capacity, dim), dim);
        let queue = cuda::Queue::from_host(device(), &host).expect("a copy");
        let precision = Precision::Exact;
        let fresh = rank(&queries, &queue, hardest, precision);
        for _ in 0..2 {
            let (work, out) = (&mut workspace, &mut ranked);
            cuda::rank(
                device(),
                &queries,
                &queue,
                hardest,
                None,
                precision,
                work,
                out,
            )
            .expect("ranked");
            assert_eq!((ranked.rows(), ranked.hardest()), (rows, hardest));
            assert_eq!(bits_of(&to_host(&ranked).expect("finite")), bits_of(&fresh));
        }
    }
}

/// Inputs in one allocation, with poison before, between and after them.
struct Amid<T> {
    there: CudaSlice<T>,
    here: Vec<T>,
    parts: Vec<std::ops::Range<usize>>,
}

impl<T: DeviceRepr + Copy> Amid<T> {
    fn new(poison: T, inputs: &[&[T]]) -> Self {
        // Odd, so that hardly an input begins where a vector may.
        const MARGIN: usize = 101;
        let (mut here, mut parts) = (vec![poison; MARGIN], Vec::new());
        for input in inputs {
            parts.push(here.len()..here.len() + input.len());
            here.extend_from_slice(input);
            here.extend([poison; MARGIN]);
        }
        let there = upload(&here);
        Self { there, here, parts }
    }

    fn part(&self, at: usize) -> CudaView<'_, T> {
        self.there.slice(self.parts[at].clone())
    }

    /// Whether all of it, inputs and poison, is what it was.
    fn is_untouched(&self, bits: impl Fn(&T) -> u64) -> bool {
        let now = device().download("inputs", &self.there, self.here.len());
        let now = now.expect("a copy");
        now.iter().map(&bits).eq(self.here.iter().map(&bits))
    }
}

/// Every operator on views amid poison, with memory that larger batches of NaN have used: the results
/// are those of inputs alone in fresh memory, so nothing beside them was read; and nothing of all that
/// memory was written.
#[test]
fn what_lies_around_the_inputs_is_neither_read_nor_written() {
    const ROWS: usize = 5;
    const CAPACITY: usize = 140;
    const DIM: usize = 37;
    for dtype in DTYPES {
        let recipe = Recipe {
            rows: ROWS,
            capacity: CAPACITY,
            dim: DIM,
            labels: Labels::Oracle(3),
            draws: DrawKind::Given,
            gradient: QueryGradient::Attached,
            key_gradient: true,
            dtype,
            ..Recipe::default()
        };
        let case = recipe.build();
        let drawn = Case {
            draws: Draws::seeded(5, 6).expect("a small step"),
            ..case.clone()
        };
        let (batch, config) = (case.batch(), &case.config);
        let Draws::Given(given) = &case.draws else {
            unreachable!("the recipe gives its draws")
        };
        let alone_ranked = CUDA
            .rank(&case.queries, &case.queue, 20, case.oracle_labels())
            .expect("ranked");
        let alone_mixed = CUDA
            .mix(&batch, &case.queue, &alone_ranked, config, &case.draws)
            .expect("mixed");
        let rng = &mut fastrand::Rng::with_seed(12);
        let logits = small_integers(rng, ROWS * CAPACITY);

        let floats = Amid::new(
            f32::NAN,
            &[
                &case.queries,
                &case.keys,
                &given.alpha,
                &given.beta,
                &alone_mixed.mixed,
                &alone_mixed.query_mixed,
                &logits,
            ],
        );
        let words = Amid::new(
            u32::MAX - 1,
            &[
                &given.first,
                &given.second,
                &given.pick,
                case.query_labels.as_ref().expect("labels"),
                case.queue.labels().expect("labels"),
            ],
        );
        let seeds = Amid::new(u64::MAX, &[&[5, 6]]);
        let [queries, keys, alpha, beta, mixed, query_mixed, logits_there] =
            std::array::from_fn(|at| floats.part(at));
        let [first, second, pick, labels, queue_labels] = std::array::from_fn(|at| words.part(at));
        let seeded = seeds.part(0);
        let there = cuda::Batch::new(&queries, &keys, DIM)
            .and_then(|batch| batch.with_labels(&labels))
            .expect("a batch");
        let mut queue = cuda::Queue::from_host(device(), &case.queue).expect("a copy");

        let larger = Recipe {
            rows: 2 * ROWS,
            capacity: 2 * CAPACITY,
            dim: 2 * DIM,
            hardest: 70,
            mixed: 77,
            query_mixed: 44,
            ..recipe
        };
        let mut larger = larger.build();
        larger.queries.fill(f32::NAN);
        let mut step = cuda::Step::new(device(), larger.config.clone()).expect("a step");
        let spoil = |step: &mut cuda::Step| {
            let queue = cuda::Queue::from_host(device(), &larger.queue).expect("a copy");
            step.set_config(larger.config.clone());
            let output = step.run_from_host(&larger.batch(), &queue, &larger.draws);
            assert!(output.expect("queued").loss().is_err(), "NaN gives a loss");
            step.set_config(config.clone());
        };

        spoil(&mut step);
        let draws = cuda::Draws::Given(cuda::GivenDraws {
            first: &first,
            second: &second,
            alpha: &alpha,
            pick: &pick,
            beta: &beta,
        });
        step.run(&there, &queue, &draws).expect("queued");
        let own = step.read().expect("an output");
        let fresh = CUDA.step(&case).expect("an output");
        assert_same_bits(&own, &fresh, "given draws");

        spoil(&mut step);
        step.run(&there, &queue, &cuda::Draws::Seeded(&seeded))
            .expect("queued");
        let own = step.read().expect("an output");
        let fresh = CUDA.step(&drawn).expect("an output");
        assert_same_bits(&own, &fresh, "seeded draws");

        spoil(&mut step);
        cuda::info_nce(&mut step, &there, &queue, &mixed, &query_mixed).expect("queued");
        let own = step.read().expect("an output");
        let fresh = CUDA.info_nce(&batch, &case.queue, &alone_mixed, config);
        assert_same_bits(&own, &fresh.expect("an output"), "given features");

        let mut work = Workspace::new(device()).expect("a workspace");
        let mut ranked = Ranked::new(device(), 2 * ROWS, 70).expect("lists");
        let (precision, mask) = (Precision::Exact, Some(&labels as _));
        cuda::rank(
            device(),
            &queries,
            &queue,
            20,
            mask,
            precision,
            &mut work,
            &mut ranked,
        )
        .expect("queued");
        let own = to_host(&ranked).expect("finite");
        assert_eq!(bits_of(&own), bits_of(&alone_ranked));

        let mut synthetic = cuda::Synthetic::new(device()).expect("features");
        cuda::mix(
            device(),
            &there,
            &queue,
            &ranked,
            config,
            &draws,
            &mut synthetic,
        )
        .expect("queued");
        synthetic.check(device(), &ranked).expect("draws in range");
        for (own, fresh) in [
            (synthetic.mixed(), &alone_mixed.mixed),
            (synthetic.query_mixed(), &alone_mixed.query_mixed),
        ] {
            let own = device().stream().clone_dtoh(&own).expect("features");
            assert_eq!(bits(&own), bits(fresh));
        }

        let pair: Option<[&dyn DevicePtr<u32>; 2]> = Some([&labels, &queue_labels]);
        cuda::rank_logits(device(), &logits_there, CAPACITY, 20, pair, &mut ranked)
            .expect("queued");
        let own = to_host(&ranked).expect("finite");
        let labels_here = case.query_labels.as_ref().expect("labels");
        for (b, row) in logits.chunks_exact(CAPACITY).enumerate() {
            let label = labels_here[b];
            let stored = case.queue.labels().expect("labels");
            let list = &own.indices[b * 20..(b + 1) * 20];
            exact(row, |j| label != NO_LABEL && stored[j] == label, 20, list)
                .unwrap_or_else(|reason| panic!("{b}: {reason}"));
        }

        let mut host = case.queue.clone();
        assert_eq!(
            queue.to_host(device()).expect("a copy"),
            host,
            "was only read"
        );
        host.enqueue(&case.keys, Some(labels_here)).expect("keys");
        host.enqueue_normalised(&case.queries, None).expect("keys");
        queue.enqueue(device(), &keys, Some(&labels)).expect("keys");
        queue
            .enqueue_normalised(device(), &queries, None)
            .expect("keys");
        queue.check(device()).expect("finite keys");
        assert_eq!(queue.to_host(device()).expect("a copy"), host);

        assert!(floats.is_untouched(|x| x.to_bits().into()), "{dtype:?}");
        assert!(words.is_untouched(|&x| x.into()), "{dtype:?}");
        assert!(seeds.is_untouched(|&x| x), "{dtype:?}");
    }
}

/// Before the first batch, and after one that was refused, there is nothing to be had of a step.
#[test]
fn a_step_that_has_not_run_has_no_loss() {
    let queue = cuda::Queue::from_host(device(), &queue_of(DType::F32, &[1.0, 2.0], 1));
    let queue = queue.expect("a copy");
    let rows = upload(&[1.0f32, 0.5]);
    let elsewhere = Device::new(0).expect("the same device");
    let elsewhere = elsewhere.upload("rows", &[0.5f32; 2]).expect("rows");
    let words = upload(&[1u64, 2]);
    let mut step = cuda::Step::new(device(), Config::moco()).expect("a step");
    let run = |rows: &CudaSlice<f32>, step: &mut cuda::Step| {
        let batch = cuda::Batch::new(rows, rows, 1).expect("a batch");
        let result = step.run(&batch, &queue, &cuda::Draws::Seeded(&words));
        (result.is_ok(), step.loss().len(), step.loss_rows().len())
    };
    assert_eq!(step.loss().len(), 0);
    assert_eq!(run(&rows, &mut step), (true, 1, 2));
    assert_eq!(run(&elsewhere, &mut step), (false, 0, 0));
}

/// A refused draw is explained from the lists that were mixed from, and forgotten with the negatives.
#[test]
fn synthetic_negatives_are_checked_with_their_own_lists() {
    let host = queue_of(DType::F32, &[1.0, 0.0, 0.0, 1.0, 0.6, 0.8], 2);
    let queue = cuda::Queue::from_host(device(), &host).expect("a copy");
    let lists = |rows: usize| {
        let (indices, logits) = ([0, 1, 2].repeat(rows), vec![0.5; 3 * rows]);
        Ranked::from_host(device(), 3, &indices, &logits, &vec![3; rows]).expect("lists")
    };
    let (ranked, fewer) = (lists(2), lists(1));
    let rows = upload(&[0.5f32, 0.5, 1.0, 0.0]);
    let (positions, weights) = (upload(&[0u32, 3]), upload(&[0.5f32, 0.5]));
    let (no_positions, no_weights) = (positions.slice(..0), weights.slice(..0));
    let draws = cuda::Draws::Given(cuda::GivenDraws {
        first: &positions,
        second: &positions,
        alpha: &weights,
        pick: &no_positions,
        beta: &no_weights,
    });
    let config = Config::mochi(3, 1, 0).expect("settings");
    let mut synthetic = cuda::Synthetic::new(device()).expect("features");
    let mix = |rows: &CudaSlice<f32>, synthetic: &mut cuda::Synthetic| {
        let batch = cuda::Batch::new(rows, rows, 2).expect("a batch");
        cuda::mix(
            device(),
            &batch,
            &queue,
            &ranked,
            &config,
            &draws,
            synthetic,
        )
    };
    mix(&rows, &mut synthetic).expect("queued");
    for (lists, expected) in [
        (&fewer, "ranked has 1 elements; expected 2 (rows)"),
        (
            &ranked,
            "draw first[1, 0] is position 3; expected less than 3, the number of that row's hardest",
        ),
    ] {
        let error = synthetic.check(device(), lists).expect_err("refused");
        assert_eq!(error.to_string(), expected);
    }
    // Refused before anything is mixed.
    let elsewhere = Device::new(0).expect("the same device");
    let elsewhere = elsewhere.upload("rows", &[0.5f32; 4]).expect("rows");
    assert!(matches!(
        mix(&elsewhere, &mut synthetic),
        Err(Error::OtherContext {
            argument: "queries"
        })
    ));
    synthetic.check(device(), &fewer).expect("there are none");
}

/// Memory that says it has so many elements.
struct Claimed(usize, Arc<CudaStream>);

impl DeviceSlice<f32> for Claimed {
    fn len(&self) -> usize {
        self.0
    }

    fn stream(&self) -> &Arc<CudaStream> {
        &self.1
    }
}

impl DevicePtr<f32> for Claimed {
    fn device_ptr<'a>(&'a self, _: &'a CudaStream) -> (u64, SyncOnDrop<'a>) {
        (1 << 20, SyncOnDrop::Record(None))
    }
}

/// As many features as 32 bits cannot count are an error before memory for their logits is asked for.
#[test]
fn features_beyond_32_bits_are_refused() {
    const MIXED: usize = (1 << 31) - 1;
    let queue = cuda::Queue::from_host(device(), &queue_of(DType::F32, &[1.0], 1)).expect("a copy");
    let rows = upload(&[1.0f32; 3]);
    let batch = cuda::Batch::new(&rows, &rows, 1).expect("a batch");
    let config = Config::mochi(1, MIXED, 0).expect("settings");
    let mut step = cuda::Step::new(device(), config).expect("a step");
    let [mixed, none] = [3 * MIXED, 0].map(|len| Claimed(len, device().stream().clone()));
    let error = cuda::info_nce(&mut step, &batch, &queue, &mixed, &none).expect_err("refused");
    assert_eq!(
        error.to_string(),
        "synthetic.mixed is 6442450941 rows; expected less than 2^32 rows"
    );
}

/// Rows whose threads 32 bits do not count, which softgpu would take hours for: the one that is no number
/// is named.
#[test]
fn a_batch_of_very_many_keys_is_checked_whole_on_hardware() {
    const BAD: usize = (1 << 27) + 3;
    if is_softgpu() {
        return;
    }
    let host = queue_of(DType::F32, &[1.0, 2.0], 1);
    let mut queue = cuda::Queue::from_host(device(), &host).expect("a copy");
    let mut keys = vec![0.5f32; BAD + 5];
    keys[BAD] = f32::NAN;
    queue
        .enqueue(device(), &upload(&keys), None)
        .expect("queued");
    let error = queue.check(device()).expect_err("refused");
    assert_eq!(
        error.to_string(),
        format!("row {BAD} of keys is not finite")
    );
    assert_eq!(queue.to_host(device()).expect("a copy"), host);
}

/// Finite queries whose logits are not are told from queries that are not.
#[test]
fn what_is_not_finite_is_named() {
    let host = queue_of(DType::F32, &[1e30, 1e30, 1.0, 0.0, 0.0, 1.0], 2);
    let queue = cuda::Queue::from_host(device(), &host).expect("a copy");
    for (queries, expected) in [
        ([1.0, 0.0, 1e30, 1e30], "row 1 of logits is not finite"),
        (
            [1e30, 1e30, f32::NAN, 0.0],
            "row 1 of queries is not finite",
        ),
        (
            [f32::INFINITY, 0.0, f32::NAN, 0.0],
            "row 0 of queries is not finite",
        ),
    ] {
        let mut workspace = Workspace::new(device()).expect("a workspace");
        let mut ranked = Ranked::new(device(), 2, 1).expect("lists");
        let (there, exact) = (upload(&queries), Precision::Exact);
        let (work, out) = (&mut workspace, &mut ranked);
        cuda::rank(device(), &there, &queue, 1, None, exact, work, out).expect("queued");
        let error = ranked.check(device()).expect_err(expected);
        assert_eq!(error.to_string(), expected);
        // It is forgotten with the next batch.
        let fine = upload(&[0.5f32, 0.5]);
        let (work, out) = (&mut workspace, &mut ranked);
        cuda::rank(device(), &fine, &queue, 1, None, exact, work, out).expect("queued");
        ranked.check(device()).expect("finite");
    }
}

#[test]
fn outputs_that_lie_in_inputs_are_refused() {
    let mut ranked = Ranked::new(device(), 2, 3).expect("lists");
    let logits = upload(&[0.5f32; 6]);
    let labels = upload(&[0u32; 3]);
    cuda::rank_logits(device(), &logits, 3, 3, None, &mut ranked).expect("ranked");
    let (pointer, _record) = {
        let view = ranked.indices();
        let (pointer, _) = view.device_ptr(device().stream());
        (pointer, ())
    };
    // SAFETY: the memory is that of the lists, which outlive this; it is leaked, not freed.
    let alias = unsafe { device().stream().upgrade_device_ptr::<u32>(pointer, 2) };
    let pair: [&dyn DevicePtr<u32>; 2] = [&alias, &labels];
    let error = cuda::rank_logits(device(), &logits, 3, 3, Some(pair), &mut ranked);
    assert_eq!(
        error.expect_err("refused").to_string(),
        "hardest overlaps query labels; expected memory of its own"
    );
    // Nothing was written, and so there is nothing to mix from.
    assert_eq!((ranked.rows(), ranked.counts().len()), (0, 0));
    let _ = alias.leak();
}

/// Two contexts of cudarc's over one of the driver's compare equal, and order nothing between them.
#[test]
fn memory_of_another_context_is_refused() {
    let other = Device::new(0).expect("the same device");
    assert!(other.stream().context() == device().stream().context());
    let there = other.upload("logits", &[1.0f32, 2.0]).expect("logits");
    let mut ranked = Ranked::new(device(), 1, 1).expect("lists");
    let ranked = cuda::rank_logits(device(), &there, 2, 1, None, &mut ranked);
    let of_other = other.stream().context().default_stream();
    let moved = device().with_stream(of_other).map(|_| ());
    let copied = device().download("copied", &there, 2).map(|_| ());
    for (error, argument) in [(ranked, "logits"), (moved, "stream"), (copied, "copied")] {
        let expected = format!(
            "{argument} belongs to another CUDA context; expected that of the device's stream"
        );
        assert_eq!(error.expect_err("refused").to_string(), expected);
    }
}

#[test]
fn memory_that_is_not_there_is_an_error_and_nothing_is_lost() {
    // Other tests would allocate meanwhile.
    if !alone("memory_that_is_not_there_is_an_error_and_nothing_is_lost") {
        return;
    }
    let free = || {
        device()
            .stream()
            .context()
            .mem_get_info()
            .expect("memory")
            .0
    };
    let logits = upload(&[1.0f32, 2.0]);
    let mut ranked = Ranked::new(device(), 1, 1).expect("lists");
    let before = is_softgpu().then(free);
    for (rows, width) in [(1 << 40, 8), (usize::MAX, 2), (1 << 31, 1 << 31)] {
        let error = Ranked::new(device(), rows, width)
            .map(|_| ())
            .expect_err("too much");
        assert_eq!(
            error.to_string(),
            format!("no memory for hardest: {rows} × {width} elements were asked for")
        );
    }
    if let Some(before) = before {
        assert_eq!(free(), before, "something was kept");
    }
    cuda::rank_logits(device(), &logits, 2, 1, None, &mut ranked).expect("still usable");
    assert_eq!(to_host(&ranked).expect("finite").indices, [1]);
}

#[test]
fn no_such_device_is_an_error() {
    device();
    let error = Device::new(1000).map(|_| ()).expect_err("no such device");
    let expected = "device is 1000; expected less than the number of CUDA devices";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn without_a_driver_there_is_an_error_and_no_panic() {
    if !alone("without_a_driver_there_is_an_error_and_no_panic") {
        return;
    }
    // Where the machine has a driver, there is nothing to be seen.
    let result: Result<Device> = Device::new(0);
    match result {
        Err(error @ Error::NoDriver) => assert_eq!(
            error.to_string(),
            "no CUDA driver was found: libcuda.so cannot be loaded"
        ),
        Err(error) => println!("this machine's driver: {error}"),
        Ok(device) => println!("this machine has {device:?}"),
    }
}

/// A kernel that fails loses the context, and every later call says so.
#[test]
fn a_kernel_that_fails_is_an_error_that_says_what_is_lost() {
    if !alone("a_kernel_that_fails_is_an_error_that_says_what_is_lost") {
        return;
    }
    if !is_softgpu() {
        return;
    }
    let logits = upload(&[0.5f32; 100]);
    let mut ranked = Ranked::new(device(), 1, 3).expect("lists");
    softgpu::set_step_limit(10);
    let queued = cuda::rank_logits(device(), &logits, 100, 3, None, &mut ranked);
    let error = queued.and_then(|()| device().synchronize());
    for error in [error, ranked.check(device()), device().synchronize()] {
        assert!(matches!(error, Err(Error::ContextLost { .. })), "{error:?}");
    }
}

/// What ptxas said of every kernel, for every architecture.
#[test]
fn no_kernel_spills() {
    let report = include_str!(concat!(env!("OUT_DIR"), "/ptxas.txt"));
    let kernels = report.matches("Compiling entry function").count();
    let without = report
        .matches("0 bytes spill stores, 0 bytes spill loads")
        .count();
    assert!(kernels > 0, "ptxas said nothing");
    assert_eq!(without, kernels, "{report}");
    println!("ptxas: {kernels} kernels, none spills");
}

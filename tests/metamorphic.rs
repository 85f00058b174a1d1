//! What must not change, and what must change in a known way, when the input is changed in a known
//! way. No reference needed: these hold whatever the numbers are.

mod common;

use common::cases::{Case, DrawKind, Labels, Norms, Recipe, Ties, recipes, unit_rows};
use common::reference::{Problem, Row, RowDraws, norm, rows_of_draws, unpadded};
use common::tolerance::{Bounds, bounds};
use common::{Backend, assert_same_bits, backends, bits, properties, row_bits};
use hardmix::{Config, DType, Draws, GivenDraws, Output, QueryGradient, Queue, Reduction, Rows};

fn run(backend: &dyn Backend, case: &Case) -> Output {
    backend.step(case).expect("a valid case")
}

/// The bounds of each row of a case without synthetics.
fn plain_bounds(backend: &dyn Backend, case: &Case) -> Vec<Bounds> {
    let problem = Problem::new(case);
    (0..case.rows())
        .map(|b| {
            let row = problem.row(b, &RowDraws::default(), None);
            bounds(&problem, b, &row, backend.arithmetic())
        })
        .collect()
}

/// The rows of the reference, with the choices of `output`, and their bounds.
fn reference(backend: &dyn Backend, case: &Case, output: &Output) -> Vec<(Row, Bounds)> {
    let problem = Problem::new(case);
    let draws = rows_of_draws(&output.draws, case.rows());
    let n = case.config.hardest();
    draws
        .iter()
        .zip(output.hardest.chunks_exact(n))
        .enumerate()
        .map(|(b, (draws, hardest))| {
            let row = problem.row(b, draws, Some(&unpadded(hardest)));
            let bounds = bounds(&problem, b, &row, backend.arithmetic());
            (row, bounds)
        })
        .collect()
}

fn close(what: &str, one: &[f32], other: &[f32], bounds: impl Iterator<Item = f64>) {
    assert_eq!(one.len(), other.len(), "{what}");
    for ((x, y), bound) in one.iter().zip(other).zip(bounds) {
        let off = (f64::from(*x) - f64::from(*y)).abs();
        assert!(
            off <= bound,
            "{what}: {x} and {y} are more than {bound:e} apart"
        );
    }
}

#[test]
fn a_step_repeated_gives_the_same_bits() {
    for backend in backends() {
        let case = Recipe {
            rows: 40,
            capacity: 3000,
            ..Recipe::default()
        }
        .build();
        let first = run(backend.as_ref(), &case);
        let mut step = backend.new_step(case.config.clone());
        for time in 0..if backend.is_slow() { 2 } else { 20 } {
            let again = step
                .run(&case.batch(), &case.queue, &case.draws)
                .expect("runs");
            assert_same_bits(&first, &again, &format!("time {time}"));
        }
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    for backend in backends() {
        let shapes = [(7, 300), (1, 20_000), (100, 9001)];
        // The host's threads are no part of an interpreted device, which has schedules of its own.
        let shapes = &shapes[..if backend.is_slow() { 1 } else { 3 }];
        for &(rows, capacity) in shapes {
            for labels in [Labels::None, Labels::Oracle(4)] {
                let case = Recipe {
                    rows,
                    capacity,
                    labels,
                    key_gradient: true,
                    gradient: QueryGradient::Attached,
                    ..Recipe::default()
                }
                .build();
                let on = |threads: usize| {
                    rayon::ThreadPoolBuilder::new()
                        .num_threads(threads)
                        .build()
                        .expect("a thread pool")
                        .install(|| run(backend.as_ref(), &case))
                };
                let one = on(1);
                for threads in [2, 3, 5] {
                    assert_same_bits(&one, &on(threads), &format!("{threads} threads"));
                }
            }
        }
    }
}

/// One step over many shapes and settings: nothing of a batch is left in the workspace.
#[test]
fn a_dirty_workspace_gives_the_bits_of_a_fresh_one() {
    for backend in backends() {
        let step = std::cell::RefCell::new(backend.new_step(Config::moco()));
        properties(backend.cases(150), recipes(), |recipe| {
            let case = recipe.build();
            let mut step = step.borrow_mut();
            step.set_config(case.config.clone());
            let dirty = step
                .run(&case.batch(), &case.queue, &case.draws)
                .expect("runs");
            assert_same_bits(&run(backend.as_ref(), &case), &dirty, "a used workspace");
            Ok(())
        });
    }
}

/// A failed step leaves nothing behind either.
#[test]
fn a_refused_step_does_not_spoil_the_next() {
    for backend in backends() {
        let case = Recipe::default().build();
        let fresh = run(backend.as_ref(), &case);
        let mut step = backend.new_step(case.config.clone());
        let small = Queue::random(10, 24, DType::F32, 1).expect("a queue");
        assert!(step.run(&case.batch(), &small, &case.draws).is_err());
        let narrow = Queue::random(100, 8, DType::F32, 1).expect("a queue");
        assert!(step.run(&case.batch(), &narrow, &case.draws).is_err());
        let after = step
            .run(&case.batch(), &case.queue, &case.draws)
            .expect("runs");
        assert_same_bits(&fresh, &after, "after errors");
    }
}

/// Cut anywhere, a batch gives each row the same bits: draws, ranking, loss and gradient.
#[test]
fn shards_give_the_rows_of_the_whole_batch() {
    for backend in backends() {
        for (labels, draws, dtype) in [
            (
                Labels::None,
                DrawKind::Seeded { seed: 3, step: 8 },
                DType::F32,
            ),
            (Labels::Oracle(3), DrawKind::Given, DType::Bf16),
        ] {
            let whole = Recipe {
                rows: 70,
                capacity: 2100,
                dim: 40,
                row_offset: 1000,
                // A mean would divide by another number of rows.
                reduction: Reduction::None,
                key_gradient: true,
                labels,
                draws,
                dtype,
                ..Recipe::default()
            }
            .build();
            let expected = row_bits(&run(backend.as_ref(), &whole));
            for cuts in [
                vec![1],
                vec![69],
                vec![2, 3, 5],
                vec![8, 16, 31, 33, 64],
                (1..70).collect::<Vec<_>>(),
            ] {
                if backend.is_slow() && cuts.len() != 3 {
                    continue;
                }
                let ends = cuts.iter().copied().chain([70]);
                let starts = [0].into_iter().chain(cuts.iter().copied());
                let sharded: Vec<_> = starts
                    .zip(ends)
                    .flat_map(|(from, to)| row_bits(&run(backend.as_ref(), &whole.shard(from, to))))
                    .collect();
                for (b, (whole, shard)) in expected.iter().zip(&sharded).enumerate() {
                    assert_eq!(whole, shard, "{}, row {b}, cuts {cuts:?}", backend.name());
                }
            }
        }
    }
}

/// N without synthetics is ranked and reported; loss and gradient are those of N = 0.
#[test]
fn no_synthetics_give_the_bits_of_moco() {
    for backend in backends() {
        for (labels, norms, dtype) in [
            (Labels::None, Norms::Unit, DType::F32),
            (Labels::Oracle(3), Norms::Ragged, DType::F16),
        ] {
            let mochi = Recipe {
                capacity: 1500,
                rows: 20,
                labels,
                norms,
                dtype,
                key_gradient: true,
                ..Recipe::default()
            }
            .build();
            let mut warm = mochi.clone();
            warm.config = mochi.config.warm_up();
            let mut plain = mochi.clone();
            plain.config = Config::moco()
                .with_oracle(mochi.config.oracle())
                .with_key_gradient(true)
                .with_uniformity(true);
            let mut all = mochi.clone();
            all.config = Config::mochi(1500, 0, 0)
                .expect("valid")
                .with_oracle(mochi.config.oracle())
                .with_key_gradient(true);
            let expected = run(backend.as_ref(), &plain);
            let hardest = run(backend.as_ref(), &mochi).hardest;
            for (case, n) in [(&warm, 20), (&all, 1500)] {
                let output = run(backend.as_ref(), case);
                assert_eq!(
                    bits(&output.loss_rows),
                    bits(&expected.loss_rows),
                    "N = {n}"
                );
                assert_eq!(
                    bits(&output.grad_queries),
                    bits(&expected.grad_queries),
                    "N = {n}"
                );
                assert_eq!(
                    bits(&output.log_sum_exp),
                    bits(&expected.log_sum_exp),
                    "N = {n}"
                );
                assert_eq!(output.grad_keys, expected.grad_keys, "N = {n}");
                assert_eq!(output.hits, expected.hits, "N = {n}");
                assert_eq!(output.hits_with_synthetic, expected.hits, "N = {n}");
                assert_eq!(output.hardest.len(), 20 * n);
            }
            assert_eq!(
                run(backend.as_ref(), &warm).hardest,
                hardest,
                "the ranking is the same"
            );
        }
    }
}

/// Labels without the oracle only measure.
#[test]
fn labels_alone_change_no_bit() {
    for backend in backends() {
        let labelled = Recipe {
            labels: Labels::Measure(3),
            ..Recipe::default()
        }
        .build();
        let mut bare = labelled.clone();
        bare.query_labels = None;
        let (with, without) = (
            run(backend.as_ref(), &labelled),
            run(backend.as_ref(), &bare),
        );
        assert_eq!(row_bits(&with), row_bits(&without));
        assert!(with.metrics.same_label_share.is_some());
        assert!(without.metrics.same_label_share.is_none());
    }
}

#[test]
fn detached_is_attached_without_query_mixed() {
    for backend in backends() {
        let detached = Recipe {
            query_mixed: 0,
            ..Recipe::default()
        }
        .build();
        let mut attached = detached.clone();
        attached.config = detached
            .config
            .clone()
            .with_query_gradient(QueryGradient::Attached);
        let (one, other) = (
            run(backend.as_ref(), &detached),
            run(backend.as_ref(), &attached),
        );
        assert_same_bits(&one, &other, "s′ = 0");
        // And with it, only the gradient differs.
        let detached = Recipe::default().build();
        let mut attached = detached.clone();
        attached.config = detached
            .config
            .clone()
            .with_query_gradient(QueryGradient::Attached);
        let (one, other) = (
            run(backend.as_ref(), &detached),
            run(backend.as_ref(), &attached),
        );
        assert_eq!(bits(&one.loss_rows), bits(&other.loss_rows));
        assert_eq!(
            bits(&one.query_mixed_logits),
            bits(&other.query_mixed_logits)
        );
        assert_ne!(bits(&one.grad_queries), bits(&other.grad_queries));
    }
}

/// The order of the queue carries no meaning: indices follow the rows.
#[test]
fn a_permuted_queue_permutes_the_indices() {
    const CAPACITY: usize = 2500;
    for backend in backends() {
        let case = Recipe {
            rows: 20,
            capacity: CAPACITY,
            dim: 33,
            mixed: 0,
            query_mixed: 0,
            hardest: 100,
            ..Recipe::default()
        }
        .build();
        let mut order: Vec<usize> = (0..CAPACITY).collect();
        fastrand::Rng::with_seed(4).shuffle(&mut order);
        let rows: Vec<f32> = order
            .iter()
            .flat_map(|&j| case.queue.row(j).expect("a row"))
            .collect();
        let mut permuted = case.clone();
        permuted.queue = Queue::from_rows(Rows::F32(rows), 33).expect("a queue");
        let (one, other) = (
            run(backend.as_ref(), &case),
            run(backend.as_ref(), &permuted),
        );

        let bounds = plain_bounds(backend.as_ref(), &case);
        let problem = Problem::new(&case);
        let mut decided = 0;
        for (b, bounds) in bounds.iter().enumerate() {
            let gap = common::oracle::boundary_gap(&problem.logits(b), 100);
            if gap <= 2.0 * bounds.logit {
                continue;
            }
            decided += 1;
            let mut back: Vec<u32> = other.hardest[b * 100..(b + 1) * 100]
                .iter()
                .map(|&j| order[j as usize] as u32)
                .collect();
            back.sort_unstable();
            assert_eq!(one.hardest[b * 100..(b + 1) * 100], back, "row {b}");
        }
        assert!(decided >= 15, "only {decided} rows have a clear boundary");
        close(
            "loss",
            &one.loss_rows,
            &other.loss_rows,
            bounds.iter().map(|b| 2.0 * b.loss),
        );
        assert_eq!(one.hits, other.hits);
    }
}

/// Twice the queue: log Z₋ grows by log 2, the hardest come in pairs.
#[test]
fn a_duplicated_queue_adds_the_log_of_two() {
    for backend in backends() {
        let case = Recipe {
            mixed: 0,
            query_mixed: 0,
            capacity: 1024,
            temperature: 0.07,
            ..Recipe::default()
        }
        .build();
        let mut twice = case.clone();
        let rows = case.queue.rows().to_f32();
        twice.queue =
            Queue::from_rows(Rows::F32([&rows[..], &rows].concat()), 24).expect("a queue");
        let (one, other) = (run(backend.as_ref(), &case), run(backend.as_ref(), &twice));
        // log Z₋ = log(Z − e^{l⁺/τ}) = lse + log(1 − p⁺).
        let negatives = |output: &Output| -> Vec<f32> {
            let pairs = output.log_sum_exp.iter().zip(&output.positive_probability);
            pairs.map(|(lse, p)| lse + (1.0 - p).ln()).collect()
        };
        let (before, after) = (negatives(&one), negatives(&other));
        let bounds = plain_bounds(backend.as_ref(), &twice);
        for (b, (before, after)) in before.iter().zip(&after).enumerate() {
            let doubled = f64::from(after - before);
            let p = f64::from(one.positive_probability[b]);
            // Recovered from p⁺: its rounding counts 1/(1−p⁺) times.
            let bound = (4.0 * bounds[b].log_sum_exp + 1e-6) / (1.0 - p);
            assert!(
                (doubled - 2f64.ln()).abs() <= bound,
                "row {b}: log Z₋ grew by {doubled}"
            );
        }
    }
}

/// α = 1 is row i alone, α = 0 row j; both directions, with the logits of the rows over their norm.
#[test]
fn a_mixture_of_one_is_that_row() {
    for backend in backends() {
        let base = Recipe {
            norms: Norms::Ragged,
            hardest: 20,
            mixed: 2,
            query_mixed: 2,
            ..Recipe::default()
        };
        let mut case = base.build();
        let rows = case.rows();
        let repeat = |pair: [u32; 2]| pair.repeat(rows);
        case.draws = Draws::given(GivenDraws {
            first: repeat([4, 19]),
            second: repeat([11, 0]),
            alpha: [1.0, 0.0].repeat(rows),
            pick: repeat([7, 3]),
            beta: [0.0, 1.0].repeat(rows),
        });
        let output = run(backend.as_ref(), &case);
        let problem = Problem::new(&case);
        for b in 0..rows {
            let query = common::reference::norm(&problem.queries[b]);
            let at = |position: usize| {
                let row = &problem.queue[output.hardest[b * 20 + position] as usize];
                common::reference::dot(&problem.queries[b], row) / common::reference::norm(row)
            };
            for (ours, expected) in [
                (output.mixed_logits[2 * b], at(4)),
                (output.mixed_logits[2 * b + 1], at(0)),
                (output.query_mixed_logits[2 * b], at(7)),
                (output.query_mixed_logits[2 * b + 1], query),
            ] {
                let bound = query * 2.0 * backend.arithmetic().gamma(24 + 6);
                let off = (f64::from(ours) - expected).abs();
                assert!(off <= bound, "row {b}: {ours}; expected {expected}");
            }
        }
    }
}

/// With N = K the whole queue is the list, in its own order.
#[test]
fn all_rows_are_the_hardest_when_n_is_k() {
    for backend in backends() {
        for ties in [Ties::Distinct, Ties::Few(1), Ties::SmallIntegers] {
            let case = Recipe {
                hardest: 150,
                ties,
                ..Recipe::default()
            }
            .build();
            let output = run(backend.as_ref(), &case);
            let all: Vec<u32> = (0..150).collect();
            for indices in output.hardest.chunks_exact(150) {
                assert_eq!(indices, all);
            }
        }
    }
}

/// Loss and gradient depend on q/τ only (without query-mixed negatives), and the mixed negatives
/// on the directions of rows as long as one another.
#[test]
fn scaling_queries_and_temperature_together_changes_nothing() {
    for backend in backends() {
        let case = Recipe {
            query_mixed: 0,
            temperature: 0.25,
            hardest: 150,
            ..Recipe::default()
        }
        .build();
        let expected = run(backend.as_ref(), &case);
        // Both are as near to the same figures.
        let bounds = reference(backend.as_ref(), &case, &expected);
        for scale in [0.5, 0.25, 2.0, 4.0] {
            let mut scaled = case.clone();
            scaled.queries.iter_mut().for_each(|q| *q *= scale);
            scaled.config = case
                .config
                .clone()
                .with_temperature(0.25 * scale)
                .expect("valid");
            let output = run(backend.as_ref(), &scaled);
            let what = format!("scaled by {scale}");
            let each = bounds.iter().map(|(_, b)| 2.0 * b.loss);
            close(&what, &output.loss_rows, &expected.loss_rows, each);
            let back: Vec<f32> = output.grad_queries.iter().map(|g| g * scale).collect();
            let each = bounds
                .iter()
                .flat_map(|(_, b)| std::iter::repeat_n(2.0 * b.grad_query / 7.0, 24));
            close(&what, &back, &expected.grad_queries, each);
            let logits: Vec<f32> = output.mixed_logits.iter().map(|l| l / scale).collect();
            let each = bounds.iter().flat_map(|(_, b)| &b.mixed);
            let each = each.map(|bound| 2.0 * bound);
            close(&what, &logits, &expected.mixed_logits, each);
        }
    }
}

/// Scaling the queue's rows leaves the mixed negatives where they were: they are directions.
#[test]
fn scaling_the_queue_keeps_the_mixed_negatives() {
    for backend in backends() {
        let case = Recipe {
            hardest: 150,
            query_mixed: 0,
            ..Recipe::default()
        }
        .build();
        let expected = run(backend.as_ref(), &case);
        let own = reference(backend.as_ref(), &case, &expected);
        for scale in [0.125, 0.3, 3.0, 16.0] {
            let mut scaled = case.clone();
            let rows = case
                .queue
                .rows()
                .to_f32()
                .iter()
                .map(|x| x * scale)
                .collect();
            scaled.queue = Queue::from_rows(Rows::F32(rows), 24).expect("a queue");
            let output = run(backend.as_ref(), &scaled);
            // As far as each may be off, and as rounding the scaled rows moves a mixture: 2⁻²⁴ of the
            // rows, twice that with its norm.
            let theirs = reference(backend.as_ref(), &scaled, &output);
            let queries = Problem::new(&case).queries;
            let each = queries.iter().zip(&own).zip(&theirs);
            let each = each.flat_map(|((query, (row, one)), (_, other))| {
                let moved = norm(query) / f64::from(1 << 23);
                let bounds = one.mixed.iter().zip(&other.mixed).zip(&row.mixed);
                bounds.map(move |((one, other), h)| one + other + moved * h.amplification)
            });
            close(
                "mixed logits",
                &output.mixed_logits,
                &expected.mixed_logits,
                each,
            );
        }
    }
}

/// Sum is B times mean, and `None` has the gradient of the sum, up to one rounding each.
#[test]
fn reductions_differ_by_the_number_of_rows() {
    for backend in backends() {
        let with = |reduction| {
            let recipe = Recipe {
                reduction,
                key_gradient: true,
                ..Recipe::default()
            };
            run(backend.as_ref(), &recipe.build())
        };
        let (mean, sum) = (with(Reduction::Mean), with(Reduction::Sum));
        let none = with(Reduction::None);
        assert_eq!(bits(&sum.grad_queries), bits(&none.grad_queries));
        assert_eq!(bits(&sum.loss_rows), bits(&mean.loss_rows));
        let loss = |output: &Output| output.loss().expect("finite");
        assert_eq!(loss(&sum), loss(&none));
        assert!((loss(&sum) - 7.0 * loss(&mean)).abs() <= 4e-7 * loss(&sum));
        for (s, m) in sum.grad_queries.iter().zip(&mean.grad_queries) {
            assert!((s - 7.0 * m).abs() <= 4e-7 * s.abs(), "{s} and 7 · {m}");
        }
    }
}

/// Rows that mask everything can be left out: a masked row is as good as absent.
#[test]
fn masked_rows_are_absent() {
    for backend in backends() {
        let rng = &mut fastrand::Rng::with_seed(6);
        let mut case = Recipe {
            labels: Labels::Oracle(2),
            hardest: 30,
            ..Recipe::default()
        }
        .build();
        // Even rows are of the queries' class.
        let labels = (0..150).map(|j| j % 2).collect();
        case.queue = case.queue.clone().with_labels(labels).expect("labels");
        case.query_labels = Some(vec![0; case.rows()]);
        let mut other = case.clone();
        let mut rows = case.queue.rows().to_f32();
        for j in (0..150).step_by(2) {
            // Whatever they hold: the hardest there could be, or nothing.
            let row = if j % 4 == 0 {
                unit_rows(rng, 1, 24)
            } else {
                case.queries[..24].to_vec()
            };
            rows[j * 24..(j + 1) * 24].copy_from_slice(&row);
        }
        other.queue = Queue::from_rows(Rows::F32(rows), 24)
            .and_then(|queue| queue.with_labels((0..150).map(|j| j % 2).collect()))
            .expect("a queue");
        let (one, two) = (run(backend.as_ref(), &case), run(backend.as_ref(), &other));
        assert_eq!(one.hardest, two.hardest);
        assert!(
            one.hardest.iter().all(|j| j % 2 == 1),
            "only unmasked rows are listed"
        );
        let bounds = [(&case, &one), (&other, &two)]
            .map(|(case, output)| reference(backend.as_ref(), case, output));
        let each = bounds[0].iter().zip(&bounds[1]);
        let each = each.map(|((_, one), (_, two))| one.loss + two.loss);
        close("loss", &one.loss_rows, &two.loss_rows, each);
    }
}

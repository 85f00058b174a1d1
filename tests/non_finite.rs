//! Inputs that are no numbers, and numbers whose products are none: the row is NaN, the status
//! says which, the loss is an error, and every other row keeps its bits.

mod common;

use common::cases::{Case, Labels, Norms, Recipe};
use common::reference::norm;
use common::{Backend, backends, row_bits};
use hardmix::{Error, Output, Queue, Reduction, Rows, Status};

/// The first row's logits are not finite.
const ROW_0: Status = Status::NonFinite {
    argument: "logits",
    row: 0,
};

const BAD: [f32; 4] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -f32::NAN];

/// Rows in which something was spoilt, and what the status says about the first of them.
fn check(backend: &dyn Backend, good: &Output, case: &Case, bad: &[usize], argument: &str) {
    let dim = case.queue.dim();
    let output = backend.step(case).expect("the step itself succeeds");
    let what = format!("{}: {argument}, rows {bad:?}", backend.name());
    match output.status {
        Status::NonFinite {
            argument: named,
            row,
        } => {
            assert_eq!((named, row), (argument, bad[0]), "{what}");
        }
        other => panic!("{what}: the status is {other:?}"),
    }
    let error = output.loss().expect_err("no number");
    assert!(
        matches!(error, Error::NonFinite { row, .. } if row == bad[0]),
        "{what}"
    );
    assert_eq!(
        error.to_string(),
        format!("row {} of {argument} is not finite", bad[0])
    );
    let (before, after) = (row_bits(good), row_bits(&output));
    for b in 0..case.rows() {
        if bad.contains(&b) {
            assert!(
                output.loss_rows[b].is_nan(),
                "{what}: loss {}",
                output.loss_rows[b]
            );
            let gradient = &output.grad_queries[b * dim..(b + 1) * dim];
            assert!(gradient.iter().all(|g| g.is_nan()), "{what}: gradient");
            if let Some(keys) = &output.grad_keys {
                assert!(
                    keys[b * dim..(b + 1) * dim].iter().all(|g| g.is_nan()),
                    "{what}: keys"
                );
            }
            assert!(
                !output.hits[b] && !output.hits_with_synthetic[b],
                "{what}: NaN is a miss"
            );
        } else {
            assert_eq!(before[b], after[b], "{what}: row {b} is another's business");
        }
    }
}

fn case(labels: Labels, reduction: Reduction) -> Case {
    Recipe {
        rows: 9,
        key_gradient: true,
        norms: Norms::Ragged,
        labels,
        reduction,
        ..Recipe::default()
    }
    .build()
}

#[test]
fn a_bad_query_or_key_spoils_its_row_alone() {
    for backend in backends() {
        for labels in [Labels::None, Labels::Oracle(3)] {
            for reduction in [Reduction::Mean, Reduction::None] {
                let case = case(labels, reduction);
                let good = backend.step(&case).expect("a valid case");
                let dim = case.queue.dim();
                for value in BAD {
                    for (row, at) in [(0, 0), (4, 23), (8, 11)] {
                        let mut spoilt = case.clone();
                        spoilt.queries[row * dim + at] = value;
                        check(backend.as_ref(), &good, &spoilt, &[row], "queries");
                        let mut spoilt = case.clone();
                        spoilt.keys[row * dim + at] = value;
                        check(backend.as_ref(), &good, &spoilt, &[row], "keys");
                    }
                }
            }
        }
    }
}

#[test]
fn the_first_bad_row_is_the_one_named() {
    for backend in backends() {
        let case = case(Labels::None, Reduction::Mean);
        let good = backend.step(&case).expect("a valid case");
        let dim = case.queue.dim();
        let mut spoilt = case.clone();
        spoilt.queries[7 * dim] = f32::NAN;
        spoilt.keys[3 * dim + 1] = f32::INFINITY;
        check(backend.as_ref(), &good, &spoilt, &[3, 7], "keys");
        // A whole batch of them.
        let mut spoilt = case.clone();
        spoilt.queries.fill(f32::NAN);
        let all: Vec<usize> = (0..9).collect();
        check(backend.as_ref(), &good, &spoilt, &all, "queries");
    }
}

/// A workspace that has seen NaN forgets it.
#[test]
fn the_next_batch_is_clean() {
    for backend in backends() {
        let case = case(Labels::None, Reduction::Mean);
        let good = backend.step(&case).expect("a valid case");
        let mut spoilt = case.clone();
        spoilt.queries.fill(f32::NAN);
        spoilt.keys.fill(f32::INFINITY);
        let mut step = backend.new_step(case.config.clone());
        step.run(&spoilt.batch(), &spoilt.queue, &spoilt.draws)
            .expect("runs");
        let after = step
            .run(&case.batch(), &case.queue, &case.draws)
            .expect("runs");
        common::assert_same_bits(&good, &after, "after a batch of NaN");
    }
}

/// Finite inputs whose products overflow f32: `logits` in the status, of that row alone.
#[test]
fn overflowing_logits_spoil_their_row_alone() {
    for backend in backends() {
        let case = case(Labels::None, Reduction::Mean);
        let good = backend.step(&case).expect("a valid case");
        let dim = case.queue.dim();
        for sign in [1.0, -1.0] {
            let mut spoilt = case.clone();
            // 24 · 3e38 · 0.1 and more, whatever the signs: ∞, −∞ or ∞ − ∞.
            spoilt.queries[5 * dim..6 * dim].fill(sign * 3e38);
            check(backend.as_ref(), &good, &spoilt, &[5], "logits");
        }
        let mut spoilt = case.clone();
        spoilt.keys[2 * dim..3 * dim].fill(3e38);
        spoilt.queries[2 * dim..3 * dim].fill(3.0);
        let output = backend.step(&spoilt).expect("the step itself succeeds");
        assert_eq!(
            format!("{:?}", output.status),
            "NonFinite { argument: \"logits\", row: 2 }",
            "{}: a positive that overflows",
            backend.name()
        );
        assert!(output.loss_rows[2].is_nan());
    }
}

/// Norms whose squares leave the range of f32 while their products do not. The answer is right; where
/// the products come near what is refused, or the squares of the queue's norms overflow, the row may be
/// NaN with its status instead.
#[test]
fn extreme_norms_are_right_or_refused() {
    for backend in backends() {
        for exponent in [-40, -38, -30, -24, -20, -12, 12, 18, 20, 25, 30, 37] {
            for queries_too in [false, true] {
                let mut case = Recipe {
                    temperature: 1.0,
                    ..Recipe::default()
                }
                .build();
                let scale = 10f32.powi(exponent);
                let scaled: Vec<f32> = case
                    .queue
                    .rows()
                    .to_f32()
                    .iter()
                    .map(|x| x * scale)
                    .collect();
                case.queue = Queue::from_rows(Rows::F32(scaled), 24).expect("a queue");
                let inverse = if queries_too { scale } else { scale.recip() };
                // Products of about 1 (or their squares): the exponentials stay in range.
                case.queries.iter_mut().for_each(|x| *x *= inverse);
                if case.queries.iter().any(|x| !x.is_finite()) {
                    continue;
                }
                let output = backend.step(&case).expect("the step itself succeeds");
                let what = format!("{}: 1e{exponent}, {queries_too}", backend.name());
                let problem = common::reference::Problem::new(&case);
                let draws = common::reference::rows_of_draws(&output.draws, case.rows());
                let longest = problem.queue.iter().map(|n| norm(n)).fold(1.0, f64::max);
                for (b, draws) in draws.iter().enumerate() {
                    if output.loss_rows[b].is_nan() {
                        assert_ne!(output.status, Status::Finite, "{what}: NaN without a word");
                        // At τ = 1. A queue keeps the squares of its rows' norms in f32.
                        let reach = norm(&problem.queries[b]) * longest.max(norm(&problem.keys[b]));
                        let is_kept = longest * longest < f64::from(f32::MAX);
                        let small = reach < 1e36 && is_kept;
                        assert!(!small, "{what}: row {b} is refused at {reach:e}");
                        continue;
                    }
                    let hardest =
                        common::reference::unpadded(&output.hardest[b * 20..(b + 1) * 20]);
                    let row = problem.row(b, draws, Some(&hardest));
                    let bounds = common::tolerance::bounds(&problem, b, &row, backend.arithmetic());
                    let off = (f64::from(output.loss_rows[b]) - row.loss).abs();
                    // Subnormal products have an absolute error.
                    let underflow = 100.0 * 1.2e-38 * 24.0 / problem.temperature;
                    assert!(
                        off <= bounds.loss + underflow,
                        "{what}: the loss of row {b} is {}; the reference has {}",
                        output.loss_rows[b],
                        row.loss
                    );
                }
            }
        }
    }
}

/// Finite inputs whose logits are small and whose gradient is not: l⁺ = 0, but k/τ overflows.
#[test]
fn a_gradient_that_overflows_is_reported() {
    let queue = Queue::from_rows(Rows::F32(vec![0.6, 0.8, -0.8, 0.6]), 2).unwrap();
    let (queries, keys) = ([1e-3, 0.0, 1.0, 0.0], [0.0, 3e38, 0.0, 1.0]);
    let batch = hardmix::Batch::new(&queries, &keys, 2).unwrap();
    let config = hardmix::Config::moco().with_reduction(Reduction::Sum);
    let draws = hardmix::Draws::seeded(0, 0).unwrap();
    for backend in backends() {
        let mut step = backend.new_step(config.clone());
        let output = step.run(&batch, &queue, &draws).unwrap();
        assert_eq!(output.status, ROW_0);
        let gradient = &output.grad_queries[..2];
        assert!(output.loss_rows[0].is_nan() && gradient.iter().all(|g| g.is_nan()));
        assert!(output.loss_rows[1].is_finite() && output.loss().is_err());
    }
}

/// Given features so long that q·h overflows must not pass for features that weigh nothing.
#[test]
fn given_features_that_overflow_are_reported() {
    let queue = Queue::from_rows(Rows::F32(vec![0.6, 0.8, -0.8, 0.6]), 2).unwrap();
    let (queries, keys) = ([3.0, 0.0, 1.0, 0.0], [1.0, 0.0, 1.0, 0.0]);
    let batch = hardmix::Batch::new(&queries, &keys, 2).unwrap();
    let config = hardmix::Config::mochi(2, 1, 0).unwrap();
    for length in [3e38, -3e38] {
        let synthetic = hardmix::cpu::Synthetic {
            mixed: vec![length, 0.0, 1.0, 0.0],
            query_mixed: Vec::new(),
        };
        for backend in backends() {
            let output = backend.info_nce(&batch, &queue, &synthetic, &config);
            let output = output.unwrap();
            assert_eq!(output.status, ROW_0);
            assert!(output.loss_rows[0].is_nan() && output.loss_rows[1].is_finite());
        }
    }
}

/// A loss that f64 holds and f32 does not is no number to give back.
#[test]
fn losses_beyond_f32_are_not_finite() {
    let queue = Queue::from_rows(Rows::F32(vec![1.0, 0.0, 0.0, 1.0]), 2).unwrap();
    // l⁺ = 0 and one synthetic logit of 1e38, over τ = 0.1.
    let batch = hardmix::Batch::new(&[100.0, 0.0], &[0.0, 1.0], 2).unwrap();
    let config = hardmix::Config::mochi(1, 1, 0).unwrap();
    let config = config.with_temperature(0.1).unwrap();
    let synthetic = hardmix::cpu::Synthetic {
        mixed: vec![1e36, 0.0],
        query_mixed: Vec::new(),
    };
    for backend in backends() {
        let output = backend.info_nce(&batch, &queue, &synthetic, &config);
        let output = output.unwrap();
        assert_eq!(output.status, ROW_0, "{}", backend.name());
        assert!(output.loss_rows[0].is_nan());
        assert!(output.loss().is_err());
    }
}

#[test]
fn a_sum_of_losses_beyond_f32_is_an_error() {
    for reduction in [hardmix::Reduction::Sum, hardmix::Reduction::Mean] {
        let case = Case {
            queries: vec![9e36; 64],
            keys: vec![-1.0; 64],
            query_labels: None,
            row_offset: 0,
            queue: Queue::from_rows(Rows::F32(vec![1.0]), 1).unwrap(),
            config: hardmix::Config::moco()
                .with_temperature(1.0)
                .unwrap()
                .with_reduction(reduction),
            draws: hardmix::Draws::seeded(1, 0).unwrap(),
        };
        for backend in backends() {
            let output = backend.step(&case).expect("the step itself succeeds");
            let what = format!("{}, {reduction:?}", backend.name());
            assert_eq!(output.status, Status::Finite, "{what}");
            match (reduction, output.loss()) {
                (hardmix::Reduction::Mean, Ok(loss)) => assert!(loss > 1.7e37, "{what}"),
                (hardmix::Reduction::Sum, Err(error)) => {
                    assert!(
                        error.to_string().starts_with("loss is inf"),
                        "{what}: {error}"
                    );
                }
                (_, loss) => panic!("{what}: {loss:?}"),
            }
        }
    }
}

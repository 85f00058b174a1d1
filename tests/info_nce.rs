//! The loss over given negatives, which are constants: against the reference, and against the step.

mod common;

use common::cases::{Case, Labels, Recipe, recipes};
use common::reference::{Problem, Row, RowDraws, norm, rows_of_draws, unpadded};
use common::tolerance::{Bounds, bounds, feature};
use common::{Backend, backends, properties};
use hardmix::cpu::Synthetic;
use hardmix::{NO_LABEL, Output, QueryGradient, Status};
use proptest::prelude::*;

fn run(backend: &dyn Backend, case: &Case, synthetic: &Synthetic) -> Output {
    backend
        .info_nce(&case.batch(), &case.queue, synthetic, &case.config)
        .expect("a valid case")
}

/// Features of the right shape, unit rows or not: `info_nce` takes whatever it is given.
fn features(case: &Case, seed: u64) -> Synthetic {
    let rng = &mut fastrand::Rng::with_seed(seed);
    let mut some = |count: usize| {
        let scale = 2.0 * rng.f32();
        common::cases::unit_rows(rng, count, case.queue.dim())
            .iter()
            .map(|x| scale * x)
            .collect()
    };
    Synthetic {
        mixed: some(case.rows() * case.config.mixed()),
        query_mixed: some(case.rows() * case.config.query_mixed()),
    }
}

/// The reference of constants: the given features as further queue rows without a label, of a
/// problem that mixes nothing.
fn with_constants(case: &Case, synthetic: &Synthetic, b: usize) -> Problem {
    let dim = case.queue.dim();
    let mut problem = Problem::new(case);
    for (features, width) in [
        (&synthetic.mixed, problem.mixed),
        (&synthetic.query_mixed, problem.query_mixed),
    ] {
        let own = &features[b * width * dim..(b + 1) * width * dim];
        for feature in own.chunks_exact(dim) {
            problem
                .queue
                .push(feature.iter().map(|&x| f64::from(x)).collect());
        }
    }
    if let Some(labels) = &mut problem.queue_labels {
        labels.resize(problem.queue.len(), NO_LABEL);
    }
    (problem.hardest, problem.mixed, problem.query_mixed) = (0, 0, 0);
    problem
}

fn compare(backend: &dyn Backend, case: &Case, synthetic: &Synthetic) -> Result<(), String> {
    let output = run(backend, case, synthetic);
    if output.status != Status::Finite {
        return Err(format!("status is {:?}", output.status));
    }
    let (dim, capacity) = (case.queue.dim(), case.queue.capacity());
    let scale = Problem::new(case).scale();
    let mut sum = 0.0;
    let mut slack = 0.0;
    for b in 0..case.rows() {
        let problem = with_constants(case, synthetic, b);
        if (0..capacity).all(|j| problem.masked(b, j)) {
            // Without a real negative there are no synthetics either.
            if output.loss_rows[b] != 0.0 {
                return Err(format!("row {b} has no negative and a loss"));
            }
            continue;
        }
        let row = problem.row(b, &RowDraws::default(), None);
        let bounds = bounds(&problem, b, &row, backend.arithmetic());
        let off = (f64::from(output.loss_rows[b]) - row.loss).abs();
        if off > bounds.loss {
            return Err(format!(
                "the loss of row {b} is {off:e} off, of {:e}",
                bounds.loss
            ));
        }
        sum += row.loss;
        slack += bounds.loss + 1e-6 * row.loss;
        let gradient = &output.grad_queries[b * dim..(b + 1) * dim];
        let error: f64 = gradient
            .iter()
            .zip(&row.grad_query)
            .map(|(&a, g)| (f64::from(a) - g * scale).powi(2))
            .sum();
        if error.sqrt() > bounds.grad_query * scale {
            return Err(format!("the gradient of row {b} is {:e} off", error.sqrt()));
        }
        if let Some(keys) = &output.grad_keys {
            let gradient = &keys[b * dim..(b + 1) * dim];
            for (&a, g) in gradient.iter().zip(&row.grad_key) {
                if (f64::from(a) - g * scale).abs() > bounds.grad_key * scale {
                    return Err(format!(
                        "row {b}: a key gradient is {a}; expected {}",
                        g * scale
                    ));
                }
            }
        }
        let real = row.logits[..capacity]
            .iter()
            .copied()
            .fold(f64::NEG_INFINITY, f64::max);
        let all = row.logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        for (ours, largest) in [(output.hits[b], real), (output.hits_with_synthetic[b], all)] {
            if (row.positive - largest).abs() > 2.0 * bounds.logit
                && ours != (row.positive > largest)
            {
                return Err(format!("row {b}: hit is {ours}"));
            }
        }
        for (ours, expected) in output.mixed_logits
            [b * case.config.mixed()..(b + 1) * case.config.mixed()]
            .iter()
            .zip(&row.logits[capacity..])
        {
            if (f64::from(*ours) - expected).abs() > bounds.logit {
                return Err(format!(
                    "row {b}: a synthetic logit is {ours}; expected {expected}"
                ));
            }
        }
    }
    let loss = f64::from(output.loss().map_err(|error| error.to_string())?);
    let expected = sum * scale;
    if (loss - expected).abs() > slack * scale + 1e-30 {
        return Err(format!("the loss is {loss}; expected {expected}"));
    }
    Ok(())
}

#[test]
fn given_negatives_agree_with_the_reference() {
    for backend in backends() {
        properties(backend.cases(250), recipes(), |recipe| {
            let case = recipe.build();
            let synthetic = features(&case, recipe.seed ^ 5);
            compare(backend.as_ref(), &case, &synthetic).map_err(TestCaseError::fail)
        });
    }
}

/// How far the loss of a detached row and that over its negatives written out may be apart: twice what
/// either may be off, and what the errors of the features do. One of δ moves its logit by ‖q‖δ, each
/// probability by twice that over τ, and the gradient by the probabilities and by itself.
fn bounds_apart(backend: &dyn Backend, problem: &Problem, b: usize, row: &Row) -> Bounds {
    let own = bounds(problem, b, row, backend.arithmetic());
    let made = row.mixed.iter().chain(&row.query_mixed);
    let features = made.map(|h| feature(h, backend.arithmetic()));
    let off = features.fold(0.0, f64::max);
    let tau = problem.temperature;
    let longest = problem.queue.iter().map(|n| norm(n)).fold(1.0, f64::max);
    let moved = norm(&problem.queries[b]) * off / tau;
    let lengths = longest + norm(&problem.keys[b]);
    let gradient = row.negative_probability * (2.0 * moved * lengths + off) / tau;
    Bounds {
        loss: 2.0 * own.loss + moved,
        grad_query: 2.0 * own.grad_query + gradient,
        ..own
    }
}

/// rank, mix and info_nce one after the other are the detached step, to within rounding.
#[test]
fn the_three_operators_make_the_detached_step() {
    for backend in backends() {
        for labels in [Labels::None, Labels::Oracle(3), Labels::OracleNearlyAll] {
            let case = Recipe {
                labels,
                key_gradient: true,
                gradient: QueryGradient::Detached,
                ..Recipe::default()
            }
            .build();
            let ranked = backend
                .rank(&case.queries, &case.queue, 20, case.oracle_labels())
                .expect("ranked");
            let synthetic = backend
                .mix(
                    &case.batch(),
                    &case.queue,
                    &ranked,
                    &case.config,
                    &case.draws,
                )
                .expect("mixed");
            let apart = run(backend.as_ref(), &case, &synthetic);
            let fused = backend.step(&case).expect("a valid case");
            let problem = Problem::new(&case);
            let draws = rows_of_draws(&fused.draws, case.rows());
            for (b, draws) in draws.iter().enumerate() {
                let chosen = unpadded(&fused.hardest[b * 20..(b + 1) * 20]);
                if chosen.is_empty() {
                    continue;
                }
                let row = problem.row(b, draws, Some(&chosen));
                let bound = bounds_apart(backend.as_ref(), &problem, b, &row);
                let off = f64::from(apart.loss_rows[b] - fused.loss_rows[b]).abs();
                assert!(off <= bound.loss, "{labels:?}, row {b}: {off:e}");
                let of_row = b * 24..(b + 1) * 24;
                let pairs = apart.grad_queries[of_row.clone()]
                    .iter()
                    .zip(&fused.grad_queries[of_row]);
                let off: Vec<f64> = pairs.map(|(a, f)| f64::from(a - f)).collect();
                let (off, bound) = (norm(&off), bound.grad_query * problem.scale());
                assert!(off <= bound, "{labels:?}, row {b}: gradient {off:e}");
            }
            assert_eq!(apart.hits, fused.hits);
            assert_eq!(apart.metrics.uniformity, fused.metrics.uniformity);
        }
    }
}

/// What a step without synthetics gives, bit by bit.
#[test]
fn without_synthetics_it_is_moco() {
    for backend in backends() {
        let case = Recipe {
            hardest: 0,
            mixed: 0,
            query_mixed: 0,
            ..Recipe::default()
        }
        .build();
        let none = Synthetic {
            mixed: vec![],
            query_mixed: vec![],
        };
        let (apart, fused) = (
            run(backend.as_ref(), &case, &none),
            backend.step(&case).expect("a valid case"),
        );
        assert_eq!(common::row_bits(&apart), common::row_bits(&fused));
    }
}

#[test]
fn negatives_that_do_not_fit_are_refused() {
    for backend in backends() {
        let case = Recipe::default().build();
        let good = features(&case, 1);
        let refused = |what: &str, synthetic: Synthetic| {
            let error = backend
                .info_nce(&case.batch(), &case.queue, &synthetic, &case.config)
                .expect_err(what)
                .to_string();
            println!("{what}: {error}");
            assert!(error.contains("mixed"), "{error}");
        };
        let mut short = good.clone();
        short.mixed.pop();
        refused("an element short", short);
        let mut short = good.clone();
        short.query_mixed.truncate(24);
        refused("one row alone", short);
        let mut long = good.clone();
        long.mixed.extend([0.0; 24]);
        refused("a feature more", long);
    }
}

/// Features come from the caller, as the queue does: one that is no number is refused.
#[test]
fn a_feature_that_is_no_number_is_refused() {
    for backend in backends() {
        let case = Recipe::default().build();
        let good = features(&case, 1);
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut mixed = good.clone();
            mixed.mixed[94 * 24 + 7] = value;
            let mut query_mixed = good.clone();
            query_mixed.query_mixed[76 * 24 + 23] = value;
            for (synthetic, expected) in [
                (mixed, "row 94 of synthetic.mixed is not finite"),
                (query_mixed, "row 76 of synthetic.query_mixed is not finite"),
            ] {
                let error = backend
                    .info_nce(&case.batch(), &case.queue, &synthetic, &case.config)
                    .expect_err(expected);
                assert_eq!(error.to_string(), expected);
            }
        }
    }
}

//! The synthetic negatives as features, against the reference, and with lists that someone made.

mod common;

use std::cell::Cell;

use common::cases::{Case, Labels, Recipe, recipes};
use common::reference::{Problem, Row, dot, norm, rows_of_draws};
use common::{Backend, bits, devices, properties, tolerance};
use hardmix::cpu::{Ranked, Synthetic};
use hardmix::{Draws, Error, GivenDraws, NO_ROW};
use proptest::prelude::*;

fn rank(backend: &dyn Backend, case: &Case) -> Ranked {
    backend
        .rank(
            &case.queries,
            &case.queue,
            case.config.hardest(),
            case.oracle_labels(),
        )
        .expect("ranked")
}

fn mix(backend: &dyn Backend, case: &Case, ranked: &Ranked) -> Result<Synthetic, Error> {
    backend.mix(
        &case.batch(),
        &case.queue,
        ranked,
        &case.config,
        &case.draws,
    )
}

/// Each feature is the reference's, to within what its normalisation magnifies.
fn compare(backend: &dyn Backend, case: &Case, cancelled: &Cell<usize>) -> Result<(), String> {
    let dim = case.queue.dim();
    let ranked = rank(backend, case);
    let synthetic = mix(backend, case, &ranked).map_err(|error| error.to_string())?;
    // The step has the draws that were used; its list of hardest is `rank`'s.
    let output = backend.step(case).map_err(|error| error.to_string())?;
    if output.hardest != ranked.indices {
        return Err("the step and the operator rank differently".into());
    }
    let problem = Problem::new(case);
    let draws = rows_of_draws(&output.draws, case.rows());
    let (s, t) = (case.config.mixed(), case.config.query_mixed());
    for (made, width, what) in [
        (&synthetic.mixed, s, "mixed"),
        (&synthetic.query_mixed, t, "query_mixed"),
    ] {
        if made.len() != case.rows() * width * dim {
            return Err(format!("{what} has {} elements", made.len()));
        }
    }
    for (b, draws) in draws.iter().enumerate() {
        let n = case.config.hardest();
        let hardest = common::reference::unpadded(&ranked.indices[b * n..(b + 1) * n]);
        let row: Row = problem.row(b, draws, Some(&hardest));
        for (made, expected, width) in [
            (&synthetic.mixed, &row.mixed, s),
            (&synthetic.query_mixed, &row.query_mixed, t),
        ] {
            let made = &made[b * width * dim..(b + 1) * width * dim];
            if hardest.is_empty() && made.iter().any(|&x| x != 0.0) {
                return Err(format!("row {b} has synthetics and no hardest"));
            }
            for (feature, h) in made.chunks_exact(dim).zip(expected) {
                let gamma = backend.arithmetic().gamma(dim + 6);
                let relative = 0.5 * gamma * h.amplification.powi(2);
                if relative > 1.0 / 16.0 {
                    cancelled.set(cancelled.get() + 1);
                    continue;
                }
                let error: Vec<f64> = feature
                    .iter()
                    .zip(&h.feature)
                    .map(|(&a, b)| f64::from(a) - b)
                    .collect();
                let bound = tolerance::feature(h, backend.arithmetic());
                if norm(&error) > bound {
                    return Err(format!(
                        "row {b}: a feature is {:e} off, of {bound:e}",
                        norm(&error)
                    ));
                }
            }
        }
    }
    Ok(())
}

#[test]
fn features_agree_with_the_reference() {
    for backend in devices() {
        let cancelled = Cell::new(0);
        properties(backend.cases(200), recipes(), |mut recipe| {
            recipe.hardest = recipe.hardest.max(1);
            compare(backend.as_ref(), &recipe.build(), &cancelled).map_err(TestCaseError::fail)
        });
        println!(
            "{}: {} features had cancelled",
            backend.name(),
            cancelled.get()
        );
    }
}

/// q·h of the features is the logit that the step reports without ever making h.
#[test]
fn features_have_the_logits_of_the_step() {
    for backend in devices() {
        for labels in [Labels::None, Labels::Oracle(3)] {
            let case = Recipe {
                labels,
                ..Recipe::default()
            }
            .build();
            let ranked = rank(backend.as_ref(), &case);
            let synthetic = mix(backend.as_ref(), &case, &ranked).expect("mixed");
            let output = backend.step(&case).expect("a valid case");
            let problem = Problem::new(&case);
            let arithmetic = backend.arithmetic();
            for (b, draws) in rows_of_draws(&output.draws, case.rows()).iter().enumerate() {
                let hardest = common::reference::unpadded(&ranked.indices[b * 20..(b + 1) * 20]);
                let row = problem.row(b, draws, Some(&hardest));
                let bounds = tolerance::bounds(&problem, b, &row, arithmetic);
                let query = &problem.queries[b];
                for (features, logits, width, expected, of_logits) in [
                    (
                        &synthetic.mixed,
                        &output.mixed_logits,
                        30,
                        &row.mixed,
                        &bounds.mixed,
                    ),
                    (
                        &synthetic.query_mixed,
                        &output.query_mixed_logits,
                        11,
                        &row.query_mixed,
                        &bounds.query_mixed,
                    ),
                ] {
                    for (i, (h, of_logit)) in expected.iter().zip(of_logits).enumerate() {
                        let at = b * width + i;
                        let made: Vec<f64> = features[at * 24..(at + 1) * 24]
                            .iter()
                            .map(|&x| f64::from(x))
                            .collect();
                        let of_feature = tolerance::feature(h, arithmetic);
                        let (dot, logit) = (dot(query, &made), f64::from(logits[at]));
                        let bound = of_logit + norm(query) * of_feature;
                        assert!((dot - logit).abs() <= bound, "{dot} and {logit}");
                        let length = norm(&made);
                        assert!(
                            (length - 1.0).abs() <= of_feature,
                            "a unit vector, not one of {length}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn lists_that_do_not_fit_are_refused() {
    let case = Recipe::default().build();
    for backend in devices() {
        let good = rank(backend.as_ref(), &case);
        let refused = |what: &str, spoil: &dyn Fn(&mut Ranked)| {
            let mut ranked = good.clone();
            spoil(&mut ranked);
            let error = mix(backend.as_ref(), &case, &ranked)
                .expect_err(what)
                .to_string();
            assert!(!error.is_empty());
            println!("{what}: {error}");
        };
        refused("an index behind the queue", &|r| r.indices[3] = 150);
        refused("an index of padding within the count", &|r| {
            r.indices[3] = NO_ROW
        });
        refused("too few indices", &|r| {
            r.indices.pop();
        });
        refused("too few logits", &|r| {
            r.logits.pop();
        });
        refused("too few counts", &|r| {
            r.counts.pop();
        });
        refused("a count beyond N", &|r| r.counts[2] = 21);
        refused("a count of 2³² − 1", &|r| r.counts[0] = u32::MAX);
        refused("another N", &|r| r.hardest = 19);
        refused("a huge N", &|r| r.hardest = usize::MAX);
        refused("nothing", &|r| {
            *r = Ranked {
                hardest: 0,
                indices: vec![],
                logits: vec![],
                counts: vec![],
            }
        });
    }
}

#[test]
fn draws_that_do_not_fit_are_refused() {
    let case = Recipe {
        rows: 2,
        hardest: 3,
        mixed: 2,
        query_mixed: 1,
        ..Recipe::default()
    }
    .build();
    let good = GivenDraws {
        first: vec![0, 1, 2, 0],
        second: vec![2, 1, 0, 2],
        alpha: vec![0.0, 0.5, 1.0, 0.25],
        pick: vec![2, 0],
        beta: vec![0.5, 1.0],
    };
    for backend in devices() {
        let ranked = rank(backend.as_ref(), &case);
        let with = |draws: GivenDraws| {
            let mut case = case.clone();
            case.draws = Draws::given(draws);
            mix(backend.as_ref(), &case, &ranked)
        };
        let one = with(good.clone()).expect("valid draws");
        assert_eq!(
            bits(&one.mixed),
            bits(&with(good.clone()).expect("valid draws").mixed)
        );
        let error = with(GivenDraws {
            second: vec![2, 1, 3, 2],
            ..good.clone()
        });
        assert_eq!(
            error.expect_err("out of range").to_string(),
            "draw second[1, 0] is position 3; expected less than 3, the number of that row's hardest"
        );
        let error = with(GivenDraws {
            beta: vec![0.5],
            ..good.clone()
        });
        assert!(
            error
                .expect_err("short")
                .to_string()
                .starts_with("beta has 1 elements; expected 2")
        );
    }
}

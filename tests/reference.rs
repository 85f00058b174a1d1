//! The reference itself: against the golden files, and its gradient against central differences.

mod common;

use common::cases::{GOLDEN, GOLDEN_FOLDER, Golden, Labels, Norms, Recipe};
use common::reference::{Problem, Row, RowDraws, rows_of_draws, unpadded};
use hardmix::{Draws, QueryGradient};

#[test]
fn the_golden_folder_holds_the_golden_cases() {
    let mut found: Vec<String> = std::fs::read_dir(GOLDEN_FOLDER)
        .expect("the golden folder")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|kind| kind == "safetensors"))
        .map(|path| {
            path.file_stem()
                .expect("a name")
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    found.sort();
    let mut names = GOLDEN;
    names.sort_unstable();
    assert_eq!(found, names);
}

/// Two independent implementations in f64: they differ by roundings of f64 only.
#[test]
fn it_agrees_with_every_golden_case() {
    for name in GOLDEN {
        let golden = Golden::load(name);
        let problem = Problem {
            temperature: golden.temperature,
            ..Problem::new(&golden.case)
        };
        let rows = golden.case.rows();
        let draws = rows_of_draws(&golden.given, rows);
        let dim = problem.queries[0].len();
        let answers: Vec<Row> = (0..rows).map(|b| problem.row(b, &draws[b], None)).collect();

        let close = |ours: f64, theirs: f64, what: &str| {
            let tolerance = 1e-11 * theirs.abs().max(1.0);
            assert!(
                ours == theirs || (ours - theirs).abs() < tolerance,
                "{name}: {what} is {ours}; the golden file has {theirs}"
            );
        };
        close(problem.reduce(&answers), golden.loss, "loss");
        for (b, row) in answers.iter().enumerate() {
            close(row.loss, golden.loss_rows[b], "a row's loss");
            for (ours, theirs) in row.grad_query.iter().zip(&golden.grad_queries[b * dim..]) {
                close(ours / rows as f64, *theirs, "gradient");
            }
            let width = problem.hardest;
            let expected = &golden.hardest[b * width..(b + 1) * width];
            assert_eq!(
                row.hardest,
                unpadded(expected),
                "{name}: hardest of row {b}"
            );
            assert_eq!(row.hit, golden.hits[b], "{name}: hit of row {b}");
            assert_eq!(
                row.hit_with_synthetic, golden.hits_with_synthetic[b],
                "{name}: hit of row {b} with synthetics"
            );
            for (made, expected, width) in [
                (&row.mixed, &golden.mixed_logits, problem.mixed),
                (
                    &row.query_mixed,
                    &golden.query_mixed_logits,
                    problem.query_mixed,
                ),
            ] {
                let expected = &expected[b * width..(b + 1) * width];
                if row.hardest.is_empty() {
                    assert!(expected.iter().all(|&l| l == f64::NEG_INFINITY));
                    assert!(made.is_empty());
                } else {
                    assert_eq!(made.len(), expected.len());
                    for (ours, theirs) in made.iter().zip(expected) {
                        close(ours.logit, *theirs, "a synthetic logit");
                    }
                }
            }
        }
    }
}

/// The loss of one row with `query` in place of its own, over the same hardest and, where
/// `frozen`, over the same query-mixed negatives as features.
fn loss_at(
    problem: &Problem,
    b: usize,
    query: &[f64],
    draws: &RowDraws,
    at: &Row,
    frozen: bool,
) -> f64 {
    let mut moved = problem.clone();
    moved.queries[b] = query.to_vec();
    if !frozen {
        return moved.row(b, draws, Some(&at.hardest)).loss;
    }
    // The frozen features join the queue as negatives of their own.
    moved
        .queue
        .extend(at.query_mixed.iter().map(|h| h.feature.clone()));
    if let Some(labels) = &mut moved.queue_labels {
        labels.resize(moved.queue.len(), hardmix::NO_LABEL);
    }
    let without = RowDraws {
        picks: Vec::new(),
        ..draws.clone()
    };
    moved.row(b, &without, Some(&at.hardest)).loss
}

#[test]
fn its_gradient_is_the_derivative_of_its_loss() {
    let mut checked = 0;
    for gradient in [QueryGradient::Detached, QueryGradient::Attached] {
        for norms in [Norms::Unit, Norms::Ragged] {
            for (labels, temperature) in [
                (Labels::None, 0.2),
                (Labels::Oracle(3), 1.0),
                (Labels::None, 0.05),
            ] {
                let case = Recipe {
                    gradient,
                    norms,
                    labels,
                    temperature,
                    draws: common::cases::DrawKind::Given,
                    ..Recipe::default()
                }
                .build();
                let Draws::Given(given) = &case.draws else {
                    unreachable!("the recipe gives its draws")
                };
                let problem = Problem::new(&case);
                let draws = rows_of_draws(given, case.rows());
                for (b, draws) in draws.iter().enumerate() {
                    let row = problem.row(b, draws, None);
                    let frozen = gradient == QueryGradient::Detached;
                    let scale = common::reference::norm(&row.grad_query);
                    for axis in 0..problem.queries[b].len() {
                        let step = 1e-5;
                        let mut query = problem.queries[b].clone();
                        query[axis] += step;
                        let above = loss_at(&problem, b, &query, draws, &row, frozen);
                        query[axis] -= 2.0 * step;
                        let below = loss_at(&problem, b, &query, draws, &row, frozen);
                        let numeric = (above - below) / (2.0 * step);
                        let error = (numeric - row.grad_query[axis]).abs();
                        assert!(
                            error < 1e-5 * scale + 1e-9,
                            "{gradient:?}, {norms:?}, row {b}, axis {axis}: \
                             {} against {numeric}",
                            row.grad_query[axis]
                        );
                        checked += 1;
                    }
                    let mut moved = problem.clone();
                    let step = 1e-6;
                    moved.keys[b][0] += step;
                    let above = moved.row(b, draws, Some(&row.hardest)).loss;
                    moved.keys[b][0] -= 2.0 * step;
                    let below = moved.row(b, draws, Some(&row.hardest)).loss;
                    let numeric = (above - below) / (2.0 * step);
                    assert!((numeric - row.grad_key[0]).abs() < 1e-5 * scale + 1e-9);
                }
            }
        }
    }
    assert_eq!(checked, 2 * 2 * 3 * 7 * 24);
}

/// With unit rows and β = ½ the tangent part of the attached gradient is half the detached one.
#[test]
fn attached_halves_the_tangent_of_detached_at_one_half() {
    let case = Recipe {
        mixed: 0,
        query_mixed: 5,
        draws: common::cases::DrawKind::Given,
        ..Recipe::default()
    }
    .build();
    let detached = Problem::new(&case);
    let attached = Problem {
        attached: true,
        ..detached.clone()
    };
    let draws = RowDraws {
        pairs: Vec::new(),
        picks: (0..5).map(|pick| (pick, 0.5)).collect(),
    };
    let query = &detached.queries[0];
    let tangent = |derivative: &[f64]| -> Vec<f64> {
        let along =
            common::reference::dot(query, derivative) / common::reference::dot(query, query);
        derivative
            .iter()
            .zip(query)
            .map(|(d, q)| d - along * q)
            .collect()
    };
    let (one, other) = (detached.row(0, &draws, None), attached.row(0, &draws, None));
    for (d, a) in one.query_mixed.iter().zip(&other.query_mixed) {
        for (d, a) in tangent(&d.derivative).iter().zip(tangent(&a.derivative)) {
            // The rows are unit rows of f32: 1e-7 off.
            assert!((0.5 * d - a).abs() < 1e-6, "{d} against {a}");
        }
    }
}

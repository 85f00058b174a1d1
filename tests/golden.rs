//! The golden files, computed by an independent implementation in f64.
//!
//! `cargo test --test golden -- --nocapture` prints the largest error of each as a fraction of its
//! tolerance.

mod common;

use common::backends;
use common::cases::{GOLDEN, Golden};
use common::reference::Problem;
use common::tolerance;
use hardmix::{DType, Output, Queue, Rows};

/// The largest |ours − theirs| / tolerance; infinite where one of them is no number.
fn largest(ours: &[f32], theirs: &[f64], tolerance: f64) -> f64 {
    assert_eq!(ours.len(), theirs.len(), "length");
    ours.iter()
        .zip(theirs)
        .map(|(&a, &b)| match f64::from(a) {
            a if a == b => 0.0,
            a if a.is_finite() && b.is_finite() => (a - b).abs() / tolerance,
            _ => f64::INFINITY,
        })
        .fold(0.0, f64::max)
}

/// ‖ours − theirs‖ / ‖theirs‖ over all elements, as a fraction of the tolerance.
fn relative(ours: &[f32], theirs: &[f64], tolerance: f64) -> f64 {
    assert_eq!(ours.len(), theirs.len(), "length");
    let pairs = ours.iter().zip(theirs);
    let error: f64 = pairs.map(|(&a, b)| (f64::from(a) - b).powi(2)).sum();
    let size: f64 = theirs.iter().map(|b| b * b).sum();
    if error == 0.0 {
        return 0.0;
    }
    (error / size).sqrt() / tolerance
}

fn check(name: &str, golden: &Golden, output: &Output, backend: &str) {
    let problem = Problem::new(&golden.case);
    let t = tolerance::golden(&problem);
    let synthetic = tolerance::golden_synthetic(&problem);
    let loss = output.loss().expect("a finite loss");
    let fractions = [
        ("loss", largest(&[loss], &[golden.loss], t)),
        (
            "loss_rows",
            largest(&output.loss_rows, &golden.loss_rows, t),
        ),
        (
            "gradient",
            relative(&output.grad_queries, &golden.grad_queries, t),
        ),
        (
            "mixed",
            largest(&output.mixed_logits, &golden.mixed_logits, synthetic),
        ),
        (
            "query_mixed",
            largest(
                &output.query_mixed_logits,
                &golden.query_mixed_logits,
                synthetic,
            ),
        ),
    ];
    let shown = fractions.map(|(what, fraction)| format!("{what} {fraction:.3}"));
    println!("{backend} {name:18} of its tolerance: {}", shown.join(", "));
    for (what, fraction) in fractions {
        assert!(
            fraction <= 1.0,
            "{backend}, {name}: {what} is {fraction} of its tolerance off"
        );
    }
    assert_eq!(output.hardest, golden.hardest, "{backend}, {name}: hardest");
    assert_eq!(output.hits, golden.hits, "{backend}, {name}: hits");
    assert_eq!(
        output.hits_with_synthetic, golden.hits_with_synthetic,
        "{backend}, {name}: hits with synthetics"
    );
    assert_eq!(output.draws, golden.given, "{backend}, {name}: draws");
}

#[test]
fn every_golden_case_is_within_its_tolerance() {
    for backend in backends() {
        for name in GOLDEN {
            let golden = Golden::load(name);
            let output = backend.step(&golden.case).expect("a valid case");
            check(name, &golden, &output, backend.name());
        }
    }
}

/// Errors of twice the tolerance are seen, in one row's loss and in a few rows' gradient.
#[test]
fn the_check_can_fail() {
    let golden = Golden::load("both");
    for backend in backends() {
        let output = backend.step(&golden.case).expect("a valid case");
        let problem = Problem::new(&golden.case);
        let t = tolerance::golden(&problem);
        let mut wrong = output.loss_rows.clone();
        wrong[3] += 2e-5;
        assert!(largest(&wrong, &golden.loss_rows, t) > 1.0);
        let mut wrong = output.grad_queries.clone();
        wrong.iter_mut().take(128).for_each(|g| *g *= 1.0001);
        assert!(relative(&wrong, &golden.grad_queries, t) > 1.0);
    }
}

/// The rows of the bf16 case are bf16 numbers, written as f32: stored as bf16 they keep every bit,
/// and so does the answer. They are no unit rows, and taking them for such fails by far.
#[test]
fn the_bf16_case_keeps_its_bits_and_its_norms() {
    let golden = Golden::load("bf16");
    let queue = &golden.case.queue;
    let mut halved = golden.case.clone();
    let rows = Rows::from_f32(DType::Bf16, &queue.rows().to_f32());
    halved.queue = Queue::from_rows(rows, queue.dim()).expect("a queue");
    assert_eq!(halved.queue.rows().dtype(), DType::Bf16);
    let (stored, given) = (halved.queue.rows().to_f32(), queue.rows().to_f32());
    assert_eq!(common::bits(&stored), common::bits(&given), "through bf16");
    assert_eq!(halved.queue.squared_norms(), queue.squared_norms());
    let bytes = halved.queue.to_safetensors().expect("a file");
    assert_eq!(
        Queue::from_safetensors(&bytes).expect("a queue"),
        halved.queue,
        "through a file"
    );

    let off = queue
        .squared_norms()
        .iter()
        .map(|n| (n.sqrt() - 1.0).abs())
        .fold(0.0, f32::max);
    assert!(off > 3e-4, "bf16 rows are off 1 by {off}");
    let mut normalised = golden.case.clone();
    let mut rows = given;
    for (row, squared) in rows
        .chunks_exact_mut(queue.dim())
        .zip(queue.squared_norms())
    {
        row.iter_mut().for_each(|x| *x /= squared.sqrt());
    }
    normalised.queue = Queue::from_rows(Rows::F32(rows), queue.dim()).expect("a queue");
    for backend in backends() {
        let output = backend.step(&halved).expect("a valid case");
        check("bf16, stored so", &golden, &output, backend.name());
        let output = backend.step(&normalised).expect("a valid case");
        let tolerance = tolerance::golden_synthetic(&Problem::new(&golden.case));
        let fraction = largest(
            &output.query_mixed_logits,
            &golden.query_mixed_logits,
            tolerance,
        );
        assert!(
            fraction > 10.0,
            "unit rows are {fraction} of the tolerance off"
        );
    }
}

/// Draws that the files hold are used as they are; drawing the same positions again changes
/// nothing, drawing others does.
#[test]
fn given_draws_are_used() {
    let golden = Golden::load("both");
    let mut other = golden.case.clone();
    let mut draws = golden.given.clone();
    draws
        .alpha
        .iter_mut()
        .for_each(|alpha| *alpha = 1.0 - *alpha);
    std::mem::swap(&mut draws.first, &mut draws.second);
    other.draws = hardmix::Draws::given(draws);
    for backend in backends() {
        let output = backend.step(&golden.case).expect("a valid case");
        let mirrored = backend.step(&other).expect("a valid case");
        let tolerance = tolerance::golden_synthetic(&Problem::new(&golden.case));
        // h is symmetric: (α, i, j) and (1−α, j, i) are one negative.
        let expected: Vec<f64> = output.mixed_logits.iter().map(|&x| x.into()).collect();
        assert!(largest(&mirrored.mixed_logits, &expected, tolerance) <= 1.0);
        let mut moved = golden.given.clone();
        moved.alpha[0] = 1.0 - moved.alpha[0];
        let mut case = other.clone();
        case.draws = hardmix::Draws::given(moved);
        let moved = backend.step(&case).expect("a valid case");
        assert_ne!(moved.mixed_logits[0], output.mixed_logits[0]);
        assert_eq!(moved.mixed_logits[1..], output.mixed_logits[1..]);
        assert_eq!(moved.hardest, output.hardest);
    }
}

/// The files hold what no implementation may skip: ragged lists, masks, both gradients, both types.
#[test]
fn the_cases_cover_the_method() {
    let cases = GOLDEN.map(Golden::load);
    let covers = |what: &dyn Fn(&Golden) -> bool| cases.iter().any(what);
    assert!(covers(
        &|g| g.case.config.oracle() && g.hardest.contains(&hardmix::NO_ROW)
    ));
    assert!(covers(
        &|g| g.hardest.iter().all(|&j| j == hardmix::NO_ROW) && g.loss == 0.0
    ));
    assert!(covers(
        &|g| g.case.config.query_gradient() == hardmix::QueryGradient::Attached
    ));
    assert!(covers(&|g| g.case.config.hardest() == 0));
    assert!(covers(&|g| g.temperature < 0.05));
    assert!(covers(&|g| g.hits.contains(&true)) && covers(&|g| g.hits.contains(&false)));
}

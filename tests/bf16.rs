//! A queue of bf16 costs no more accuracy than computing in bf16 would: against the reference over the
//! same stored bits, the error is at most twice that of a plain implementation in bf16.
//!
//! An error is the L2 norm, over the whole batch, of what is off: of the rows' losses, of the gradient
//! with respect to the queries, and of the synthetic negatives' logits.

mod common;

use common::cases::{Case, DrawKind, Recipe};
use common::reference::{Problem, Row, RowDraws, rows_of_draws, unpadded};
use common::{Step, backends};
use half::bf16;
use hardmix::{DType, Draws, Output};

fn rounded(x: f32) -> f32 {
    bf16::from_f32(x).to_f32()
}

fn in_bf16(row: &[f64]) -> Vec<f32> {
    row.iter().map(|&x| rounded(x as f32)).collect()
}

/// Products of bf16 numbers are exact in f32, their sum is not; the result is bf16 again.
fn product(a: &[f32], b: &[f32]) -> f32 {
    rounded(a.iter().zip(b).map(|(x, y)| x * y).sum())
}

/// w·x + (1 − w)·y over its norm, in f32, then as an operand in bf16.
fn mixture(x: &[f64], y: &[f64], weight: f64) -> Vec<f32> {
    let weight = weight as f32;
    let sum: Vec<f32> = x
        .iter()
        .zip(y)
        .map(|(&x, &y)| weight * x as f32 + (1.0 - weight) * y as f32)
        .collect();
    let norm = sum.iter().map(|x| x * x).sum::<f32>().sqrt();
    sum.iter().map(|x| rounded(x / norm)).collect()
}

/// What is computed of one row.
struct Plain {
    loss: f32,
    grad_query: Vec<f32>,
    mixed: Vec<f32>,
    query_mixed: Vec<f32>,
}

/// The detached loss as under PyTorch's autocast to bf16: operands and results of products in bf16 with
/// sums in f32, norms and the cross entropy in f32. Where there is a choice, the more exact one: the
/// temperature divides in f32, and the parts of the gradient are rounded together.
fn plain(problem: &Problem, b: usize, draws: &RowDraws, hardest: &[usize]) -> Plain {
    let (query, key) = (in_bf16(&problem.queries[b]), in_bf16(&problem.keys[b]));
    let at = |position: u32| &problem.queue[hardest[position as usize]];
    let mixed = draws
        .pairs
        .iter()
        .map(|&(i, j, w)| mixture(at(i), at(j), w));
    let query_mixed = draws
        .picks
        .iter()
        .map(|&(pick, w)| mixture(&problem.queries[b], at(pick), w));
    let mut others: Vec<Vec<f32>> = vec![key];
    others.extend(problem.queue.iter().map(|row| in_bf16(row)));
    others.extend(mixed);
    others.extend(query_mixed);

    let tau = problem.temperature as f32;
    let products: Vec<f32> = others.iter().map(|row| product(&query, row)).collect();
    let logits: Vec<f32> = products.iter().map(|l| l / tau).collect();
    let maximum = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = logits.iter().map(|l| (l - maximum).exp()).sum();
    let mut grad_query = vec![0.0; query.len()];
    for (at, (logit, row)) in logits.iter().zip(&others).enumerate() {
        let probability = (logit - maximum).exp() / sum;
        let own = if at == 0 { 1.0 } else { 0.0 };
        let weight = rounded((probability - own) / tau);
        grad_query
            .iter_mut()
            .zip(row)
            .for_each(|(g, x)| *g += weight * x);
    }
    let real = 1 + problem.queue.len();
    let (mixed, query_mixed) = products[real..].split_at(problem.mixed);
    Plain {
        loss: maximum + sum.ln() - logits[0],
        grad_query: grad_query.into_iter().map(rounded).collect(),
        mixed: mixed.to_vec(),
        query_mixed: query_mixed.to_vec(),
    }
}

/// Sums of squared errors: of the losses, the gradients, the logits of both kinds.
type Errors = [f64; 4];

const WHAT: [&str; 4] = ["loss", "gradient", "mixed logits", "query-mixed logits"];

fn add(errors: &mut Errors, row: &Row, made: &Plain) {
    let square = |ours: f32, theirs: f64| (f64::from(ours) - theirs).powi(2);
    let of = |ours: &[f32], theirs: Vec<f64>| -> f64 {
        assert_eq!(ours.len(), theirs.len());
        let pairs = ours.iter().zip(theirs);
        pairs.map(|(&ours, theirs)| square(ours, theirs)).sum()
    };
    errors[0] += square(made.loss, row.loss);
    errors[1] += of(&made.grad_query, row.grad_query.clone());
    errors[2] += of(&made.mixed, row.mixed.iter().map(|h| h.logit).collect());
    let query_mixed = row.query_mixed.iter().map(|h| h.logit).collect();
    errors[3] += of(&made.query_mixed, query_mixed);
}

/// The errors of an output and of the plain implementation, both over the rows that the output chose.
fn errors(case: &Case, output: &Output) -> [Errors; 2] {
    let problem = Problem::new(case);
    let Draws::Given(given) = &case.draws else {
        unreachable!("the recipe gives its draws")
    };
    let (dim, n) = (case.queue.dim(), problem.hardest);
    let (s, t) = (problem.mixed, problem.query_mixed);
    let (mut ours, mut theirs) = (Errors::default(), Errors::default());
    for (b, draws) in rows_of_draws(given, case.rows()).iter().enumerate() {
        let chosen = unpadded(&output.hardest[b * n..(b + 1) * n]);
        let row = problem.row(b, draws, Some(&chosen));
        let gradient = &output.grad_queries[b * dim..(b + 1) * dim];
        let own = Plain {
            loss: output.loss_rows[b],
            grad_query: gradient
                .iter()
                .map(|g| (f64::from(*g) / problem.scale()) as f32)
                .collect(),
            mixed: output.mixed_logits[b * s..(b + 1) * s].to_vec(),
            query_mixed: output.query_mixed_logits[b * t..(b + 1) * t].to_vec(),
        };
        add(&mut ours, &row, &own);
        add(&mut theirs, &row, &plain(&problem, b, draws, &chosen));
    }
    [ours.map(f64::sqrt), theirs.map(f64::sqrt)]
}

/// Runs of every backend, on both paths of the GPU in both precisions.
fn steps(case: &Case) -> Vec<(String, Box<dyn Step>)> {
    let own = |backend: &dyn common::Backend| {
        let name = backend.name().to_owned();
        (name, backend.new_step(case.config.clone()))
    };
    #[allow(unused_mut, reason = "there may be no GPU path")]
    let mut steps: Vec<_> = backends().iter().map(|b| own(b.as_ref())).collect();
    #[cfg(feature = "cuda")]
    {
        use hardmix::cuda;
        for path in [cuda::Path::Unfused, cuda::Path::Fused] {
            let step = cuda::Step::new(common::cuda::device(), case.config.clone());
            let step = step.expect("a step").with_path(path);
            let step = step.with_precision(cuda::Precision::Tensor);
            steps.push((format!("cuda, {path:?}, one product"), Box::new(step)));
        }
    }
    steps
}

#[test]
fn a_bf16_queue_is_within_twice_the_error_of_plain_bf16() {
    for (temperature, of_bf16, seed) in [
        (0.2, true, 1),
        (0.2, false, 2),
        (0.07, true, 3),
        (0.07, false, 4),
        (1.0, true, 5),
    ] {
        let mut case = Recipe {
            rows: 9,
            capacity: 300,
            dim: 64,
            hardest: 40,
            mixed: 50,
            query_mixed: 20,
            dtype: DType::Bf16,
            draws: DrawKind::Given,
            temperature,
            seed,
            ..Recipe::default()
        }
        .build();
        if of_bf16 {
            // The plain implementation then loses nothing by rounding its operands.
            let both = case.queries.iter_mut().chain(&mut case.keys);
            both.for_each(|x| *x = rounded(*x));
        }
        for (name, mut step) in steps(&case) {
            let output = step
                .run(&case.batch(), &case.queue, &case.draws)
                .expect("a valid case");
            let [ours, theirs] = errors(&case, &output);
            for (what, (ours, theirs)) in WHAT.iter().zip(ours.into_iter().zip(theirs)) {
                println!("{name}, τ {temperature}: {what} {ours:.1e}, plain bf16 {theirs:.1e}");
                assert!(
                    ours <= 2.0 * theirs,
                    "{name}: {what} {ours:e} of {theirs:e}"
                );
                // The yardstick is no broken one. A logit of unit rows is off by three roundings of 2⁻⁹, a
                // row's loss by twice that over τ; its gradient by four times a logit's over τ², and its
                // own roundings are no more than that again.
                let logit = 3.0 / 512.0;
                let rows = (case.rows() as f64).sqrt();
                let largest = match *what {
                    "loss" => rows * 2.0 * logit / f64::from(temperature),
                    "gradient" => rows * 8.0 * logit / f64::from(temperature).powi(2),
                    _ => rows * 50f64.sqrt() * logit,
                };
                assert!(theirs <= largest, "{what} of plain bf16 is {theirs:e} off");
            }
        }
    }
}

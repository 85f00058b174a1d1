//! A whole output against the reference, within derived bounds.

use hardmix::{Draws, Output, Status};

use super::cases::Case;
use super::oracle::{boundary_gap, within};
use super::reference::{Figures, Problem, Row, RowDraws, rows_of_draws, seeded_draws, unpadded};
use super::tolerance::{Arithmetic, Bounds, bounds, golden};

/// What was compared, over one or many outputs.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    pub rows: usize,
    /// Rows whose N-th and next logits lie within rounding: checked by the property oracle, and
    /// the reference then mixes what the backend chose.
    pub close: usize,
    /// Rows with a synthetic negative too nearly cancelled to say anything about.
    pub cancelled: usize,
    /// ‖error‖/‖gradient‖ over a whole batch, as a fraction of the golden cases' tolerance; the
    /// largest. A measure only: where the gradient itself cancels it has no bound.
    pub gradient: f64,
    /// The largest error of each kind, as a fraction of its bound.
    pub fractions: Vec<(&'static str, f64)>,
}

impl Tally {
    pub fn add(&mut self, other: &Tally) {
        self.rows += other.rows;
        self.close += other.close;
        self.cancelled += other.cancelled;
        self.gradient = self.gradient.max(other.gradient);
        for &(what, fraction) in &other.fractions {
            self.note(what, fraction);
        }
    }

    fn note(&mut self, what: &'static str, fraction: f64) {
        match self.fractions.iter_mut().find(|(known, _)| *known == what) {
            Some((_, largest)) => *largest = largest.max(fraction),
            None => self.fractions.push((what, fraction)),
        }
    }

    /// Notes an error against its bound; the message where it is beyond.
    fn check(
        &mut self,
        what: &'static str,
        ours: f32,
        theirs: f64,
        bound: f64,
    ) -> Result<(), String> {
        let ours = f64::from(ours);
        if ours == theirs {
            return Ok(());
        }
        let fraction = (ours - theirs).abs() / bound;
        self.note(what, fraction);
        if fraction <= 1.0 {
            return Ok(());
        }
        Err(format!(
            "{what} is {ours:e}, the reference {theirs:e}: {fraction:.2} of {bound:e}"
        ))
    }

    /// The same for vectors, by the L2 norm.
    fn check_norm(
        &mut self,
        what: &'static str,
        ours: &[f32],
        theirs: &[f64],
        bound: f64,
    ) -> Result<(), String> {
        let square = |(&a, b): (&f32, &f64)| (f64::from(a) - b).powi(2);
        let error = ours.iter().zip(theirs).map(square).sum::<f64>().sqrt();
        if error == 0.0 {
            return Ok(());
        }
        let fraction = error / bound;
        self.note(what, fraction);
        if fraction <= 1.0 {
            return Ok(());
        }
        Err(format!(
            "{what} is {error:e} off: {fraction:.2} of {bound:e}"
        ))
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(
            f,
            "{} rows, {} with a close boundary, {} cancelled; gradient {:.3} of T; of its bound:",
            self.rows, self.close, self.cancelled, self.gradient
        )?;
        for (what, fraction) in &self.fractions {
            write!(f, " {what} {fraction:.3}")?;
        }
        Ok(())
    }
}

/// Checks everything that a step gives back for `case`.
pub fn step(case: &Case, output: &Output, arithmetic: Arithmetic) -> Result<Tally, String> {
    let problem = Problem::new(case);
    let rows = case.rows();
    let mut tally = Tally::default();
    shapes(case, output)?;
    if output.status != Status::Finite {
        return Err(format!("status is {:?}", output.status));
    }

    let mut answers = Vec::new();
    let mut all_bounds = Vec::new();
    for b in 0..rows {
        let (row, bounds) = one_row(case, &problem, output, b, arithmetic, &mut tally)
            .map_err(|reason| format!("row {b}: {reason}"))?;
        answers.push(row);
        all_bounds.push(bounds);
    }

    if all_bounds.iter().all(|bounds| bounds.conditioned) {
        let losses = all_bounds.iter().map(|bounds| bounds.loss).sum::<f64>();
        // Each of the sum's roundings is at most u of the whole.
        let sum: f64 = answers.iter().map(|row| row.loss).sum();
        let bound = (losses + arithmetic.gamma(rows + 2) * sum) * problem.scale();
        let loss = output.loss().map_err(|error| error.to_string())?;
        tally.check("loss", loss, problem.reduce(&answers), bound)?;
    }
    tally.gradient = relative_gradient(output, &problem, &answers);
    metrics(
        output,
        &problem,
        &answers,
        &all_bounds,
        arithmetic,
        &mut tally,
    )?;
    Ok(tally)
}

fn relative_gradient(output: &Output, problem: &Problem, answers: &[Row]) -> f64 {
    let theirs = answers
        .iter()
        .flat_map(|row| &row.grad_query)
        .map(|g| g * problem.scale());
    let (mut error, mut size) = (0.0, 0.0);
    for (&ours, theirs) in output.grad_queries.iter().zip(theirs) {
        error += (f64::from(ours) - theirs).powi(2);
        size += theirs * theirs;
    }
    (error / size).sqrt() / golden(problem)
}

fn shapes(case: &Case, output: &Output) -> Result<(), String> {
    let (b, d) = (case.rows(), case.queue.dim());
    let config = &case.config;
    let (n, s, t) = (config.hardest(), config.mixed(), config.query_mixed());
    let grad_keys = output.grad_keys.as_ref().map(Vec::len);
    for (what, length, expected) in [
        ("loss_rows", output.loss_rows.len(), b),
        ("log_sum_exp", output.log_sum_exp.len(), b),
        ("positive_probability", output.positive_probability.len(), b),
        ("hits", output.hits.len(), b),
        ("hits_with_synthetic", output.hits_with_synthetic.len(), b),
        ("grad_queries", output.grad_queries.len(), b * d),
        ("hardest", output.hardest.len(), b * n),
        ("mixed_logits", output.mixed_logits.len(), b * s),
        ("query_mixed_logits", output.query_mixed_logits.len(), b * t),
        ("draws.first", output.draws.first.len(), b * s),
        ("draws.second", output.draws.second.len(), b * s),
        ("draws.alpha", output.draws.alpha.len(), b * s),
        ("draws.pick", output.draws.pick.len(), b * t),
        ("draws.beta", output.draws.beta.len(), b * t),
    ] {
        if length != expected {
            return Err(format!("{what} has {length} elements; expected {expected}"));
        }
    }
    if grad_keys != config.key_gradient().then_some(b * d) {
        return Err(format!("grad_keys has {grad_keys:?} elements"));
    }
    Ok(())
}

/// The draws that row `b` is to use, over this many hardest.
fn expected_draws(case: &Case, problem: &Problem, b: usize, count: usize) -> RowDraws {
    match &case.draws {
        Draws::Given(given) => rows_of_draws(given, case.rows()).swap_remove(b),
        Draws::Seeded { seed, step } => {
            seeded_draws(problem, *seed, *step, case.row_offset + b as u32, count)
        }
        other => unreachable!("{other:?} is no draw that the tests make"),
    }
}

fn one_row(
    case: &Case,
    problem: &Problem,
    output: &Output,
    b: usize,
    arithmetic: Arithmetic,
    tally: &mut Tally,
) -> Result<(Row, Bounds), String> {
    let d = case.queue.dim();
    let n = problem.hardest;
    tally.rows += 1;

    // The bound of the logits does not depend on what is mixed.
    let plain = problem.row(b, &RowDraws::default(), None);
    let logit = bounds(problem, b, &plain, arithmetic).logit;
    let indices = &output.hardest[b * n..(b + 1) * n];
    within(&plain.logits, n, indices, logit)?;
    if boundary_gap(&plain.logits, n) <= 2.0 * logit {
        tally.close += 1;
    } else if unpadded(indices) != plain.hardest {
        return Err("its hardest differ".into());
    }
    let chosen = unpadded(indices);

    let draws = expected_draws(case, problem, b, chosen.len());
    let used = rows_of_draws(&output.draws, case.rows()).swap_remove(b);
    if !chosen.is_empty() && (used.pairs != draws.pairs || used.picks != draws.picks) {
        return Err("its draws differ".into());
    }
    let row = problem.row(b, &draws, Some(&chosen));
    let bounds = bounds(problem, b, &row, arithmetic);

    for (what, made, ours, width, bound) in [
        (
            "mixed",
            &row.mixed,
            &output.mixed_logits,
            problem.mixed,
            &bounds.mixed,
        ),
        (
            "query_mixed",
            &row.query_mixed,
            &output.query_mixed_logits,
            problem.query_mixed,
            &bounds.query_mixed,
        ),
    ] {
        let ours = &ours[b * width..(b + 1) * width];
        if chosen.is_empty() && ours.iter().any(|&l| l != f32::NEG_INFINITY) {
            return Err(format!(
                "{what} logits in a row without negatives: {ours:?}"
            ));
        }
        let length = super::reference::norm(&problem.queries[b]);
        for ((&ours, h), &bound) in ours.iter().zip(made).zip(bound) {
            // |q·h| ≤ ‖q‖ always; of what has cancelled nothing else is known.
            if f64::from(ours).abs() > length * (1.0 + 1e-5) {
                return Err(format!(
                    "a {what} logit is {ours}, with a query of norm {length}"
                ));
            }
            if bounds.conditioned {
                tally.check(what, ours, h.logit, bound)?;
            }
        }
    }
    if !bounds.conditioned {
        tally.cancelled += 1;
        return Ok((row, bounds));
    }

    tally.check("loss_rows", output.loss_rows[b], row.loss, bounds.loss)?;
    tally.check(
        "log_sum_exp",
        output.log_sum_exp[b],
        row.log_sum_exp,
        bounds.log_sum_exp,
    )?;
    let probability = row.positive_probability * bounds.log_sum_exp + arithmetic.flushed;
    tally.check(
        "positive_probability",
        output.positive_probability[b],
        row.positive_probability,
        2.0 * probability,
    )?;
    let scaled =
        |gradient: &[f64]| -> Vec<f64> { gradient.iter().map(|g| g * problem.scale()).collect() };
    let gradient = &output.grad_queries[b * d..(b + 1) * d];
    let bound = bounds.grad_query * problem.scale();
    tally.check_norm("grad_queries", gradient, &scaled(&row.grad_query), bound)?;
    if let Some(keys) = &output.grad_keys {
        let gradient = &keys[b * d..(b + 1) * d];
        let bound = bounds.grad_key * problem.scale();
        tally.check_norm("grad_keys", gradient, &scaled(&row.grad_key), bound)?;
    }

    let real = largest(row.logits.iter().copied());
    let all = real.max(largest(
        row.mixed.iter().chain(&row.query_mixed).map(|h| h.logit),
    ));
    let synthetic = largest(bounds.mixed.iter().chain(&bounds.query_mixed).copied());
    for (what, ours, theirs, gap, bound) in [
        (
            "hit",
            output.hits[b],
            row.hit,
            row.positive - real,
            2.0 * logit,
        ),
        (
            "hit with synthetics",
            output.hits_with_synthetic[b],
            row.hit_with_synthetic,
            row.positive - all,
            2.0 * logit + synthetic.max(0.0),
        ),
    ] {
        if ours != theirs && gap.abs() > bound {
            return Err(format!("{what} is {ours}, with a margin of {gap:e}"));
        }
    }
    Ok((row, bounds))
}

fn largest(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(f64::NEG_INFINITY, f64::max)
}

fn metrics(
    output: &Output,
    problem: &Problem,
    rows: &[Row],
    bounds: &[Bounds],
    arithmetic: Arithmetic,
    tally: &mut Tally,
) -> Result<(), String> {
    let ours = &output.metrics;
    let figures: Figures = problem.figures(rows);
    let share = |hits: &[bool]| hits.iter().filter(|&&hit| hit).count() as f64 / rows.len() as f64;
    for (what, figure, expected) in [
        ("proxy_accuracy", ours.proxy_accuracy, share(&output.hits)),
        (
            "proxy_accuracy_with_synthetic",
            ours.proxy_accuracy_with_synthetic,
            share(&output.hits_with_synthetic),
        ),
    ] {
        // Each hit was compared; the share is of the hits, rounded once.
        if (figure - expected).abs() > 1e-15 {
            return Err(format!("{what} is {figure}; the hits say {expected}"));
        }
    }
    let logit = largest(bounds.iter().map(|bounds| bounds.logit));
    tally.check(
        "alignment",
        ours.alignment as f32,
        figures.alignment,
        2.0 * logit + 4.0 * arithmetic.unit_roundoff * (2.0 + figures.alignment.abs()),
    )?;
    match (ours.uniformity, figures.uniformity) {
        (Some(ours), Some(theirs)) => {
            // The exponents are 4l − 4; then as a log-sum-exp at τ = ¼.
            let reach = logit / arithmetic.gamma(problem.queries[0].len());
            let rounding = arithmetic.unit_roundoff * (32.0 * reach + 4.0 + 4.0 * theirs.abs());
            let bound = 4.0 * logit + rounding + arithmetic.softmax;
            tally.check("uniformity", ours as f32, theirs, bound)?;
        }
        (None, None) => {}
        other => return Err(format!("uniformity is {other:?}")),
    }
    if let Some(probabilities) = &ours.matching_probability {
        let theirs = &figures.matching_probability;
        if probabilities.len() != theirs.len() {
            return Err(format!("{} matching probabilities", probabilities.len()));
        }
        // Without synthetics a probability is off by what logits and exponentials are.
        let relative = largest(bounds.iter().map(|bounds| bounds.plain_probability));
        for (&ours, &theirs) in probabilities.iter().zip(theirs) {
            let bound = theirs * relative + arithmetic.flushed;
            tally.check("matching_probability", ours as f32, theirs, bound)?;
        }
    } else {
        return Err("no matching probability".into());
    }
    harder(output, rows, bounds)?;
    if ours.same_label_share != figures.same_label_share {
        return Err(format!(
            "same_label_share is {:?}; expected {:?}",
            ours.same_label_share, figures.same_label_share
        ));
    }
    Ok(())
}

/// The shares of synthetics harder than the hardest real negative lie between the counts of those
/// that certainly are and those that may be.
fn harder(output: &Output, rows: &[Row], bounds: &[Bounds]) -> Result<(), String> {
    let (mut mixed, mut query_mixed) = ([0usize; 3], [0usize; 3]);
    for (row, bounds) in rows.iter().zip(bounds) {
        let real = largest(row.logits.iter().copied());
        for (counts, made, errors) in [
            (&mut mixed, &row.mixed, &bounds.mixed),
            (&mut query_mixed, &row.query_mixed, &bounds.query_mixed),
        ] {
            for (h, error) in made.iter().zip(errors) {
                let error = error + bounds.logit;
                let open = !bounds.conditioned;
                counts[0] += usize::from(!open && h.logit > real + error);
                counts[1] += usize::from(open || h.logit > real - error);
                counts[2] += 1;
            }
        }
    }
    for (what, share, [least, most, made]) in [
        ("mixed_harder", output.metrics.mixed_harder, mixed),
        (
            "query_mixed_harder",
            output.metrics.query_mixed_harder,
            query_mixed,
        ),
    ] {
        let Some(share) = share else {
            if made > 0 {
                return Err(format!("{what} is missing, with {made} made"));
            }
            continue;
        };
        let count = share * made as f64;
        let whole = (count - count.round()).abs() < 1e-6;
        if made == 0 || !whole || count.round() < least as f64 || count.round() > most as f64 {
            return Err(format!(
                "{what} is {share}; {least} to {most} of {made} are"
            ));
        }
    }
    Ok(())
}

//! How far an implementation in f32 may be from the reference, derived, not fitted.
//!
//! With u the unit roundoff and γ_n = n·u/(1 − n·u) (Higham, *Accuracy and Stability of Numerical
//! Algorithms*, Section 3.1), a dot product of n terms in any order is within γ_n·‖x‖‖y‖, and a
//! weighted sum of n rows within γ_n·Σ|w|‖row‖. The rest is how such errors pass through the
//! method's formulas, to first order, with small whole numbers for the roundings in between.

use super::reference::{Problem, Row, Synthetic, norm};

/// What is assumed of a device's arithmetic.
#[derive(Debug, Clone, Copy)]
pub struct Arithmetic {
    /// 2⁻²⁴ where sums round to nearest, 2⁻²³ where they truncate.
    pub unit_roundoff: f64,
    /// How many sums a product of two numbers takes.
    pub sums: usize,
    /// Roundoffs of a product beside those of its sums.
    pub product: usize,
    /// Relative error of an exponential and of the softmax's sum together.
    pub softmax: f64,
    /// Exponentials below this share of the largest term may count as zero.
    pub flushed: f64,
}

impl Arithmetic {
    /// f32 with rounding to nearest.
    pub const F32: Self = Self {
        unit_roundoff: 1.0 / (1u32 << 24) as f64,
        sums: 1,
        product: 0,
        // The method's own figure for the loss.
        softmax: 1.0 / (1u32 << 20) as f64,
        flushed: f32::MIN_POSITIVE as f64,
    };

    /// f32 products of three in TF32 each, off by 3·2⁻²² = 6·2⁻²³, in sums that truncate.
    pub const TENSOR: Self = Self {
        unit_roundoff: 1.0 / (1u32 << 23) as f64,
        sums: 3,
        product: 6,
        ..Self::F32
    };

    /// γ_n, of the roundings that a sum of n products takes.
    pub fn gamma(&self, n: usize) -> f64 {
        let nu = (n * self.sums + self.product) as f64 * self.unit_roundoff;
        assert!(nu < 0.5, "the bound says nothing about {n} terms");
        nu / (1.0 - nu)
    }
}

/// The tolerance of a golden case with f32 input, T of the method: absolute for a row's loss,
/// relative for the gradient.
pub fn golden(problem: &Problem) -> f64 {
    let largest = |rows: &[Vec<f64>]| rows.iter().map(|row| norm(row)).fold(0.0, f64::max);
    let reach = largest(&problem.queries) * largest(&problem.queue).max(largest(&problem.keys));
    1e-5 * (0.2 / problem.temperature) * reach.max(1.0)
}

/// The tolerance of a golden case's synthetic logits, absolute.
pub fn golden_synthetic(problem: &Problem) -> f64 {
    let largest = problem
        .queries
        .iter()
        .map(|row| norm(row))
        .fold(0.0, f64::max);
    2e-6 * largest.max(1.0)
}

/// How far a synthetic negative that is written out may be off, L2: as its logit, and by the roundings
/// of its elements.
pub fn feature(h: &Synthetic, arithmetic: Arithmetic) -> f64 {
    let gamma = arithmetic.gamma(h.feature.len() + 6);
    0.5 * gamma * h.amplification.powi(2) + 4.0 * arithmetic.unit_roundoff * h.amplification
}

/// How far each figure of one row may be off.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// Of l⁺ and every real logit.
    pub logit: f64,
    pub mixed: Vec<f64>,
    pub query_mixed: Vec<f64>,
    pub loss: f64,
    pub log_sum_exp: f64,
    /// Relative, of a probability under the softmax without synthetics.
    pub plain_probability: f64,
    /// L2, of the gradient of this row's own loss.
    pub grad_query: f64,
    pub grad_key: f64,
    /// False where a synthetic negative is so nearly cancelled (its two rows opposite) that f32
    /// inputs of its norm carry no information; such rows are counted, not compared.
    pub conditioned: bool,
}

/// The bounds of row `b`.
pub fn bounds(problem: &Problem, b: usize, row: &Row, arithmetic: Arithmetic) -> Bounds {
    let u = arithmetic.unit_roundoff;
    let (query, key) = (norm(&problem.queries[b]), norm(&problem.keys[b]));
    let longest = problem.queue.iter().map(|n| norm(n)).fold(0.0, f64::max);
    let dim = problem.queries[b].len();
    let tau = problem.temperature;
    let synthetics = || row.mixed.iter().chain(&row.query_mixed);
    // Synthetic negatives are unit rows.
    let made = if synthetics().next().is_some() {
        1.0
    } else {
        0.0
    };
    let reach = query * longest.max(key).max(made);
    let logit = arithmetic.gamma(dim) * reach;

    // r² is off by γ_{d+6} of what was added up, so r by half of amplification² times that.
    let relative_norm = |h: &Synthetic| 0.5 * arithmetic.gamma(dim + 6) * h.amplification.powi(2);
    let synthetic =
        |h: &Synthetic| query * (arithmetic.gamma(dim + 6) * h.amplification + relative_norm(h));
    let conditioned = synthetics().all(|h| relative_norm(h) < 1.0 / 16.0);

    // (l − shift)/τ: a difference, an inverse and a product, of at most twice the reach.
    let exponent = 8.0 * u * reach / tau;
    let spread: f64 = synthetics().map(|h| h.probability * synthetic(h)).sum();
    let relative = (2.0 * logit + spread) / tau + exponent + arithmetic.softmax;
    let terms = row.logits.len() + synthetics().count();
    let flushed = arithmetic.flushed * terms as f64;

    let folded = arithmetic.gamma(terms + 4);
    let negatives = row.negative_probability * (relative + folded) * (key + longest);
    let mixing: f64 = synthetics()
        .map(|h| {
            let (a, rho) = (h.amplification, relative_norm(h));
            let derivative = norm(&h.derivative);
            // ∂(q·h′)/∂q is h′ plus, attached, (β/r)(q − m h′): at most 1 + 2a long, each term
            // off by the error of r up to three times over and by the roundings of its sum.
            let formula = if problem.attached { 3.0 * a } else { 1.0 };
            let own = formula * (3.0 * rho + 2.0 * folded * a.max(1.0));
            h.probability * ((relative + synthetic(h) / tau) * derivative + own)
        })
        .sum();
    Bounds {
        logit,
        mixed: row.mixed.iter().map(synthetic).collect(),
        query_mixed: row.query_mixed.iter().map(synthetic).collect(),
        loss: row.negative_probability * relative
            + 4.0 * u * row.loss
            // Only where the loss is not log1p of something small is it a difference of logits.
            + if row.negative_probability < 0.49 { 0.0 } else { exponent + arithmetic.softmax }
            + flushed,
        log_sum_exp: relative + exponent + 4.0 * u * row.log_sum_exp.abs(),
        plain_probability: 2.0 * (2.0 * logit / tau + exponent + arithmetic.softmax),
        grad_query: (negatives + mixing + flushed * (key + longest + query)) / tau,
        grad_key: (row.negative_probability * (relative + 4.0 * u) + flushed) * query / tau,
        conditioned,
    }
}

//! InfoNCE over real and synthetic negatives: the loss of a row, and the operator on features that
//! are given.

use super::contrast::{Totals, exponent_scale};
use super::mix::Synthetic;
use super::step::{Negatives, Step};
use super::vector;
use crate::batch::Batch;
use crate::config::Config;
use crate::error::{Error, Result, elements, expect_length, first_non_finite};
use crate::output::Output;
use crate::queue::Queue;

/// Loss and gradient over the queue and given synthetic negatives, which are constants for the
/// gradient (method: Loss, 4). `synthetic.mixed` is [B, s, d] and `synthetic.query_mixed`
/// [B, s′, d], with s and s′ from the configuration; N and draws play no part, and the output's
/// lists of hardest and draws are empty. Rows without an unmasked negative ignore theirs.
///
/// # Errors
/// [`Error::Dimension`] and [`Error::Length`] for shapes that disagree, [`Error::MissingLabels`]
/// for an oracle without labels, [`Error::NonFinite`] with the row of a synthetic feature. A query
/// or key that is not finite is reported in the output's status.
pub fn info_nce(
    batch: &Batch<'_>,
    queue: &Queue,
    synthetic: &Synthetic,
    config: &Config,
) -> Result<Output> {
    for (argument, features, count) in [
        ("synthetic.mixed", &synthetic.mixed, config.mixed()),
        (
            "synthetic.query_mixed",
            &synthetic.query_mixed,
            config.query_mixed(),
        ),
    ] {
        let len = elements(
            argument,
            elements(argument, batch.rows(), count)?,
            batch.dim(),
        )?;
        expect_length(argument, features.len(), len, "rows × synthetics × dim")?;
        if let Some(row) = first_non_finite(features, batch.dim()) {
            return Err(Error::NonFinite { argument, row });
        }
    }
    Step::new(config.clone()).run_over(batch, queue, Negatives::Given(synthetic))
}

/// The loss of one row and what follows from it.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowLoss {
    pub loss: f64,
    pub log_sum_exp: f64,
    /// p⁺.
    pub positive: f64,
    /// 1 − p⁺ = Z₋/Z, from Z₋ itself: the difference would lose everything on a confident row.
    pub negative: f64,
}

/// The loss of a row with Z₋ = `total`·e^{shift/τ} (method: Loss, 4).
pub(super) fn row_loss(positive_logit: f32, shift: f32, total: f64, temperature: f32) -> RowLoss {
    let temperature = f64::from(temperature);
    let positive_exponent = f64::from(positive_logit) / temperature;
    if total == 0.0 {
        return RowLoss {
            loss: 0.0,
            log_sum_exp: positive_exponent,
            positive: 1.0,
            negative: 0.0,
        };
    }
    // x = log(Z₋/e^{l⁺/τ}); the loss is log(1 + e^x) and 1 − p⁺ the logistic function of x.
    let x = (f64::from(shift) - f64::from(positive_logit)) / temperature + total.ln();
    let loss = x.max(0.0) + (-x.abs()).exp().ln_1p();
    RowLoss {
        loss,
        log_sum_exp: positive_exponent + loss,
        positive: 1.0 / (1.0 + x.exp()),
        negative: 1.0 / (1.0 + (-x).exp()),
    }
}

/// Adds given features, [s, d], to a row's sums, as `Mixer::fold` does with drawn ones, and writes
/// their logits.
pub(super) fn fold_given(
    temperature: f32,
    query: &[f32],
    features: &[f32],
    logits: &mut [f32],
    totals: &mut Totals,
    direction: &mut [f32],
) {
    vector::row_dots(features, query, logits);
    totals.raise(logits, temperature, direction);
    let mut exponentials = vec![0.0; logits.len()];
    let scale = exponent_scale(temperature);
    vector::exponentials(logits, totals.shift, scale, &mut exponentials);
    totals.total += exponentials.iter().map(|&p| f64::from(p)).sum::<f64>();
    vector::add_weighted(features, direction.len(), &exponentials, direction);
}

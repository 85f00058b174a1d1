//! What a step gives back: loss, gradient, diagnostics.

use crate::draws::GivenDraws;
use crate::error::{Error, Result};

/// Figures about a batch, each a mean over its rows unless said otherwise.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct Metrics {
    /// Share of the rows whose positive logit is strictly greater than every unmasked negative's.
    pub proxy_accuracy: f64,
    /// The same, and greater than every synthetic logit.
    pub proxy_accuracy_with_synthetic: f64,
    /// 2 − 2·mean(q·k): the mean squared distance of query and key, for unit rows.
    pub alignment: f64,
    /// Log of the mean over all unmasked (query, queue row) of e^{−2(2 − 2 q·n)}; on request.
    /// `None` too where no pair is unmasked.
    pub uniformity: Option<f64>,
    /// Probability of the r-th hardest negative under the softmax over the positive and the
    /// unmasked queue, without synthetics, `[N]` by descending logit; the mean over the rows that
    /// have that rank, 0 where none has. On request (Fig. 2a of the paper).
    pub matching_probability: Option<Vec<f64>>,
    /// Share of the mixed negatives strictly harder than their row's hardest real negative;
    /// `None` where none was made.
    pub mixed_harder: Option<f64>,
    /// The same for the query-mixed negatives.
    pub query_mixed_harder: Option<f64>,
    /// Of the hardest that have a label, the share with their query's, over the queries that have
    /// one; `None` where there is nothing to compare (Fig. 2c of the paper).
    pub same_label_share: Option<f64>,
}

/// Whether every row of the batch is a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Status {
    /// Every loss and gradient is finite.
    #[default]
    Finite,
    /// The loss and the gradient of at least one row are NaN.
    NonFinite {
        /// Where the NaN or infinity came from: `queries`, `keys`, or `logits` where the inputs
        /// are finite and their products are not.
        argument: &'static str,
        /// The first such row.
        row: usize,
    },
}

/// The result of a step over a batch of B rows of dimension d.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Output {
    pub(crate) reduced_loss: f32,
    /// Whether every row is a number.
    pub status: Status,
    /// Loss of each row, `[B]`.
    pub loss_rows: Vec<f32>,
    /// Gradient of the reduced loss with respect to the queries, [B, d].
    pub grad_queries: Vec<f32>,
    /// Gradient of the reduced loss with respect to the keys, [B, d]; on request.
    pub grad_keys: Option<Vec<f32>>,
    /// log Σ e^{logit/τ} over the positive and all negatives, real and synthetic, `[B]`.
    pub log_sum_exp: Vec<f32>,
    /// p⁺, the probability of the positive, `[B]`.
    pub positive_probability: Vec<f32>,
    /// Whether the positive beats every unmasked real negative, `[B]`.
    pub hits: Vec<bool>,
    /// Whether it beats every synthetic negative too, `[B]`.
    pub hits_with_synthetic: Vec<bool>,
    /// The hardest queue rows of each query, ascending, [B, N], padded with [`crate::NO_ROW`].
    pub hardest: Vec<u32>,
    /// q·h of the mixed negatives, before τ, [B, s]; −∞ in rows without a negative.
    pub mixed_logits: Vec<f32>,
    /// q·h′ of the query-mixed negatives, before τ, [B, s′]; −∞ in rows without a negative.
    pub query_mixed_logits: Vec<f32>,
    /// The draws that were used.
    pub draws: GivenDraws,
    /// Figures about the batch.
    pub metrics: Metrics,
}

impl Output {
    /// The reduced loss.
    ///
    /// # Errors
    /// [`Error::NonFinite`] with the first row whose loss or gradient is not a number;
    /// [`Error::OutOfRange`] where the rows' losses are numbers and their sum is beyond f32.
    pub fn loss(&self) -> Result<f32> {
        match self.status {
            Status::Finite if !self.reduced_loss.is_finite() => Err(Error::OutOfRange {
                argument: "loss",
                value: self.reduced_loss.to_string(),
                expected: "a sum of the rows' losses that f32 holds",
            }),
            Status::Finite => Ok(self.reduced_loss),
            Status::NonFinite { argument, row } => Err(Error::NonFinite { argument, row }),
        }
    }
}

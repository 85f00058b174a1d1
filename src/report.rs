//! What the rows of a batch contribute becomes losses and metrics, whatever computed the rows.

use crate::config::{Config, Reduction};
use crate::output::{Metrics, Output};

/// The exponent's factor in the uniformity: 2t with t = 2.
pub(crate) const UNIFORMITY_FACTOR: f64 = 4.0;

/// What a row contributes to the losses and metrics.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Figures {
    pub loss: f64,
    pub log_sum_exp: f64,
    pub positive_probability: f64,
    pub positive_logit: f32,
    pub hit: bool,
    pub hit_with_synthetic: bool,
    pub listed: usize,
    pub unmasked: usize,
    pub mixed_harder: usize,
    pub query_mixed_harder: usize,
    pub same_label: usize,
    /// Of the hardest, those that have a label, where the query has one too.
    pub labelled: usize,
    /// log Σ e^{4 l} over the unmasked queue.
    pub log_uniformity: f64,
}

/// Gathers the rows' figures, in row order.
pub(crate) fn report(output: &mut Output, config: &Config, figures: &[Figures], matching: &[f64]) {
    let rows = figures.len() as f64;
    let sum: f64 = figures.iter().map(|f| f.loss).sum();
    output.reduced_loss = if config.reduction() == Reduction::Mean {
        sum / rows
    } else {
        sum
    } as f32;
    output.loss_rows = figures.iter().map(|f| f.loss as f32).collect();
    output.log_sum_exp = figures.iter().map(|f| f.log_sum_exp as f32).collect();
    output.positive_probability = figures
        .iter()
        .map(|f| f.positive_probability as f32)
        .collect();
    output.hits = figures.iter().map(|f| f.hit).collect();
    output.hits_with_synthetic = figures.iter().map(|f| f.hit_with_synthetic).collect();

    let share = |part: usize, of: usize| (of > 0).then(|| part as f64 / of as f64);
    let total = |part: fn(&Figures) -> usize| figures.iter().map(part).sum::<usize>();
    let finite = || figures.iter().filter(|f| !f.loss.is_nan());
    let mixing = || finite().filter(|f| f.unmasked > 0).count();
    output.metrics = Metrics {
        proxy_accuracy: total(|f| usize::from(f.hit)) as f64 / rows,
        proxy_accuracy_with_synthetic: total(|f| usize::from(f.hit_with_synthetic)) as f64 / rows,
        alignment: 2.0
            - 2.0 * finite().map(|f| f64::from(f.positive_logit)).sum::<f64>()
                / finite().count() as f64,
        uniformity: config.uniformity().then(|| uniformity(figures)).flatten(),
        matching_probability: config
            .matching_probability()
            .then(|| mean_by_rank(matching, figures, config.hardest())),
        mixed_harder: share(total(|f| f.mixed_harder), mixing() * config.mixed()),
        query_mixed_harder: share(
            total(|f| f.query_mixed_harder),
            mixing() * config.query_mixed(),
        ),
        same_label_share: share(total(|f| f.same_label), total(|f| f.labelled)),
    };
}

/// log of the mean of e^{4 (l − 1)} over all unmasked pairs, from each row's log of its sum.
fn uniformity(figures: &[Figures]) -> Option<f64> {
    let sums = || {
        figures
            .iter()
            .filter(|f| f.unmasked > 0)
            .map(|f| f.log_uniformity)
    };
    let pairs: usize = figures.iter().map(|f| f.unmasked).sum();
    let shift = sums().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = sums().map(|log| (log - shift).exp()).sum();
    (pairs > 0).then(|| shift + total.ln() - (pairs as f64).ln() - UNIFORMITY_FACTOR)
}

/// The mean probability at each rank over the rows that have it.
fn mean_by_rank(matching: &[f64], figures: &[Figures], hardest: usize) -> Vec<f64> {
    (0..hardest)
        .map(|rank| {
            let having = figures.iter().enumerate().filter(|(_, f)| f.listed > rank);
            let (sum, count) = having.fold((0.0, 0usize), |(sum, count), (row, _)| {
                (sum + matching[row * hardest + rank], count + 1)
            });
            if count == 0 { 0.0 } else { sum / count as f64 }
        })
        .collect()
}

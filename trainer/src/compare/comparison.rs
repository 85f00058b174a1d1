//! What the pairs come to: accuracies, paired differences, costs, and what may be said of them.

use serde::Serialize;

use crate::config::TrainConfig;
use crate::error::{Error, Result};
use crate::metrics::{EpochLine, ResultLine};
use crate::report::Run;
use crate::statistics::{self, Interval, median};

/// Fewer pairs carry no claim, whatever their interval: two differences that happen to be close
/// make it narrow.
const FEWEST_PAIRS: usize = 3;

/// The two runs of one seed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Pair {
    /// The seed of both.
    pub seed: u64,
    /// What MoCo came to.
    pub moco: Side,
    /// What MoCHi came to.
    pub mochi: Side,
}

/// What one run came to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Side {
    /// The name of its images.
    pub data: String,
    /// Its final evaluation.
    pub result: ResultLine,
    /// Epoch and 20-NN accuracy after it.
    pub knn_by_epoch: Vec<(u64, f64)>,
    /// Median seconds of an epoch after MoCHi's warm-up, evaluation excluded.
    pub epoch_seconds: f64,
    /// The same for its part in the loss and its gradient.
    pub loss_seconds: f64,
}

impl Pair {
    /// Takes what the comparison needs from two ended runs of one seed.
    ///
    /// # Errors
    /// [`Error::RunFolder`] for a run without a final evaluation.
    pub fn new(seed: u64, moco: &Run, mochi: &Run) -> Result<Self> {
        Ok(Pair {
            seed,
            moco: Side::new(moco)?,
            mochi: Side::new(mochi)?,
        })
    }
}

impl Side {
    fn new(run: &Run) -> Result<Self> {
        let Some(result) = run.result.clone() else {
            let path = run.folder.root().to_owned();
            return Err(Error::RunFolder {
                path,
                reason: "holds a run that has not ended",
            });
        };
        // MoCo's epochs are the same ones, so that both sides are timed at the same stage of
        // training.
        let warm_up = run.config.warm_up_epochs;
        let epochs = || run.trained_epochs().filter(|line| line.epoch > warm_up);
        // An epoch that a resumed run has timed in part counts as if it had gone on like that.
        let images = |line: &EpochLine| line.images_per_second * line.seconds;
        let whole = epochs().map(images).fold(0.0, f64::max);
        let knn = |line: &EpochLine| Some((line.epoch, line.knn?));
        Ok(Side {
            result,
            data: run.data(),
            knn_by_epoch: run.epochs.iter().filter_map(knn).collect(),
            epoch_seconds: median(epochs().map(|line| line.seconds * whole / images(line))),
            loss_seconds: median(epochs().map(|line| line.loss_seconds * whole / images(line))),
        })
    }
}

/// One accuracy of both methods.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figures {
    /// Mean over the seeds, MoCo.
    pub moco: f64,
    /// Standard deviation over the seeds, MoCo; none for one seed.
    pub moco_deviation: Option<f64>,
    /// Mean over the seeds, MoCHi.
    pub mochi: f64,
    /// Standard deviation over the seeds, MoCHi.
    pub mochi_deviation: Option<f64>,
    /// MoCHi − MoCo, pair by pair.
    pub difference: Interval,
}

/// What one kind of time comes to on both sides.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cost {
    /// Mean over the seeds of MoCo's median, in seconds.
    pub moco: f64,
    /// Mean over the seeds of MoCHi's median, in seconds.
    pub mochi: f64,
    /// 100 (MoCHi / MoCo − 1), pair by pair.
    pub overhead_percent: Interval,
}

/// What the paired 20-NN accuracies allow one to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Too few pairs, or pairs without spread: no claim.
    TooFew,
    /// The interval includes 0: nothing is shown.
    NothingShown,
    /// The interval lies above 0.
    MochiAbove,
    /// The interval lies below 0.
    MochiBelow,
}

/// A finished comparison: what `compare.json` holds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// What the 20-NN accuracies allow one to say.
    pub verdict: Verdict,
    /// The same in words.
    pub in_words: String,
    /// The confidence of every interval.
    pub confidence: f64,
    /// The seeds that were asked for; `pairs` has those that ended.
    pub seeds: Vec<u64>,
    /// 20-NN accuracy, which the verdict rests on.
    pub knn: Figures,
    /// Linear probe.
    pub linear_probe: Figures,
    /// 20-NN accuracy of raw pixels: mean over the pairs, in which it does not differ.
    pub knn_raw: f64,
    /// 20-NN accuracy of the untrained encoders: mean over the pairs.
    pub knn_untrained: f64,
    /// Seconds of an epoch; its overhead is also that of a step.
    pub epoch_seconds: Cost,
    /// The part of them in the loss and its gradient.
    pub loss_seconds: Cost,
    /// The pairs.
    pub pairs: Vec<Pair>,
    /// The settings of MoCHi; MoCo's differ in the method alone.
    pub settings: TrainConfig,
}

impl Comparison {
    /// Sums up at least one pair.
    #[must_use]
    pub fn new(settings: TrainConfig, seeds: Vec<u64>, pairs: Vec<Pair>) -> Self {
        let both = |of: &dyn Fn(&Side) -> f64| -> (Vec<f64>, Vec<f64>) {
            pairs
                .iter()
                .map(|pair| (of(&pair.moco), of(&pair.mochi)))
                .unzip()
        };
        let accuracy = |of: &dyn Fn(&Side) -> f64| {
            let (moco, mochi) = both(of);
            let differences: Vec<f64> = mochi.iter().zip(&moco).map(|(a, b)| a - b).collect();
            Figures {
                moco: statistics::mean(&moco),
                moco_deviation: statistics::deviation(&moco),
                mochi: statistics::mean(&mochi),
                mochi_deviation: statistics::deviation(&mochi),
                difference: Interval::of(&differences),
            }
        };
        let cost = |of: &dyn Fn(&Side) -> f64| {
            let (moco, mochi) = both(of);
            let over: Vec<f64> = mochi
                .iter()
                .zip(&moco)
                .map(|(a, b)| 100.0 * (a / b - 1.0))
                .collect();
            Cost {
                moco: statistics::mean(&moco),
                mochi: statistics::mean(&mochi),
                overhead_percent: Interval::of(&over),
            }
        };
        let knn = accuracy(&|side| side.result.knn);
        let verdict = Verdict::of(&knn.difference, pairs.len());
        Comparison {
            verdict,
            in_words: verdict.in_words(&knn.difference, pairs.len()),
            confidence: statistics::CONFIDENCE,
            linear_probe: accuracy(&|side| side.result.linear_probe),
            knn_raw: both(&|side| side.result.knn_raw).0.iter().sum::<f64>() / pairs.len() as f64,
            knn_untrained: statistics::mean(&both(&|side| side.result.knn_untrained).0),
            epoch_seconds: cost(&|side| side.epoch_seconds),
            loss_seconds: cost(&|side| side.loss_seconds),
            knn,
            seeds,
            pairs,
            settings,
        }
    }

    /// The comparison as JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        // Strings, numbers and lists alone: nothing here can fail to be written.
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text
    }

    /// MoCHi with its (N, s, s′).
    #[must_use]
    pub fn mochi(&self) -> String {
        let TrainConfig {
            hardest,
            mixed,
            query_mixed,
            ..
        } = self.settings;
        format!("MoCHi ({hardest}, {mixed}, {query_mixed})")
    }
}

impl Verdict {
    fn of(difference: &Interval, pairs: usize) -> Self {
        match difference.excludes_zero() {
            Some(_) | None if pairs < FEWEST_PAIRS => Verdict::TooFew,
            None => Verdict::TooFew,
            Some(false) => Verdict::NothingShown,
            Some(true) if difference.mean > 0.0 => Verdict::MochiAbove,
            Some(true) => Verdict::MochiBelow,
        }
    }

    fn in_words(self, difference: &Interval, pairs: usize) -> String {
        let points = |share: f64| format!("{:.2}", 100.0 * share.abs());
        let interval = match (difference.low, difference.high) {
            (Some(low), Some(high)) => format!("{} to {}", signed(low), signed(high)),
            _ => String::new(),
        };
        let (mean, scope) = (
            points(difference.mean),
            "This speaks of other seeds with these images and settings, and of nothing else.",
        );
        match self {
            Verdict::TooFew if pairs < FEWEST_PAIRS => format!(
                "Nothing is shown: {pairs} {} cannot carry a claim. At least {FEWEST_PAIRS} are \
                 needed, and 5 or more are better.",
                if pairs == 1 { "pair" } else { "pairs" }
            ),
            Verdict::TooFew => "Nothing is shown: all differences are equal, so their spread is \
                                unknown."
                .into(),
            Verdict::NothingShown => format!(
                "Nothing is shown: the 95 % interval of the paired difference in 20-NN accuracy, \
                 {interval} points over {pairs} pairs, includes 0."
            ),
            Verdict::MochiAbove => format!(
                "MoCHi is above MoCo by {mean} points of 20-NN accuracy (95 % interval {interval}, \
                 {pairs} pairs). {scope}"
            ),
            Verdict::MochiBelow => format!(
                "MoCHi is below MoCo by {mean} points of 20-NN accuracy (95 % interval {interval}, \
                 {pairs} pairs). {scope}"
            ),
        }
    }
}

/// A difference of shares in points, with its sign.
pub(super) fn signed(share: f64) -> String {
    let text = format!("{:+.2}", 100.0 * share);
    text.replacen('-', "−", 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(differences: &[f64]) -> (Verdict, String) {
        let interval = Interval::of(differences);
        let verdict = Verdict::of(&interval, differences.len());
        (verdict, verdict.in_words(&interval, differences.len()))
    }

    #[test]
    fn an_interval_with_0_shows_nothing() {
        // Mean 0.004, deviation 0.0055: ± 2.776 · 0.0055/√5 = ± 0.0068.
        let (verdict, words) = verdict(&[0.010, -0.003, 0.008, 0.006, -0.001]);
        assert_eq!(verdict, Verdict::NothingShown);
        assert!(
            words.starts_with("Nothing is shown") && words.contains("−0.31 to +1.11"),
            "{words}"
        );
    }

    #[test]
    fn an_interval_beside_0_is_claimed_and_bounded() {
        let (above, words) = verdict(&[0.010, 0.012, 0.008, 0.011, 0.009]);
        assert_eq!(above, Verdict::MochiAbove);
        assert!(words.contains("above MoCo by 1.00 points") && words.contains("nothing else"));
        assert_eq!(verdict(&[-0.010, -0.012, -0.008]).0, Verdict::MochiBelow);
    }

    #[test]
    fn few_or_equal_pairs_carry_no_claim() {
        assert_eq!(verdict(&[0.01]).0, Verdict::TooFew);
        // t(0.975, 1) = 12.7 would let these two pass.
        assert_eq!(verdict(&[0.0100, 0.0101]).0, Verdict::TooFew);
        let (verdict, words) = verdict(&[0.01, 0.01, 0.01]);
        assert_eq!(verdict, Verdict::TooFew);
        assert!(words.contains("all differences are equal"));
    }
}

//! The hardest without logits in memory: a threshold from a sample of the queue, what `contrast` lets
//! pass, the hardest of that, and again from the queue where they may not be among it.

use super::contrast::{self, FusedTuning};
use super::device::Launch;
use super::logits::{Precision, Product};
use super::params::{
    CONTRAST_DEPTH, PassedParams, RANK_CANDIDATES, REPAIR_BLOCKS, RankParams, RepairParams,
    SAMPLE_THREADS, SampleParams, ThresholdParams,
};
use super::part::Part;
use super::rank::rank_launch;
use crate::error::Result;
use crate::queue::DType;

/// How the hardest are found in the pass.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Ranking {
    /// Rows of the sample; none where every logit may pass.
    pub sample: usize,
    /// The rank within the sample whose logit is the threshold.
    pub rank: usize,
    pub tiles: usize,
    /// Logits of a query and a split that are kept.
    pub room: usize,
    forced: Option<(f32, u32)>,
}

/// Of a queue that is no longer, every logit fits the list of what has passed: no sample is taken.
const SAMPLED_FROM: usize = RANK_CANDIDATES as usize;

impl Ranking {
    /// By K and N alone; `None` where more would pass than can be listed.
    pub fn of(capacity: usize, hardest: usize, tuning: FusedTuning) -> Option<Self> {
        let splits = contrast::splits(capacity);
        let tiles = capacity.div_ceil(CONTRAST_DEPTH as usize);
        let of_split = tiles.div_ceil(splits) * CONTRAST_DEPTH as usize;
        // Long queues want a sample in which the hardest are some, or the threshold is blunt.
        let sample = tuning.sample.unwrap_or(match capacity {
            0..=SAMPLED_FROM => 0,
            _ => (capacity / 64).max(4096),
        });
        let sample = sample.min(capacity);
        let (rank, room) = if sample == 0 {
            (0, of_split)
        } else {
            // The expected number of the N among the sample, six standard deviations, and 8 for the skew
            // of small numbers.
            let share = sample as f64 / capacity as f64;
            let expected = hardest as f64 * share;
            let rank = expected + 6.0 * (expected * (1.0 - share)).sqrt() + 8.0;
            let passing = rank / share;
            if passing * (1.0 + 6.0 / rank.sqrt()) > f64::from(RANK_CANDIDATES)
                && tuning.sample.is_none()
            {
                return None;
            }
            // Tiles of a split lie far apart: only a queue sorted in its own period fills one alone.
            let room = (4.0 * passing / splits as f64) as usize + 64;
            (
                rank.ceil() as usize,
                room.next_multiple_of(32).min(of_split),
            )
        };
        (rank <= sample || sample == 0).then_some(Self {
            sample,
            rank,
            tiles,
            room: tuning.room.unwrap_or(room),
            forced: tuning.forced,
        })
    }
}

impl Part<'_> {
    /// Copies the sample of the queue, for all parts.
    ///
    /// # Safety
    /// The contract of [`Part`].
    pub unsafe fn sample(&self, ranking: Ranking) -> Result<()> {
        if ranking.sample == 0 {
            return Ok(());
        }
        let params = SampleParams {
            queue: self.queue.cast(),
            queue_labels: if self.masking_labels().is_null() {
                std::ptr::null()
            } else {
                self.queue_labels
            },
            sample: self.scratch.sample.cast(),
            sample_labels: self.scratch.sample_labels,
            capacity: self.shape.capacity as u32,
            dim: self.shape.dim as u32,
            count: ranking.sample as u32,
        };
        let launch = Launch {
            file: "sample",
            kernel: match self.shape.dtype {
                DType::F32 => "sample_f32",
                DType::F16 => "sample_f16",
                DType::Bf16 => "sample_bf16",
            },
            grid: (params.count, 1, 1),
            threads: SAMPLE_THREADS,
            shared: 0,
        };
        // SAFETY: the contract of `Part`; there is room for the sample in f32.
        unsafe { self.device.launch(launch, &params) }
    }

    /// The thresholds of the rows; `out` is where their hardest will go.
    ///
    /// # Safety
    /// The contract of [`Part`], and that the sample has been copied.
    pub unsafe fn thresholds(&self, ranking: Ranking, out: &RankParams) -> Result<()> {
        let scratch = &self.scratch;
        let rows = self.rows.len();
        if ranking.sample > 0 {
            let product = Product {
                queries: scratch.usable,
                rows,
                queue: scratch.sample.cast(),
                dtype: self.shape.dtype,
                capacity: ranking.sample,
                dim: self.shape.dim,
                precision: self.precision,
            };
            let sampled = RankParams {
                logits: scratch.sampled_logits,
                queue_labels: scratch.sample_labels,
                indices: scratch.sampled_hardest,
                hardest_logits: scratch.sampled_hardest_logits,
                counts: scratch.sampled_counts,
                capacity: ranking.sample as u32,
                hardest: ranking.rank as u32,
                ..*out
            };
            // SAFETY: the contract of `Part`; the scratch has room for the sample's logits and lists.
            unsafe {
                product.logits(self.device, scratch.sampled_logits)?;
                self.device
                    .launch(rank_launch("rank_logits", rows), &sampled)?;
            }
        }
        let (forced, forced_every) = ranking.forced.unwrap_or_default();
        let params = ThresholdParams {
            sampled_logits: if ranking.sample > 0 {
                scratch.sampled_hardest_logits
            } else {
                std::ptr::null()
            },
            counts: scratch.sampled_counts,
            thresholds: scratch.thresholds,
            rows: rows as u32,
            rank: ranking.rank as u32,
            forced_every,
            forced,
        };
        let launch = Launch {
            file: "sample",
            kernel: "thresholds",
            grid: (params.rows.div_ceil(SAMPLE_THREADS / 32), 1, 1),
            threads: SAMPLE_THREADS,
            shared: 0,
        };
        // SAFETY: the contract of `Part`.
        unsafe { self.device.launch(launch, &params) }
    }

    /// The hardest of what has passed.
    ///
    /// # Safety
    /// The contract of [`Part`], and that the pass has let its candidates pass; `out` has room for the
    /// hardest of these rows, and its labels are those of the pass.
    pub unsafe fn rank_passed(&self, ranking: Ranking, out: RankParams) -> Result<()> {
        let scratch = &self.scratch;
        let rows = self.rows.len();
        let passed = PassedParams {
            out,
            passing: scratch.passing,
            passed_logits: scratch.passed_logits,
            passed: scratch.passed,
            unmasked: scratch.unmasked,
            faults: scratch.faults,
            marked: scratch.marked,
            tiles: ranking.tiles as u32,
            splits: contrast::splits(self.shape.capacity) as u32,
            room: ranking.room as u32,
        };
        let repair = RepairParams {
            out,
            marked: scratch.marked,
            queries: scratch.usable,
            queue: self.queue.cast(),
            logits: scratch.repaired_logits,
            rows: rows as u32,
            dim: self.shape.dim as u32,
        };
        let again = rank_launch(
            repair_kernel(self.shape.dtype, self.precision),
            REPAIR_BLOCKS as usize,
        );
        // SAFETY: the caller's contract; the scratch has room for the logits of as many rows as there
        // are blocks, and `rank_passed` has marked every row before `repair` asks.
        unsafe {
            self.device
                .launch(rank_launch("rank_passed", rows), &passed)?;
            self.device.launch(again, &repair)
        }
    }
}

fn repair_kernel(dtype: DType, precision: Precision) -> &'static str {
    use Precision::{Exact, Tensor};
    match (dtype, precision) {
        (DType::F32, Exact) => "repair_f32_exact",
        (DType::F32, Tensor) => "repair_f32_tensor",
        (DType::F16, Exact) => "repair_f16_exact",
        (DType::F16, Tensor) => "repair_f16_tensor",
        (DType::Bf16, Exact) => "repair_bf16_exact",
        (DType::Bf16, Tensor) => "repair_bf16_tensor",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_threshold_of_the_headline_shape() {
        let ranking = Ranking::of(65_536, 1024, FusedTuning::default()).expect("it can be ranked");
        // m = 4096·1024/65536 = 64: 64 + 6√(64·(1 − 1/16)) + 8 = 118.5.
        assert_eq!((ranking.sample, ranking.rank), (4096, 119));
        assert_eq!(ranking.tiles, 2048);
        // Some 1900 pass, 30 a split.
        assert_eq!(ranking.room, 192);
    }

    #[test]
    fn what_cannot_be_listed_is_not_ranked_in_the_pass() {
        let of = |capacity, hardest| Ranking::of(capacity, hardest, FusedTuning::default());
        assert!(of(65_536, 4586).is_some() && of(65_536, 4587).is_none());
        assert!(of(1 << 18, 2136).is_some() && of(1 << 18, 2137).is_none());
        assert_eq!(of(100_000, 100_000), None);
        assert!(of(8192, 8192).is_some_and(|ranking| ranking.sample == 0));
        assert!(of(1 << 20, 1024).is_some_and(|ranking| ranking.sample == 16_384));
    }
}

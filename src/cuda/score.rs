//! The fused path for more dimensions than one pass takes: the queue in slices, whose logits lie in memory
//! for as long as the slice is looked at, and in the device's L2 as that is small.

use super::contrast::{UNIFORMITY_SCALE, splits};
use super::device::Launch;
use super::info_nce::exponent_scale;
use super::logits::{Largest, Product};
use super::params::{SCORE_THREADS, ScoreParams};
use super::part::Part;
use super::weigh::{Splits, Weighing};
use crate::error::Result;

impl Part<'_> {
    /// The largest logits of hot rows, [rows, parts].
    ///
    /// # Safety
    /// The contract of [`Part`], of a shape that is sliced.
    pub unsafe fn hot_maxima(&self) -> Result<()> {
        let largest = Largest {
            hot: self.scratch.hot,
            query_labels: self.masking_labels(),
            queue_labels: self.queue_labels,
            maxima: self.scratch.maxima,
        };
        // SAFETY: the contract of `Part`.
        unsafe { self.product().maxima(self.device, largest) }
    }

    /// Exponentials and weighted sums of the queue, and candidates for the hardest, slice by slice of so
    /// many rows.
    ///
    /// # Safety
    /// The contract of [`Part`], of a shape with slices of this length.
    pub unsafe fn score(&self, length: usize) -> Result<()> {
        let (rows, capacity) = (self.rows.len(), self.shape.capacity);
        let splits = splits(capacity);
        let ranking = self.shape.ranking();
        let sum_splits = Splits::of(length, self.shape.dim);
        for first in (0..capacity).step_by(length) {
            let slice = Product {
                queue: self.queue.wrapping_add(first * self.shape.row_bytes()),
                capacity: length.min(capacity - first),
                ..self.product()
            };
            let params = ScoreParams {
                logits: self.scratch.slice_logits,
                query_labels: self.masking_labels(),
                queue_labels: self.queue_labels,
                shifts: self.scratch.shifts,
                maxima: self.scratch.maxima,
                unmasked: self.scratch.unmasked,
                totals: self.scratch.totals,
                uniformity: self.uniformity(),
                thresholds: if ranking.is_some() {
                    self.scratch.thresholds
                } else {
                    std::ptr::null()
                },
                passing: self.scratch.passing,
                passed_logits: self.scratch.passed_logits,
                passed: self.scratch.passed,
                exponent_scale: exponent_scale(self.config),
                uniformity_scale: UNIFORMITY_SCALE,
                first: first as u32,
                length: slice.capacity as u32,
                rows: rows as u32,
                splits: splits as u32,
                tiles: ranking.map_or(0, |ranking| ranking.tiles) as u32,
                room: ranking.map_or(0, |ranking| ranking.room) as u32,
            };
            let launch = Launch {
                file: "score",
                kernel: "score",
                grid: Launch::grid_over(
                    rows,
                    (rows * splits).div_ceil(SCORE_THREADS as usize / 32),
                )?,
                threads: SCORE_THREADS,
                shared: 0,
            };
            let weighing = Weighing {
                weights: self.scratch.slice_logits,
                rows,
                queue: slice.queue,
                dtype: slice.dtype,
                capacity: slice.capacity,
                dim: slice.dim,
                precision: slice.precision,
            };
            // SAFETY: the contract of `Part`; the slice is within the queue, its logits have room, and each
            // kernel reads what those before it have written.
            unsafe {
                slice.logits(self.device, self.scratch.slice_logits)?;
                self.device.launch(launch, &params)?;
                weighing.sums(self.device, sum_splits, self.scratch.sums, first > 0)?;
            }
        }
        Ok(())
    }
}

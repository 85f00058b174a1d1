//! The product of weights and queue, on the tensor cores.

use super::device::{Device, Launch};
use super::logits::Precision;
use super::params::{
    WEIGH_COLUMNS, WEIGH_DEPTH, WEIGH_PADDING, WEIGH_PADDING_BF16, WEIGH_QUEUE_STRIDE, WEIGH_ROWS,
    WEIGH_STAGES, WEIGH_THREADS, WeighParams,
};
use crate::error::Result;
use crate::queue::DType;

/// Blocks that the columns and the queue of one tile of rows are to give: about half as many as a
/// large device has multiprocessors, so that two such tiles fill it.
const BLOCKS_A_TILE: usize = 64;

/// The fewest queue rows of a split: with fewer, merging the splits costs more than it gains.
const FEWEST_ROWS: usize = 512;

/// How the queue is cut: by its shape alone.
#[derive(Debug, Clone, Copy)]
pub(super) struct Splits {
    /// Queue rows of a split.
    pub rows: usize,
    /// How many there are.
    pub count: usize,
}

impl Splits {
    pub fn of(capacity: usize, dim: usize) -> Self {
        let most = (BLOCKS_A_TILE / dim.div_ceil(WEIGH_COLUMNS as usize)).max(1);
        let rows = capacity.div_ceil(most).max(FEWEST_ROWS);
        let rows = rows.next_multiple_of(WEIGH_DEPTH as usize);
        Self {
            rows,
            count: capacity.div_ceil(rows),
        }
    }
}

/// Weights, [rows, capacity], and the queue that they weigh, [capacity, dim].
#[derive(Debug, Clone, Copy)]
pub(super) struct Weighing {
    pub weights: *const f32,
    pub rows: usize,
    /// The queue's elements, of type `dtype`.
    pub queue: *const u8,
    pub dtype: DType,
    /// Less than 2³¹.
    pub capacity: usize,
    pub dim: usize,
    pub precision: Precision,
}

impl Weighing {
    /// Puts on the stream that the weighted sum of each split's queue rows is written to `sums`,
    /// [splits, rows, dim], or added to what stands there.
    ///
    /// # Safety
    /// Weights, queue and sums have their shapes' elements until the kernel has run, and the sums
    /// overlap neither.
    pub unsafe fn sums(
        &self,
        device: &Device,
        splits: Splits,
        sums: *mut f32,
        accumulate: bool,
    ) -> Result<()> {
        let row_tiles = self.rows.div_ceil(WEIGH_ROWS as usize);
        let column_tiles = self.dim.div_ceil(WEIGH_COLUMNS as usize);
        let blocks = row_tiles * column_tiles * self.capacity.div_ceil(splits.rows);
        let element = self.dtype.bytes();
        let aligned =
            |pointer: usize, bytes: usize| pointer.is_multiple_of(16) && bytes.is_multiple_of(16);
        let params = WeighParams {
            weights: self.weights,
            queue: self.queue.cast(),
            sums,
            accumulate: u32::from(accumulate),
            rows: self.rows as u32,
            capacity: self.capacity as u32,
            dim: self.dim as u32,
            split_rows: splits.rows as u32,
            row_tiles: row_tiles as u32,
            column_tiles: column_tiles as u32,
            weights_aligned: u32::from(aligned(self.weights as usize, self.capacity * 4)),
            queue_aligned: u32::from(aligned(self.queue as usize, self.dim * element)),
        };
        let padding = match self.dtype {
            DType::F32 | DType::F16 => WEIGH_PADDING,
            DType::Bf16 => WEIGH_PADDING_BF16,
        };
        let weights = WEIGH_ROWS * (WEIGH_DEPTH + padding) * 4;
        let stage = weights + WEIGH_DEPTH * WEIGH_QUEUE_STRIDE * element as u32;
        let launch = Launch {
            file: "weigh",
            kernel: kernel(self.dtype, self.precision),
            grid: Launch::grid_over(self.rows, blocks)?,
            threads: WEIGH_THREADS,
            shared: WEIGH_STAGES * stage,
        };
        // SAFETY: the caller's contract; the kernel is the one for this type, and takes these
        // parameters.
        unsafe { device.launch(launch, &params) }
    }
}

fn kernel(dtype: DType, precision: Precision) -> &'static str {
    use Precision::{Exact, Tensor};
    match (dtype, precision) {
        (DType::F32, Exact) => "weigh_f32_exact",
        (DType::F32, Tensor) => "weigh_f32_tensor",
        (DType::F16, Exact) => "weigh_f16_exact",
        (DType::F16, Tensor) => "weigh_f16_tensor",
        (DType::Bf16, Exact) => "weigh_bf16_exact",
        (DType::Bf16, Tensor) => "weigh_bf16_tensor",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_cover_the_queue_once() {
        for capacity in [1, 2, 511, 512, 513, 16384, 65536, 65537, 1 << 20] {
            for dim in [1, 8, 128, 129, 2048, 20_000] {
                let Splits { rows, count } = Splits::of(capacity, dim);
                assert!(rows.is_multiple_of(WEIGH_DEPTH as usize));
                assert!((count - 1) * rows < capacity && capacity <= count * rows);
            }
        }
        assert_eq!(Splits::of(65536, 128).count, 64);
    }
}

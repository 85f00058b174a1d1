//! The sum of each query's hardest, weighed by what was mixed from them.

use super::device::Launch;
use super::params::{DIRECTION_LANES, DIRECTION_THREADS, DirectionParams};
use super::part::{Part, Shape};
use crate::error::{Error, Result};
use crate::queue::DType;

/// Bytes of a queue row that a block takes.
const WIDTH: usize = DIRECTION_LANES as usize * 16;

/// Refuses rows for which a grid has too few blocks in its second direction.
pub(super) fn check(shape: Shape) -> Result<()> {
    if !shape.fused || shape.row_bytes().div_ceil(WIDTH) <= 65535 {
        return Ok(());
    }
    Err(Error::OutOfRange {
        argument: "dim",
        value: shape.dim.to_string(),
        expected: "rows of at most 65535 · 128 bytes on the fused path",
    })
}

impl Part<'_> {
    /// The direction that the weights of the hardest, which `fold` left, give to the gradient.
    ///
    /// # Safety
    /// The contract of [`Part`].
    pub unsafe fn direction(&self) -> Result<()> {
        let (shape, scratch) = (self.shape, self.scratch);
        let params = DirectionParams {
            queue: self.queue.cast(),
            hardest: self.out.hardest,
            counts: self.out.counts,
            faults: scratch.faults,
            weights: scratch.weights.cast(),
            weight_exponents: scratch.weight_exponents,
            direction: scratch.direction,
            dim: shape.dim as u32,
            hardest_width: shape.hardest as u32,
        };
        let bytes = shape.dim * shape.dtype.bytes();
        let whole_chunks = bytes.is_multiple_of(16) && (self.queue as usize).is_multiple_of(16);
        let launch = Launch {
            file: "direction",
            kernel: match (shape.dtype, whole_chunks) {
                (DType::F32, true) => "direction_f32",
                (DType::F32, false) => "direction_ragged_f32",
                (DType::F16, true) => "direction_f16",
                (DType::F16, false) => "direction_ragged_f16",
                (DType::Bf16, true) => "direction_bf16",
                (DType::Bf16, false) => "direction_ragged_bf16",
            },
            grid: (self.rows.len() as u32, bytes.div_ceil(WIDTH) as u32, 1),
            threads: DIRECTION_THREADS,
            shared: 0,
        };
        // SAFETY: the contract of `Part`; the kernel is the one for this type, and the list holds rows
        // of the queue, as the ranking has left them.
        unsafe { self.device.launch(launch, &params) }
    }
}

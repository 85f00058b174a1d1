//! The real negatives' exponentials and their part of the gradient, in one pass over the queue.

use super::device::Launch;
use super::info_nce::exponent_scale;
use super::logits::Precision;
use super::params::{
    BOUND_THREADS, BoundParams, CONTRAST_DEPTH, CONTRAST_DIM, CONTRAST_QUERY_STRIDE,
    CONTRAST_QUEUE_STRIDE, CONTRAST_QUEUE_STRIDE_16, CONTRAST_ROWS, CONTRAST_STAGES,
    CONTRAST_THREADS, ContrastParams,
};
use super::part::{Part, Shape};
use crate::error::{Error, Result};
use crate::queue::DType;

/// How a step gets from queries and queue to loss and gradient. The bits of a row are the same within
/// a path; between the two they differ by rounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum Path {
    /// For now always [`Path::Unfused`]: which is faster for which shape has not been measured.
    #[default]
    Auto,
    /// One pass over the queue that keeps no logits: memory for B·(64·d) floats at most in place of
    /// B·K, and for candidates of the hardest, a bit a logit and some four times N floats a query. Only
    /// with at most 128 dimensions. Synthetic negatives join from the rows they are mixed from. Where N
    /// is too large for a list of candidates (above 4586 at K = 65536, above 2136 from 2¹⁸ on; up to
    /// 8192 rows no N is), logits are made beside the pass after all.
    Fused,
    /// The logits of some of the queries are made in memory, then read by each kernel after.
    Unfused,
}

impl Path {
    /// Whether steps of this shape take the fused path.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] where they are to and cannot.
    pub(super) fn is_fused(self, shape: Shape) -> Result<bool> {
        let possible = shape.dim <= CONTRAST_DIM as usize;
        match self {
            Self::Auto | Self::Unfused => Ok(false),
            Self::Fused if possible => Ok(true),
            Self::Fused => Err(Error::OutOfRange {
                argument: "path",
                value: format!("Fused for {} dimensions", shape.dim),
                expected: "at most 128 dimensions",
            }),
        }
    }
}

/// The most splits: with two tiles of queries their blocks fill a large device.
const MOST_SPLITS: usize = 64;

/// The fewest queue rows of a split: with fewer, merging the splits costs more than it gains.
const FEWEST_ROWS: usize = 512;

/// Into how many splits the queue is cut, by its length alone.
pub(super) fn splits(capacity: usize) -> usize {
    capacity.div_ceil(FEWEST_ROWS).min(MOST_SPLITS)
}

/// Exponents below the shift, in units of 1/τ, down to which an exponential and the rest of its
/// splitting in two TF32 numbers, 2⁻²² of it, are far from f32's smallest numbers: e⁻⁶⁰ is 9e-27.
const DEEPEST: f32 = 60.0;

/// 1/τ of the uniformity, its factor 2t for t = 2.
const UNIFORMITY_FACTOR: f32 = 4.0;

impl Part<'_> {
    /// Shifts, exponentials and weighted sums of the queue, as `maxima`, `exponentials` and `weigh`
    /// together leave them.
    ///
    /// # Safety
    /// The contract of [`Part`], of a shape that is fused.
    pub unsafe fn contrast(&self) -> Result<()> {
        let splits = splits(self.shape.capacity);
        let ranking = self.shape.ranking();
        // One rule whether the uniformity is asked for or not: asking changes no bit of the rest.
        let depth = self.config.temperature().min(1.0 / UNIFORMITY_FACTOR);
        let bound = BoundParams {
            longest: self.scratch.longest,
            query_squares: self.scratch.query_squares,
            faults: self.scratch.faults,
            maxima: self.scratch.maxima,
            hot: self.scratch.hot,
            shifts: self.scratch.shifts,
            most: DEEPEST * depth,
            rows: self.rows.len() as u32,
            splits: splits as u32,
            longest_splits: self.shape.longest_splits() as u32,
        };
        let of_rows = |kernel| Launch {
            file: "contrast",
            kernel,
            grid: (bound.rows.div_ceil(BOUND_THREADS), 1, 1),
            threads: BOUND_THREADS,
            shared: 0,
        };
        let element = self.dtype.bytes();
        let stride = match self.dtype {
            DType::F32 => CONTRAST_QUEUE_STRIDE,
            DType::F16 | DType::Bf16 => CONTRAST_QUEUE_STRIDE_16,
        };
        let aligned = (self.queue as usize).is_multiple_of(16)
            && (self.shape.dim * element).is_multiple_of(16);
        let params = ContrastParams {
            queries: self.scratch.usable,
            queue: self.queue.cast(),
            query_labels: self.masking_labels(),
            queue_labels: self.queue_labels,
            hot: self.scratch.hot,
            shifts: self.scratch.shifts,
            maxima: self.scratch.maxima,
            unmasked: self.scratch.unmasked,
            totals: self.scratch.totals,
            uniformity: if self.config.uniformity() {
                self.scratch.uniformity
            } else {
                std::ptr::null_mut()
            },
            sums: self.scratch.sums,
            thresholds: self.scratch.thresholds,
            passing: self.scratch.passing,
            passed_logits: self.scratch.passed_logits,
            passed: self.scratch.passed,
            exponent_scale: exponent_scale(self.config),
            uniformity_scale: UNIFORMITY_FACTOR * std::f32::consts::LOG2_E,
            rows: bound.rows,
            capacity: self.shape.capacity as u32,
            dim: self.shape.dim as u32,
            splits: bound.splits,
            tiles: ranking.map_or(0, |ranking| ranking.tiles) as u32,
            room: ranking.map_or(0, |ranking| ranking.room) as u32,
            queue_aligned: u32::from(aligned),
        };
        let stage = CONTRAST_DEPTH * stride * element as u32;
        let queries = CONTRAST_ROWS * CONTRAST_QUERY_STRIDE * 4;
        let of_queue = |kernel| Launch {
            file: "contrast",
            kernel,
            grid: (bound.rows.div_ceil(CONTRAST_ROWS), bound.splits, 1),
            threads: CONTRAST_THREADS,
            shared: CONTRAST_STAGES * stage + queries,
        };
        let (pass, maxima) = kernels(self.dtype, self.precision, ranking.is_some());
        // SAFETY: the contract of `Part`; the kernels are those for this type, and each reads what
        // those before it have written.
        unsafe {
            self.device.launch(of_rows("bound_logits"), &bound)?;
            self.device.launch(of_queue(maxima), &params)?;
            self.device.launch(of_rows("settle_shifts"), &bound)?;
            self.device.launch(of_queue(pass), &params)
        }
    }
}

/// The pass, and the one before it for hot rows.
fn kernels(dtype: DType, precision: Precision, ranked: bool) -> (&'static str, &'static str) {
    use Precision::{Exact, Tensor};
    let [pass, maxima, pass_ranked] = match (dtype, precision) {
        (DType::F32, Exact) => [
            "contrast_f32_exact",
            "contrast_f32_exact_maxima",
            "contrast_f32_exact_ranked",
        ],
        (DType::F32, Tensor) => [
            "contrast_f32_tensor",
            "contrast_f32_tensor_maxima",
            "contrast_f32_tensor_ranked",
        ],
        (DType::F16, Exact) => [
            "contrast_f16_exact",
            "contrast_f16_exact_maxima",
            "contrast_f16_exact_ranked",
        ],
        (DType::F16, Tensor) => [
            "contrast_f16_tensor",
            "contrast_f16_tensor_maxima",
            "contrast_f16_tensor_ranked",
        ],
        (DType::Bf16, Exact) => [
            "contrast_bf16_exact",
            "contrast_bf16_exact_maxima",
            "contrast_bf16_exact_ranked",
        ],
        (DType::Bf16, Tensor) => [
            "contrast_bf16_tensor",
            "contrast_bf16_tensor_maxima",
            "contrast_bf16_tensor_ranked",
        ],
    };
    (if ranked { pass_ranked } else { pass }, maxima)
}

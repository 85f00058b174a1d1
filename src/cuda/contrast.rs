//! The real negatives' exponentials and their part of the gradient, in one pass over the queue.

use super::device::Launch;
use super::info_nce::exponent_scale;
use super::logits::{Precision, Product};
use super::params::{
    BOUND_THREADS, BoundParams, CONTRAST_DEPTH, CONTRAST_DIM, CONTRAST_LARGE_DIM,
    CONTRAST_LARGE_STAGES, CONTRAST_PADDING, CONTRAST_PADDING_16, CONTRAST_ROWS, CONTRAST_STAGES,
    CONTRAST_THREADS, ContrastParams,
};
use super::part::Part;
use crate::error::Result;
use crate::queue::DType;

/// How a step gets from queries and queue to loss and gradient. The bits of a row are the same within
/// a path; between the two they differ by rounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum Path {
    /// For now always [`Path::Unfused`]: which is faster for which shape has not been measured.
    #[default]
    Auto,
    /// One pass over the queue that keeps no logits: memory for B·(64·d) floats at most in place of
    /// B·K, and for the hardest 16·K floats, a bit a logit and, of candidates and of a sample, some 16·N
    /// floats a query at N = 1024 of K = 65536. With more than 256 dimensions logits of 8192 queue rows
    /// and 256 queries are made at a time, which stay in the device's L2; so they are with more than 128
    /// where blocks cannot have the up to 132 KiB of shared memory that the pass then takes (compute
    /// capabilities 8.6, 8.9 and 12 have 99). Synthetic negatives join from the rows they are mixed from.
    /// Where N is too large for a list of candidates (above 4586 at K = 65536, above 2136 from 2¹⁸ on; up
    /// to 8192 rows no N is), logits are made beside the pass after all.
    Fused,
    /// The logits of some of the queries are made in memory, then read by each kernel after.
    Unfused,
}

impl Path {
    /// Whether steps take the fused path.
    pub(super) fn is_fused(self) -> bool {
        match self {
            Self::Auto | Self::Unfused => false,
            Self::Fused => true,
        }
    }
}

/// For tests: what is otherwise a matter of K and N, so that every branch can be taken.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, Default)]
pub struct FusedTuning {
    /// Queue rows of a slice, for more dimensions than one pass takes.
    pub slice: Option<usize>,
    /// Shared memory, bytes, that a block can have.
    pub shared: Option<u32>,
    /// Rows of the sample.
    pub sample: Option<usize>,
    /// Logits of a query and a split that are kept.
    pub room: Option<usize>,
    /// A threshold, and every how manieth row of a part has it.
    pub forced: Option<(f32, u32)>,
}

/// The most splits: with two tiles of queries their blocks fill a large device.
const MOST_SPLITS: usize = 64;

/// The fewest queue rows of a split: with fewer, merging the splits costs more than it gains.
const FEWEST_ROWS: usize = 512;

/// Into how many splits the queue is cut, by its length alone.
pub(super) fn splits(capacity: usize) -> usize {
    capacity.div_ceil(FEWEST_ROWS).min(MOST_SPLITS)
}

/// Exponents below the shift, in units of 1/τ, down to which an exponential and the last of the parts that
/// it is split in for the tensor cores, 2⁻²² of it, are far from f32's smallest numbers: e⁻⁶⁰ is 9e-27.
const DEEPEST: f32 = 60.0;

/// 1/τ of the uniformity, its factor 2t for t = 2, and as an exponent of 2.
const UNIFORMITY_FACTOR: f32 = 4.0;
pub(super) const UNIFORMITY_SCALE: f32 = UNIFORMITY_FACTOR * std::f32::consts::LOG2_E;

/// The most dimensions of the pass: whose sums lie in registers, and for which a block can have the shared
/// memory.
pub(super) fn most_dim(dtype: DType, precision: Precision, most_shared: u32) -> usize {
    if shared(dtype, precision, false) <= most_shared {
        CONTRAST_LARGE_DIM as usize
    } else {
        CONTRAST_DIM as usize
    }
}

/// Shared memory, bytes, of a block of the kernels for few dimensions or for many: the ring, and the
/// queries.
fn shared(dtype: DType, precision: Precision, few: bool) -> u32 {
    let (dim, stages) = if few {
        (CONTRAST_DIM, CONTRAST_STAGES)
    } else {
        (CONTRAST_LARGE_DIM, CONTRAST_LARGE_STAGES)
    };
    let padding = match dtype {
        DType::F32 => CONTRAST_PADDING,
        DType::F16 | DType::Bf16 => CONTRAST_PADDING_16,
    };
    let query = match (dtype, precision) {
        (DType::F32 | DType::F16, _) => (dim + CONTRAST_PADDING) * 4,
        (DType::Bf16, Precision::Exact) => 3 * (dim + CONTRAST_PADDING_16) * 2,
        (DType::Bf16, Precision::Tensor) => (dim + CONTRAST_PADDING_16) * 2,
    };
    let stage = CONTRAST_DEPTH * (dim + padding) * dtype.bytes() as u32;
    stages * stage + CONTRAST_ROWS * query
}

impl Part<'_> {
    /// Shifts, exponentials and weighted sums of the queue, as `maxima`, `exponentials` and `weigh`
    /// together leave them, and candidates for the hardest.
    ///
    /// # Safety
    /// The contract of [`Part`], of a shape that is fused.
    pub unsafe fn contrast(&self) -> Result<()> {
        let slice = self.shape.slice();
        let splits = splits(self.shape.capacity);
        let parts = slice.map_or(splits, |_| Product::maxima_parts(self.shape.capacity));
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
            splits: parts as u32,
            longest_splits: self.shape.longest_splits() as u32,
        };
        let of_rows = |kernel, threads: u32| Launch {
            file: "contrast",
            kernel,
            grid: ((bound.rows * threads).div_ceil(BOUND_THREADS), 1, 1),
            threads: BOUND_THREADS,
            shared: 0,
        };
        // SAFETY: the contract of `Part`; each kernel reads what those before it have written.
        unsafe {
            self.device.launch(of_rows("bound_logits", 1), &bound)?;
            match slice {
                Some(_) => self.hot_maxima()?,
                None => self.pass(|[_, _, maxima]| maxima)?,
            }
            self.device.launch(of_rows("settle_shifts", 32), &bound)?;
            match slice {
                Some(length) => self.score(length),
                None if self.shape.ranking().is_some() => self.pass(|[_, ranked, _]| ranked),
                None => self.pass(|[sums, ..]| sums),
            }
        }
    }

    /// A pass over the whole queue, by the one that is chosen of its kernels.
    ///
    /// # Safety
    /// The contract of [`Part`], of a shape that is fused and not sliced.
    unsafe fn pass(&self, choose: fn([&'static str; 3]) -> &'static str) -> Result<()> {
        let ranking = self.shape.ranking();
        let (rows, splits) = (self.rows.len() as u32, splits(self.shape.capacity) as u32);
        let few = self.shape.dim <= CONTRAST_DIM as usize;
        let aligned =
            (self.queue as usize).is_multiple_of(16) && self.shape.row_bytes().is_multiple_of(16);
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
            uniformity: self.uniformity(),
            sums: self.scratch.sums,
            thresholds: self.scratch.thresholds,
            passing: self.scratch.passing,
            passed_logits: self.scratch.passed_logits,
            passed: self.scratch.passed,
            exponent_scale: exponent_scale(self.config),
            uniformity_scale: UNIFORMITY_SCALE,
            rows,
            capacity: self.shape.capacity as u32,
            dim: self.shape.dim as u32,
            splits,
            tiles: ranking.map_or(0, |ranking| ranking.tiles) as u32,
            room: ranking.map_or(0, |ranking| ranking.room) as u32,
            queue_aligned: u32::from(aligned),
        };
        let launch = Launch {
            file: "contrast",
            kernel: choose(kernels(self.shape.dtype, self.precision, few)),
            grid: (rows.div_ceil(CONTRAST_ROWS), splits, 1),
            threads: CONTRAST_THREADS,
            shared: shared(self.shape.dtype, self.precision, few),
        };
        // SAFETY: the contract of `Part`; the kernel is one for this type.
        unsafe { self.device.launch(launch, &params) }
    }

    /// Where the uniformity's sums go, or null where it is not asked for.
    pub fn uniformity(&self) -> *mut f64 {
        if self.config.uniformity() {
            self.scratch.uniformity
        } else {
            std::ptr::null_mut()
        }
    }
}

/// The pass, the one that lets candidates for the hardest pass too, and the one before for hot rows.
fn kernels(dtype: DType, precision: Precision, few: bool) -> [&'static str; 3] {
    macro_rules! named {
        ($name:literal) => {
            [
                concat!("contrast_", $name),
                concat!("contrast_", $name, "_ranked"),
                concat!("contrast_", $name, "_maxima"),
            ]
        };
    }
    use Precision::{Exact, Tensor};
    match (dtype, precision, few) {
        (DType::F32, Exact, true) => named!("f32_exact_128"),
        (DType::F32, Exact, false) => named!("f32_exact_256"),
        (DType::F32, Tensor, true) => named!("f32_tensor_128"),
        (DType::F32, Tensor, false) => named!("f32_tensor_256"),
        (DType::F16, Exact, true) => named!("f16_exact_128"),
        (DType::F16, Exact, false) => named!("f16_exact_256"),
        (DType::F16, Tensor, true) => named!("f16_tensor_128"),
        (DType::F16, Tensor, false) => named!("f16_tensor_256"),
        (DType::Bf16, Exact, true) => named!("bf16_exact_128"),
        (DType::Bf16, Exact, false) => named!("bf16_exact_256"),
        (DType::Bf16, Tensor, true) => named!("bf16_tensor_128"),
        (DType::Bf16, Tensor, false) => named!("bf16_tensor_256"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_blocks_have_little_shared_memory_few_dimensions_are_sliced() {
        use Precision::{Exact, Tensor};
        for (dtype, precision, bytes) in [
            (DType::F32, Exact, 133_120),
            (DType::F32, Tensor, 133_120),
            (DType::F16, Exact, 100_352),
            (DType::F16, Tensor, 100_352),
            (DType::Bf16, Exact, 135_168),
            (DType::Bf16, Tensor, 67_584),
        ] {
            assert_eq!(shared(dtype, precision, false), bytes);
            assert_eq!(most_dim(dtype, precision, bytes), 256);
            assert_eq!(most_dim(dtype, precision, bytes - 1), 128);
            // Of compute capability 8.6, the least of those from 8.0 up.
            assert!(shared(dtype, precision, true) <= 99 << 10);
        }
    }
}

//! The logits of queries and queue, on the tensor cores.

use super::device::{Device, Launch, Memory};
use super::params::{
    CHECK_THREADS, CheckParams, LOGITS_DEPTH, LOGITS_ROWS, LOGITS_STAGES, LOGITS_THREADS,
    LogitsParams,
};
use crate::error::Result;
use crate::queue::DType;

/// How the tensor cores multiply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum Precision {
    /// As f32 does. Of an f32 queue three products in TF32, off by at most 3·2⁻²² of themselves; of f16
    /// two, off by 2⁻²²; of bf16 three in bf16, at twice TF32's rate, which are exact.
    #[default]
    Exact,
    /// One product, of rounded operands. Of f32 and f16 what TF32 keeps, 11 bits of significand: off by up
    /// to 2⁻¹⁰ of itself, of f16 rows, which it keeps whole, by 2⁻¹¹. With bf16 rows queries and weights
    /// are rounded to bf16, 8 bits, at twice the rate: off by up to 2⁻⁸. In a simulation TF32 moved
    /// 0.05% of the 1024 hardest of 65536 unit rows, bf16 inputs 0.25%.
    Tensor,
}

/// Bytes of logits that are made at once, where a row has fewer.
const BYTES_AT_ONCE: usize = 256 << 20;

/// How many queries' logits over a queue of `capacity` rows are made at once.
pub(super) fn rows_at_once(capacity: usize) -> usize {
    (BYTES_AT_ONCE / size_of::<f32>() / capacity).max(1)
}

/// Batches of at most this many queries take the smaller tile, which wastes less of itself.
const SMALL_BATCH: usize = 64;

/// Queries, [rows, dim], and the queue that they meet, [capacity, dim].
#[derive(Debug, Clone, Copy)]
pub(super) struct Product {
    pub queries: *const f32,
    pub rows: usize,
    /// The queue's elements, of type `dtype`.
    pub queue: *const u8,
    pub dtype: DType,
    /// Less than 2³¹.
    pub capacity: usize,
    pub dim: usize,
    pub precision: Precision,
}

/// Whose largest logits are asked for, and where they go.
#[derive(Debug, Clone, Copy)]
pub(super) struct Largest {
    /// Whether they are asked for, `[rows]`.
    pub hot: *const u32,
    /// The labels that mask, `[rows]` and `[capacity]`, or null.
    pub query_labels: *const u32,
    pub queue_labels: *const u32,
    pub maxima: *mut f32,
}

impl Default for Largest {
    fn default() -> Self {
        Self {
            hot: std::ptr::null(),
            query_labels: std::ptr::null(),
            queue_labels: std::ptr::null(),
            maxima: std::ptr::null_mut(),
        }
    }
}

impl Product {
    /// Puts on the stream that q·n of every pair is written to `logits`, [rows, capacity].
    ///
    /// # Safety
    /// The queries, the queue and the logits have their shapes' elements until the kernel has run, and
    /// the logits overlap neither.
    pub unsafe fn logits(&self, device: &Device, logits: *mut f32) -> Result<()> {
        let small = self.rows <= SMALL_BATCH;
        // SAFETY: the caller's contract.
        unsafe { self.launch(device, small, logits, Largest::default()) }
    }

    /// Into how many parts `maxima` cuts a queue.
    pub fn maxima_parts(capacity: usize) -> usize {
        2 * capacity.div_ceil(LOGITS_ROWS as usize)
    }

    /// Puts on the stream that the largest unmasked logit of each hot query and part of the queue is
    /// written to `largest.maxima`, [rows, parts].
    ///
    /// # Safety
    /// As above, of everything that is in `largest`.
    pub unsafe fn maxima(&self, device: &Device, largest: Largest) -> Result<()> {
        // SAFETY: the caller's contract; the larger tile is the one with two parts.
        unsafe { self.launch(device, false, std::ptr::null_mut(), largest) }
    }

    unsafe fn launch(
        &self,
        device: &Device,
        small: bool,
        logits: *mut f32,
        largest: Largest,
    ) -> Result<()> {
        let tile = if small { 32 } else { 128 };
        let query_tiles = self.rows.div_ceil(tile);
        let blocks = query_tiles * self.capacity.div_ceil(LOGITS_ROWS as usize);
        let element = self.dtype.bytes();
        let aligned = |pointer: usize, size: usize| {
            pointer.is_multiple_of(16) && (self.dim * size).is_multiple_of(16)
        };
        let params = LogitsParams {
            queries: self.queries,
            queue: self.queue.cast(),
            logits,
            hot: largest.hot,
            query_labels: largest.query_labels,
            queue_labels: largest.queue_labels,
            maxima: largest.maxima,
            parts: Self::maxima_parts(self.capacity) as u32,
            rows: self.rows as u32,
            capacity: self.capacity as u32,
            dim: self.dim as u32,
            query_tiles: query_tiles as u32,
            queries_aligned: u32::from(aligned(self.queries as usize, 4)),
            queue_aligned: u32::from(aligned(self.queue as usize, element)),
        };
        let stage = LOGITS_DEPTH as usize * (tile * 4 + LOGITS_ROWS as usize * element);
        let launch = Launch {
            file: "logits",
            kernel: kernel(self.dtype, self.precision, small),
            grid: Launch::grid_over(self.rows, blocks)?,
            threads: LOGITS_THREADS,
            shared: LOGITS_STAGES * stage as u32,
        };
        // SAFETY: the caller's contract; the kernel is the one for this type and tile, and takes
        // these parameters.
        unsafe { device.launch(launch, &params) }
    }
}

/// Puts on the stream that the first row of `data`, [rows, dim], with a NaN or an infinity is noted in
/// a word of a status.
///
/// # Safety
/// There are that many elements, in fewer than 2³² rows, and `seen` is in a status that outlives the
/// kernel.
pub(super) unsafe fn check_rows(
    device: &Device,
    data: &Memory<'_, f32>,
    rows: usize,
    dim: usize,
    seen: *mut u32,
) -> Result<()> {
    debug_assert!(rows <= u32::MAX as usize);
    let params = CheckParams {
        data: data.pointer(),
        seen,
        rows: rows as u32,
        dim: dim as u32,
    };
    let launch = Launch {
        file: "logits",
        kernel: "check_rows",
        grid: (params.rows.div_ceil(CHECK_THREADS / 32), 1, 1),
        threads: CHECK_THREADS,
        shared: 0,
    };
    // SAFETY: the caller's contract.
    unsafe { device.launch(launch, &params) }
}

fn kernel(dtype: DType, precision: Precision, small: bool) -> &'static str {
    use Precision::{Exact, Tensor};
    match (dtype, precision, small) {
        (DType::F32, Exact, true) => "logits_f32_exact_32",
        (DType::F32, Exact, false) => "logits_f32_exact_128",
        (DType::F32, Tensor, true) => "logits_f32_tensor_32",
        (DType::F32, Tensor, false) => "logits_f32_tensor_128",
        (DType::F16, Exact, true) => "logits_f16_exact_32",
        (DType::F16, Exact, false) => "logits_f16_exact_128",
        (DType::F16, Tensor, true) => "logits_f16_tensor_32",
        (DType::F16, Tensor, false) => "logits_f16_tensor_128",
        (DType::Bf16, Exact, true) => "logits_bf16_exact_32",
        (DType::Bf16, Exact, false) => "logits_bf16_exact_128",
        (DType::Bf16, Tensor, true) => "logits_bf16_tensor_32",
        (DType::Bf16, Tensor, false) => "logits_bf16_tensor_128",
    }
}

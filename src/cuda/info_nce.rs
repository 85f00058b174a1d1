//! Loss and gradient from logits, and the operator on features that are given.

use cudarc::driver::DevicePtr;

use super::batch::Batch;
use super::device::Launch;
use super::logits::Product;
use super::params::{
    ExponentialsParams, FinishParams, GivenParams, INFO_NCE_THREADS, LongestParams, MaximaParams,
    PRODUCT_ROWS, PrepareParams, ReduceParams, RowFigures, ShiftParams, StatusWords,
};
use super::part::{Part, Source};
use super::queue::Queue;
use super::step::{Negatives, Step};
use super::weigh::{Splits, Weighing};
use crate::config::{Config, Reduction};
use crate::error::{Error, Result, elements, expect_length};
use crate::queue::DType;

/// Puts on the stream of `step` the loss and gradient over the queue and given synthetic negatives,
/// which are constants for the gradient (method: Loss, 4), with that step's settings, memory and
/// outputs. `mixed` is [B, s, d] and `query_mixed` [B, s′, d], with s and s′ from the configuration; N
/// and draws play no part. Rows without an unmasked negative ignore theirs.
///
/// # Errors
/// As [`Step::run`]; [`Error::Length`] for features of another shape, [`Error::OutOfRange`] for 2³² of
/// a kind or more. A feature that is not finite is what reading the output reports.
pub fn info_nce(
    step: &mut Step,
    batch: &Batch<'_>,
    queue: &Queue,
    mixed: &dyn DevicePtr<f32>,
    query_mixed: &dyn DevicePtr<f32>,
) -> Result<()> {
    for (argument, features, count) in [
        ("synthetic.mixed", mixed, step.config().mixed()),
        (
            "synthetic.query_mixed",
            query_mixed,
            step.config().query_mixed(),
        ),
    ] {
        let rows = elements(argument, batch.rows(), count)?;
        // A status names them in 32 bits.
        if rows > u32::MAX as usize {
            return Err(Error::OutOfRange {
                argument,
                value: format!("{rows} rows"),
                expected: "less than 2^32 rows",
            });
        }
        let len = elements(argument, rows, batch.dim())?;
        expect_length(argument, features.len(), len, "rows × synthetics × dim")?;
    }
    step.run_over(batch, queue, Negatives::Given(mixed, query_mixed))
}

/// log₂e/τ.
pub(super) fn exponent_scale(config: &Config) -> f32 {
    (std::f64::consts::LOG2_E / f64::from(config.temperature())) as f32
}

/// 1, or 1/B for the mean.
pub(super) fn per_row(config: &Config, rows: usize) -> f64 {
    match config.reduction() {
        Reduction::Mean => 1.0 / rows as f64,
        Reduction::Sum | Reduction::None => 1.0,
    }
}

impl Part<'_> {
    fn launch_of(&self, kernel: &'static str, columns: usize) -> Launch {
        Launch {
            file: "info_nce",
            kernel,
            grid: (self.rows.len() as u32, columns as u32, 1),
            threads: INFO_NCE_THREADS,
            shared: 0,
        }
    }

    /// Which rows are usable, their queries, and q·k of each.
    ///
    /// # Safety
    /// The contract of [`Part`].
    pub unsafe fn prepare(&self) -> Result<()> {
        let (rows, dim) = (self.rows.len(), self.shape.dim);
        let dtype = self.shape.dtype;
        let reordered = |place: *mut f32| {
            if dtype == DType::F16 {
                place
            } else {
                std::ptr::null_mut()
            }
        };
        let params = PrepareParams {
            queries: self.queries,
            keys: self.keys,
            longest: self.scratch.longest,
            usable: self.scratch.usable,
            faults: self.scratch.faults,
            query_squares: self.scratch.query_squares,
            product_queries: reordered(self.scratch.product_queries),
            product_keys: reordered(self.scratch.product_keys),
            key_parts: if dtype == DType::Bf16 {
                self.scratch.key_parts.cast()
            } else {
                std::ptr::null_mut()
            },
            rows: rows as u32,
            dim: dim as u32,
            splits: self.shape.longest_splits() as u32,
            stretch: (1.0 / self.config.temperature()).max(1.0),
        };
        let launch = Launch {
            grid: (params.rows.div_ceil(INFO_NCE_THREADS / 32), 1, 1),
            ..self.launch_of("prepare", 1)
        };
        // SAFETY: the contract of `Part`.
        unsafe { self.device.launch(launch, &params)? };
        let usable = self.scratch.usable;
        // The keys as rows of a queue.
        let (queries, keys, stored) = match dtype {
            DType::F32 => (usable, self.keys.cast::<u8>(), DType::F32),
            DType::F16 => {
                let keys = self.scratch.product_keys.cast_const();
                (self.scratch.product_queries, keys.cast(), DType::F32)
            }
            DType::Bf16 => {
                let keys = self.scratch.key_parts.cast_const();
                (usable, keys.cast(), DType::Bf16)
            }
        };
        let (dim, parts) = (self.shape.product_dim(), self.shape.key_parts());
        let group = PRODUCT_ROWS as usize;
        for start in (0..rows).step_by(group) {
            let count = group.min(rows - start);
            let product = Product {
                queries: queries.wrapping_add(start * dim),
                rows: count,
                queue: keys.wrapping_add(start * parts * dim * stored.bytes()),
                dtype: stored,
                capacity: count * parts,
                dim,
                precision: self.precision,
            };
            let products = self.scratch.products.wrapping_add(start * group * parts);
            // SAFETY: as above; the products of a group of n rows are n² of `PRODUCT_ROWS` a row, of as
            // many parts.
            unsafe { product.logits(self.device, products)? };
        }
        Ok(())
    }

    /// The largest ‖n‖² of the queue, in parts.
    ///
    /// # Safety
    /// The contract of [`Part`].
    pub unsafe fn longest(&self) -> Result<()> {
        let params = LongestParams {
            squared_norms: self.squared_norms,
            longest: self.scratch.longest,
            capacity: self.shape.capacity as u32,
        };
        let launch = Launch {
            grid: (self.shape.longest_splits() as u32, 1, 1),
            ..self.launch_of("longest", 1)
        };
        // SAFETY: the contract of `Part`.
        unsafe { self.device.launch(launch, &params) }
    }

    /// The logits of queries and queue.
    ///
    /// # Safety
    /// The contract of [`Part`].
    pub unsafe fn logits(&self) -> Result<()> {
        // SAFETY: the contract of `Part`.
        unsafe { self.product().logits(self.device, self.scratch.logits) }
    }

    /// The usable queries and the queue.
    pub fn product(&self) -> Product {
        Product {
            queries: self.scratch.usable,
            rows: self.rows.len(),
            queue: self.queue,
            dtype: self.shape.dtype,
            capacity: self.shape.capacity,
            dim: self.shape.dim,
            precision: self.precision,
        }
    }

    /// The largest logit of each split.
    ///
    /// # Safety
    /// The contract of [`Part`].
    pub unsafe fn maxima(&self) -> Result<()> {
        let params = MaximaParams {
            logits: self.scratch.logits,
            query_labels: self.masking_labels(),
            queue_labels: self.queue_labels,
            maxima: self.scratch.maxima,
            unmasked: self.scratch.unmasked,
            capacity: self.shape.capacity as u32,
        };
        let launch = self.launch_of("maxima", self.shape.logit_splits());
        // SAFETY: the contract of `Part`.
        unsafe { self.device.launch(launch, &params) }
    }

    /// The shift, and how the synthetic logits compare.
    ///
    /// # Safety
    /// The contract of [`Part`].
    pub unsafe fn shift(&self) -> Result<()> {
        let params = ShiftParams {
            maxima: self.scratch.maxima,
            unmasked: self.scratch.unmasked,
            products: self.scratch.products,
            key_parts: self.shape.key_parts() as u32,
            faults: self.scratch.faults,
            mixed_logits: self.out.mixed_logits,
            query_mixed_logits: self.out.query_mixed_logits,
            shifts: if self.shape.fused {
                std::ptr::null_mut()
            } else {
                self.scratch.shifts
            },
            synthetic_shifts: if self.shape.fused {
                self.scratch.synthetic_shifts
            } else {
                std::ptr::null_mut()
            },
            figures: self.out.figures,
            rows: self.rows.len() as u32,
            splits: self.shape.logit_splits() as u32,
            mixed: self.shape.mixed as u32,
            query_mixed: self.shape.query_mixed as u32,
        };
        // SAFETY: the contract of `Part`.
        unsafe { self.device.launch(self.launch_of("shift", 1), &params) }
    }

    /// Logits become exponentials, with the weights of what was mixed.
    ///
    /// # Safety
    /// The contract of [`Part`].
    pub unsafe fn exponentials(&self) -> Result<()> {
        let asked = |asked: bool, place: *mut f64| {
            if asked { place } else { std::ptr::null_mut() }
        };
        let params = ExponentialsParams {
            logits: self.scratch.logits,
            query_labels: self.masking_labels(),
            queue_labels: self.queue_labels,
            shifts: self.scratch.shifts,
            figures: self.out.figures,
            hardest: self.out.hardest,
            counts: self.out.counts,
            weights: if self.mixes() {
                self.scratch.weights.cast()
            } else {
                std::ptr::null()
            },
            weight_exponents: self.scratch.weight_exponents,
            totals: self.scratch.totals,
            real_totals: asked(self.config.matching_probability(), self.scratch.real_totals),
            uniformity: asked(self.config.uniformity(), self.scratch.uniformity),
            exponent_scale: exponent_scale(self.config),
            capacity: self.shape.capacity as u32,
            hardest_width: self.shape.hardest as u32,
        };
        let launch = self.launch_of("exponentials", self.shape.logit_splits());
        // SAFETY: the contract of `Part`.
        unsafe { self.device.launch(launch, &params) }
    }

    fn given(&self, mixed: *const f32, query_mixed: *const f32) -> GivenParams {
        GivenParams {
            queries: self.scratch.usable,
            mixed,
            query_mixed,
            unmasked: self.scratch.unmasked,
            shifts: self.synthetic_shifts(),
            mixed_logits: self.out.mixed_logits,
            query_mixed_logits: self.out.query_mixed_logits,
            synthetic_totals: self.scratch.synthetic_totals,
            direction: self.scratch.direction,
            exponent_scale: exponent_scale(self.config),
            dim: self.shape.dim as u32,
            splits: self.shape.logit_splits() as u32,
            mixed_count: self.shape.mixed as u32,
            query_mixed_count: self.shape.query_mixed as u32,
        }
    }

    /// The logits of given features.
    ///
    /// # Safety
    /// The contract of [`Part`].
    pub unsafe fn given_logits(&self, mixed: *const f32, query_mixed: *const f32) -> Result<()> {
        let warps = (INFO_NCE_THREADS / 32) as usize;
        let columns = self.shape.synthetics().div_ceil(warps).min(65535);
        let launch = self.launch_of("given_logits", columns);
        // SAFETY: the contract of `Part`.
        unsafe { self.device.launch(launch, &self.given(mixed, query_mixed)) }
    }

    /// Their part in the sums.
    ///
    /// # Safety
    /// The contract of [`Part`].
    pub unsafe fn given_sums(&self, mixed: *const f32, query_mixed: *const f32) -> Result<()> {
        let launch = self.launch_of("given_sums", 1);
        // SAFETY: the contract of `Part`.
        unsafe { self.device.launch(launch, &self.given(mixed, query_mixed)) }
    }

    /// The weighted sums of the queue.
    ///
    /// # Safety
    /// The contract of [`Part`].
    pub unsafe fn weigh(&self) -> Result<()> {
        let weighing = Weighing {
            weights: self.scratch.logits,
            rows: self.rows.len(),
            queue: self.queue,
            dtype: self.shape.dtype,
            capacity: self.shape.capacity,
            dim: self.shape.dim,
            precision: self.precision,
        };
        let splits = Splits::of(self.shape.capacity, self.shape.dim);
        // SAFETY: the contract of `Part`.
        unsafe { weighing.sums(self.device, splits, self.scratch.sums, false) }
    }

    /// Loss, gradient and figures.
    ///
    /// # Safety
    /// The contract of [`Part`].
    pub unsafe fn finish(&self) -> Result<()> {
        let only = |there: bool, place: *mut f64| -> *const f64 {
            if there { place } else { std::ptr::null() }
        };
        let synthetics = self.shape.synthetics() > 0;
        let params = FinishParams {
            queries: self.scratch.usable,
            keys: self.keys,
            sums: self.scratch.sums,
            direction: match self.source {
                Source::Given(..) if synthetics => self.scratch.direction,
                Source::Drawn(..) if self.shape.fused => self.scratch.direction,
                _ => std::ptr::null(),
            },
            totals: self.scratch.totals,
            // The pass takes real negatives alone.
            real_totals: if self.shape.fused {
                self.scratch.totals
            } else {
                only(self.config.matching_probability(), self.scratch.real_totals)
            },
            uniformity: only(self.config.uniformity(), self.scratch.uniformity),
            real_shifts: if self.shape.fused {
                self.scratch.shifts
            } else {
                std::ptr::null_mut()
            },
            synthetic_totals: only(synthetics, self.scratch.synthetic_totals),
            query_weights: only(self.mixes(), self.scratch.query_weights),
            shifts: self.scratch.shifts,
            synthetic_shifts: self.synthetic_shifts(),
            faults: self.scratch.faults,
            counts: if self.shape.hardest > 0 {
                self.out.counts
            } else {
                std::ptr::null()
            },
            hardest: self.out.hardest,
            query_labels: self.query_labels,
            queue_labels: self.queue_labels,
            figures: self.out.figures,
            loss_rows: self.out.loss_rows,
            grad_queries: self.out.grad_queries,
            grad_keys: self.out.grad_keys,
            mixed_logits: self.out.mixed_logits,
            query_mixed_logits: self.out.query_mixed_logits,
            per_row: per_row(self.config, self.shape.rows),
            temperature: self.config.temperature(),
            rows: self.rows.len() as u32,
            dim: self.shape.dim as u32,
            sum_splits: self.shape.sum_splits() as u32,
            logit_splits: self.shape.logit_splits() as u32,
            hardest_width: self.shape.hardest as u32,
            mixed: self.shape.mixed as u32,
            query_mixed: self.shape.query_mixed as u32,
        };
        // SAFETY: the contract of `Part`.
        unsafe { self.device.launch(self.launch_of("finish", 1), &params) }
    }

    /// The loss of the whole batch and its status, once all parts are finished; this is the last.
    ///
    /// # Safety
    /// The contract of [`Part`]; `figures` are those of the batch.
    pub unsafe fn reduce(
        &self,
        figures: *const RowFigures,
        loss: *mut f32,
        status: *mut StatusWords,
    ) -> Result<()> {
        let params = ReduceParams {
            figures,
            loss,
            status,
            per_row: per_row(self.config, self.shape.rows),
            rows: self.shape.rows as u32,
        };
        let launch = Launch {
            grid: (1, 1, 1),
            ..self.launch_of("reduce", 1)
        };
        // SAFETY: the contract of `Part`.
        unsafe { self.device.launch(launch, &params) }
    }
}

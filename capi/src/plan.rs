//! Settings, and a step on the caller's memory.

use std::sync::{Mutex, MutexGuard};

use hardmix::{Batch, Config, Draws, GivenDraws, Metrics, Output, QueryGradient, Reduction, cpu};

use crate::memory::{
    elements, expect_optional_place, hand_over, optional_slice, put, reference, slice, take_back,
};
use crate::queue::hardmix_queue;
use crate::status::{Failure, Result, Status, call};

/// `hardmix_plan` of the header.
#[allow(non_camel_case_types, reason = "the header's name")]
#[derive(Debug)]
pub struct hardmix_plan(Mutex<cpu::Step>);

impl hardmix_plan {
    fn lock(&self) -> Result<MutexGuard<'_, cpu::Step>> {
        self.0.lock().map_err(|_| Failure::Poisoned("plan"))
    }

    /// The settings as they are now.
    #[cfg(feature = "cuda")]
    pub(crate) fn config(&self) -> Result<Config> {
        Ok(self.lock()?.config().clone())
    }
}

/// `hardmix_batch` of the header.
#[allow(non_camel_case_types, reason = "the header's name")]
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct hardmix_batch {
    pub(crate) queries: *const f32,
    pub(crate) keys: *const f32,
    pub(crate) labels: *const u32,
    pub(crate) rows: usize,
    pub(crate) dim: usize,
    pub(crate) row_offset: u32,
}

/// `hardmix_draws` of the header.
#[allow(non_camel_case_types, reason = "the header's name")]
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct hardmix_draws {
    seed: u64,
    step: u64,
    first: *const u32,
    second: *const u32,
    alpha: *const f32,
    pick: *const u32,
    beta: *const f32,
}

/// `hardmix_metrics` of the header.
#[allow(non_camel_case_types, reason = "the header's name")]
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct hardmix_metrics {
    proxy_accuracy: f64,
    proxy_accuracy_with_synthetic: f64,
    alignment: f64,
    uniformity: f64,
    mixed_harder: f64,
    query_mixed_harder: f64,
    same_label_share: f64,
}

/// `hardmix_output` of the header.
#[allow(non_camel_case_types, reason = "the header's name")]
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct hardmix_output {
    loss: *mut f32,
    loss_rows: *mut f32,
    grad_queries: *mut f32,
    grad_keys: *mut f32,
    hardest: *mut u32,
    mixed_logits: *mut f32,
    query_mixed_logits: *mut f32,
    first: *mut u32,
    second: *mut u32,
    alpha: *mut f32,
    pick: *mut u32,
    beta: *mut f32,
    metrics: *mut hardmix_metrics,
}

impl From<&Metrics> for hardmix_metrics {
    fn from(metrics: &Metrics) -> Self {
        let or_nan = |figure: Option<f64>| figure.unwrap_or(f64::NAN);
        Self {
            proxy_accuracy: metrics.proxy_accuracy,
            proxy_accuracy_with_synthetic: metrics.proxy_accuracy_with_synthetic,
            alignment: metrics.alignment,
            uniformity: or_nan(metrics.uniformity),
            mixed_harder: or_nan(metrics.mixed_harder),
            query_mixed_harder: or_nan(metrics.query_mixed_harder),
            same_label_share: or_nan(metrics.same_label_share),
        }
    }
}

/// `hardmix_plan_create` of the header.
///
/// # Safety
/// What the header says of its arguments.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hardmix_plan_create(
    hardest: usize,
    mixed: usize,
    query_mixed: usize,
    temperature: f32,
    out: *mut *mut hardmix_plan,
) -> Status {
    call(|| {
        let config = Config::mochi(hardest, mixed, query_mixed)?.with_temperature(temperature)?;
        let plan = hardmix_plan(Mutex::new(cpu::Step::new(config)));
        // SAFETY: the header's contract.
        unsafe { hand_over(out, plan) }
    })
}

/// `hardmix_plan_free` of the header.
///
/// # Safety
/// What the header says of its arguments.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hardmix_plan_free(plan: *mut hardmix_plan) {
    // SAFETY: the header's contract.
    call(|| unsafe { take_back(plan) });
}

/// Changes a setting.
///
/// # Safety
/// `plan` is NULL or a plan.
unsafe fn set(plan: *mut hardmix_plan, change: impl FnOnce(Config) -> Result<Config>) -> Status {
    call(|| {
        // SAFETY: the caller's contract.
        let mut step = unsafe { reference("plan", plan) }?.lock()?;
        let config = change(step.config().clone())?;
        step.set_config(config);
        Ok(())
    })
}

/// `hardmix_plan_set_negatives` of the header.
///
/// # Safety
/// What the header says of its arguments.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hardmix_plan_set_negatives(
    plan: *mut hardmix_plan,
    hardest: usize,
    mixed: usize,
    query_mixed: usize,
) -> Status {
    let change = |old: Config| Ok(old.with_negatives(hardest, mixed, query_mixed)?);
    // SAFETY: the header's contract.
    unsafe { set(plan, change) }
}

/// `hardmix_plan_set_temperature` of the header.
///
/// # Safety
/// What the header says of its arguments.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hardmix_plan_set_temperature(
    plan: *mut hardmix_plan,
    temperature: f32,
) -> Status {
    // SAFETY: the header's contract.
    unsafe { set(plan, |old| Ok(old.with_temperature(temperature)?)) }
}

/// `hardmix_plan_set_query_gradient` of the header.
///
/// # Safety
/// What the header says of its arguments.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hardmix_plan_set_query_gradient(
    plan: *mut hardmix_plan,
    query_gradient: i32,
) -> Status {
    let change = |old: Config| match query_gradient {
        0 => Ok(old.with_query_gradient(QueryGradient::Detached)),
        1 => Ok(old.with_query_gradient(QueryGradient::Attached)),
        _ => Err(Failure::Invalid(format!(
            "query_gradient is {query_gradient}; expected HARDMIX_DETACHED or HARDMIX_ATTACHED"
        ))),
    };
    // SAFETY: the header's contract.
    unsafe { set(plan, change) }
}

/// `hardmix_plan_set_reduction` of the header.
///
/// # Safety
/// What the header says of its arguments.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hardmix_plan_set_reduction(
    plan: *mut hardmix_plan,
    reduction: i32,
) -> Status {
    let change = |old: Config| match reduction {
        0 => Ok(old.with_reduction(Reduction::Mean)),
        1 => Ok(old.with_reduction(Reduction::Sum)),
        2 => Ok(old.with_reduction(Reduction::None)),
        _ => Err(Failure::Invalid(format!(
            "reduction is {reduction}; expected HARDMIX_MEAN, HARDMIX_SUM or HARDMIX_NO_REDUCTION"
        ))),
    };
    // SAFETY: the header's contract.
    unsafe { set(plan, change) }
}

/// `hardmix_plan_set_oracle` of the header.
///
/// # Safety
/// What the header says of its arguments.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hardmix_plan_set_oracle(plan: *mut hardmix_plan, on: i32) -> Status {
    // SAFETY: the header's contract.
    unsafe { set(plan, |old| Ok(old.with_oracle(on != 0))) }
}

/// `hardmix_plan_set_key_gradient` of the header.
///
/// # Safety
/// What the header says of its arguments.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hardmix_plan_set_key_gradient(plan: *mut hardmix_plan, on: i32) -> Status {
    // SAFETY: the header's contract.
    unsafe { set(plan, |old| Ok(old.with_key_gradient(on != 0))) }
}

/// `hardmix_plan_set_uniformity` of the header.
///
/// # Safety
/// What the header says of its arguments.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hardmix_plan_set_uniformity(plan: *mut hardmix_plan, on: i32) -> Status {
    // SAFETY: the header's contract.
    unsafe { set(plan, |old| Ok(old.with_uniformity(on != 0))) }
}

/// `hardmix_step` of the header.
///
/// # Safety
/// What the header says of its arguments.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hardmix_step(
    plan: *mut hardmix_plan,
    batch: *const hardmix_batch,
    queue: *const hardmix_queue,
    draws: *const hardmix_draws,
    output: *const hardmix_output,
) -> Status {
    call(|| {
        // SAFETY: the header's contract.
        let (plan, batch, queue, draws, output) = unsafe {
            (
                reference("plan", plan)?,
                reference("batch", batch)?,
                reference("queue", queue)?,
                reference("draws", draws)?,
                reference("output", output)?,
            )
        };
        let (mut step, queue) = (plan.lock()?, queue.read()?);
        output.check(step.config())?;
        // SAFETY: the header's contract.
        let (draws, batch) = unsafe { (draws.read(step.config(), batch.rows)?, batch.read()?) };
        let computed = step.run(&batch, &queue, &draws)?;
        // SAFETY: checked, and the header's contract.
        unsafe { output.write(&computed) };
        let loss = computed.loss();
        step.recycle(computed);
        loss?;
        Ok(())
    })
}

impl hardmix_batch {
    /// # Safety
    /// The header's contract: [rows, dim] each, and [rows] labels.
    unsafe fn read<'a>(&self) -> Result<Batch<'a>> {
        let len = elements::<f32>("queries", self.rows, self.dim)?;
        // SAFETY: the caller's contract.
        let (queries, keys, labels) = unsafe {
            (
                slice("batch.queries", self.queries, len)?,
                slice("batch.keys", self.keys, len)?,
                optional_slice("batch.labels", self.labels, self.rows)?,
            )
        };
        let batch = Batch::new(queries, keys, self.dim)?.with_row_offset(self.row_offset)?;
        Ok(match labels {
            Some(labels) => batch.with_labels(labels)?,
            None => batch,
        })
    }
}

impl hardmix_draws {
    /// # Safety
    /// The header's contract: [rows, mixed] and [rows, query_mixed].
    unsafe fn read(&self, config: &Config, rows: usize) -> Result<Draws> {
        let pointers = [
            self.first.cast::<u8>(),
            self.second.cast(),
            self.alpha.cast(),
            self.pick.cast(),
            self.beta.cast(),
        ];
        if pointers.iter().all(|pointer| pointer.is_null()) {
            return Ok(Draws::seeded(self.seed, self.step)?);
        }
        let mixed = elements::<f32>("mixed", rows, config.mixed())?;
        let query_mixed = elements::<f32>("query_mixed", rows, config.query_mixed())?;
        // SAFETY: the caller's contract.
        unsafe {
            Ok(Draws::given(GivenDraws {
                first: copy("draws.first", self.first, mixed)?,
                second: copy("draws.second", self.second, mixed)?,
                alpha: copy("draws.alpha", self.alpha, mixed)?,
                pick: copy("draws.pick", self.pick, query_mixed)?,
                beta: copy("draws.beta", self.beta, query_mixed)?,
            }))
        }
    }
}

/// A copy of an array, which may be NULL where it has no element.
///
/// # Safety
/// As [`slice`].
unsafe fn copy<T: Copy>(argument: &'static str, pointer: *const T, len: usize) -> Result<Vec<T>> {
    if len == 0 {
        return Ok(Vec::new());
    }
    // SAFETY: the caller's contract.
    unsafe { slice(argument, pointer, len) }.map(<[T]>::to_vec)
}

impl hardmix_output {
    /// Refuses what could not be filled.
    fn check(&self, config: &Config) -> Result<()> {
        expect_optional_place("output.loss", self.loss)?;
        expect_optional_place("output.loss_rows", self.loss_rows)?;
        expect_optional_place("output.grad_queries", self.grad_queries)?;
        expect_optional_place("output.grad_keys", self.grad_keys)?;
        expect_optional_place("output.hardest", self.hardest)?;
        expect_optional_place("output.mixed_logits", self.mixed_logits)?;
        expect_optional_place("output.query_mixed_logits", self.query_mixed_logits)?;
        expect_optional_place("output.first", self.first)?;
        expect_optional_place("output.second", self.second)?;
        expect_optional_place("output.alpha", self.alpha)?;
        expect_optional_place("output.pick", self.pick)?;
        expect_optional_place("output.beta", self.beta)?;
        expect_optional_place("output.metrics", self.metrics)?;
        if !self.grad_keys.is_null() && !config.key_gradient() {
            return Err(Failure::UnaskedKeyGradient);
        }
        Ok(())
    }

    /// # Safety
    /// The header's contract: the places are NULL or have the shapes of the output.
    unsafe fn write(&self, computed: &Output) {
        let loss = computed.loss().unwrap_or(f32::NAN);
        // SAFETY: the caller's contract.
        unsafe {
            put(self.loss, &[loss]);
            put(self.loss_rows, &computed.loss_rows);
            put(self.grad_queries, &computed.grad_queries);
            put(
                self.grad_keys,
                computed.grad_keys.as_deref().unwrap_or_default(),
            );
            put(self.hardest, &computed.hardest);
            put(self.mixed_logits, &computed.mixed_logits);
            put(self.query_mixed_logits, &computed.query_mixed_logits);
            put(self.first, &computed.draws.first);
            put(self.second, &computed.draws.second);
            put(self.alpha, &computed.draws.alpha);
            put(self.pick, &computed.draws.pick);
            put(self.beta, &computed.draws.beta);
            put(self.metrics, &[hardmix_metrics::from(&computed.metrics)]);
        }
    }
}

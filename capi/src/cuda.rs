//! The same on device memory and the caller's stream.

use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard};

use cudarc::driver::sys::{CUdeviceptr, CUstream};
use cudarc::driver::{
    CudaStream, CudaView, DevicePtr, DevicePtrMut, DeviceRepr, DeviceSlice, SyncOnDrop,
};
use hardmix::cuda::{Batch, Device, Draws, GivenDraws, Queue, Step};
use hardmix::{Config, Error};

use crate::memory::{
    elements, expect_optional_place, expect_place, hand_over, put, reference, take_back,
};
use crate::plan::{hardmix_batch, hardmix_metrics, hardmix_plan};
use crate::queue::hardmix_queue;
use crate::status::{Failure, Result, Status, call};

/// `hardmix_cuda_device` of the header.
#[allow(non_camel_case_types, reason = "the header's name")]
#[derive(Debug)]
pub struct hardmix_cuda_device(Device);

/// `hardmix_cuda_queue` of the header.
#[allow(non_camel_case_types, reason = "the header's name")]
#[derive(Debug)]
pub struct hardmix_cuda_queue {
    device: Device,
    queue: Mutex<Queue>,
}

/// `hardmix_cuda_plan` of the header.
#[allow(non_camel_case_types, reason = "the header's name")]
#[derive(Debug)]
pub struct hardmix_cuda_plan {
    device: Device,
    step: Mutex<Step>,
}

/// `hardmix_cuda_output` of the header.
#[allow(non_camel_case_types, reason = "the header's name")]
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct hardmix_cuda_output {
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
}

/// `hardmix_cuda_draws` of the header.
#[allow(non_camel_case_types, reason = "the header's name")]
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct hardmix_cuda_draws {
    seed_and_step: *const u64,
    first: *const u32,
    second: *const u32,
    alpha: *const f32,
    pick: *const u32,
    beta: *const f32,
}

impl hardmix_cuda_queue {
    fn lock(&self) -> Result<MutexGuard<'_, Queue>> {
        self.queue.lock().map_err(|_| Failure::Poisoned("queue"))
    }
}

impl hardmix_cuda_plan {
    fn lock(&self) -> Result<MutexGuard<'_, Step>> {
        self.step.lock().map_err(|_| Failure::Poisoned("plan"))
    }
}

/// Device memory of the caller's, which the caller frees and whose use on other streams it orders.
struct Foreign<T> {
    pointer: *mut T,
    len: usize,
    stream: Arc<CudaStream>,
}

impl<T> Foreign<T> {
    /// # Safety
    /// Until the stream has come past what is put on it next, `pointer` is device memory of `len`
    /// elements, in the context of the device.
    unsafe fn new(
        argument: &'static str,
        pointer: *const T,
        len: usize,
        device: &Device,
    ) -> Result<Self> {
        expect_place(argument, pointer)?;
        Ok(Self {
            pointer: pointer.cast_mut(),
            len: elements::<T>(argument, len, 1)?,
            stream: device.stream().clone(),
        })
    }

    /// One that may be NULL where it has no element.
    ///
    /// # Safety
    /// As [`Foreign::new`].
    unsafe fn or_empty(
        argument: &'static str,
        pointer: *const T,
        len: usize,
        device: &Device,
    ) -> Result<Self> {
        let aligned = std::ptr::dangling();
        // SAFETY: the caller's contract; of no element nothing is asked.
        unsafe {
            Self::new(
                argument,
                if len == 0 { aligned } else { pointer },
                len,
                device,
            )
        }
    }

    /// One that may be missing.
    ///
    /// # Safety
    /// As [`Foreign::new`].
    unsafe fn optional(
        argument: &'static str,
        pointer: *const T,
        len: usize,
        device: &Device,
    ) -> Result<Option<Self>> {
        if pointer.is_null() {
            return Ok(None);
        }
        // SAFETY: the caller's contract.
        unsafe { Self::new(argument, pointer, len, device) }.map(Some)
    }
}

impl<T> DeviceSlice<T> for Foreign<T> {
    fn len(&self) -> usize {
        self.len
    }

    fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }
}

// The caller orders what its own streams do with its memory, so there is no event to wait for.
impl<T> DevicePtr<T> for Foreign<T> {
    fn device_ptr<'a>(&'a self, _: &'a CudaStream) -> (CUdeviceptr, SyncOnDrop<'a>) {
        (self.pointer as CUdeviceptr, SyncOnDrop::Record(None))
    }
}

impl<T> DevicePtrMut<T> for Foreign<T> {
    fn device_ptr_mut<'a>(&'a mut self, _: &'a CudaStream) -> (CUdeviceptr, SyncOnDrop<'a>) {
        (self.pointer as CUdeviceptr, SyncOnDrop::Record(None))
    }
}

/// `hardmix_cuda_device_create` of the header.
///
/// # Safety
/// What the header says of its arguments.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hardmix_cuda_device_create(
    ordinal: i32,
    stream: *mut c_void,
    out: *mut *mut hardmix_cuda_device,
) -> Status {
    call(|| {
        // No device has the ordinal that a negative one becomes.
        let mut device = Device::new(usize::try_from(ordinal).unwrap_or(usize::MAX))?;
        if !stream.is_null() {
            let context = device.stream().context().clone();
            // SAFETY: the header's contract: a stream of this context that outlives the handles.
            let stream = unsafe { context.wrap_borrowed_stream(stream as CUstream) };
            device = device.with_stream(stream)?;
        }
        // SAFETY: the header's contract.
        unsafe { hand_over(out, hardmix_cuda_device(device)) }
    })
}

/// `hardmix_cuda_device_free` of the header.
///
/// # Safety
/// What the header says of its arguments.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hardmix_cuda_device_free(device: *mut hardmix_cuda_device) {
    // SAFETY: the header's contract.
    call(|| unsafe { take_back(device) });
}

/// `hardmix_cuda_queue_create` of the header.
///
/// # Safety
/// What the header says of its arguments.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hardmix_cuda_queue_create(
    device: *const hardmix_cuda_device,
    queue: *const hardmix_queue,
    out: *mut *mut hardmix_cuda_queue,
) -> Status {
    call(|| {
        // SAFETY: the header's contract.
        let (device, queue) = unsafe { (reference("device", device)?, reference("queue", queue)?) };
        let device = device.0.clone();
        let queue = Mutex::new(Queue::from_host(&device, &*queue.read()?)?);
        device.synchronize()?;
        // SAFETY: the header's contract.
        unsafe { hand_over(out, hardmix_cuda_queue { device, queue }) }
    })
}

/// `hardmix_cuda_queue_to_host` of the header.
///
/// # Safety
/// What the header says of its arguments.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hardmix_cuda_queue_to_host(
    queue: *const hardmix_cuda_queue,
    out: *mut *mut hardmix_queue,
) -> Status {
    call(|| {
        // SAFETY: the header's contract.
        let queue = unsafe { reference("queue", queue) }?;
        let copy = queue.lock()?.to_host(&queue.device)?;
        // SAFETY: the header's contract.
        unsafe { hand_over(out, hardmix_queue::new(copy)) }
    })
}

/// `hardmix_cuda_queue_enqueue` of the header.
///
/// # Safety
/// What the header says of its arguments.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hardmix_cuda_queue_enqueue(
    queue: *mut hardmix_cuda_queue,
    keys: *const f32,
    labels: *const u32,
    rows: usize,
    normalise: i32,
) -> Status {
    call(|| {
        // SAFETY: the header's contract.
        let queue = unsafe { reference("queue", queue) }?;
        let (device, mut ring) = (&queue.device, queue.lock()?);
        let len = elements::<f32>("keys", rows, ring.dim())?;
        // SAFETY: the header's contract: [rows, dim] and [rows].
        let (keys, labels) = unsafe {
            (
                Foreign::new("keys", keys, len, device)?,
                Foreign::optional("labels", labels, rows, device)?,
            )
        };
        let labels = labels.as_ref().map(|labels| labels as &dyn DevicePtr<u32>);
        if normalise == 0 {
            ring.enqueue(device, &keys, labels)?;
        } else {
            ring.enqueue_normalised(device, &keys, labels)?;
        }
        Ok(())
    })
}

/// `hardmix_cuda_queue_check` of the header.
///
/// # Safety
/// What the header says of its arguments.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hardmix_cuda_queue_check(queue: *mut hardmix_cuda_queue) -> Status {
    call(|| {
        // SAFETY: the header's contract.
        let queue = unsafe { reference("queue", queue) }?;
        Ok(queue.lock()?.check(&queue.device)?)
    })
}

/// `hardmix_cuda_queue_free` of the header.
///
/// # Safety
/// What the header says of its arguments.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hardmix_cuda_queue_free(queue: *mut hardmix_cuda_queue) {
    // SAFETY: the header's contract.
    call(|| unsafe { take_back(queue) });
}

/// `hardmix_cuda_plan_create` of the header.
///
/// # Safety
/// What the header says of its arguments.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hardmix_cuda_plan_create(
    device: *const hardmix_cuda_device,
    settings: *const hardmix_plan,
    out: *mut *mut hardmix_cuda_plan,
) -> Status {
    call(|| {
        // SAFETY: the header's contract.
        let (device, settings) = unsafe {
            (
                reference("device", device)?,
                reference("settings", settings)?,
            )
        };
        let device = device.0.clone();
        let step = Mutex::new(Step::new(&device, settings.config()?)?);
        // SAFETY: the header's contract.
        unsafe { hand_over(out, hardmix_cuda_plan { device, step }) }
    })
}

/// `hardmix_cuda_plan_set` of the header.
///
/// # Safety
/// What the header says of its arguments.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hardmix_cuda_plan_set(
    plan: *mut hardmix_cuda_plan,
    settings: *const hardmix_plan,
) -> Status {
    call(|| {
        // SAFETY: the header's contract.
        let (plan, settings) =
            unsafe { (reference("plan", plan)?, reference("settings", settings)?) };
        let config = settings.config()?;
        plan.lock()?.set_config(config);
        Ok(())
    })
}

/// `hardmix_cuda_plan_free` of the header.
///
/// # Safety
/// What the header says of its arguments.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hardmix_cuda_plan_free(plan: *mut hardmix_cuda_plan) {
    // SAFETY: the header's contract.
    call(|| unsafe { take_back(plan) });
}

/// `hardmix_cuda_step` of the header.
///
/// # Safety
/// What the header says of its arguments.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hardmix_cuda_step(
    plan: *mut hardmix_cuda_plan,
    batch: *const hardmix_batch,
    queue: *const hardmix_cuda_queue,
    draws: *const hardmix_cuda_draws,
    output: *const hardmix_cuda_output,
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
        let (device, mut step, ring) = (&plan.device, plan.lock()?, queue.lock()?);
        output.check(step.config())?;
        let (rows, len) = (
            batch.rows,
            elements::<f32>("queries", batch.rows, batch.dim)?,
        );
        // SAFETY: the header's contract: [rows, dim] each, [rows] labels.
        let (queries, keys, labels) = unsafe {
            (
                Foreign::new("batch.queries", batch.queries, len, device)?,
                Foreign::new("batch.keys", batch.keys, len, device)?,
                Foreign::optional("batch.labels", batch.labels, rows, device)?,
            )
        };
        let mut there =
            Batch::new(&queries, &keys, batch.dim)?.with_row_offset(batch.row_offset)?;
        if let Some(labels) = &labels {
            there = there.with_labels(labels)?;
        }
        // SAFETY: the header's contract: the draws and the places have the shapes of this step.
        unsafe {
            draws.run(&mut step, &there, &ring, device)?;
            output.fill(&step, device)
        }
    })
}

impl hardmix_cuda_draws {
    /// Puts a step with these draws on the stream.
    ///
    /// # Safety
    /// The header's contract: [2] words, or [rows, mixed] and [rows, query_mixed].
    unsafe fn run(
        &self,
        step: &mut Step,
        batch: &Batch<'_>,
        queue: &Queue,
        device: &Device,
    ) -> Result<()> {
        let pointers = [
            self.first.cast::<u8>(),
            self.second.cast(),
            self.alpha.cast(),
            self.pick.cast(),
            self.beta.cast(),
        ];
        if pointers.iter().all(|pointer| pointer.is_null()) {
            // SAFETY: the caller's contract.
            let words =
                unsafe { Foreign::new("draws.seed_and_step", self.seed_and_step, 2, device) }?;
            return Ok(step.run(batch, queue, &Draws::Seeded(&words))?);
        }
        let mixed = elements::<f32>("mixed", batch.rows(), step.config().mixed())?;
        let query_mixed =
            elements::<f32>("query_mixed", batch.rows(), step.config().query_mixed())?;
        // SAFETY: the caller's contract.
        let given = unsafe {
            GivenDraws {
                first: &Foreign::or_empty("draws.first", self.first, mixed, device)?,
                second: &Foreign::or_empty("draws.second", self.second, mixed, device)?,
                alpha: &Foreign::or_empty("draws.alpha", self.alpha, mixed, device)?,
                pick: &Foreign::or_empty("draws.pick", self.pick, query_mixed, device)?,
                beta: &Foreign::or_empty("draws.beta", self.beta, query_mixed, device)?,
            }
        };
        Ok(step.run(batch, queue, &Draws::Given(given))?)
    }
}

impl hardmix_cuda_output {
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
        if !self.grad_keys.is_null() && !config.key_gradient() {
            return Err(Failure::UnaskedKeyGradient);
        }
        Ok(())
    }

    /// Puts copies of the results on the stream.
    ///
    /// # Safety
    /// The header's contract: the places are NULL or have the shapes of the results.
    unsafe fn fill(&self, step: &Step, device: &Device) -> Result<()> {
        let [mixed, query_mixed] = step.synthetic_logits();
        let draws = step.draws();
        // SAFETY: the caller's contract.
        unsafe {
            copy_out("output.loss", &step.loss(), self.loss, device)?;
            copy_out(
                "output.loss_rows",
                &step.loss_rows(),
                self.loss_rows,
                device,
            )?;
            let gradient = step.grad_queries();
            copy_out("output.grad_queries", &gradient, self.grad_queries, device)?;
            if let Some(gradient) = step.grad_keys() {
                copy_out("output.grad_keys", &gradient, self.grad_keys, device)?;
            }
            copy_out("output.hardest", &step.hardest(), self.hardest, device)?;
            copy_out("output.mixed_logits", &mixed, self.mixed_logits, device)?;
            let place = self.query_mixed_logits;
            copy_out("output.query_mixed_logits", &query_mixed, place, device)?;
            copy_out("output.first", &draws.first, self.first, device)?;
            copy_out("output.second", &draws.second, self.second, device)?;
            copy_out("output.alpha", &draws.alpha, self.alpha, device)?;
            copy_out("output.pick", &draws.pick, self.pick, device)?;
            copy_out("output.beta", &draws.beta, self.beta, device)
        }
    }
}

/// Puts on the stream a copy of a result, unless the place is NULL.
///
/// # Safety
/// Unless NULL, `place` is as [`Foreign::new`] wants it, for as many elements as the result has.
unsafe fn copy_out<T: DeviceRepr>(
    argument: &'static str,
    result: &CudaView<'_, T>,
    place: *mut T,
    device: &Device,
) -> Result<()> {
    if result.is_empty() {
        return Ok(());
    }
    // SAFETY: the caller's contract.
    let place = unsafe { Foreign::optional(argument, place, result.len(), device) }?;
    if let Some(mut place) = place {
        let failed = |error: cudarc::driver::DriverError| Error::Driver {
            operation: "copying a result",
            reason: error.to_string(),
        };
        device
            .stream()
            .memcpy_dtod(result, &mut place)
            .map_err(failed)?;
    }
    Ok(())
}

/// `hardmix_cuda_step_read` of the header.
///
/// # Safety
/// What the header says of its arguments.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hardmix_cuda_step_read(
    plan: *const hardmix_cuda_plan,
    loss: *mut f32,
    metrics: *mut hardmix_metrics,
) -> Status {
    call(|| {
        // SAFETY: the header's contract.
        let plan = unsafe { reference("plan", plan) }?;
        expect_optional_place("loss", loss)?;
        expect_optional_place("metrics", metrics)?;
        let output = plan.lock()?.read()?;
        // SAFETY: checked, and the header's contract.
        unsafe {
            put(loss, &[output.loss().unwrap_or(f32::NAN)]);
            put(metrics, &[hardmix_metrics::from(&output.metrics)]);
        }
        output.loss()?;
        Ok(())
    })
}

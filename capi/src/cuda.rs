//! The same on device memory and the caller's stream.

use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard};

use cudarc::driver::sys::{CUdeviceptr, CUstream};
use cudarc::driver::{
    CudaStream, CudaView, DevicePtr, DevicePtrMut, DeviceRepr, DeviceSlice, SyncOnDrop,
};
use hardmix::Error;
use hardmix::cuda::{Batch, Device, Draws, Queue, Step};

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
    seed_and_step: *const u64,
    output: *const hardmix_cuda_output,
) -> Status {
    call(|| {
        // SAFETY: the header's contract.
        let (plan, batch, queue, output) = unsafe {
            (
                reference("plan", plan)?,
                reference("batch", batch)?,
                reference("queue", queue)?,
                reference("output", output)?,
            )
        };
        let (device, mut step, ring) = (&plan.device, plan.lock()?, queue.lock()?);
        for (argument, place) in [
            ("output.loss", output.loss),
            ("output.loss_rows", output.loss_rows),
            ("output.grad_queries", output.grad_queries),
            ("output.grad_keys", output.grad_keys),
        ] {
            expect_optional_place(argument, place)?;
        }
        if !output.grad_keys.is_null() && !step.config().key_gradient() {
            return Err(Failure::UnaskedKeyGradient);
        }
        let (rows, len) = (
            batch.rows,
            elements::<f32>("queries", batch.rows, batch.dim)?,
        );
        // SAFETY: the header's contract: [rows, dim] each, [rows] labels, [2] words.
        let (queries, keys, labels, words) = unsafe {
            (
                Foreign::new("batch.queries", batch.queries, len, device)?,
                Foreign::new("batch.keys", batch.keys, len, device)?,
                Foreign::optional("batch.labels", batch.labels, rows, device)?,
                Foreign::new("seed_and_step", seed_and_step, 2, device)?,
            )
        };
        let mut there =
            Batch::new(&queries, &keys, batch.dim)?.with_row_offset(batch.row_offset)?;
        if let Some(labels) = &labels {
            there = there.with_labels(labels)?;
        }
        step.run(&there, &ring, &Draws::Seeded(&words))?;
        // SAFETY: the header's contract: the places are NULL or have the shapes of the results.
        unsafe {
            copy_out("output.loss", &step.loss(), output.loss, device)?;
            copy_out(
                "output.loss_rows",
                &step.loss_rows(),
                output.loss_rows,
                device,
            )?;
            let gradient = step.grad_queries();
            copy_out(
                "output.grad_queries",
                &gradient,
                output.grad_queries,
                device,
            )?;
            if let Some(gradient) = step.grad_keys() {
                copy_out("output.grad_keys", &gradient, output.grad_keys, device)?;
            }
        }
        Ok(())
    })
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

//! The context on a device, the kernels loaded into it, and the stream that work is put on.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::result::memset_d8_async;
use cudarc::driver::sys::{
    self, CUdevice_attribute, CUfunction_attribute, CUresult, CUstreamCaptureStatus,
};
use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaSlice, CudaStream, CudaView, DevicePtr,
    DevicePtrMut, DeviceRepr, DriverError, LaunchConfig, PushKernelArg, SyncOnDrop,
};
use cudarc::nvrtc::Ptx;
use libloading::Library;

use super::IMAGES;
use crate::error::{Error, Result, elements};

/// The oldest architecture that there are kernels for.
const OLDEST: (i32, i32) = (8, 0);

/// Shared memory, bytes, that a block gets without being asked twice.
const PLAIN_SHARED: u32 = 48 << 10;

/// An NVIDIA GPU with this crate's kernels loaded, and a stream on it.
///
/// Clones are cheap and share the kernels. What is used together, slices, queue, step and outputs, is of
/// one `CudaContext`: every [`Device::new`] makes another, so call it once and go on with clones,
/// [`Device::with_stream`] and the streams of [`Device::stream`]'s context, or bring your own context by
/// [`Device::on`].
#[derive(Clone)]
pub struct Device {
    kernels: Arc<Kernels>,
    stream: Arc<CudaStream>,
}

struct Kernels {
    modules: Vec<(&'static str, Arc<CudaModule>)>,
    /// By name, with the shared memory that was allowed so far.
    functions: Mutex<HashMap<&'static str, (CudaFunction, u32)>>,
    /// Shared memory, bytes, that a block gets where it is asked for.
    most_shared: u32,
}

/// Which kernel is launched, and how.
#[derive(Debug, Clone, Copy)]
pub(super) struct Launch {
    /// The file, `kernels/FILE.cu`.
    pub file: &'static str,
    /// The kernel's name in it.
    pub kernel: &'static str,
    pub grid: (u32, u32, u32),
    /// Threads of a block.
    pub threads: u32,
    /// Dynamic shared memory, bytes.
    pub shared: u32,
}

impl Launch {
    /// So many blocks in one direction, the work of that many queries.
    pub fn grid_over(rows: usize, blocks: usize) -> Result<(u32, u32, u32)> {
        let blocks = u32::try_from(blocks).ok().filter(|&n| n < 1 << 31);
        let blocks = blocks.ok_or_else(|| Error::OutOfRange {
            argument: "queries",
            value: format!("{rows} rows"),
            expected: "fewer, for a queue of this size",
        })?;
        Ok((blocks, 1, 1))
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device")
            .field("ordinal", &self.stream.context().ordinal())
            .field("stream", &self.stream.cu_stream())
            .finish_non_exhaustive()
    }
}

impl Device {
    /// The device with this ordinal, and its default stream, with a `CudaContext` of its own.
    ///
    /// # Errors
    /// [`Error::NoDriver`] where there is no CUDA driver, [`Error::OutOfRange`] for an ordinal that
    /// no device has or a device older than compute capability 8.0, [`Error::Driver`] where the
    /// driver fails.
    pub fn new(ordinal: usize) -> Result<Self> {
        if !is_driver_present() {
            return Err(Error::NoDriver);
        }
        let count = match CudaContext::device_count() {
            Err(DriverError(CUresult::CUDA_ERROR_NO_DEVICE)) => 0,
            other => other.map_err(driver("counting the devices"))?,
        };
        if ordinal >= usize::try_from(count).unwrap_or(0) {
            return Err(Error::OutOfRange {
                argument: "device",
                value: ordinal.to_string(),
                expected: "less than the number of CUDA devices",
            });
        }
        let context = CudaContext::new(ordinal).map_err(driver("creating a context"))?;
        Self::on(context.default_stream())
    }

    /// The device of a stream, with the kernels loaded into its context; work goes to that stream.
    ///
    /// # Errors
    /// As [`Device::new`].
    pub fn on(stream: Arc<CudaStream>) -> Result<Self> {
        let context = stream.context();
        let capability = context
            .compute_capability()
            .map_err(driver("asking for the compute capability"))?;
        if capability < OLDEST {
            return Err(Error::OutOfRange {
                argument: "compute capability",
                value: format!("{}.{}", capability.0, capability.1),
                expected: "at least 8.0",
            });
        }
        let most_shared = context
            .attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)
            .map_err(driver("asking for the shared memory of a block"))?;
        let modules = IMAGES
            .iter()
            .map(|&(name, image)| {
                let module = context
                    .load_module(Ptx::from_binary(image.to_vec()))
                    .map_err(driver("loading the kernels"))?;
                Ok((name, module))
            })
            .collect::<Result<_>>()?;
        let kernels = Kernels {
            modules,
            functions: Mutex::default(),
            most_shared: u32::try_from(most_shared).unwrap_or(PLAIN_SHARED),
        };
        Ok(Self {
            kernels: Arc::new(kernels),
            stream,
        })
    }

    /// The same device and kernels with another stream of the same context.
    ///
    /// # Errors
    /// [`Error::OtherContext`] for a stream of another.
    pub fn with_stream(&self, stream: Arc<CudaStream>) -> Result<Self> {
        self.expect_context("stream", &stream)?;
        let kernels = self.kernels.clone();
        Ok(Self { kernels, stream })
    }

    /// The stream that work is put on.
    #[must_use]
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// Waits until all work on the stream is done.
    ///
    /// # Errors
    /// What that work failed with.
    pub fn synchronize(&self) -> Result<()> {
        self.stream
            .synchronize()
            .map_err(driver("waiting for the stream"))
    }

    /// A copy in device memory; may wait for the stream.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Capturing`], [`Error::Driver`].
    pub fn upload<T: DeviceRepr>(
        &self,
        argument: &'static str,
        values: &[T],
    ) -> Result<CudaSlice<T>> {
        let mut slice = self.allocate(argument, values.len(), 1)?;
        if !values.is_empty() {
            let mut part = slice.slice_mut(..values.len());
            self.stream
                .memcpy_htod(values, &mut part)
                .map_err(driver("copying to the device"))?;
        }
        Ok(slice)
    }

    /// A copy of the first `len` elements in host memory; waits for the stream.
    ///
    /// # Errors
    /// [`Error::Length`] where there are fewer, [`Error::OtherContext`], [`Error::Capturing`],
    /// [`Error::Driver`].
    pub fn download<T: DeviceRepr>(
        &self,
        argument: &'static str,
        values: &CudaSlice<T>,
        len: usize,
    ) -> Result<Vec<T>> {
        let part = values.try_slice(..len).ok_or(Error::Length {
            argument,
            length: values.len(),
            expected: len,
            shape: "at least as many as asked for",
        })?;
        self.download_view(argument, &part)
    }

    /// The same of all of a view.
    pub(super) fn download_view<T: DeviceRepr>(
        &self,
        argument: &'static str,
        view: &CudaView<'_, T>,
    ) -> Result<Vec<T>> {
        if view.is_empty() {
            return Ok(Vec::new());
        }
        self.expect_no_capture(argument, "copied to the host")?;
        let _memory = self.read(argument, view)?;
        let copy = self.stream.clone_dtoh(view);
        let copy = copy.map_err(driver("copying from the device"))?;
        // To memory that is not pinned the driver usually waits by itself, but says that it need not.
        self.synchronize()?;
        Ok(copy)
    }

    /// Shared memory, bytes, that a block can have.
    pub(super) fn most_shared(&self) -> u32 {
        self.kernels.most_shared
    }

    /// `rows · width` elements that nobody has written; never none, which the driver refuses.
    pub(super) fn allocate<T: DeviceRepr>(
        &self,
        argument: &'static str,
        rows: usize,
        width: usize,
    ) -> Result<CudaSlice<T>> {
        let none = Error::OutOfMemory {
            argument,
            rows,
            width,
        };
        let len = elements(argument, rows, width)?.max(1);
        if len > isize::MAX as usize / size_of::<T>().max(1) {
            return Err(none);
        }
        // It would be the graph's, and gone or another's between its replays.
        self.expect_no_capture(argument, "allocated")?;
        // SAFETY: `DeviceRepr` types are plain data: whatever bits the memory has are a value, and
        // every caller writes them before a kernel reads them.
        let mut slice = match unsafe { self.stream.alloc(len) } {
            Err(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => return Err(none),
            other => other.map_err(driver("allocating"))?,
        };
        // The memory is there from this point of the stream on, which cudarc records nowhere. Other
        // streams wait for the last write: this counts as one.
        drop(slice.device_ptr_mut(&self.stream));
        Ok(slice)
    }

    /// Puts on the stream that all bits are zero.
    pub(super) fn clear<T: DeviceRepr>(&self, data: &mut CudaSlice<T>) -> Result<()> {
        let (bytes, stream) = (data.num_bytes(), &self.stream);
        self.expect_context("status", data.stream())?;
        let context = stream.context();
        context.bind_to_thread().map_err(driver("clearing"))?;
        let (pointer, _record) = data.device_ptr_mut(stream);
        // SAFETY: the memory is the slice's own, and zeros are a value of plain data.
        unsafe { memset_d8_async(pointer, 0, bytes, stream.cu_stream()) }
            .map_err(driver("clearing"))
    }

    /// Puts a kernel on the stream.
    ///
    /// # Safety
    /// `params` is the struct that the kernel takes, and what it says of memory is true until the
    /// kernel has run.
    pub(super) unsafe fn launch<P: DeviceRepr>(&self, launch: Launch, params: &P) -> Result<()> {
        let function = self.function(launch)?;
        let configuration = LaunchConfig {
            grid_dim: launch.grid,
            block_dim: (launch.threads, 1, 1),
            shared_mem_bytes: launch.shared,
        };
        let context = self.stream.context();
        context.bind_to_thread().map_err(driver(launch.kernel))?;
        let mut arguments = self.stream.launch_builder(&function);
        arguments.arg(params);
        // SAFETY: the caller's contract.
        unsafe { arguments.launch(configuration) }.map_err(driver(launch.kernel))?;
        Ok(())
    }

    fn function(&self, launch: Launch) -> Result<CudaFunction> {
        let mut functions = self
            .kernels
            .functions
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if !functions.contains_key(launch.kernel) {
            let module = self
                .kernels
                .modules
                .iter()
                .find(|(name, _)| *name == launch.file);
            let (_, module) = module.ok_or(Error::Driver {
                operation: launch.file,
                reason: "this build has no kernels".into(),
            })?;
            let function = module
                .load_function(launch.kernel)
                .map_err(driver(launch.kernel))?;
            functions.insert(launch.kernel, (function, PLAIN_SHARED));
        }
        let (function, allowed) = functions.get_mut(launch.kernel).expect("inserted above");
        if launch.shared > *allowed {
            function
                .set_attribute(
                    CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                    launch.shared as i32,
                )
                .map_err(driver(launch.kernel))?;
            *allowed = launch.shared;
        }
        Ok(function.clone())
    }

    /// The memory of an input, waited for and recorded as read until the guard is dropped.
    pub(super) fn read<'a, T>(
        &'a self,
        argument: &'static str,
        data: &'a dyn DevicePtr<T>,
    ) -> Result<Memory<'a, T>> {
        self.expect_context(argument, data.stream())?;
        let (pointer, record) = data.device_ptr(&self.stream);
        // cudarc keeps one event for all readers, which the guard records anew: whoever writes next waits
        // for the last of them alone, who therefore comes after those before.
        if let SyncOnDrop::Record(Some((readers, _))) = &record
            && self.stream.context().is_managing_stream_synchronization()
        {
            let waited = self.stream.wait(readers);
            waited.map_err(driver("waiting for another reader"))?;
        }
        Memory::new(argument, pointer, data.len(), record)
    }

    /// The memory of an output, waited for and recorded as written until the guard is dropped.
    pub(super) fn write<'a, T>(
        &'a self,
        argument: &'static str,
        data: &'a mut dyn DevicePtrMut<T>,
    ) -> Result<Memory<'a, T>> {
        self.expect_context(argument, data.stream())?;
        let len = data.len();
        let (pointer, record) = data.device_ptr_mut(&self.stream);
        Memory::new(argument, pointer, len, record)
    }

    /// Whether a stream's memory is ordered with this device's by cudarc. It counts streams and keeps
    /// events in each `CudaContext`, so that two of them over one context of the driver's, which compare
    /// equal, know nothing of each other's streams.
    pub(super) fn shares_context(&self, stream: &CudaStream) -> bool {
        Arc::ptr_eq(stream.context(), self.stream.context())
    }

    /// Refuses what no graph can hold while one is captured from the stream.
    fn expect_no_capture(&self, argument: &'static str, done: &'static str) -> Result<()> {
        let status = self.stream.capture_status();
        match status.map_err(driver("asking whether the stream is captured"))? {
            CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE => Ok(()),
            _ => Err(Error::Capturing { argument, done }),
        }
    }

    fn expect_context(&self, argument: &'static str, stream: &CudaStream) -> Result<()> {
        if self.shares_context(stream) {
            Ok(())
        } else {
            Err(Error::OtherContext { argument })
        }
    }
}

/// Device memory that a launch uses. Dropped, it tells cudarc that the launch is queued.
pub(super) struct Memory<'a, T> {
    argument: &'static str,
    pointer: *mut T,
    len: usize,
    _record: SyncOnDrop<'a>,
}

impl<'a, T> Memory<'a, T> {
    fn new(
        argument: &'static str,
        pointer: sys::CUdeviceptr,
        len: usize,
        record: SyncOnDrop<'a>,
    ) -> Result<Self> {
        // No element of a view that was made of another type's need be where one may be.
        if !pointer.is_multiple_of(align_of::<T>() as u64) {
            return Err(Error::OutOfRange {
                argument,
                value: format!("at address {pointer:#x}"),
                expected: "aligned to its elements",
            });
        }
        Ok(Self {
            argument,
            pointer: pointer as *mut T,
            len,
            _record: record,
        })
    }

    pub fn pointer(&self) -> *mut T {
        self.pointer
    }

    /// The same memory as bytes, for a kernel that is told the type by its name.
    pub fn untyped(self) -> Memory<'a, u8> {
        Memory {
            argument: self.argument,
            pointer: self.pointer.cast(),
            len: self.len * size_of::<T>(),
            _record: self._record,
        }
    }

    /// The bytes, with the argument's name.
    pub fn bytes(&self) -> (&'static str, Range<u64>) {
        let start = self.pointer as u64;
        let bytes = (self.len * size_of::<T>()) as u64;
        (self.argument, start..start + bytes)
    }
}

/// Refuses an output that shares memory with an input or with another output.
pub(super) fn expect_disjoint(
    outputs: &[(&'static str, Range<u64>)],
    inputs: &[(&'static str, Range<u64>)],
) -> Result<()> {
    for (at, (output, own)) in outputs.iter().enumerate() {
        for (other, theirs) in inputs.iter().chain(&outputs[at + 1..]) {
            if own.start < theirs.end && theirs.start < own.end {
                return Err(Error::Overlap {
                    argument: output,
                    other,
                });
            }
        }
    }
    Ok(())
}

/// Whether the driver can be loaded: without it, every call of cudarc's would panic. (cudarc has a
/// function for this, but not where it links the driver, as candle makes it.)
fn is_driver_present() -> bool {
    ["libcuda.so", "libcuda.so.1", "nvcuda.dll"]
        .iter()
        // SAFETY: loading the driver runs no code that asks anything of us.
        .any(|name| unsafe { Library::new(*name) }.is_ok())
}

/// The pointer of an argument that may be missing.
pub(super) fn pointer_or_null<T>(memory: Option<&Memory<'_, T>>) -> *mut T {
    memory.map_or(std::ptr::null_mut(), Memory::pointer)
}

/// What the driver said, as this crate's error.
pub(super) fn driver(operation: &'static str) -> impl FnOnce(DriverError) -> Error {
    move |error| {
        let reason = match error.error_string() {
            Ok(text) => text.to_string_lossy().into_owned(),
            Err(_) => format!("CUDA error {}", error.0 as u32),
        };
        if is_final(error.0) {
            Error::ContextLost { operation, reason }
        } else {
            Error::Driver { operation, reason }
        }
    }
}

/// Whether every later call on the context will fail as well.
fn is_final(error: CUresult) -> bool {
    use CUresult::*;
    matches!(
        error,
        CUDA_ERROR_ECC_UNCORRECTABLE
            | CUDA_ERROR_ILLEGAL_ADDRESS
            | CUDA_ERROR_LAUNCH_TIMEOUT
            | CUDA_ERROR_CONTEXT_IS_DESTROYED
            | CUDA_ERROR_ASSERT
            | CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUDA_ERROR_MISALIGNED_ADDRESS
            | CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUDA_ERROR_INVALID_PC
            | CUDA_ERROR_LAUNCH_FAILED
    )
}

#[cfg(test)]
mod tests {
    use std::ffi::c_void;
    use std::sync::mpsc::{Receiver, channel};
    use std::time::Duration;

    use cudarc::driver::result::stream::launch_host_function;

    use super::*;

    unsafe extern "C" fn wait(released: *mut c_void) {
        // SAFETY: a box of the test below, which gives it to this one call.
        let released = unsafe { Box::from_raw(released.cast::<Receiver<()>>()) };
        let _ = released.recv_timeout(Duration::from_secs(60));
    }

    /// softgpu allocates at once, and finds no use that comes too early: what is looked at is whether
    /// another stream waits.
    #[test]
    fn memory_is_there_for_another_stream_once_its_own_has_come_so_far() {
        softgpu::install().expect("softgpu is installed");
        let device = Device::new(0).expect("a device");
        let context = device.stream().context();
        let stream = context.new_stream().expect("a stream");
        let other = context.new_stream().expect("a stream");
        let device = device.with_stream(stream).expect("of the same context");
        let (release, released) = channel::<()>();
        let held = Box::into_raw(Box::new(released)).cast();
        // SAFETY: the function takes the box that it is given, once.
        unsafe { launch_host_function(device.stream().cu_stream(), wait, held) }.expect("held");
        let memory = device.allocate::<f32>("memory", 4, 1).expect("memory");
        drop(memory.device_ptr(&other));
        let there = other.record_event(None).expect("an event");
        assert!(!there.is_complete(), "it waits for nothing");
        release.send(()).expect("it is waited for");
        there.synchronize().expect("it comes so far");
    }
}

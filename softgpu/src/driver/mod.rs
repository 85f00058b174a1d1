//! The CUDA driver API: one file a chapter of its manual.
//!
//! The files share this one's [`Driver`]: the device, the tables of handles, and the error that
//! sticks once a kernel has failed. Handles are numbers that are never addresses, so that any
//! value a caller invents is refused instead of followed.

pub mod abi;
mod clock;
mod context;
mod device;
mod error;
mod event;
mod function;
mod graph;
mod host_memory;
mod launch;
mod memory;
mod memory_pool;
mod module;
mod occupancy;
mod stream;
mod tensor_map;
mod transfer;
mod work;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};

use crate::control;
use crate::fault::{Fault, Kind};
use crate::image::Arch;
use crate::memory::Memory;

use clock::lock;
use error::{CuError, CuResult};

/// A context, stream, event … as the API names it: an opaque pointer that nobody follows.
pub type Handle = usize;

/// Device memory, bytes, unless `SOFTGPU_MEMORY` says otherwise: enough for tests, and little
/// enough that running out of it can be tested.
const DEVICE_MEMORY: u64 = 2 << 30;

/// Everything that the process has in common.
pub struct Driver {
    /// What the device reports to be.
    pub arch: Arch,
    /// Whether `cuInit` was called.
    pub initialised: AtomicBool,
    /// The device; whoever runs work holds it.
    pub memory: Mutex<Memory>,
    pub contexts: Table<context::Context>,
    pub streams: Table<stream::Stream>,
    pub events: Table<event::Event>,
    pub modules: Table<module::Module>,
    pub functions: Table<function::Function>,
    pub graphs: Table<graph::Graph>,
    pub graph_execs: Table<graph::GraphExec>,
    pub pools: Table<memory_pool::Pool>,
    pub host_memory: host_memory::HostMemory,
    failed: Mutex<Option<CuError>>,
}

/// The process's driver.
pub fn driver() -> &'static Driver {
    static DRIVER: LazyLock<Driver> = LazyLock::new(|| Driver {
        arch: device::arch_from_environment(),
        initialised: AtomicBool::new(false),
        memory: Mutex::new(Memory::new(device_memory())),
        contexts: Table::default(),
        streams: Table::default(),
        events: Table::default(),
        modules: Table::default(),
        functions: Table::default(),
        graphs: Table::default(),
        graph_execs: Table::default(),
        pools: Table::default(),
        host_memory: host_memory::HostMemory::default(),
        failed: Mutex::new(None),
    });
    &DRIVER
}

fn device_memory() -> u64 {
    let asked = std::env::var("SOFTGPU_MEMORY").ok();
    asked
        .and_then(|bytes| bytes.parse().ok())
        .unwrap_or(DEVICE_MEMORY)
}

impl Driver {
    /// The error of the first kernel that failed, which every later call gets as well.
    pub fn check_sound(&self) -> CuResult {
        lock(&self.failed).map_or(Ok(()), Err)
    }

    /// Reports a fault of submitted work; from now on the device is unusable, as a GPU's context
    /// would be.
    pub fn fail(&self, fault: &Fault) {
        control::report(fault);
        lock(&self.failed).get_or_insert(code_of(fault.kind));
    }

    /// The same for a defect of softgpu itself.
    pub fn give_up(&self, message: &str) {
        abi::complain("internal error", message);
        lock(&self.failed).get_or_insert(CuError::UNKNOWN);
    }
}

/// The code by which a GPU would answer to a kernel at fault.
pub fn code_of(kind: Kind) -> CuError {
    match kind {
        Kind::OutOfBounds | Kind::Misaligned | Kind::UseAfterFree => CuError::ILLEGAL_ADDRESS,
        Kind::StepLimit => CuError::LAUNCH_TIMEOUT,
        Kind::Assertion => CuError::ASSERT,
        Kind::Unsupported => CuError::NOT_SUPPORTED,
        Kind::Parse => CuError::INVALID_PTX,
        Kind::OutOfMemory => CuError::OUT_OF_MEMORY,
        Kind::InvalidValue | Kind::LaunchLimit => CuError::INVALID_VALUE,
        _ => CuError::LAUNCH_FAILED,
    }
}

/// A handle that no other object has.
pub fn fresh_handle() -> Handle {
    // Far from the small numbers that name default streams, and odd, so that it is no address of
    // anything aligned.
    static NEXT: AtomicUsize = AtomicUsize::new(0x5_0F76_0001);
    NEXT.fetch_add(16, Ordering::Relaxed)
}

/// The objects of one kind, by handle.
#[derive(Debug)]
pub struct Table<T>(Mutex<BTreeMap<Handle, Arc<T>>>);

impl<T> Default for Table<T> {
    fn default() -> Self {
        Table(Mutex::default())
    }
}

impl<T> Table<T> {
    /// Enters an object.
    pub fn insert(&self, handle: Handle, object: Arc<T>) {
        lock(&self.0).insert(handle, object);
    }

    /// Enters a new object and returns its handle.
    pub fn add(&self, object: impl Into<Arc<T>>) -> Handle {
        let handle = fresh_handle();
        self.insert(handle, object.into());
        handle
    }

    /// The object of a handle.
    pub fn get(&self, handle: Handle) -> CuResult<Arc<T>> {
        lock(&self.0)
            .get(&handle)
            .cloned()
            .ok_or(CuError::INVALID_HANDLE)
    }

    /// Takes an object out.
    pub fn remove(&self, handle: Handle) -> CuResult<Arc<T>> {
        lock(&self.0).remove(&handle).ok_or(CuError::INVALID_HANDLE)
    }

    /// All objects.
    pub fn all(&self) -> Vec<Arc<T>> {
        lock(&self.0).values().cloned().collect()
    }
}

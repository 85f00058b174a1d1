//! Chapter "Execution Control", second half: launches.

use std::ffi::c_uint;
use std::mem::size_of;
use std::sync::Arc;

use super::abi::{In, complain, entry};
use super::clock::lock;
use super::context;
use super::device::{SHARED_PER_BLOCK, THREADS_PER_BLOCK, limits};
use super::error::{CuError, CuResult};
use super::function::Function;
use super::occupancy::resident_blocks;
use super::stream::working_stream;
use super::work::Work;
use super::{Handle, driver};
use crate::check::Check;
use crate::control;
use crate::fault::{Fault, Kind};
use crate::image::Arch;
use crate::launch;
use crate::memory::Order;

/// Modelled time of an empty launch, nanoseconds.
const LATENCY: u64 = 2000;

/// A kernel launch, ready to run.
#[derive(Debug)]
pub struct Launch {
    function: Arc<Function>,
    shape: Shape,
    parameters: Vec<u8>,
}

/// What a launch asks for.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Blocks of a cluster, if the launch names any.
    pub cluster: Option<[u32; 3]>,
    /// Dynamic shared memory, bytes.
    pub dynamic_shared: u32,
    /// Whether all blocks are to be resident together.
    pub cooperative: bool,
}

/// The number of things in a box; saturates.
pub fn volume(dims: [u32; 3]) -> u64 {
    dims.into_iter().map(u64::from).fold(1, u64::saturating_mul)
}

impl Launch {
    /// Runs the kernel to its end; returns the modelled time.
    pub fn run(&self, order: &Order) -> Result<u64, Fault> {
        let function = &self.function;
        let cluster = self.shape.cluster.or(function.required_cluster());
        let launch = launch::Launch {
            kernel: function.kernel(),
            grid: self.shape.grid,
            block: self.shape.block,
            cluster: cluster.unwrap_or([1, 1, 1]),
            dynamic_shared: self.shape.dynamic_shared,
            parameters: &self.parameters,
            cooperative: self.shape.cooperative,
            order,
        };
        let mut memory = lock(&driver().memory);
        let counters = driver()
            .host_memory
            .visible_during(&mut memory, order, |memory| {
                launch::run(&launch, memory, &control::options())
            })?;
        control::count(&function.kernel().name, &counters);
        Ok(LATENCY + counters.instructions)
    }
}

impl Shape {
    /// The first limit that this launch of `function` exceeds, with the code for it.
    fn check(&self, function: &Function) -> Result<(), (CuError, String)> {
        let invalid = |sentence: String| Err((CuError::INVALID_VALUE, sentence));
        let kernel = function.kernel();
        let (grid, block) = (self.grid, self.block);
        if volume(grid) == 0 || grid[0] > 0x7FFF_FFFF || grid[1] > 65535 || grid[2] > 65535 {
            return invalid(format!(
                "a grid of {grid:?}; 1 to 2^31 - 1, 65535 and 65535 blocks are possible"
            ));
        }
        if volume(block) == 0
            || block[0] > 1024
            || block[1] > 1024
            || block[2] > 64
            || volume(block) > u64::from(THREADS_PER_BLOCK)
        {
            return invalid(format!(
                "blocks of {block:?} threads; at most 1024, 1024 and 64, together 1024, are possible"
            ));
        }
        if kernel
            .required_threads
            .is_some_and(|required| required != block)
        {
            return invalid(format!(
                "blocks of {block:?} threads for a kernel compiled for {:?}",
                kernel.required_threads.unwrap_or_default()
            ));
        }
        let most = function.max_threads();
        if volume(block) > u64::from(most) {
            return invalid(format!(
                "blocks of {} threads for a kernel compiled for at most {most}",
                volume(block)
            ));
        }
        let allowed = function.max_dynamic_shared();
        if self.dynamic_shared > allowed {
            return invalid(format!(
                "{} bytes of dynamic shared memory, of which its attribute allows {allowed} ({} in all by default)",
                self.dynamic_shared, SHARED_PER_BLOCK
            ));
        }
        let shared = self.dynamic_shared.saturating_add(kernel.static_shared);
        let most = limits().shared_per_block_optin;
        if shared > most {
            return invalid(format!(
                "{shared} bytes of shared memory a block, where {most} are possible"
            ));
        }
        self.check_cluster(function)?;
        if self.cooperative {
            let a_multiprocessor =
                resident_blocks(function, volume(block) as u32, self.dynamic_shared);
            let resident = u64::from(a_multiprocessor) * u64::from(limits().multiprocessors);
            if volume(grid) > resident {
                return Err((
                    CuError::COOPERATIVE_LAUNCH_TOO_LARGE,
                    format!(
                        "{} blocks, of which {resident} can be resident together",
                        volume(grid)
                    ),
                ));
            }
        }
        Ok(())
    }

    fn check_cluster(&self, function: &Function) -> Result<(), (CuError, String)> {
        let invalid = |sentence: String| Err((CuError::INVALID_CLUSTER_SIZE, sentence));
        let required = function.required_cluster();
        let Some(cluster) = self.cluster.or(required) else {
            return Ok(());
        };
        if required.is_some_and(|required| required != cluster) {
            return invalid(format!(
                "clusters of {cluster:?} blocks for a kernel compiled for {:?}",
                required.unwrap_or_default()
            ));
        }
        if driver().arch < Arch::SM_90 && volume(cluster) > 1 {
            return invalid(format!("clusters on {}, which has none", driver().arch));
        }
        let most = function.max_cluster();
        if volume(cluster) == 0 || volume(cluster) > u64::from(most) {
            return invalid(format!(
                "clusters of {cluster:?} blocks, where {most} are possible"
            ));
        }
        if (0..3).any(|axis| !self.grid[axis].is_multiple_of(cluster[axis])) {
            return invalid(format!(
                "a grid of {:?} blocks, no multiple of the cluster {cluster:?}",
                self.grid
            ));
        }
        Ok(())
    }
}

/// The pointers to the arguments, or one buffer with them all.
struct Arguments {
    each: In<In<u8>>,
    extra: In<usize>,
}

const EXTRA_END: usize = 0;
const EXTRA_BUFFER: usize = 1;
const EXTRA_BUFFER_SIZE: usize = 2;

impl Arguments {
    /// The parameter buffer of `function`.
    fn gather(&self, function: &Function) -> CuResult<Vec<u8>> {
        let kernel = function.kernel();
        let mut buffer = vec![0; kernel.parameter_bytes() as usize];
        let refuse = |sentence: &str| {
            complain(
                "cuLaunchKernel",
                &format!("{}: {sentence}", function.name()),
            );
            Err(CuError::INVALID_VALUE)
        };
        if !self.extra.is_null() {
            if !self.each.is_null() {
                return refuse("both kernelParams and extra");
            }
            let given = self.extra_buffer()?;
            if given.len() < buffer.len() {
                return refuse(&format!(
                    "extra has {} bytes of parameters, {} expected",
                    given.len(),
                    buffer.len()
                ));
            }
            let len = buffer.len();
            buffer.copy_from_slice(&given[..len]);
            return Ok(buffer);
        }
        if self.each.is_null() && !kernel.parameters.is_empty() {
            return refuse(&format!(
                "no arguments, {} expected",
                kernel.parameters.len()
            ));
        }
        for (index, parameter) in kernel.parameters.iter().enumerate() {
            let argument = self.each.at(index)?;
            if argument.is_null() {
                return refuse(&format!("argument {index} is a null pointer"));
            }
            let at = parameter.offset as usize;
            argument.read_to(&mut buffer[at..at + parameter.size as usize])?;
        }
        Ok(buffer)
    }

    fn extra_buffer(&self) -> CuResult<Vec<u8>> {
        let (mut buffer, mut size) = (None, None);
        // Two options and the end; more would repeat one.
        for pair in 0..3 {
            match self.extra.at(2 * pair)? {
                EXTRA_END => break,
                EXTRA_BUFFER => buffer = Some(self.extra.pointer_at::<u8>(2 * pair + 1)?),
                EXTRA_BUFFER_SIZE => {
                    size = Some(self.extra.pointer_at::<usize>(2 * pair + 1)?.read()?);
                }
                _ => return Err(CuError::INVALID_VALUE),
            }
        }
        let (Some(buffer), Some(size)) = (buffer, size) else {
            return Err(CuError::INVALID_VALUE);
        };
        buffer.all(size)
    }
}

fn submit(function: Handle, shape: Shape, stream: Handle, arguments: &Arguments) -> CuResult {
    let (context, stream) = working_stream(stream)?;
    let function = driver().functions.get(function)?;
    if control::options().checks.has(Check::Limits)
        && let Err((code, sentence)) = shape.check(&function)
    {
        let what = format!("launch of {}: {sentence}", function.name());
        control::report(&Fault::new(Kind::LaunchLimit, what));
        return Err(code);
    }
    let parameters = arguments.gather(&function)?;
    stream.submit(
        &context,
        Work::Launch(Box::new(Launch {
            function,
            shape,
            parameters,
        })),
    )
}

/// `CUlaunchConfig`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Config {
    grid: [c_uint; 3],
    block: [c_uint; 3],
    dynamic_shared: c_uint,
    stream: Handle,
    attributes: *const Attribute,
    attribute_count: c_uint,
}

/// `CUlaunchAttribute`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Attribute {
    id: c_uint,
    pad: [u8; 4],
    value: [c_uint; 16],
}

const _: () = assert!(size_of::<Config>() == 56 && size_of::<Attribute>() == 72);

const COOPERATIVE: c_uint = 2;
const CLUSTER_DIMENSION: c_uint = 4;
const PROGRAMMATIC_EVENT: c_uint = 7;
const COMPLETION_EVENT: c_uint = 12;
const LAST_ATTRIBUTE: c_uint = 18;

impl Config {
    /// The launch that the attributes make of it. Hints (cache policy, priority, …) change
    /// nothing; a programmatic launch may overlap the one before, and here never does.
    pub fn shape(&self) -> CuResult<Shape> {
        let mut shape = Shape {
            grid: self.grid,
            block: self.block,
            cluster: None,
            dynamic_shared: self.dynamic_shared,
            cooperative: false,
        };
        let attributes = In::of(self.attributes).all(self.attribute_count as usize)?;
        for Attribute { id, value, .. } in attributes {
            match id {
                COOPERATIVE => shape.cooperative = value[0] != 0,
                CLUSTER_DIMENSION => shape.cluster = Some([value[0], value[1], value[2]]),
                PROGRAMMATIC_EVENT | COMPLETION_EVENT => {
                    complain("cuLaunchKernelEx", "softgpu has no launch events");
                    return Err(CuError::NOT_SUPPORTED);
                }
                id if id > LAST_ATTRIBUTE => return Err(CuError::INVALID_VALUE),
                _ => {}
            }
        }
        Ok(shape)
    }
}

entry! {
    /// Launches a kernel.
    fn cuLaunchKernel(
        function: Handle,
        grid_x: c_uint,
        grid_y: c_uint,
        grid_z: c_uint,
        block_x: c_uint,
        block_y: c_uint,
        block_z: c_uint,
        dynamic_shared: c_uint,
        stream: Handle,
        each: In<In<u8>>,
        extra: In<usize>,
    ) {
        let shape = Shape {
            grid: [grid_x, grid_y, grid_z],
            block: [block_x, block_y, block_z],
            cluster: None,
            dynamic_shared,
            cooperative: false,
        };
        submit(function, shape, stream, &Arguments { each, extra })
    }

    /// Launches a kernel whose blocks are all resident together.
    fn cuLaunchCooperativeKernel(
        function: Handle,
        grid_x: c_uint,
        grid_y: c_uint,
        grid_z: c_uint,
        block_x: c_uint,
        block_y: c_uint,
        block_z: c_uint,
        dynamic_shared: c_uint,
        stream: Handle,
        each: In<In<u8>>,
    ) {
        let shape = Shape {
            grid: [grid_x, grid_y, grid_z],
            block: [block_x, block_y, block_z],
            cluster: None,
            dynamic_shared,
            cooperative: true,
        };
        submit(function, shape, stream, &Arguments { each, extra: In::nothing() })
    }

    /// Launches a kernel with attributes (clusters, programmatic launch).
    fn cuLaunchKernelEx(
        config: In<Config>,
        function: Handle,
        each: In<In<u8>>,
        extra: In<usize>,
    ) {
        context::current()?;
        let config = config.read()?;
        submit(function, config.shape()?, config.stream, &Arguments { each, extra })
    }
}

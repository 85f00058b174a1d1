//! Right kernels in the hands of a host that does something wrong.

use std::sync::Arc;

use cudarc::driver::sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, LaunchConfig};
use softgpu::check::Check::Uninitialised;

use super::case::Expected::Clean;
use super::case::{Case, bounds, freed, global_race, limit, unwritten};
use super::common::shapes::{Outcome, sum, together_with};
use super::common::{Gpu, flat};
use crate::try_launch;

pub fn cases() -> Vec<Case> {
    let case = |name, kernel, expected, run| Case {
        name,
        file: "planted",
        kernel,
        expected,
        run,
    };
    vec![
        case(
            "shared_memory_too_small",
            "sum",
            bounds(&[]),
            |gpu, kernel| sum(gpu, kernel, 1000, 256, 512),
        ),
        case("input_never_written", "sum", unwritten(), |gpu, kernel| {
            sum_of(gpu, kernel, Buffers::InputUnwritten)
        }),
        case(
            "count_never_written",
            "blocks",
            unwritten(),
            |gpu, kernel| count(gpu, kernel, Buffers::CountUnwritten),
        ),
        case("input_freed", "sum", freed(), |gpu, kernel| {
            sum_of(gpu, kernel, Buffers::InputFreed)
        }),
        case("output_freed", "sum", freed(), |gpu, kernel| {
            sum_of(gpu, kernel, Buffers::OutputFreed)
        }),
        case("workspace_freed", "blocks", freed(), |gpu, kernel| {
            count(gpu, kernel, Buffers::WorkspaceFreed)
        }),
        case(
            "streams_unordered",
            "sum",
            global_race(&[Uninitialised]),
            |gpu, kernel| on_two_streams(gpu, kernel, false),
        ),
        case("streams_joined", "sum", Clean, |gpu, kernel| {
            on_two_streams(gpu, kernel, true)
        }),
        case("too_many_blocks_in_z", "sum", limit(), |gpu, kernel| {
            let grid_dim = (1, 1, 65_536);
            sum_of_zeros(
                gpu,
                kernel,
                LaunchConfig {
                    grid_dim,
                    ..shared(256)
                },
            )
        }),
        case("too_many_blocks_in_y", "sum", limit(), |gpu, kernel| {
            let grid_dim = (1, 65_536, 1);
            sum_of_zeros(
                gpu,
                kernel,
                LaunchConfig {
                    grid_dim,
                    ..shared(256)
                },
            )
        }),
        case("too_much_shared_memory", "sum", limit(), |gpu, kernel| {
            sum_of_zeros(gpu, kernel, shared(49_153))
        }),
        case(
            "shared_memory_beyond_its_attribute",
            "sum",
            limit(),
            |gpu, kernel| {
                let attribute = CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                gpu.function(kernel).set_attribute(attribute, 60_000)?;
                sum_of_zeros(gpu, kernel, shared(60_001))
            },
        ),
        case(
            "cooperative_beyond_residence",
            "together",
            limit(),
            |gpu, kernel| {
                // Two blocks with 100 KB fit on each of the 132 multiprocessors.
                together_with(gpu, kernel, 265, 100_000)
            },
        ),
    ]
}

/// 64 threads and this much dynamic shared memory.
fn shared(bytes: u32) -> LaunchConfig {
    LaunchConfig {
        shared_mem_bytes: bytes,
        ..flat(1, 64)
    }
}

/// What is wrong with a kernel's buffers.
enum Buffers {
    InputUnwritten,
    InputFreed,
    OutputFreed,
    CountUnwritten,
    WorkspaceFreed,
}

/// Waits for the device, which reports what went wrong.
fn finish(gpu: &Gpu) -> Outcome {
    gpu.stream.synchronize()?;
    Ok(Vec::new())
}

fn sum_of_zeros(gpu: &Gpu, kernel: &str, configuration: LaunchConfig) -> Outcome {
    let (input, sums) = (gpu.zeros::<f32>(256), gpu.zeros::<f32>(1));
    try_launch!(gpu, gpu.function(kernel), configuration; &input, &sums, &64u32)?;
    finish(gpu)
}

/// The address of a buffer: cudarc keeps no watch on what becomes of it.
fn address<T>(gpu: &Gpu, buffer: &CudaSlice<T>) -> u64 {
    buffer.device_ptr(&gpu.stream).0
}

fn sum_of(gpu: &Gpu, kernel: &str, wrong: Buffers) -> Outcome {
    let mut input = Some(gpu.zeros::<f32>(256));
    if let Buffers::InputUnwritten = wrong {
        input = Some(gpu.unwritten(256));
    }
    let mut sums = Some(gpu.unwritten::<f32>(1));
    let [input_at, sums_at] =
        [&input, &sums].map(|buffer| buffer.as_ref().map_or(0, |buffer| address(gpu, buffer)));
    match wrong {
        Buffers::InputFreed => input = None,
        Buffers::OutputFreed => sums = None,
        _ => {}
    }
    let configuration = LaunchConfig {
        shared_mem_bytes: 1024,
        ..flat(1, 256)
    };
    try_launch!(gpu, gpu.function(kernel), configuration; &input_at, &sums_at, &256u32)?;
    let outcome = finish(gpu);
    drop((input, sums));
    outcome
}

/// The sum over four blocks.
fn count(gpu: &Gpu, kernel: &str, wrong: Buffers) -> Outcome {
    let (input, total) = (gpu.zeros::<f32>(128), gpu.zeros::<f32>(1));
    let mut partial = Some(gpu.unwritten::<f32>(4));
    let partial_at = partial.as_ref().map_or(0, |buffer| address(gpu, buffer));
    let mut done = gpu.zeros::<u32>(1);
    match wrong {
        Buffers::CountUnwritten => done = gpu.unwritten(1),
        Buffers::WorkspaceFreed => partial = None,
        _ => {}
    }
    try_launch!(gpu, gpu.function(kernel), flat(4, 32); &input, &partial_at, &done, &total)?;
    let outcome = finish(gpu);
    drop(partial);
    outcome
}

/// Sums in one stream and the sum of the sums in another, with or without an event in between.
fn on_two_streams(gpu: &Gpu, kernel: &str, joined: bool) -> Outcome {
    struct On {
        stream: Arc<CudaStream>,
    }
    let function = gpu.function(kernel);
    let (input, sums) = (gpu.zeros::<f32>(4096), gpu.zeros::<f32>(64));
    let total = gpu.unwritten::<f32>(1);
    let [input, sums, total] = [&input, &sums, &total].map(|buffer| address(gpu, buffer));
    gpu.stream.synchronize()?;
    let new = || gpu.stream.context().new_stream();
    let (first, second) = (On { stream: new()? }, On { stream: new()? });
    let grid_dim = (64, 1, 1);
    let many = LaunchConfig {
        grid_dim,
        ..shared(256)
    };
    try_launch!(first, function, many; &input, &sums, &4096u32)?;
    if joined {
        second.stream.join(&first.stream)?;
    }
    try_launch!(second, function, shared(256); &sums, &total, &64u32)?;
    first.stream.synchronize()?;
    second.stream.synchronize()?;
    finish(gpu)
}

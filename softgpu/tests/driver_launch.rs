//! Chapters "Module Management", "Execution Control" and "Occupancy": loading and launching.

mod driver_common;

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::sys::{CUfunction_attribute_enum as Attribute, CUresult};
use cudarc::driver::{
    CudaContext, CudaFunction, CudaSlice, CudaStream, DevicePtr, DeviceRepr, LaunchConfig,
    PushKernelArg, sys,
};
use cudarc::nvrtc::Ptx;
use driver_common::{CUDA_ERROR_INVALID_VALUE, KERNELS, child, context, error, kernel};

fn shape(grid: u32, block: u32, shared_mem_bytes: u32) -> LaunchConfig {
    LaunchConfig {
        grid_dim: (grid, 1, 1),
        block_dim: (block, 1, 1),
        shared_mem_bytes,
    }
}

/// Launches `add` over `n` elements; the slices hold as many.
fn add(
    stream: &Arc<CudaStream>,
    out: &mut CudaSlice<u32>,
    a: &CudaSlice<u32>,
    b: &CudaSlice<u32>,
    n: u32,
) -> Result<(), cudarc::driver::DriverError> {
    let function = kernel(stream.context(), "add");
    let mut launch = stream.launch_builder(&function);
    launch.arg(out).arg(a).arg(b).arg(&n);
    // SAFETY: the arguments are those of the kernel; it stays below `n`.
    unsafe { launch.launch(shape(n.div_ceil(64), 64, 0)) }.map(drop)
}

#[test]
fn a_kernel_runs() {
    let context = context();
    let stream = context.new_stream().unwrap();
    let a = stream.clone_htod(&(0..1000).collect::<Vec<u32>>()).unwrap();
    let b = stream.clone_htod(&vec![5u32; 1000]).unwrap();
    let mut out = stream.alloc_zeros::<u32>(1000).unwrap();
    softgpu::take_launches();
    let waits = softgpu::waits();
    add(&stream, &mut out, &a, &b, 999).unwrap();
    assert_eq!(softgpu::waits(), waits);
    let expected: Vec<u32> = (5..1004).chain([0]).collect();
    assert_eq!(stream.clone_dtoh(&out).unwrap(), expected);
    assert!(softgpu::waits() > waits);
    let launches = softgpu::take_launches();
    let [(name, counters)] = launches.as_slice() else {
        panic!("{launches:?}")
    };
    assert_eq!(name, "add");
    assert_eq!(
        (counters.bytes_read, counters.bytes_written),
        (2 * 999 * 4, 999 * 4)
    );
    assert!(counters.instructions > 0);
}

#[test]
fn parameters_lie_where_the_kernel_expects_them() {
    #[repr(C)]
    struct Pair(u64, u32);
    // SAFETY: plain data, laid out as the kernel's.
    unsafe impl DeviceRepr for Pair {}
    let context = context();
    let stream = context.default_stream();
    let function = kernel(&context, "gaps");
    let out = stream.alloc_zeros::<u16>(6).unwrap();
    let pair = Pair(out.device_ptr(&stream).0, 0x0403_0201);
    let mut launch = stream.launch_builder(&function);
    launch.arg(&9u8).arg(&pair).arg(&0xABCDu16);
    // SAFETY: the kernel's parameters; the slice outlives the launch.
    unsafe { launch.launch(shape(1, 1, 0)) }.unwrap();
    let expected = [9, 0, 0x0201, 0x0403, 0xABCD, 0];
    assert_eq!(stream.clone_dtoh(&out).unwrap(), expected);
}

/// Launches with all parameters in one buffer.
fn launch_packed(function: &CudaFunction, buffer: &mut [u8]) -> CUresult {
    let mut size = buffer.len();
    let mut extra: [*mut c_void; 5] = [
        std::ptr::without_provenance_mut(1),
        buffer.as_mut_ptr().cast(),
        std::ptr::without_provenance_mut(2),
        (&raw mut size).cast(),
        std::ptr::null_mut(),
    ];
    let (function, none) = (function.cu_function(), std::ptr::null_mut());
    let extra = extra.as_mut_ptr();
    // SAFETY: the buffer holds what the kernel expects, or is refused for its size.
    unsafe { sys::cuLaunchKernel(function, 1, 1, 1, 64, 1, 1, 0, none, none.cast(), extra) }
}

#[test]
fn parameters_may_come_in_one_buffer() {
    let context = context();
    let stream = context.default_stream();
    let function = kernel(&context, "add");
    let a = stream.clone_htod(&[1u32, 2, 3, 4]).unwrap();
    let out = stream.alloc_zeros::<u32>(4).unwrap();
    let address = |slice: &CudaSlice<u32>| slice.device_ptr(&stream).0.to_le_bytes();
    let mut buffer = [address(&out), address(&a), address(&a), 4u64.to_le_bytes()].concat();
    assert_eq!(
        launch_packed(&function, &mut buffer[..28]),
        CUresult::CUDA_SUCCESS
    );
    assert_eq!(stream.clone_dtoh(&out).unwrap(), [2, 4, 6, 8]);
    let too_short = launch_packed(&function, &mut buffer[..27]);
    assert_eq!(too_short, CUresult::CUDA_ERROR_INVALID_VALUE);
}

#[test]
fn module_data_is_there() {
    let context = context();
    let stream = context.default_stream();
    let module = context.load_module(Ptx::from_src(KERNELS)).unwrap();
    let function = module.load_function("use_data").unwrap();
    let mut out = stream.alloc_zeros::<u32>(4).unwrap();
    let mut calls = module.get_global("calls", &stream).unwrap();
    assert_eq!(calls.len(), 4);
    stream.memcpy_htod(&[100, 0, 0, 0], &mut calls).unwrap();
    // SAFETY: the kernel's parameter, and as many threads as `out` has room for.
    unsafe {
        stream
            .launch_builder(&function)
            .arg(&mut out)
            .launch(shape(1, 4, 0))
    }
    .unwrap();
    assert_eq!(stream.clone_dtoh(&out).unwrap(), [110, 120, 130, 140]);
    assert_eq!(
        error(module.load_function("no_such").map(drop)),
        CUresult::CUDA_ERROR_NOT_FOUND
    );
    assert!(module.get_global("no_such", &stream).is_err());
}

#[test]
fn launches_beyond_the_limits_are_refused() {
    let context = context();
    let stream = context.default_stream();
    let spin = kernel(&context, "spin");
    let shapes = [
        ((0, 1, 1), (1, 1, 1)),
        ((1, 65536, 1), (1, 1, 1)),
        ((1, 1, 1), (0, 1, 1)),
        ((1, 1, 1), (1025, 1, 1)),
        ((1, 1, 1), (32, 32, 2)),
        ((1, 1, 1), (1, 1, 65)),
    ];
    for (grid_dim, block_dim) in shapes {
        let shape = LaunchConfig {
            grid_dim,
            block_dim,
            shared_mem_bytes: 0,
        };
        // SAFETY: a kernel without parameters that is never started.
        let answer = unsafe { stream.launch_builder(&spin).launch(shape) };
        assert_eq!(
            error(answer.map(drop)),
            CUresult::CUDA_ERROR_INVALID_VALUE,
            "{shape:?}"
        );
        assert!(softgpu::last_report().starts_with("softgpu: launch limit: launch of"));
    }
    // SAFETY: as above.
    let cooperative = unsafe {
        stream
            .launch_builder(&spin)
            .launch_cooperative(shape(1 << 20, 1024, 0))
    };
    assert_eq!(
        error(cooperative.map(drop)),
        CUresult::CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE
    );
    let small = kernel(&context, "at_most_64");
    // SAFETY: a kernel that does nothing.
    unsafe {
        assert!(
            stream
                .launch_builder(&small)
                .launch(shape(1, 65, 0))
                .is_err()
        );
        stream
            .launch_builder(&small)
            .launch(shape(1, 64, 0))
            .unwrap();
    }
    let most = small
        .get_attribute(Attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)
        .unwrap();
    assert_eq!(most, 64);
    stream.synchronize().unwrap();
}

#[test]
fn much_shared_memory_must_be_asked_for() {
    let context = context();
    let stream = context.default_stream();
    let function = kernel(&context, "use_shared");
    let mut out = stream.alloc_zeros::<u32>(1).unwrap();
    let mut launch = |bytes: u32| {
        let mut builder = stream.launch_builder(&function);
        builder.arg(&mut out).arg(&bytes);
        // SAFETY: the kernel's parameters; it uses `bytes` of shared memory.
        unsafe { builder.launch(shape(1, 1, bytes)) }?;
        stream.clone_dtoh(&out)
    };
    assert_eq!(launch(48 << 10).unwrap(), [77]);
    assert_eq!(
        error(launch((48 << 10) + 1)),
        CUresult::CUDA_ERROR_INVALID_VALUE
    );
    let attribute = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    function.set_attribute(attribute, 100 << 10).unwrap();
    assert_eq!(launch(100 << 10).unwrap(), [77]);
    assert_eq!(
        error(launch((100 << 10) + 1)),
        CUresult::CUDA_ERROR_INVALID_VALUE
    );
    assert!(function.set_attribute(attribute, 228 << 10).is_err());
    assert!(function.set_attribute(attribute, -1).is_err());
}

#[test]
fn occupancy_counts_threads_and_shared_memory() {
    let context = context();
    let function = kernel(&context, "add");
    let blocks = |threads, shared| {
        function
            .occupancy_max_active_blocks_per_multiprocessor(threads, shared, None)
            .unwrap()
    };
    assert_eq!([blocks(1024, 0), blocks(256, 0), blocks(32, 0)], [2, 8, 32]);
    assert!((1..8).contains(&blocks(32, 40 << 10)));
}

#[test]
fn a_graph_replays_kernels() {
    let context = context();
    // SAFETY: everything is on one stream.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream().unwrap();
    let a = stream.clone_htod(&[1u32; 8]).unwrap();
    let b = stream.clone_htod(&[2u32; 8]).unwrap();
    let mut out = stream.alloc_zeros::<u32>(8).unwrap();
    stream
        .begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        .unwrap();
    let allocated = stream.alloc_zeros::<u32>(1);
    assert_eq!(
        error(allocated.map(drop)),
        CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
    );
    assert!(
        stream
            .end_capture(sys::CUgraphInstantiate_flags(0))
            .is_err()
    );

    let mut sum = stream.alloc_zeros::<u32>(8).unwrap();
    stream
        .begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        .unwrap();
    add(&stream, &mut sum, &a, &b, 8).unwrap();
    add(&stream, &mut out, &sum, &b, 4).unwrap();
    let graph = stream
        .end_capture(sys::CUgraphInstantiate_flags(0))
        .unwrap()
        .unwrap();
    for _ in 0..2 {
        stream.memset_zeros(&mut out).unwrap();
        graph.launch().unwrap();
        assert_eq!(stream.clone_dtoh(&out).unwrap(), [5, 5, 5, 5, 0, 0, 0, 0]);
    }
}

#[test]
fn kernels_use_managed_and_pinned_memory() {
    let context = context();
    let stream = context.default_stream();
    // SAFETY: written before it is read.
    let (mut managed, mut pinned) = unsafe {
        (
            context.alloc_unified::<u32>(4, true).unwrap(),
            context.alloc_pinned::<u32>(4).unwrap(),
        )
    };
    managed
        .as_mut_slice()
        .unwrap()
        .copy_from_slice(&[1, 2, 3, 4]);
    pinned
        .as_mut_slice()
        .unwrap()
        .copy_from_slice(&[10, 20, 30, 40]);
    let function = kernel(&context, "add");
    let address = pinned.as_ptr().unwrap().addr() as u64;
    let mut launch = stream.launch_builder(&function);
    launch.arg(&address).arg(&managed).arg(&address).arg(&4u32);
    // SAFETY: both have room for four words.
    unsafe { launch.launch(shape(1, 32, 0)) }.unwrap();
    stream.synchronize().unwrap();
    assert_eq!(pinned.as_slice().unwrap(), [11, 22, 33, 44]);
    assert_eq!(managed.as_slice().unwrap(), [1, 2, 3, 4]);
}

#[test]
fn an_error_of_a_kernel_sticks() {
    let Some(stderr) = child("an_error_of_a_kernel_sticks", || {
        let context = context();
        // SAFETY: everything is on one stream.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().unwrap();
        let a = stream.clone_htod(&[1u32; 8]).unwrap();
        let b = stream.clone_htod(&[1u32; 7]).unwrap();
        let mut out = stream.alloc_zeros::<u32>(8).unwrap();
        // The launch itself succeeds, as on a GPU; what comes after does not.
        add(&stream, &mut out, &a, &b, 8).unwrap();
        let illegal = CUresult::CUDA_ERROR_ILLEGAL_ADDRESS;
        assert_eq!(error(stream.synchronize()), illegal);
        assert_eq!(error(stream.clone_dtoh(&a)), illegal);
        assert_eq!(error(stream.alloc_zeros::<u8>(1).map(drop)), illegal);
        assert_eq!(error(context.synchronize()), illegal);
        assert_eq!(
            error(CudaContext::new(0).and_then(|context| context.synchronize())),
            illegal
        );
        assert!(softgpu::last_report().starts_with("softgpu: out of bounds: "));
    }) else {
        return;
    };
    let paragraph = stderr
        .lines()
        .find(|line| line.starts_with("softgpu: out of bounds"));
    let paragraph = paragraph.unwrap_or_else(|| panic!("{stderr}"));
    assert!(
        paragraph.contains("kernel add, block (0, 0, 0), thread (7, 0, 0)"),
        "{paragraph}"
    );
}

#[test]
fn a_kernel_that_spins_is_stopped() {
    let Some(stderr) = child("a_kernel_that_spins_is_stopped", || {
        context();
        softgpu::set_step_limit(100_000);
        fails("spin", CUresult::CUDA_ERROR_LAUNCH_TIMEOUT);
    }) else {
        return;
    };
    assert!(stderr.contains("softgpu: step limit: "), "{stderr}");
}

/// Launches a kernel without parameters that is to fail with `code`.
fn fails(name: &str, code: CUresult) {
    let context = context();
    let stream = context.default_stream();
    let kernel = kernel(&context, name);
    // SAFETY: a kernel without parameters.
    unsafe { stream.launch_builder(&kernel).launch(shape(1, 32, 0)) }.unwrap();
    assert_eq!(error(stream.synchronize()), code);
}

#[test]
fn a_trap_is_a_failed_launch() {
    let Some(stderr) = child("a_trap_is_a_failed_launch", || {
        fails("traps", CUresult::CUDA_ERROR_LAUNCH_FAILED);
    }) else {
        return;
    };
    assert!(stderr.contains("softgpu: trap: "), "{stderr}");
}

#[test]
fn a_failed_assertion_says_so() {
    let Some(stderr) = child("a_failed_assertion_says_so", || {
        fails("asserts", CUresult::CUDA_ERROR_ASSERT);
    }) else {
        return;
    };
    assert!(stderr.contains("softgpu: failed assertion: "), "{stderr}");
}

/// Two kernels on two streams, the second reading what the first wrote.
fn two_streams(ordered: bool) -> Result<(), cudarc::driver::DriverError> {
    let context = context();
    // SAFETY: the point of the test.
    unsafe { context.disable_event_tracking() };
    let (one, two) = (context.new_stream().unwrap(), context.new_stream().unwrap());
    let a = one.clone_htod(&[1u32; 8]).unwrap();
    let mut sum = one.alloc_zeros::<u32>(8).unwrap();
    let mut out = one.alloc_zeros::<u32>(8).unwrap();
    context.synchronize().unwrap();
    add(&one, &mut sum, &a, &a, 8).unwrap();
    if ordered {
        two.join(&one).unwrap();
    }
    add(&two, &mut out, &sum, &a, 8).unwrap();
    context.synchronize()
}

#[test]
fn streams_ordered_by_an_event_do_not_race() {
    two_streams(true).unwrap();
}

#[test]
fn a_missing_event_between_streams_is_found() {
    let Some(stderr) = child("a_missing_event_between_streams_is_found", || {
        assert_eq!(
            error(two_streams(false)),
            CUresult::CUDA_ERROR_LAUNCH_FAILED
        );
    }) else {
        return;
    };
    assert!(
        stderr.contains("softgpu: race in global memory: "),
        "{stderr}"
    );
}

/// A kernel on one stream, and the free of what it reads on another.
fn freed_on_another_stream(ordered: bool) -> Result<(), cudarc::driver::DriverError> {
    let context = context();
    // SAFETY: the point of the test.
    unsafe { context.disable_event_tracking() };
    let (one, two) = (context.new_stream().unwrap(), context.new_stream().unwrap());
    let a = two.clone_htod(&[1u32; 8]).unwrap();
    let mut out = one.alloc_zeros::<u32>(8).unwrap();
    context.synchronize().unwrap();
    add(&one, &mut out, &a, &a, 8).unwrap();
    if ordered {
        two.join(&one).unwrap();
    }
    drop(a);
    context.synchronize()
}

#[test]
fn a_free_that_waits_for_the_last_use_is_right() {
    freed_on_another_stream(true).unwrap();
}

#[test]
fn a_free_that_does_not_wait_is_found() {
    let Some(stderr) = child("a_free_that_does_not_wait_is_found", || {
        assert_eq!(
            error(freed_on_another_stream(false)),
            CUresult::CUDA_ERROR_LAUNCH_FAILED
        );
    }) else {
        return;
    };
    assert!(stderr.contains("a free on stream "), "{stderr}");
}

#[test]
fn clusters_need_an_h100() {
    let context = context();
    let stream = context.default_stream();
    let function = kernel(&context, "at_most_64");
    // SAFETY: all zeros is a value of this plain C struct: attribute 0 is to be ignored.
    let mut attribute: sys::CUlaunchAttribute = unsafe { std::mem::zeroed() };
    attribute.id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
    let mut launch = |grid, cluster| {
        attribute.value.clusterDim = sys::CUlaunchAttributeValue_union__bindgen_ty_1 {
            x: cluster,
            y: 1,
            z: 1,
        };
        let config = sys::CUlaunchConfig {
            gridDimX: grid,
            gridDimY: 1,
            gridDimZ: 1,
            blockDimX: 32,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: 0,
            hStream: stream.cu_stream(),
            attrs: &raw mut attribute,
            numAttrs: 1,
        };
        let (function, none) = (function.cu_function(), std::ptr::null_mut());
        // SAFETY: a kernel without parameters; the configuration lives as long as the call.
        unsafe { sys::cuLaunchKernelEx(&config, function, none, none.cast()) }.result()
    };
    let hopper = context.compute_capability().unwrap().0 >= 9;
    assert_eq!(launch(8, 2).is_ok(), hopper);
    for (grid, cluster) in [(7, 2), (16, 16), (8, 0)] {
        let refused = error(launch(grid, cluster));
        assert_eq!(
            refused,
            CUresult::CUDA_ERROR_INVALID_CLUSTER_SIZE,
            "{grid} by {cluster}"
        );
    }
    stream.synchronize().unwrap();
}

/// A stream of numbers that look random and are always the same.
fn numbers() -> impl FnMut(usize) -> usize {
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    move |below| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    }
}

#[test]
fn damaged_ptx_gives_an_error_or_a_module() {
    let context = context();
    context.bind_to_thread().unwrap();
    let mut number = numbers();
    let load = |bytes: &[u8]| {
        let image = [bytes, &[0]].concat();
        let mut module = std::ptr::null_mut();
        // SAFETY: the image ends in a NUL.
        let answer = unsafe { sys::cuModuleLoadData(&mut module, image.as_ptr().cast()) };
        match answer {
            // SAFETY: a module that was just loaded.
            CUresult::CUDA_SUCCESS => unsafe { sys::cuModuleUnload(module) }.result().unwrap(),
            CUresult::CUDA_ERROR_INVALID_PTX | CUresult::CUDA_ERROR_INVALID_IMAGE => {}
            other => panic!("{other:?}"),
        }
    };
    let sound = KERNELS.as_bytes();
    for _ in 0..300 {
        load(&sound[..number(sound.len())]);
        let mut damaged = sound.to_vec();
        for _ in 0..=number(4) {
            let at = number(damaged.len());
            match number(3) {
                0 => damaged[at] = 1 + number(255) as u8,
                1 => drop(damaged.remove(at)),
                _ => damaged.insert(at, b" \n;,{}[]%$.0x-@"[number(15)]),
            }
        }
        load(&damaged);
    }
    // The device is as sound as before.
    context.default_stream().clone_htod(&[1u8]).unwrap();
}

#[test]
fn damaged_fat_binaries_give_an_error() {
    let context = context();
    context.bind_to_thread().unwrap();
    let load = |bytes: &[u8]| {
        let mut module = std::ptr::null_mut();
        // SAFETY: whatever the image announces, softgpu reads no more than is mapped.
        unsafe { sys::cuModuleLoadData(&mut module, bytes.as_ptr().cast()) }
    };
    let image = [
        &[0x50, 0xED, 0x55, 0xBA, 1, 0, 16, 0][..],
        &u64::MAX.to_le_bytes(),
        &[0xFF; 64],
    ];
    assert_eq!(load(&image.concat()), CUresult::CUDA_ERROR_INVALID_IMAGE);
    let endless = [image[0], &(1u64 << 40).to_le_bytes(), &[0; 64]].concat();
    assert_eq!(load(&endless), CUresult::CUDA_ERROR_INVALID_IMAGE);
    assert_eq!(
        load(b"\x7fELF\x02\x01\x01"),
        CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU
    );
    assert_eq!(load(b"hello\0"), CUresult::CUDA_ERROR_INVALID_IMAGE);
    let mut module = std::ptr::null_mut();
    // SAFETY: null is refused, and so is an address where nothing is mapped.
    unsafe {
        assert_eq!(
            sys::cuModuleLoadData(&mut module, std::ptr::null()).result(),
            CUDA_ERROR_INVALID_VALUE
        );
        let nowhere = std::ptr::without_provenance(0x1000_0000_0000);
        assert_eq!(
            sys::cuModuleLoadData(&mut module, nowhere),
            CUresult::CUDA_ERROR_INVALID_IMAGE
        );
        let answer = sys::cuModuleLoad(&mut module, c"/no/such/file".as_ptr());
        assert_eq!(answer, CUresult::CUDA_ERROR_FILE_NOT_FOUND);
    }
}

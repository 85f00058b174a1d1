//! Chapter "Memory Management": allocations, copies, memsets, and their misuse.

mod driver_common;

use cudarc::driver::{CudaSlice, DevicePtr, DriverError, result, sys};
use driver_common::{CUDA_ERROR_INVALID_VALUE, context};

fn raw<T>(slice: &CudaSlice<T>) -> u64 {
    slice.device_ptr(slice.stream()).0
}

#[test]
fn bytes_come_back_as_they_went() {
    let context = context();
    for stream in [
        context.default_stream(),
        context.per_thread_stream(),
        context.new_stream().unwrap(),
    ] {
        for len in [1, 3, 255, 256, 257, 100_000] {
            let there: Vec<u16> = (0..len).map(|at| (at * 7 + 3) as u16).collect();
            let first = stream.clone_htod(&there).unwrap();
            let second = stream.clone_dtod(&first).unwrap();
            assert_eq!(stream.clone_dtoh(&second).unwrap(), there);
        }
    }
}

#[test]
fn views_and_memsets_touch_what_they_say() {
    let stream = context().default_stream();
    let mut all = stream.clone_htod(&[9u32; 8]).unwrap();
    stream.memset_zeros(&mut all.slice_mut(2..5)).unwrap();
    stream
        .memcpy_htod(&[1, 2], &mut all.slice_mut(6..8))
        .unwrap();
    assert_eq!(stream.clone_dtoh(&all).unwrap(), [9, 9, 0, 0, 0, 9, 1, 2]);
    assert_eq!(stream.clone_dtoh(&all.slice(5..7)).unwrap(), [9, 1]);
}

#[test]
fn words_fill_as_words() {
    let context = context();
    let stream = context.default_stream();
    let bytes = stream.alloc_zeros::<u8>(16).unwrap();
    let at = raw(&bytes);
    // SAFETY: the addresses lie in the allocation.
    unsafe {
        sys::cuMemsetD16_v2(at, 0x0201, 2).result().unwrap();
        sys::cuMemsetD32_v2(at + 4, 0x0807_0605, 1)
            .result()
            .unwrap();
        sys::cuMemsetD2D8_v2(at + 8, 4, 7, 2, 2).result().unwrap();
    }
    let expected = [1, 2, 1, 2, 5, 6, 7, 8, 7, 7, 0, 0, 7, 7, 0, 0];
    assert_eq!(stream.clone_dtoh(&bytes).unwrap(), expected);
    // SAFETY: refused before anything is written.
    let odd = unsafe { sys::cuMemsetD32_v2(at + 1, 0, 1).result() };
    assert_eq!(odd, CUDA_ERROR_INVALID_VALUE);
}

#[test]
fn rows_are_copied_with_their_pitches() {
    let stream = context().default_stream();
    let matrix: Vec<u8> = (0..24).collect();
    let device = stream.clone_htod(&matrix).unwrap();
    let mut corner = [0u8; 6];
    let mut copy = sys::CUDA_MEMCPY2D {
        srcXInBytes: 1,
        srcY: 1,
        srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
        srcHost: std::ptr::null(),
        srcDevice: raw(&device),
        srcArray: std::ptr::null_mut(),
        srcPitch: 6,
        dstXInBytes: 0,
        dstY: 0,
        dstMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_HOST,
        dstHost: corner.as_mut_ptr().cast(),
        dstDevice: 0,
        dstArray: std::ptr::null_mut(),
        dstPitch: 0,
        WidthInBytes: 2,
        Height: 3,
    };
    // SAFETY: three rows of two bytes lie in both.
    unsafe { sys::cuMemcpy2D_v2(&copy) }.result().unwrap();
    assert_eq!(corner, [7, 8, 13, 14, 19, 20]);
    copy.Height = 4;
    // SAFETY: refused, since a fourth row would leave the allocation.
    let four = unsafe { sys::cuMemcpy2D_v2(&copy) }.result();
    assert_eq!(four, CUDA_ERROR_INVALID_VALUE);
}

#[test]
fn copies_beyond_an_allocation_are_refused() {
    let context = context();
    let stream = context.default_stream();
    let eight = stream.alloc_zeros::<u8>(8).unwrap();
    let other = stream.alloc_zeros::<u8>(64).unwrap();
    let (at, from) = (raw(&eight), raw(&other));
    let mut host = [0u8; 64];
    // SAFETY: every one of these is refused before anything is touched.
    unsafe {
        let refused = [
            result::memcpy_htod_sync(at, &host[..9]),
            result::memcpy_htod_sync(at + 1, &host[..8]),
            result::memcpy_htod_sync(at - 1, &host[..1]),
            result::memcpy_dtoh_sync(&mut host[..9], at),
            result::memcpy_dtod_sync(at, from, 9),
            result::memcpy_dtod_sync(from, at, 9),
            result::memset_d8_sync(at, 0, 9),
            result::memset_d8_sync(0, 0, 1),
            result::memset_d8_sync(at, 0, usize::MAX),
            sys::cuMemcpyHtoD_v2(at, std::ptr::null(), 1).result(),
            sys::cuMemcpyHtoD_v2(at, from as *const _, 1).result(),
            sys::cuMemcpyDtoD_v2(at, host.as_ptr() as u64, 1).result(),
        ];
        for (which, answer) in refused.into_iter().enumerate() {
            assert_eq!(answer, CUDA_ERROR_INVALID_VALUE, "call {which}");
        }
        result::memcpy_htod_sync(at, &host[..8]).unwrap();
    }
}

#[test]
fn freed_memory_is_gone() {
    let context = context();
    context.bind_to_thread().unwrap();
    // SAFETY: plain allocations; the misuse after the free is refused.
    unsafe {
        let at = result::malloc_sync(100).unwrap();
        result::free_sync(at).unwrap();
        assert_eq!(result::free_sync(at), CUDA_ERROR_INVALID_VALUE);
        assert_eq!(result::memset_d8_sync(at, 0, 1), CUDA_ERROR_INVALID_VALUE);
        let at = result::malloc_sync(100).unwrap();
        assert_eq!(result::free_sync(at + 8), CUDA_ERROR_INVALID_VALUE);
        result::free_sync(at).unwrap();
        result::free_sync(0).unwrap();
    }
}

#[test]
fn memory_runs_out_with_an_error() {
    let context = context();
    context.bind_to_thread().unwrap();
    let total = context.total_mem().unwrap();
    let out_of_memory = Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY));
    // SAFETY: nothing is done with the memory.
    unsafe {
        assert_eq!(result::malloc_sync(total + 1), out_of_memory);
        assert_eq!(result::malloc_sync(usize::MAX), out_of_memory);
        assert_eq!(
            result::malloc_async(std::ptr::null_mut(), usize::MAX),
            out_of_memory
        );
        assert_eq!(
            result::malloc_sync(0).unwrap_err().0,
            sys::CUresult::CUDA_ERROR_INVALID_VALUE
        );
    }
    assert!(context.default_stream().alloc_zeros::<u8>(1).is_ok());
}

#[test]
fn the_address_space_is_not_the_hosts() {
    let stream = context().default_stream();
    let slice = stream.alloc_zeros::<u64>(4).unwrap();
    let (mut start, mut size) = (0, 0);
    // SAFETY: both results have a place.
    unsafe { sys::cuMemGetAddressRange_v2(&mut start, &mut size, raw(&slice) + 9) }
        .result()
        .unwrap();
    assert_eq!((start, size), (raw(&slice), slice.num_bytes()));
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let mapped = maps.lines().any(|line| {
        let (from, to) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let bound = |text| u64::from_str_radix(text, 16).unwrap();
        (bound(from)..bound(to)).contains(&start)
    });
    assert!(!mapped, "{start:#x} is host memory, too");
}

#[test]
fn pinned_memory_is_host_memory() {
    let context = context();
    let stream = context.default_stream();
    // SAFETY: filled before it is read.
    let mut pinned = unsafe { context.alloc_pinned::<u32>(5) }.unwrap();
    pinned
        .as_mut_slice()
        .unwrap()
        .copy_from_slice(&[1, 2, 3, 4, 5]);
    let mut device = stream.clone_htod(&pinned).unwrap();
    stream.memset_zeros(&mut device.slice_mut(..2)).unwrap();
    stream.memcpy_dtoh(&device, &mut pinned).unwrap();
    assert_eq!(pinned.as_slice().unwrap(), [0, 0, 3, 4, 5]);
}

#[test]
fn threads_share_the_device() {
    let context = context();
    let threads: Vec<_> = (0..8u8)
        .map(|number| {
            let context = context.clone();
            std::thread::spawn(move || {
                let stream = context.new_stream().unwrap();
                for len in 1..200 {
                    let slice = stream.clone_htod(&vec![number; len]).unwrap();
                    assert_eq!(stream.clone_dtoh(&slice).unwrap(), vec![number; len]);
                }
            })
        })
        .collect();
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
}

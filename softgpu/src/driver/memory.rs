//! Chapters "Memory Management", first half, and "Unified Addressing": allocations.

use std::ffi::{c_int, c_uint};

use super::abi::{HostPtr, Out, complain, entry};
use super::clock::lock;
use super::context;
use super::error::{CuError, CuResult};
use super::host_memory;
use super::stream::working_stream;
use super::work::Work;
use super::{Handle, code_of, driver};

const ATTACH_GLOBAL: c_uint = 1;
const ATTACH_HOST: c_uint = 2;
const ATTACH_SINGLE: c_uint = 4;
const HOST_ALLOC_FLAGS: c_uint = 7;

const MEMORY_TYPE_HOST: c_uint = 1;
const MEMORY_TYPE_DEVICE: c_uint = 2;

/// Allocates device memory.
pub fn allocate(what: &str, size: usize) -> CuResult<u64> {
    lock(&driver().memory)
        .allocate(size as u64)
        .map_err(|fault| {
            complain(what, &fault.what);
            code_of(fault.kind)
        })
}

/// Allocates in a stream's order; no bytes are no allocation, as the driver has it.
pub fn allocate_async(out: &Out<u64>, size: usize, stream: Handle) -> CuResult {
    let (_, stream) = working_stream(stream)?;
    let captured =
        stream.with_capture(|part| part.as_mut().map(|part| part.invalidate()).is_some());
    if captured {
        complain("cuMemAllocAsync", "softgpu captures no allocations");
        return Err(CuError::STREAM_CAPTURE_UNSUPPORTED);
    }
    out.put(if size == 0 {
        0
    } else {
        allocate("cuMemAllocAsync", size)?
    })
}

/// The error for an address at which no allocation begins.
fn begins(what: &str, address: u64) -> CuResult {
    match lock(&driver().memory).range_of(address) {
        Some((start, _)) if start == address => Ok(()),
        _ => {
            complain(
                what,
                &format!("no allocation begins at {address:#x} (freed before?)"),
            );
            Err(CuError::INVALID_VALUE)
        }
    }
}

/// The allocation of a device pointer of any kind: start and size.
fn range_of(address: u64) -> CuResult<(u64, u64)> {
    let host = driver()
        .host_memory
        .range_of(address)
        .map(|range| (range.start, range.size));
    host.or_else(|| lock(&driver().memory).range_of(address))
        .ok_or(CuError::INVALID_VALUE)
}

fn attribute(out: &Out<u64>, attribute: c_int, address: u64) -> CuResult {
    context::current()?;
    let host: Option<host_memory::Range> = driver().host_memory.range_of(address);
    let (start, size) = range_of(address)?;
    match attribute {
        1 => out.cast().put(context::current()?.handle), // context
        2 => out.cast().put(if host.is_some_and(|range| !range.managed) {
            MEMORY_TYPE_HOST
        } else {
            MEMORY_TYPE_DEVICE
        }),
        3 => out.put(address),                   // device pointer
        4 if host.is_some() => out.put(address), // host pointer
        8 => out.cast().put(host.is_some_and(|range| range.managed)),
        9 => out.cast::<c_int>().put(0), // device
        11 => out.put(start),
        12 => out.put(size),
        13 => out.cast().put(true), // mapped
        _ => Err(CuError::INVALID_VALUE),
    }
}

entry! {
    /// Device memory, uninitialised.
    fn cuMemAlloc_v2(out: Out<u64>, size: usize) {
        context::current()?;
        out.put(allocate("cuMemAlloc", size)?)
    }

    /// Device memory for rows, with their pitch.
    fn cuMemAllocPitch_v2(
        out: Out<u64>,
        pitch: Out<usize>,
        width: usize,
        rows: usize,
        _element: c_uint,
    ) {
        context::current()?;
        let wide = width.checked_next_multiple_of(512).ok_or(CuError::INVALID_VALUE)?;
        let size = wide.checked_mul(rows).ok_or(CuError::INVALID_VALUE)?;
        pitch.put(wide)?;
        out.put(allocate("cuMemAllocPitch", size)?)
    }

    /// Frees device or managed memory, once all work is done.
    fn cuMemFree_v2(address: u64) {
        let context = context::current()?;
        if address == 0 {
            return Ok(());
        }
        context.legacy.synchronize_unless_capturing();
        driver().streams.all().iter().for_each(|stream| stream.synchronize_unless_capturing());
        if driver().host_memory.holds(address) {
            return driver().host_memory.free(address, true);
        }
        begins("cuMemFree", address)?;
        lock(&driver().memory).free(address).map_err(|fault| code_of(fault.kind))
    }

    /// Device memory, in a stream's order.
    fn cuMemAllocAsync(out: Out<u64>, size: usize, stream: Handle) {
        allocate_async(&out, size, stream)
    }

    /// Frees device memory, in a stream's order.
    fn cuMemFreeAsync(address: u64, stream: Handle) {
        let (context, stream) = working_stream(stream)?;
        if address == 0 {
            return Ok(());
        }
        begins("cuMemFreeAsync", address)?;
        stream.submit(&context, Work::Free(address))
    }

    /// Pinned host memory.
    fn cuMemHostAlloc(out: Out<HostPtr>, size: usize, flags: c_uint) {
        context::current()?;
        if flags & !HOST_ALLOC_FLAGS != 0 {
            return Err(CuError::INVALID_VALUE);
        }
        out.put(driver().host_memory.allocate(size, false)?)
    }

    /// Pinned host memory.
    fn cuMemAllocHost_v2(out: Out<HostPtr>, size: usize) {
        context::current()?;
        out.put(driver().host_memory.allocate(size, false)?)
    }

    /// Frees pinned host memory.
    fn cuMemFreeHost(pointer: HostPtr) {
        context::current()?;
        if pointer.address() == 0 {
            return Ok(());
        }
        driver().host_memory.free(pointer.address() as u64, false)
    }

    /// The address by which kernels use pinned memory: the same.
    fn cuMemHostGetDevicePointer_v2(out: Out<u64>, pointer: HostPtr, flags: c_uint) {
        context::current()?;
        let address = pointer.address() as u64;
        if flags != 0 || !driver().host_memory.holds(address) {
            return Err(CuError::INVALID_VALUE);
        }
        out.put(address)
    }

    /// Memory that host and kernels use at one address.
    fn cuMemAllocManaged(out: Out<u64>, size: usize, flags: c_uint) {
        context::current()?;
        if ![ATTACH_GLOBAL, ATTACH_HOST].contains(&flags) {
            return Err(CuError::INVALID_VALUE);
        }
        out.put(driver().host_memory.allocate(size, true)?.address() as u64)
    }

    /// Where managed memory is to be: nowhere else than it is.
    fn cuMemPrefetchAsync_v2(
        address: u64,
        size: usize,
        _location: u64,
        flags: c_uint,
        stream: Handle,
    ) {
        working_stream(stream)?;
        if flags != 0 {
            return Err(CuError::INVALID_VALUE);
        }
        driver().host_memory.check("cuMemPrefetchAsync", address, size as u64)
    }

    /// How managed memory will be used: it makes no difference.
    fn cuMemAdvise_v2(address: u64, size: usize, advice: c_int, _location: u64) {
        context::current()?;
        if !(1..=6).contains(&advice) {
            return Err(CuError::INVALID_VALUE);
        }
        driver().host_memory.check("cuMemAdvise", address, size as u64)
    }

    /// Which stream managed memory belongs to.
    fn cuStreamAttachMemAsync(stream: Handle, address: u64, size: usize, flags: c_uint) {
        working_stream(stream)?;
        let known = [ATTACH_GLOBAL, ATTACH_HOST, ATTACH_SINGLE].contains(&flags);
        if !known || (flags == ATTACH_SINGLE && stream == 0) {
            return Err(CuError::INVALID_VALUE);
        }
        driver().host_memory.check("cuStreamAttachMemAsync", address, size as u64)
    }

    /// Free and total bytes.
    fn cuMemGetInfo_v2(free: Out<usize>, total: Out<usize>) {
        context::current()?;
        let (is_free, is_total) = lock(&driver().memory).info();
        free.put(is_free as usize)?;
        total.put(is_total as usize)
    }

    /// The allocation an address lies in.
    fn cuMemGetAddressRange_v2(start: Out<u64>, size: Out<usize>, address: u64) {
        context::current()?;
        let range = range_of(address)?;
        start.put_if_wanted(range.0);
        size.put_if_wanted(range.1 as usize);
        Ok(())
    }

    /// What an address is.
    fn cuPointerGetAttribute(out: Out<u64>, number: c_int, address: u64) {
        attribute(&out, number, address)
    }
}

//! Chapter "Memory Management", second half: copies and memsets.

use std::ffi::{c_uchar, c_uint, c_ushort, c_void};
use std::mem::size_of;
use std::ops::Range;

use super::abi::{HostPtr, In, complain, entry};
use super::clock::lock;
use super::error::{CuError, CuResult};
use super::stream::working_stream;
use super::work::Work;
use super::{Handle, driver};
use crate::fault::Fault;
use crate::memory::{BASE, Order};

/// Modelled time of any copy or memset, nanoseconds.
const LATENCY: u64 = 1000;
/// Modelled bytes a nanosecond.
const BANDWIDTH: u64 = 16;

/// Where device memory lies: no process maps anything there.
const DEVICE_ADDRESSES: Range<u64> = BASE..BASE << 1;

/// One end of a copy.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// Host memory, pinned and managed memory included.
    Host(HostPtr),
    /// Device memory.
    Device(u64),
}

impl Place {
    /// What a device pointer points to: managed and pinned memory have the host's address.
    fn of_device_pointer(address: u64) -> Place {
        if driver().host_memory.holds(address) {
            Place::Host(HostPtr::of(address as *mut u8))
        } else {
            Place::Device(address)
        }
    }

    /// What a pointer of either kind points to.
    fn of_any_pointer(address: u64) -> Place {
        if DEVICE_ADDRESSES.contains(&address) {
            Place::Device(address)
        } else {
            Place::Host(HostPtr::of(address as *mut u8))
        }
    }

    fn offset(self, bytes: u64) -> Place {
        match self {
            Place::Host(pointer) => Place::Host(pointer.offset(bytes as usize)),
            Place::Device(address) => Place::Device(address.wrapping_add(bytes)),
        }
    }

    /// Whether `len` bytes are there; the sentence goes to stderr, since the code says little.
    fn check(self, what: &str, len: u64) -> CuResult {
        match self {
            Place::Host(pointer) if pointer.address() == 0 && len > 0 => {
                complain(what, "a null host pointer");
                Err(CuError::INVALID_VALUE)
            }
            Place::Host(pointer) if DEVICE_ADDRESSES.contains(&(pointer.address() as u64)) => {
                complain(what, "a device pointer where a host pointer belongs");
                Err(CuError::INVALID_VALUE)
            }
            Place::Host(pointer) if driver().host_memory.holds(pointer.address() as u64) => {
                driver()
                    .host_memory
                    .check(what, pointer.address() as u64, len)
            }
            Place::Host(_) => Ok(()),
            Place::Device(address) => check_range(what, address, len),
        }
    }

    /// Whether the caller waits for the copy: only pinned host memory allows going on before.
    fn is_pageable(self) -> bool {
        matches!(self, Place::Host(pointer) if !driver().host_memory.holds(pointer.address() as u64))
    }
}

fn check_range(what: &str, address: u64, len: u64) -> CuResult {
    if len == 0 {
        return Ok(());
    }
    let Some((start, size)) = lock(&driver().memory).range_of(address) else {
        complain(
            what,
            &format!("{address:#x} is not in device memory that is allocated"),
        );
        return Err(CuError::INVALID_VALUE);
    };
    let room = size - (address - start);
    if len > room {
        complain(
            what,
            &format!("{len} bytes from {address:#x}, where the allocation has only {room} left"),
        );
        return Err(CuError::INVALID_VALUE);
    }
    Ok(())
}

/// A copy of `rows` rows of `width` bytes.
#[derive(Debug)]
pub struct Copy {
    to: Place,
    to_pitch: u64,
    from: Place,
    from_pitch: u64,
    width: u64,
    rows: u64,
}

impl Copy {
    /// Copies; returns the modelled time.
    pub fn run(&self, order: &Order) -> Result<u64, Fault> {
        for row in 0..self.rows {
            let to = self.to.offset(row * self.to_pitch);
            let from = self.from.offset(row * self.from_pitch);
            let len = self.width as usize;
            let memory = &driver().memory;
            match (to, from) {
                (Place::Device(to), Place::Device(from)) => {
                    lock(memory).copy(to, from, self.width, order)?;
                }
                (Place::Device(to), Place::Host(from)) => {
                    // SAFETY: the caller of the copy vouches for the buffer until it is done.
                    let bytes = unsafe { from.bytes(len) };
                    lock(memory).write(to, bytes, order)?;
                }
                (Place::Host(to), Place::Device(from)) => {
                    // SAFETY: as above.
                    let bytes = unsafe { to.bytes_mut(len) };
                    lock(memory).read(from, bytes, order)?;
                }
                (Place::Host(to), Place::Host(from)) => {
                    // SAFETY: as above; the two may overlap, hence by way of a third place.
                    let bytes = unsafe { from.bytes(len) }.to_vec();
                    // SAFETY: as above.
                    unsafe { to.bytes_mut(len) }.copy_from_slice(&bytes);
                }
            }
        }
        Ok(LATENCY + self.width * self.rows / BANDWIDTH)
    }
}

/// A memset of `rows` rows of `width` elements.
#[derive(Debug)]
pub struct Fill {
    to: Place,
    pitch: u64,
    pattern: Vec<u8>,
    width: u64,
    rows: u64,
}

impl Fill {
    /// Fills; returns the modelled time.
    pub fn run(&self, order: &Order) -> Result<u64, Fault> {
        let bytes = self.width * self.pattern.len() as u64;
        for row in 0..self.rows {
            match self.to.offset(row * self.pitch) {
                Place::Device(address) => {
                    lock(&driver().memory).fill(address, &self.pattern, self.width, order)?;
                }
                Place::Host(pointer) => {
                    // SAFETY: checked to lie in an allocation of ours when it was submitted; the
                    // caller keeps that until the work is done.
                    let out = unsafe { pointer.bytes_mut(bytes as usize) };
                    out.chunks_exact_mut(self.pattern.len())
                        .for_each(|element| element.copy_from_slice(&self.pattern));
                }
            }
        }
        Ok(LATENCY + bytes * self.rows / BANDWIDTH)
    }
}

/// Whether the call returns before the work is done.
#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    Now,
    InStream(Handle),
}

/// The stream of work that the API calls synchronous: the default one.
const DEFAULT_STREAM: Handle = 0;

fn submit(when: When, work: Work, host_waits: bool) -> CuResult {
    let (context, stream) = working_stream(match when {
        When::Now => DEFAULT_STREAM,
        When::InStream(stream) => stream,
    })?;
    stream.submit(&context, work)?;
    if when == When::Now {
        stream.synchronize()?;
        return driver().check_sound();
    }
    if host_waits && !stream.is_capturing() {
        stream.synchronize()?;
    }
    Ok(())
}

fn copy(what: &str, when: When, to: Place, from: Place, len: usize) -> CuResult {
    let len = len as u64;
    copy_rows(
        what,
        when,
        Copy {
            to,
            to_pitch: len,
            from,
            from_pitch: len,
            width: len,
            rows: 1,
        },
    )
}

fn copy_rows(what: &str, when: When, copy: Copy) -> CuResult {
    super::context::current()?;
    if copy.width == 0 || copy.rows == 0 {
        return Ok(());
    }
    let extent = |pitch: u64| {
        let last = pitch.checked_mul(copy.rows - 1)?;
        last.checked_add(copy.width)
    };
    if copy.rows > 1 && (copy.to_pitch < copy.width || copy.from_pitch < copy.width) {
        return Err(CuError::INVALID_VALUE);
    }
    copy.to
        .check(what, extent(copy.to_pitch).ok_or(CuError::INVALID_VALUE)?)?;
    copy.from
        .check(what, extent(copy.from_pitch).ok_or(CuError::INVALID_VALUE)?)?;
    // A device-to-device copy returns at once even where the API calls it synchronous; the clocks
    // of the default stream order it all the same.
    if matches!(copy.to, Place::Host(_)) {
        crate::control::count_wait();
    }
    let pageable = copy.to.is_pageable() || copy.from.is_pageable();
    submit(when, Work::Copy(copy), pageable)
}

fn fill(
    when: When,
    address: u64,
    pitch: usize,
    pattern: &[u8],
    width: usize,
    rows: usize,
) -> CuResult {
    super::context::current()?;
    if width == 0 || rows == 0 {
        return Ok(());
    }
    let element = pattern.len() as u64;
    let bytes = (width as u64)
        .checked_mul(element)
        .ok_or(CuError::INVALID_VALUE)?;
    let extent = (pitch as u64)
        .checked_mul(rows as u64 - 1)
        .and_then(|last| last.checked_add(bytes))
        .ok_or(CuError::INVALID_VALUE)?;
    let overlapping = rows > 1 && (pitch as u64) < bytes;
    if overlapping || !address.is_multiple_of(element) || !(pitch as u64).is_multiple_of(element) {
        return Err(CuError::INVALID_VALUE);
    }
    let to = Place::of_device_pointer(address);
    match to {
        Place::Device(_) => check_range("cuMemset", address, extent)?,
        Place::Host(_) => driver().host_memory.check("cuMemset", address, extent)?,
    }
    let fill = Fill {
        to,
        pitch: pitch as u64,
        pattern: pattern.to_vec(),
        width: width as u64,
        rows: rows as u64,
    };
    submit(when, Work::Fill(fill), false)
}

fn device(address: u64) -> Place {
    Place::of_device_pointer(address)
}

fn host(pointer: HostPtr) -> Place {
    Place::Host(pointer)
}

entry! {
    /// Host to device.
    fn cuMemcpyHtoD_v2(to: u64, from: HostPtr, len: usize) {
        copy("cuMemcpyHtoD", When::Now, device(to), host(from), len)
    }
    /// Device to host.
    fn cuMemcpyDtoH_v2(to: HostPtr, from: u64, len: usize) {
        copy("cuMemcpyDtoH", When::Now, host(to), device(from), len)
    }
    /// Device to device.
    fn cuMemcpyDtoD_v2(to: u64, from: u64, len: usize) {
        copy("cuMemcpyDtoD", When::Now, device(to), device(from), len)
    }
    /// Between any two places.
    fn cuMemcpy(to: u64, from: u64, len: usize) {
        let (to, from) = (Place::of_any_pointer(to), Place::of_any_pointer(from));
        copy("cuMemcpy", When::Now, to, from, len)
    }
    /// Host to device, in a stream.
    fn cuMemcpyHtoDAsync_v2(to: u64, from: HostPtr, len: usize, stream: Handle) {
        copy("cuMemcpyHtoDAsync", When::InStream(stream), device(to), host(from), len)
    }
    /// Device to host, in a stream.
    fn cuMemcpyDtoHAsync_v2(to: HostPtr, from: u64, len: usize, stream: Handle) {
        copy("cuMemcpyDtoHAsync", When::InStream(stream), host(to), device(from), len)
    }
    /// Device to device, in a stream.
    fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, len: usize, stream: Handle) {
        copy("cuMemcpyDtoDAsync", When::InStream(stream), device(to), device(from), len)
    }
    /// Between any two places, in a stream.
    fn cuMemcpyAsync(to: u64, from: u64, len: usize, stream: Handle) {
        let (to, from) = (Place::of_any_pointer(to), Place::of_any_pointer(from));
        copy("cuMemcpyAsync", When::InStream(stream), to, from, len)
    }
    /// Between contexts, which share the device.
    fn cuMemcpyPeer(to: u64, to_context: Handle, from: u64, from_context: Handle, len: usize) {
        contexts(to_context, from_context)?;
        copy("cuMemcpyPeer", When::Now, device(to), device(from), len)
    }
    /// Between contexts, in a stream.
    fn cuMemcpyPeerAsync(
        to: u64,
        to_context: Handle,
        from: u64,
        from_context: Handle,
        len: usize,
        stream: Handle,
    ) {
        contexts(to_context, from_context)?;
        copy("cuMemcpyPeerAsync", When::InStream(stream), device(to), device(from), len)
    }
    /// Rows of a matrix.
    fn cuMemcpy2D_v2(rows: In<Rows>) {
        copy_rows("cuMemcpy2D", When::Now, rows.read()?.copy()?)
    }
    /// Rows of a matrix, of any alignment.
    fn cuMemcpy2DUnaligned_v2(rows: In<Rows>) {
        copy_rows("cuMemcpy2DUnaligned", When::Now, rows.read()?.copy()?)
    }
    /// Rows of a matrix, in a stream.
    fn cuMemcpy2DAsync_v2(rows: In<Rows>, stream: Handle) {
        copy_rows("cuMemcpy2DAsync", When::InStream(stream), rows.read()?.copy()?)
    }

    /// Fills bytes.
    fn cuMemsetD8_v2(to: u64, value: c_uchar, count: usize) {
        fill(When::Now, to, 0, &[value], count, 1)
    }
    /// Fills 16-bit words.
    fn cuMemsetD16_v2(to: u64, value: c_ushort, count: usize) {
        fill(When::Now, to, 0, &value.to_le_bytes(), count, 1)
    }
    /// Fills 32-bit words.
    fn cuMemsetD32_v2(to: u64, value: c_uint, count: usize) {
        fill(When::Now, to, 0, &value.to_le_bytes(), count, 1)
    }
    /// Fills bytes, in a stream.
    fn cuMemsetD8Async(to: u64, value: c_uchar, count: usize, stream: Handle) {
        fill(When::InStream(stream), to, 0, &[value], count, 1)
    }
    /// Fills 16-bit words, in a stream.
    fn cuMemsetD16Async(to: u64, value: c_ushort, count: usize, stream: Handle) {
        fill(When::InStream(stream), to, 0, &value.to_le_bytes(), count, 1)
    }
    /// Fills 32-bit words, in a stream.
    fn cuMemsetD32Async(to: u64, value: c_uint, count: usize, stream: Handle) {
        fill(When::InStream(stream), to, 0, &value.to_le_bytes(), count, 1)
    }
    /// Fills rows of bytes.
    fn cuMemsetD2D8_v2(to: u64, pitch: usize, value: c_uchar, width: usize, rows: usize) {
        fill(When::Now, to, pitch, &[value], width, rows)
    }
    /// Fills rows of bytes, in a stream.
    fn cuMemsetD2D8Async(
        to: u64,
        pitch: usize,
        value: c_uchar,
        width: usize,
        rows: usize,
        stream: Handle,
    ) {
        fill(When::InStream(stream), to, pitch, &[value], width, rows)
    }
    /// Fills rows of 32-bit words.
    fn cuMemsetD2D32_v2(to: u64, pitch: usize, value: c_uint, width: usize, rows: usize) {
        fill(When::Now, to, pitch, &value.to_le_bytes(), width, rows)
    }
    /// Fills rows of 32-bit words, in a stream.
    fn cuMemsetD2D32Async(
        to: u64,
        pitch: usize,
        value: c_uint,
        width: usize,
        rows: usize,
        stream: Handle,
    ) {
        fill(When::InStream(stream), to, pitch, &value.to_le_bytes(), width, rows)
    }
}

fn contexts(to: Handle, from: Handle) -> CuResult {
    for context in [to, from] {
        driver()
            .contexts
            .get(context)
            .map_err(|_| CuError::INVALID_CONTEXT)?;
    }
    Ok(())
}

/// `CUDA_MEMCPY2D`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Rows {
    from_x: usize,
    from_y: usize,
    from_kind: c_uint,
    from_host: *const c_void,
    from_device: u64,
    from_array: *mut c_void,
    from_pitch: usize,
    to_x: usize,
    to_y: usize,
    to_kind: c_uint,
    to_host: *mut c_void,
    to_device: u64,
    to_array: *mut c_void,
    to_pitch: usize,
    width: usize,
    rows: usize,
}

const _: () = assert!(size_of::<Rows>() == 128);

impl Rows {
    fn copy(&self) -> CuResult<Copy> {
        let place = |kind, host: u64, at: u64, x: usize, y: usize, pitch: usize| {
            let base = match kind {
                1 => Place::Host(HostPtr::of(host as *mut u8)),
                2 => Place::of_device_pointer(at),
                4 => Place::of_any_pointer(at),
                _ => return Err(CuError::INVALID_VALUE),
            };
            let offset = y.checked_mul(pitch).and_then(|row| row.checked_add(x));
            Ok(base.offset(offset.ok_or(CuError::INVALID_VALUE)? as u64))
        };
        // A pitch of 0 means rows without gaps.
        let pitch = |pitch| if pitch == 0 { self.width } else { pitch };
        let (from_pitch, to_pitch) = (pitch(self.from_pitch), pitch(self.to_pitch));
        let from_host = self.from_host.addr() as u64;
        let to_host = self.to_host.addr() as u64;
        Ok(Copy {
            to: place(
                self.to_kind,
                to_host,
                self.to_device,
                self.to_x,
                self.to_y,
                to_pitch,
            )?,
            to_pitch: to_pitch as u64,
            from: place(
                self.from_kind,
                from_host,
                self.from_device,
                self.from_x,
                self.from_y,
                from_pitch,
            )?,
            from_pitch: from_pitch as u64,
            width: self.width as u64,
            rows: self.rows as u64,
        })
    }
}

//! What crosses the C ABI: pointers the caller vouches for, and the frame of an entry point.
//!
//! Entry points receive pointers as [`Out`], [`In`], [`Name`] and [`HostPtr`]: whoever calls a C
//! function promises that each is null or points to what the manual says. That promise is spelled
//! out here once, and the rest of the driver is safe code. Pointers that come inside a struct or an
//! array of the API are wrapped on the same promise ([`In::of`], [`In::pointer_at`], [`Out::at`]);
//! nothing else may be.

use std::any::Any;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::error::{CuError, CuResult, SUCCESS};

/// A place for a result.
#[repr(transparent)]
pub struct Out<T>(*mut T);

impl<T> Out<T> {
    /// Whether no place was passed.
    pub fn is_null(&self) -> bool {
        self.0.is_null()
    }

    /// Writes the result; null is an invalid value.
    pub fn put(&self, value: T) -> CuResult {
        if self.0.is_null() {
            return Err(CuError::INVALID_VALUE);
        }
        // SAFETY: not null, so by the ABI's contract it is a place for a `T`; C promises no
        // alignment that Rust would rely on.
        unsafe { self.0.write_unaligned(value) };
        Ok(())
    }

    /// Writes the result where there is a place for it.
    pub fn put_if_wanted(&self, value: T) {
        let _ = self.put(value);
    }

    /// Writes a row of results, as many as the caller announced.
    pub fn put_all(&self, values: impl ExactSizeIterator<Item = T>) -> CuResult {
        if self.0.is_null() {
            return Err(CuError::INVALID_VALUE);
        }
        for (at, value) in values.enumerate() {
            // SAFETY: by the ABI's contract there is room for the length the caller announced,
            // which is what the callers of this function pass.
            unsafe { self.0.add(at).write_unaligned(value) };
        }
        Ok(())
    }

    /// The address itself.
    pub fn address(&self) -> usize {
        self.0.addr()
    }

    /// A place whose address came as a value of an option.
    pub fn at(address: usize) -> Self {
        Out(std::ptr::with_exposed_provenance_mut(address))
    }

    /// The same place, read as another type (attribute values come as `void *`).
    pub fn cast<U>(&self) -> Out<U> {
        Out(self.0.cast())
    }

    /// Reads what is there (in-out parameters).
    pub fn read(&self) -> CuResult<T>
    where
        T: Copy,
    {
        In(self.0.cast_const()).read()
    }
}

/// Something to read.
#[derive(Debug)]
#[repr(transparent)]
pub struct In<T>(*const T);

impl<T> Clone for In<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for In<T> {}

impl<T: Copy> In<T> {
    /// The value; null is an invalid value.
    pub fn read(&self) -> CuResult<T> {
        self.at(0)
    }

    /// Element `index` of an array of that many and more; a null array is an invalid value.
    pub fn at(&self, index: usize) -> CuResult<T> {
        if self.0.is_null() {
            return Err(CuError::INVALID_VALUE);
        }
        // SAFETY: not null, so by the ABI's contract it points to an array that holds `index`.
        Ok(unsafe { self.0.add(index).read_unaligned() })
    }

    /// Fills `places` with the first elements; a null array is an invalid value.
    pub fn read_to(&self, places: &mut [T]) -> CuResult {
        if self.0.is_null() {
            return Err(CuError::INVALID_VALUE);
        }
        let bytes = std::mem::size_of_val(places);
        // SAFETY: not null, so by the ABI's contract it points to as many elements as the function
        // at hand reads of it; `T: Copy`, and bytes need no alignment; `places` is our own.
        unsafe {
            self.0
                .cast::<u8>()
                .copy_to_nonoverlapping(places.as_mut_ptr().cast(), bytes);
        }
        Ok(())
    }

    /// The first `len` elements; a null array is an invalid value unless it is empty.
    pub fn all(&self, len: usize) -> CuResult<Vec<T>> {
        (0..len).map(|index| self.at(index)).collect()
    }
}

impl In<usize> {
    /// Element `index` of an array of pointers that came as `void *`.
    pub fn pointer_at<T>(&self, index: usize) -> CuResult<In<T>> {
        self.at(index)
            .map(|address| In(std::ptr::with_exposed_provenance(address)))
    }
}

impl<T> In<T> {
    /// Nothing to read.
    pub fn nothing() -> Self {
        In(std::ptr::null())
    }

    /// A pointer that came in a struct of the API.
    pub fn of(pointer: *const T) -> Self {
        In(pointer)
    }

    /// The same thing, read as another type (attribute values come as `void *`).
    pub fn cast<U>(&self) -> In<U> {
        In(self.0.cast())
    }

    /// Whether nothing was passed.
    pub fn is_null(&self) -> bool {
        self.0.is_null()
    }

    /// The address itself.
    pub fn address(&self) -> usize {
        self.0.addr()
    }
}

/// A NUL-terminated name.
#[repr(transparent)]
pub struct Name(*const c_char);

impl Name {
    /// The name; null, and anything but UTF-8, is an invalid value.
    pub fn read(&self) -> CuResult<String> {
        if self.0.is_null() {
            return Err(CuError::INVALID_VALUE);
        }
        // SAFETY: not null, so by the ABI's contract a NUL-terminated string.
        let name = unsafe { CStr::from_ptr(self.0) };
        name.to_str()
            .map(str::to_owned)
            .map_err(|_| CuError::INVALID_VALUE)
    }
}

/// A host buffer that a copy reads or writes, now or when the stream reaches it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct HostPtr(*mut c_void);

// SAFETY: it is an address; the ABI's contract makes the caller keep the buffer alive and unused
// until the copy is done, whatever thread does it.
unsafe impl Send for HostPtr {}
// SAFETY: as above.
unsafe impl Sync for HostPtr {}

impl HostPtr {
    /// A buffer of the driver's own.
    pub fn of(pointer: *mut u8) -> HostPtr {
        HostPtr(pointer.cast())
    }

    /// Its address, as a key.
    pub fn address(self) -> usize {
        self.0.addr()
    }

    /// The pointer itself, to hand on.
    pub fn as_ptr(self) -> *mut c_void {
        self.0
    }

    /// The buffer, `offset` bytes on.
    pub fn offset(self, offset: usize) -> HostPtr {
        HostPtr(self.0.wrapping_byte_add(offset))
    }

    /// The buffer as bytes to read.
    ///
    /// # Safety
    /// The caller of the API vouches for `len` readable bytes and holds them unchanged until the
    /// copy is done; the slice must not outlive the copy.
    pub unsafe fn bytes<'a>(self, len: usize) -> &'a [u8] {
        if len == 0 {
            return &[];
        }
        // SAFETY: the caller's contract.
        unsafe { std::slice::from_raw_parts(self.0.cast(), len) }
    }

    /// The buffer as bytes to write.
    ///
    /// # Safety
    /// As for [`HostPtr::bytes`], writable, and used by nobody else until the copy is done.
    pub unsafe fn bytes_mut<'a>(self, len: usize) -> &'a mut [u8] {
        if len == 0 {
            return &mut [];
        }
        // SAFETY: the caller's contract.
        unsafe { std::slice::from_raw_parts_mut(self.0.cast(), len) }
    }
}

/// Reads memory of this process without the risk of a fault: what is not mapped ends the bytes.
///
/// Module images come as an address without a length, and a malformed one announces any length it
/// likes.
pub fn read_mapped(address: usize, len: usize) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    const STEP: usize = 1 << 16;
    let mut bytes = Vec::new();
    let Ok(memory) = std::fs::File::open("/proc/self/mem") else {
        return bytes;
    };
    while bytes.len() < len {
        let have = bytes.len();
        // Steps end on page boundaries, so that only an unmapped page cuts one short.
        let step = (STEP - (address.wrapping_add(have) % STEP)).min(len - have);
        bytes.resize(have + step, 0);
        match memory.read_at(&mut bytes[have..], (address.wrapping_add(have)) as u64) {
            Ok(read) => bytes.truncate(have + read),
            Err(_) => bytes.truncate(have),
        }
        if bytes.len() < have + step {
            break;
        }
    }
    bytes
}

/// Declares entry points of the driver API: exported C functions whose bodies are safe code that
/// ends in a [`CuResult`], and out of which no panic escapes.
macro_rules! entry {
    ($($(#[$meta:meta])* fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $body:block)*) => {$(
        $(#[$meta])*
        #[unsafe(no_mangle)]
        #[allow(non_snake_case, reason = "the names are the API's")]
        #[allow(improper_ctypes_definitions, reason = "transparent wrappers of C pointers")]
        unsafe extern "C" fn $name($($arg: $ty),*) -> std::ffi::c_int {
            $crate::driver::abi::frame(stringify!($name), move || -> $crate::driver::error::CuResult { $body })
        }
    )*};
}
pub(crate) use entry;

/// Runs the body of an entry point.
pub fn frame(name: &str, body: impl FnOnce() -> CuResult) -> c_int {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => SUCCESS,
        Ok(Err(error)) => error.code(),
        Err(panic) => {
            complain(
                name,
                &format!("an internal error of softgpu: {}", panic_message(&*panic)),
            );
            CuError::UNKNOWN.code()
        }
    }
}

/// What a panic said.
pub fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

/// Says on stderr why an entry point is about to fail: codes alone say too little.
pub fn complain(name: &str, sentence: &str) {
    let _ = writeln!(std::io::stderr(), "softgpu: {name}: {sentence}");
}

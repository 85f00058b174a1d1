//! The caller's pointers, checked as far as they can be: NULL, alignment, and sizes that no memory has.

use std::ffi::{CStr, c_char};
use std::path::Path;

use hardmix::Error;

use crate::status::{Failure, Result};

/// `rows × width` elements, if an address space could hold them.
pub(crate) fn elements<T>(argument: &'static str, rows: usize, width: usize) -> Result<usize> {
    let most = isize::MAX as usize / size_of::<T>();
    match rows.checked_mul(width) {
        Some(len) if len <= most => Ok(len),
        _ => Err(Failure::Library(Error::OutOfMemory {
            argument,
            rows,
            width,
        })),
    }
}

/// Refuses an address that no element can have, before anything is done with it.
pub(crate) fn expect_place<T>(argument: &'static str, pointer: *const T) -> Result<()> {
    if pointer.is_null() {
        Err(Failure::Null(argument))
    } else if !pointer.is_aligned() {
        Err(Failure::Invalid(format!(
            "{argument} is {pointer:?}; expected an address aligned to {} bytes",
            align_of::<T>()
        )))
    } else {
        Ok(())
    }
}

/// An array of the caller's.
///
/// # Safety
/// Unless NULL or misaligned, `pointer` is readable for `len` elements, which nobody writes during
/// `'a`.
pub(crate) unsafe fn slice<'a, T>(
    argument: &'static str,
    pointer: *const T,
    len: usize,
) -> Result<&'a [T]> {
    expect_place(argument, pointer)?;
    elements::<T>(argument, len, 1)?;
    // SAFETY: neither NULL nor misaligned, no longer than memory is; the rest is the contract.
    Ok(unsafe { std::slice::from_raw_parts(pointer, len) })
}

/// An array that may be missing.
///
/// # Safety
/// As [`slice`].
pub(crate) unsafe fn optional_slice<'a, T>(
    argument: &'static str,
    pointer: *const T,
    len: usize,
) -> Result<Option<&'a [T]>> {
    if pointer.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's contract.
    unsafe { slice(argument, pointer, len) }.map(Some)
}

/// A struct or handle of the caller's.
///
/// # Safety
/// As [`slice`], for one element.
pub(crate) unsafe fn reference<'a, T>(argument: &'static str, pointer: *const T) -> Result<&'a T> {
    expect_place(argument, pointer)?;
    // SAFETY: neither NULL nor misaligned; the rest is the contract.
    Ok(unsafe { &*pointer })
}

/// Refuses a place that cannot be written to, before anything is computed for it; NULL means that the
/// result is not wanted.
pub(crate) fn expect_optional_place<T>(argument: &'static str, place: *mut T) -> Result<()> {
    if place.is_null() {
        Ok(())
    } else {
        expect_place(argument, place)
    }
}

/// Copies a result out, unless the place is NULL.
///
/// # Safety
/// Unless NULL, `place` is writable for as many elements as there are values, and aligned.
pub(crate) unsafe fn put<T: Copy>(place: *mut T, values: &[T]) {
    if !place.is_null() {
        // SAFETY: the caller's contract; `copy` allows any overlap.
        unsafe { std::ptr::copy(values.as_ptr(), place, values.len()) };
    }
}

/// Hands an object to the caller.
///
/// # Safety
/// Unless NULL or misaligned, `place` is writable.
pub(crate) unsafe fn hand_over<T>(place: *mut *mut T, object: T) -> Result<()> {
    expect_place("out", place)?;
    // SAFETY: checked, and the caller's contract.
    unsafe { place.write(Box::into_raw(Box::new(object))) };
    Ok(())
}

/// Takes an object back and drops it; NULL is none.
///
/// # Safety
/// `object` is NULL, or came from [`hand_over`] and is used by nobody from here on.
pub(crate) unsafe fn take_back<T>(object: *mut T) -> Result<()> {
    if !object.is_null() {
        // SAFETY: the caller's contract.
        drop(unsafe { Box::from_raw(object) });
    }
    Ok(())
}

/// A path of the caller's, in UTF-8.
///
/// # Safety
/// Unless NULL, `pointer` is a string that ends with NUL and that nobody writes during `'a`.
pub(crate) unsafe fn path<'a>(pointer: *const c_char) -> Result<&'a Path> {
    expect_place("path", pointer)?;
    // SAFETY: not NULL; the rest is the contract.
    let text = unsafe { CStr::from_ptr(pointer) };
    let text = text
        .to_str()
        .map_err(|error| Failure::Invalid(format!("path is not UTF-8: {error}")))?;
    Ok(Path::new(text))
}

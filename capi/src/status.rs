//! What every function returns, and the text of the last error.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use hardmix::Error;

/// `hardmix_status` of the header: the numbers are part of the ABI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Status {
    /// `HARDMIX_OK`
    Ok = 0,
    /// `HARDMIX_ERROR_NULL`
    Null = 1,
    /// `HARDMIX_ERROR_INVALID`
    Invalid = 2,
    /// `HARDMIX_ERROR_NON_FINITE`
    NonFinite = 3,
    /// `HARDMIX_ERROR_OUT_OF_MEMORY`
    OutOfMemory = 4,
    /// `HARDMIX_ERROR_FILE`
    File = 5,
    /// `HARDMIX_ERROR_CUDA`
    #[cfg(feature = "cuda")]
    Cuda = 6,
    /// `HARDMIX_ERROR_CUDA_CONTEXT_LOST`
    #[cfg(feature = "cuda")]
    CudaContextLost = 7,
    /// `HARDMIX_ERROR_INTERNAL`
    Internal = 8,
}

/// Why a call fails.
pub(crate) enum Failure {
    /// A pointer that must not be NULL.
    Null(&'static str),
    /// An argument that only C can get wrong, with the sentence about it.
    Invalid(String),
    /// A place for the keys' gradient, of a plan that makes none.
    UnaskedKeyGradient,
    /// What the library says.
    Library(Error),
    /// A handle whose last call panicked.
    Poisoned(&'static str),
}

pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Library(error)
    }
}

impl Failure {
    fn status(&self) -> Status {
        match self {
            Self::Null(_) => Status::Null,
            Self::Invalid(_) | Self::UnaskedKeyGradient => Status::Invalid,
            Self::Poisoned(_) => Status::Internal,
            Self::Library(error) => match error {
                Error::NonFinite { .. } | Error::ZeroNorm { .. } => Status::NonFinite,
                Error::OutOfMemory { .. } => Status::OutOfMemory,
                Error::File { .. } | Error::Tensor { .. } => Status::File,
                #[cfg(feature = "cuda")]
                Error::NoDriver | Error::Driver { .. } => Status::Cuda,
                #[cfg(feature = "cuda")]
                Error::ContextLost { .. } => Status::CudaContextLost,
                _ => Status::Invalid,
            },
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Null(argument) => format!("{argument} is NULL"),
            Self::Invalid(text) => text.clone(),
            Self::UnaskedKeyGradient => "output.grad_keys is given; expected NULL, or \
                 hardmix_plan_set_key_gradient(plan, 1) before"
                .into(),
            Self::Poisoned(handle) => {
                format!("an earlier call on this {handle} failed inside; free it")
            }
            Self::Library(error) => error.to_string(),
        }
    }
}

thread_local! {
    static LAST_ERROR: RefCell<CString> = RefCell::default();
}

/// Runs what a function does, and keeps the text of what went wrong for [`hardmix_last_error`].
pub(crate) fn call(body: impl FnOnce() -> Result<()>) -> Status {
    // What a panic may have left half done lies behind a lock, which it poisons.
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => Status::Ok,
        Ok(Err(failure)) => {
            remember(failure.text());
            failure.status()
        }
        Err(panic) => {
            remember(format!("hardmix failed inside: {}", text_of(&*panic)));
            // Dropping what was thrown could throw again.
            std::mem::forget(panic);
            Status::Internal
        }
    }
}

fn text_of(panic: &(dyn Any + Send)) -> &str {
    let owned = || panic.downcast_ref::<String>().map(String::as_str);
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(owned)
        .unwrap_or("no reason was given")
}

fn remember(text: String) {
    let text = CString::new(text.replace('\0', "?")).unwrap_or_default();
    // While a thread ends there is no place for it, and nobody who could ask.
    let _ = LAST_ERROR.try_with(|last| *last.borrow_mut() = text);
}

/// `hardmix_last_error` of the header.
#[unsafe(no_mangle)]
pub extern "C" fn hardmix_last_error() -> *const c_char {
    LAST_ERROR
        .try_with(|last| last.borrow().as_ptr())
        .unwrap_or(c"".as_ptr())
}

/// `hardmix_version` of the header.
#[unsafe(no_mangle)]
pub extern "C" fn hardmix_version() -> *const c_char {
    const VERSION: &CStr =
        match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
            Ok(version) => version,
            Err(_) => panic!("cargo's versions have no NUL"),
        };
    VERSION.as_ptr()
}

//! Chapter "Error Handling": the result codes, their names and sentences.

use std::ffi::{CStr, c_char, c_int};

use super::abi::{Out, entry};

/// A driver API result code other than success. The names are CUDA's, less `CUDA_ERROR_`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct CuError(c_int);

/// What every entry point works in; the ABI sees success as 0.
pub type CuResult<T = ()> = Result<T, CuError>;

/// The result code of success.
pub const SUCCESS: c_int = 0;

macro_rules! codes {
    ($($name:ident = $code:literal, $sentence:literal;)*) => {
        #[allow(dead_code, reason = "the table is the manual's, whole for what softgpu can return")]
        impl CuError {
            $(pub const $name: CuError = CuError($code);)*

            /// The name and the sentence of a code.
            fn describe(code: c_int) -> Option<(&'static CStr, &'static CStr)> {
            match code {
                SUCCESS => Some((c"CUDA_SUCCESS", c"no error")),
                $($code => Some((
                    CStr::from_bytes_with_nul(concat!("CUDA_ERROR_", stringify!($name), "\0").as_bytes()).ok()?,
                    CStr::from_bytes_with_nul(concat!($sentence, "\0").as_bytes()).ok()?,
                )),)*
                _ => None,
            }
        }
        }
    };
}

codes! {
    INVALID_VALUE = 1, "invalid argument";
    OUT_OF_MEMORY = 2, "out of memory";
    NOT_INITIALIZED = 3, "initialization error";
    NO_DEVICE = 100, "no CUDA-capable device is detected";
    INVALID_DEVICE = 101, "invalid device ordinal";
    INVALID_IMAGE = 200, "device kernel image is invalid";
    INVALID_CONTEXT = 201, "invalid device context";
    NO_BINARY_FOR_GPU = 209, "no kernel image is available for execution on the device";
    UNSUPPORTED_LIMIT = 215, "limit is not supported on this architecture";
    INVALID_PTX = 218, "a PTX JIT compilation failed";
    INVALID_SOURCE = 300, "device kernel image is invalid";
    FILE_NOT_FOUND = 301, "file not found";
    INVALID_HANDLE = 400, "invalid resource handle";
    ILLEGAL_STATE = 401, "the operation cannot be performed in the present state";
    NOT_FOUND = 500, "named symbol not found";
    NOT_READY = 600, "device not ready";
    ILLEGAL_ADDRESS = 700, "an illegal memory access was encountered";
    LAUNCH_OUT_OF_RESOURCES = 701, "too many resources requested for launch";
    LAUNCH_TIMEOUT = 702, "the launch timed out and was terminated";
    PRIMARY_CONTEXT_ACTIVE = 708, "cannot set while device is active in this process";
    CONTEXT_IS_DESTROYED = 709, "context is destroyed";
    ASSERT = 710, "device-side assert triggered";
    ILLEGAL_INSTRUCTION = 715, "an illegal instruction was encountered";
    MISALIGNED_ADDRESS = 716, "misaligned address";
    INVALID_ADDRESS_SPACE = 717, "operation not supported on global/shared address space";
    LAUNCH_FAILED = 719, "unspecified launch failure";
    COOPERATIVE_LAUNCH_TOO_LARGE = 720, "too many blocks in cooperative launch";
    NOT_PERMITTED = 800, "operation not permitted";
    NOT_SUPPORTED = 801, "operation not supported";
    STREAM_CAPTURE_UNSUPPORTED = 900, "operation not permitted when stream is capturing";
    STREAM_CAPTURE_INVALIDATED = 901, "operation failed due to a previous error during capture";
    STREAM_CAPTURE_MERGE = 902, "operation would result in a merge of separate capture sequences";
    STREAM_CAPTURE_UNMATCHED = 903, "capture was not ended in the same stream as it began";
    STREAM_CAPTURE_UNJOINED = 904, "capturing stream has unjoined work";
    STREAM_CAPTURE_ISOLATION = 905, "dependency created on uncaptured work in another stream";
    STREAM_CAPTURE_IMPLICIT = 906, "operation would make the legacy stream depend on a capturing blocking stream";
    CAPTURED_EVENT = 907, "operation not permitted on an event last recorded in a capturing stream";
    STREAM_CAPTURE_WRONG_THREAD = 908, "attempt to terminate a thread-local capture sequence from another thread";
    INVALID_CLUSTER_SIZE = 912, "the cluster configuration cannot be launched";
    UNKNOWN = 999, "unknown error";
}

impl CuError {
    /// The number that crosses the ABI.
    pub fn code(self) -> c_int {
        self.0
    }
}

entry! {
    /// The name of a result code.
    fn cuGetErrorName(error: c_int, out: Out<*const c_char>) {
        give(out, CuError::describe(error).map(|(name, _)| name))
    }

    /// The sentence of a result code.
    fn cuGetErrorString(error: c_int, out: Out<*const c_char>) {
        give(out, CuError::describe(error).map(|(_, sentence)| sentence))
    }
}

/// Writes the text, or null and an error where the code is unknown.
fn give(out: Out<*const c_char>, text: Option<&'static CStr>) -> CuResult {
    out.put(text.map_or(std::ptr::null(), CStr::as_ptr))?;
    text.map(drop).ok_or(CuError::INVALID_VALUE)
}

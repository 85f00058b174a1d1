//! What the tests of the driver layer share.
#![allow(dead_code, reason = "no test uses all of it")]

use std::process::Command;
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaFunction, DriverError, sys};
use cudarc::nvrtc::Ptx;

/// The answer to arguments that make no sense.
pub const CUDA_ERROR_INVALID_VALUE: Result<(), DriverError> =
    Err(DriverError(sys::CUresult::CUDA_ERROR_INVALID_VALUE));

/// A context on softgpu.
pub fn context() -> Arc<CudaContext> {
    assert_eq!(
        softgpu::install().expect("softgpu is there"),
        softgpu::Device::Softgpu
    );
    CudaContext::new(0).expect("softgpu has a device")
}

/// Kernels in PTX written by hand.
pub const KERNELS: &str = include_str!("kernels.ptx");

/// One of [`KERNELS`].
pub fn kernel(context: &Arc<CudaContext>, name: &str) -> CudaFunction {
    let module = context
        .load_module(Ptx::from_src(KERNELS))
        .expect("the kernels load");
    module.load_function(name).expect("the kernel is there")
}

/// The code of an error.
pub fn error<T: std::fmt::Debug>(answer: Result<T, DriverError>) -> sys::CUresult {
    answer.expect_err("an error").0
}

/// Runs `body` in a process of its own, since an error of a kernel sticks to its process: that
/// process is the test `name` once more. Gives what it wrote to stderr; `None` in that process.
pub fn child(name: &str, body: impl FnOnce()) -> Option<String> {
    const VARIABLE: &str = "SOFTGPU_TEST_CHILD";
    if std::env::var_os(VARIABLE).is_some() {
        body();
        return None;
    }
    let test = Command::new(std::env::current_exe().expect("a test has a program"))
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(VARIABLE, "1")
        .output()
        .expect("the test starts once more");
    let stderr = String::from_utf8_lossy(&test.stderr).into_owned();
    assert!(
        test.status.success(),
        "{}{stderr}",
        String::from_utf8_lossy(&test.stdout)
    );
    Some(stderr)
}

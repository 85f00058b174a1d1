//! Chapters "Device Management" and "Context Management" of the driver API, as cudarc uses them.

use cudarc::driver::{CudaContext, sys};

#[test]
fn cudarc_finds_softgpu() {
    assert_eq!(softgpu::install().unwrap(), softgpu::Device::Softgpu);
    let context = CudaContext::new(0).unwrap();
    assert_eq!(context.name().unwrap(), "softgpu");
    assert_eq!(CudaContext::device_count().unwrap(), 1);
    let capability = context.compute_capability().unwrap();
    assert!([(8, 0), (9, 0)].contains(&capability), "{capability:?}");
    use sys::CUdevice_attribute::*;
    for (attribute, value) in [
        (CU_DEVICE_ATTRIBUTE_WARP_SIZE, 32),
        (CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK, 1024),
        (CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK, 49152),
        (CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED, 1),
    ] {
        assert_eq!(
            context.attribute(attribute).unwrap(),
            value,
            "{attribute:?}"
        );
    }
}

#[test]
fn there_is_one_device() {
    softgpu::install().unwrap();
    let error = CudaContext::new(1).unwrap_err();
    assert_eq!(error.0, sys::CUresult::CUDA_ERROR_INVALID_DEVICE);
    assert_eq!(error.error_name().unwrap(), c"CUDA_ERROR_INVALID_DEVICE");
    assert_eq!(error.error_string().unwrap(), c"invalid device ordinal");
}

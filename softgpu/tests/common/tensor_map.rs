//! Tensor maps of row-major bf16 matrices, in boxes 64 columns wide under a swizzle of 128 bytes.

use std::mem::MaybeUninit;
use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DeviceRepr, sys};
use half::bf16;

/// A map as a kernel takes it by value.
#[repr(transparent)]
pub struct Encoded(sys::CUtensorMap);

// SAFETY: 128 plain bytes.
unsafe impl DeviceRepr for Encoded {}

/// A matrix and the box that one copy moves.
pub struct TensorMap {
    address: u64,
    columns: usize,
    rows: usize,
    box_rows: u32,
}

/// The map of a rows × columns matrix in boxes of 64 rows.
pub fn tensor_map(
    stream: &Arc<CudaStream>,
    matrix: &CudaSlice<bf16>,
    columns: usize,
    rows: usize,
) -> TensorMap {
    assert_eq!(matrix.len(), columns * rows);
    let (address, _read) = matrix.device_ptr(stream);
    TensorMap {
        address,
        columns,
        rows,
        box_rows: 64,
    }
}

impl TensorMap {
    /// The same in boxes of `rows` rows.
    pub fn rows(self, rows: u32) -> Self {
        Self {
            box_rows: rows,
            ..self
        }
    }

    pub fn encode(self) -> Encoded {
        let mut map = MaybeUninit::<sys::CUtensorMap>::uninit();
        let sizes = [self.columns as u64, self.rows as u64];
        let strides = [self.columns as u64 * 2];
        // SAFETY: the arrays have as many elements as rank 2 asks for, and the map is written
        // before it is taken, for the call reports success.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                map.as_mut_ptr(),
                sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                2,
                self.address as *mut std::ffi::c_void,
                sizes.as_ptr(),
                strides.as_ptr(),
                [64, self.box_rows].as_ptr(),
                [1, 1].as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
            .result()
            .expect("a tensor map");
            Encoded(map.assume_init())
        }
    }
}

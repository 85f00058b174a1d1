//! Chapter "Tensor Map Object Management".

use std::ffi::c_uint;

use super::abi::{In, Out, complain, entry};
use super::context;
use super::driver;
use super::error::{CuError, CuResult};
use crate::image::Arch;
use crate::tensor_map::{BYTES, DataType, Swizzle, TensorMap};

const ALIGNMENT: usize = 64;

fn encode(out: &Out<[u8; BYTES]>, map: TensorMap, interleave: c_uint) -> CuResult {
    let refuse = |sentence: &str| {
        complain("cuTensorMapEncodeTiled", sentence);
        Err(CuError::INVALID_VALUE)
    };
    if driver().arch < Arch::SM_90 {
        complain(
            "cuTensorMapEncodeTiled",
            &format!("{} has no tensor maps", driver().arch),
        );
        return Err(CuError::NOT_SUPPORTED);
    }
    if interleave != 0 {
        return refuse("softgpu has no interleaved layouts");
    }
    if !out.address().is_multiple_of(ALIGNMENT) {
        return refuse("the tensor map does not lie at a multiple of 64");
    }
    match map.check() {
        Ok(()) => out.put(map.encode()),
        Err(error) => refuse(&error.to_string()),
    }
}

entry! {
    /// Describes a tiled tensor to the bulk copies.
    fn cuTensorMapEncodeTiled(
        out: Out<[u8; BYTES]>,
        data_type: c_uint,
        rank: c_uint,
        address: u64,
        dims: In<u64>,
        strides: In<u64>,
        box_dims: In<c_uint>,
        element_strides: In<c_uint>,
        interleave: c_uint,
        swizzle: c_uint,
        promotion: c_uint,
        fill: c_uint,
    ) {
        context::initialised()?;
        if !(1..=5).contains(&rank) || promotion > 3 || fill > 1 {
            return Err(CuError::INVALID_VALUE);
        }
        let rank = rank as usize;
        let map = TensorMap {
            data_type: DataType::from_number(data_type).ok_or(CuError::INVALID_VALUE)?,
            address,
            dims: dims.all(rank)?,
            strides: strides.all(rank - 1)?,
            box_dims: box_dims.all(rank)?,
            element_strides: element_strides.all(rank)?,
            swizzle: Swizzle::from_number(swizzle).ok_or(CuError::INVALID_VALUE)?,
            nan_fill: fill == 1,
        };
        encode(&out, map, interleave)
    }

    /// Moves a tensor map to another address.
    fn cuTensorMapReplaceAddress(map: Out<[u8; BYTES]>, address: u64) {
        context::initialised()?;
        let known = TensorMap::decode(&map.read()?).ok_or(CuError::INVALID_VALUE)?;
        encode(&map, TensorMap { address, ..known }, 0)
    }
}

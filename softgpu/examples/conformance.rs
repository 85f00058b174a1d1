//! Records what a CUDA device answers to every conformance form.
//!
//! ```text
//! cargo run -p softgpu --example conformance -- record softgpu/tests/conformance
//! cargo run -p softgpu --example conformance -- list
//! cargo run -p softgpu --example conformance -- ptx FOLDER
//! ```
//!
//! `record` writes FOLDER/NAME.vectors, named after the device. It wants a GPU: softgpu's own
//! answers would only confirm themselves, and are refused. The driver compiles the PTX, so that
//! the program needs no toolkit. `list` prints the forms; `ptx` writes the kernels, for a look at
//! them or for ptxas.

use std::collections::BTreeMap;
use std::error::Error;
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::path::Path;
use std::sync::Arc;

use cudarc::driver::sys;
use cudarc::driver::{
    CudaContext, CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, LaunchConfig, PushKernelArg,
};
use cudarc::nvrtc::Ptx;
use softgpu::conformance::{Form, Target, Vector, Vectors, forms};
use softgpu::tensor_map::TensorMap;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["record", folder] => record(Path::new(folder)),
        ["ptx", folder] => write_ptx(Path::new(folder)),
        ["list"] => {
            for form in forms() {
                println!("{}", form.name);
            }
            Ok(())
        }
        _ => Err("usage: conformance record FOLDER | list | ptx FOLDER".into()),
    }
}

fn write_ptx(folder: &Path) -> Result<(), Box<dyn Error>> {
    for (number, form) in forms().iter().enumerate() {
        let text = format!("// {}\n{}", form.name, form.ptx);
        std::fs::write(folder.join(format!("{number:03}.ptx")), text)?;
    }
    Ok(())
}

fn record(folder: &Path) -> Result<(), Box<dyn Error>> {
    // SAFETY: it only looks for the library.
    if !unsafe { sys::is_culib_present() } {
        return Err("no CUDA driver is installed here".into());
    }
    let context = CudaContext::new(0)?;
    let name = context.name()?;
    if name.to_lowercase().contains("softgpu") {
        return Err("the device is softgpu itself; vectors are recorded on a GPU".into());
    }
    let (major, minor) = context.compute_capability()?;
    let stream = context.default_stream();
    let mut recorded = BTreeMap::new();
    for form in forms() {
        let has = match form.target {
            Target::Sm80 => major >= 8,
            Target::Sm90a => (major, minor) == (9, 0),
        };
        if !has {
            println!("{}: not on this architecture", form.name);
            continue;
        }
        match run(&context, &stream, &form) {
            Ok(words) => {
                let vector = Vector {
                    digest: form.digest(),
                    words,
                };
                recorded.insert(form.name, vector);
            }
            Err(error) => return Err(format!("{}: {error}", form.name).into()),
        }
    }
    let file: String = name
        .to_lowercase()
        .chars()
        .map(|c| if c.is_alphanumeric() { c } else { '-' })
        .collect();
    let vectors = Vectors {
        device: format!("{name}, sm_{major}{minor}"),
        forms: recorded,
    };
    let path = folder.join(format!("{file}.vectors"));
    std::fs::create_dir_all(folder)?;
    let bytes = vectors.encode();
    std::fs::write(&path, &bytes)?;
    println!(
        "{}: {} forms, {} bytes",
        path.display(),
        vectors.forms.len(),
        bytes.len()
    );
    Ok(())
}

/// A tensor map as a kernel parameter.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct MapParameter(sys::CUtensorMap);

// SAFETY: 128 plain bytes, aligned as the kernels declare the parameter.
unsafe impl DeviceRepr for MapParameter {}

fn run(
    context: &Arc<CudaContext>,
    stream: &Arc<CudaStream>,
    form: &Form,
) -> Result<Vec<u32>, Box<dyn Error>> {
    let module = context.load_module(Ptx::from_src(&form.ptx))?;
    let function = module.load_function("form")?;
    // No buffer may be empty.
    let mut words = form.input();
    words.resize(words.len().max(1), 0);
    let mut input = stream.clone_htod(&words)?;
    let mut output = stream.alloc_zeros::<u32>((form.total() * form.outputs) as usize)?;
    let config = LaunchConfig {
        grid_dim: (form.blocks, 1, 1),
        block_dim: (form.threads, 1, 1),
        shared_mem_bytes: 0,
    };
    let map = match &form.map {
        Some(map) => {
            let (address, _record) = input.device_ptr(stream);
            Some(MapParameter(encode(map, address)?))
        }
        None => None,
    };
    {
        let (input, _input_record) = input.device_ptr_mut(stream);
        let (output, _output_record) = output.device_ptr_mut(stream);
        let mut launch = stream.launch_builder(&function);
        launch.arg(&input).arg(&output);
        if let Some(map) = &map {
            launch.arg(map);
        }
        // SAFETY: the kernel reads and writes only the words of the grid's threads, for which the
        // buffers have room, and boxes inside the tensor over the input; the parameters are the
        // ones that `softgpu::conformance` declares.
        unsafe { launch.launch(config)? };
    }
    Ok(stream.clone_dtoh(&output)?)
}

/// `cuTensorMapEncodeTiled` of a map over the buffer at `address`.
fn encode(map: &TensorMap, address: u64) -> Result<sys::CUtensorMap, Box<dyn Error>> {
    let data_type = match map.data_type {
        softgpu::tensor_map::DataType::Uint16 => {
            sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT16
        }
        other => return Err(format!("no form uses {other:?}").into()),
    };
    let swizzle = match map.swizzle {
        softgpu::tensor_map::Swizzle::None => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
        softgpu::tensor_map::Swizzle::Bytes32 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_32B,
        softgpu::tensor_map::Swizzle::Bytes64 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_64B,
        softgpu::tensor_map::Swizzle::Bytes128 => {
            sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B
        }
    };
    let mut encoded = MaybeUninit::<sys::CUtensorMap>::zeroed();
    // SAFETY: every array has as many elements as the call reads (rank, or rank − 1 strides), and
    // the result is written to a map of its own.
    let encoded = unsafe {
        sys::cuTensorMapEncodeTiled(
            encoded.as_mut_ptr(),
            data_type,
            map.dims.len() as u32,
            address as *mut c_void,
            map.dims.as_ptr(),
            map.strides.as_ptr(),
            map.box_dims.as_ptr(),
            map.element_strides.as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            swizzle,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_NONE,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
        .result()?;
        encoded.assume_init()
    };
    Ok(encoded)
}

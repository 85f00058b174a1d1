//! Chapters "Module Management" and "Library Management".
//!
//! A library is a module that is loaded at once, and a kernel of a library is its function.

use std::collections::HashMap;
use std::ffi::{c_int, c_uint, c_void};
use std::sync::{Arc, Mutex};

use super::abi::{In, Name, Out, complain, entry, read_mapped};
use super::clock::lock;
use super::context;
use super::error::{CuError, CuResult};
use super::function::Function;
use super::{Handle, code_of, driver};
use crate::image::{self, ImageError};
use crate::ir;

/// The longest image that is read.
const LONGEST_IMAGE: usize = 1 << 30;

const JIT_ERROR_LOG: c_uint = 5;
const JIT_ERROR_LOG_BYTES: c_uint = 6;

/// A loaded module.
#[derive(Debug)]
pub struct Module {
    ir: ir::Module,
    functions: Mutex<HashMap<String, Handle>>,
}

/// Loads an image; on failure the sentence that says why.
fn load(image: &[u8]) -> Result<Handle, (CuError, String)> {
    let ptx = image::ptx(image, driver().arch).map_err(|error| {
        let code = match error {
            ImageError::NoPtx(_) => CuError::NO_BINARY_FOR_GPU,
            _ => CuError::INVALID_IMAGE,
        };
        (code, error.to_string())
    })?;
    let loaded = ir::Module::load(ptx, &mut lock(&driver().memory));
    let ir = loaded.map_err(|fault| {
        // Whatever the PTX is at fault for, the driver's word for it is the same.
        let code = match code_of(fault.kind) {
            CuError::OUT_OF_MEMORY => CuError::OUT_OF_MEMORY,
            _ => CuError::INVALID_PTX,
        };
        (code, fault.to_string())
    })?;
    Ok(driver().modules.add(Module {
        ir,
        functions: Mutex::default(),
    }))
}

/// As [`load`], the sentence on stderr.
fn load_or_complain(what: &str, out: &Out<Handle>, image: &[u8]) -> CuResult {
    match load(image) {
        Ok(module) => out.put(module),
        Err((code, sentence)) => {
            complain(what, &sentence);
            Err(code)
        }
    }
}

/// The bytes of an image of which only the address is known.
fn image_at(address: usize) -> Vec<u8> {
    let head = read_mapped(address, 16);
    if let Some(header) = head.first_chunk::<16>()
        && header.starts_with(&image::FATBIN_MAGIC.to_le_bytes())
    {
        // A length that makes no sense leaves the header alone, which says so when it is parsed.
        let len = image::fatbin_len(header).unwrap_or(16);
        return read_mapped(address, len.min(LONGEST_IMAGE));
    }
    if head.starts_with(b"\x7fELF") {
        return head;
    }
    let mut text = Vec::new();
    let mut step = 1 << 12;
    while !text.contains(&0) && text.len() < LONGEST_IMAGE {
        let more = read_mapped(address + text.len(), step);
        let ended = more.len() < step;
        text.extend(more);
        step *= 2;
        if ended {
            break;
        }
    }
    let end = text
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(text.len());
    text.truncate(end);
    text
}

fn load_at(what: &str, out: &Out<Handle>, image: &In<c_void>) -> CuResult {
    context::current()?;
    if image.is_null() {
        return Err(CuError::INVALID_VALUE);
    }
    load_or_complain(what, out, &image_at(image.address()))
}

fn load_file(what: &str, out: &Out<Handle>, path: &Name) -> CuResult {
    context::current()?;
    let path = path.read()?;
    let image = std::fs::read(&path).map_err(|error| {
        complain(what, &format!("{path}: {error}"));
        CuError::FILE_NOT_FOUND
    })?;
    load_or_complain(what, out, &image)
}

fn unload(module: Handle) -> CuResult {
    context::current()?;
    let module = driver().modules.remove(module)?;
    for function in lock(&module.functions).values() {
        let _ = driver().functions.remove(*function);
    }
    // A graph may still hold a function of it; then its data stays until the process ends.
    if let Some(module) = Arc::into_inner(module) {
        module.ir.unload(&mut lock(&driver().memory));
    }
    Ok(())
}

/// The function of that name; every call gives the same one, since it has attributes.
fn function(module: Handle, name: &Name) -> CuResult<Handle> {
    context::current()?;
    let module = driver().modules.get(module)?;
    let name = name.read()?;
    let kernel = module.ir.kernel(&name).ok_or(CuError::NOT_FOUND)?;
    let mut functions = lock(&module.functions);
    if let Some(handle) = functions.get(&name) {
        return Ok(*handle);
    }
    let handle = driver()
        .functions
        .add(Function::new(Arc::clone(&module), Arc::clone(kernel)));
    functions.insert(name, handle);
    Ok(handle)
}

fn global(address: &Out<u64>, size: &Out<usize>, module: Handle, name: &Name) -> CuResult {
    context::current()?;
    let module = driver().modules.get(module)?;
    let global = module.ir.global(&name.read()?).ok_or(CuError::NOT_FOUND)?;
    address.put_if_wanted(global.address);
    size.put_if_wanted(global.size as usize);
    Ok(())
}

entry! {
    /// Loads a file.
    fn cuModuleLoad(out: Out<Handle>, path: Name) {
        load_file("cuModuleLoad", &out, &path)
    }

    /// Loads an image from memory.
    fn cuModuleLoadData(out: Out<Handle>, image: In<c_void>) {
        load_at("cuModuleLoadData", &out, &image)
    }

    /// Loads a fat binary from memory.
    fn cuModuleLoadFatBinary(out: Out<Handle>, image: In<c_void>) {
        load_at("cuModuleLoadFatBinary", &out, &image)
    }

    /// Loads an image from memory; of the options only the error log matters here.
    fn cuModuleLoadDataEx(
        out: Out<Handle>,
        image: In<c_void>,
        count: c_uint,
        options: In<c_uint>,
        values: In<usize>,
    ) {
        context::current()?;
        if image.is_null() {
            return Err(CuError::INVALID_VALUE);
        }
        let options = options.all(count as usize)?;
        let values = values.all(count as usize)?;
        let value = |wanted| {
            options.iter().position(|option| *option == wanted).map(|at| values[at])
        };
        match load(&image_at(image.address())) {
            Ok(module) => out.put(module),
            Err((code, sentence)) => {
                complain("cuModuleLoadDataEx", &sentence);
                if let (Some(log), Some(room)) = (value(JIT_ERROR_LOG), value(JIT_ERROR_LOG_BYTES)) {
                    let shown = sentence.bytes().take(room.saturating_sub(1));
                    let bytes: Vec<u8> = shown.chain([0]).take(room).collect();
                    Out::at(log).put_all(bytes.into_iter())?;
                }
                Err(code)
            }
        }
    }

    /// Forgets a module and its functions.
    fn cuModuleUnload(module: Handle) {
        unload(module)
    }

    /// A kernel by name.
    fn cuModuleGetFunction(out: Out<Handle>, module: Handle, name: Name) {
        out.put(function(module, &name)?)
    }

    /// A variable by name.
    fn cuModuleGetGlobal_v2(address: Out<u64>, size: Out<usize>, module: Handle, name: Name) {
        global(&address, &size, module, &name)
    }

    /// Modules are loaded at once.
    fn cuModuleGetLoadingMode(out: Out<c_int>) {
        const EAGER: c_int = 1;
        out.put(EAGER)
    }

    /// Loads an image from memory.
    fn cuLibraryLoadData(
        out: Out<Handle>,
        image: In<c_void>,
        _jit_options: In<c_uint>,
        _jit_values: In<usize>,
        _jit_count: c_uint,
        _options: In<c_uint>,
        _values: In<usize>,
        _count: c_uint,
    ) {
        load_at("cuLibraryLoadData", &out, &image)
    }

    /// Loads a file.
    fn cuLibraryLoadFromFile(
        out: Out<Handle>,
        path: Name,
        _jit_options: In<c_uint>,
        _jit_values: In<usize>,
        _jit_count: c_uint,
        _options: In<c_uint>,
        _values: In<usize>,
        _count: c_uint,
    ) {
        load_file("cuLibraryLoadFromFile", &out, &path)
    }

    /// Forgets a library.
    fn cuLibraryUnload(library: Handle) {
        unload(library)
    }

    /// A kernel by name.
    fn cuLibraryGetKernel(out: Out<Handle>, library: Handle, name: Name) {
        out.put(function(library, &name)?)
    }

    /// The module of a library.
    fn cuLibraryGetModule(out: Out<Handle>, library: Handle) {
        context::current()?;
        driver().modules.get(library)?;
        out.put(library)
    }

    /// A variable by name.
    fn cuLibraryGetGlobal(address: Out<u64>, size: Out<usize>, library: Handle, name: Name) {
        global(&address, &size, library, &name)
    }

    /// The function of a kernel.
    fn cuKernelGetFunction(out: Out<Handle>, kernel: Handle) {
        context::current()?;
        driver().functions.get(kernel)?;
        out.put(kernel)
    }
}

//! Chapter "Execution Control", first half: functions and their attributes.

use std::ffi::{CString, c_char, c_int};
use std::sync::{Arc, Mutex};

use super::abi::{Out, complain, entry};
use super::clock::lock;
use super::context;
use super::device::{SHARED_PER_BLOCK, THREADS_PER_BLOCK, limits};
use super::error::{CuError, CuResult};
use super::module::Module;
use super::{Handle, driver};
use crate::ir::Kernel;

/// The attribute that allows more dynamic shared memory than 48 KiB.
const MAX_DYNAMIC_SHARED: c_int = 8;
const NON_PORTABLE_CLUSTERS: c_int = 14;
const SETTABLE: [c_int; 7] = [9, 10, 11, 12, 13, NON_PORTABLE_CLUSTERS, 15];
const ATTRIBUTES: std::ops::Range<c_int> = 0..16;

/// A kernel of a module, with its attributes.
#[derive(Debug)]
pub struct Function {
    /// Its data must stay in place while the function can be launched.
    _module: Arc<Module>,
    kernel: Arc<Kernel>,
    c_name: CString,
    /// The attributes that were set.
    set: Mutex<[Option<c_int>; ATTRIBUTES.end as usize]>,
}

impl Function {
    /// A kernel of the module.
    pub fn new(module: Arc<Module>, kernel: Arc<Kernel>) -> Function {
        let c_name = CString::new(&*kernel.name).unwrap_or_default();
        Function {
            _module: module,
            kernel,
            c_name,
            set: Mutex::default(),
        }
    }

    /// The kernel, decoded.
    pub fn kernel(&self) -> &Arc<Kernel> {
        &self.kernel
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.kernel.name
    }

    /// The most dynamic shared memory that its attribute allows, bytes.
    pub fn max_dynamic_shared(&self) -> u32 {
        let unset = SHARED_PER_BLOCK.saturating_sub(self.kernel.static_shared);
        let set = self.set_to(MAX_DYNAMIC_SHARED);
        set.and_then(|set| u32::try_from(set).ok()).unwrap_or(unset)
    }

    /// The most blocks of a cluster: 8, or 16 where its attribute says that it need not be
    /// portable.
    pub fn max_cluster(&self) -> u32 {
        if self.set_to(NON_PORTABLE_CLUSTERS) == Some(1) {
            16
        } else {
            8
        }
    }

    /// The cluster that the kernel's code or attributes ask for.
    pub fn required_cluster(&self) -> Option<[u32; 3]> {
        let set = [11, 12, 13].map(|attribute| self.set_to(attribute));
        self.kernel.cluster.or_else(|| {
            let [Some(x), Some(y), Some(z)] = set else {
                return None;
            };
            let dims = [x, y, z].map(|dim| u32::try_from(dim).unwrap_or(1).max(1));
            (dims != [1, 1, 1]).then_some(dims)
        })
    }

    /// The most threads of a block.
    pub fn max_threads(&self) -> u32 {
        let bound = self.kernel.required_threads.or(self.kernel.max_threads);
        let bound = bound.map(|dims| dims.into_iter().fold(1, u32::saturating_mul));
        bound.unwrap_or(THREADS_PER_BLOCK).min(THREADS_PER_BLOCK)
    }

    fn set_to(&self, attribute: c_int) -> Option<c_int> {
        lock(&self.set)[attribute as usize]
    }

    fn attribute(&self, attribute: c_int) -> CuResult<c_int> {
        let kernel = &self.kernel;
        let value = match attribute {
            0 => self.max_threads(),
            1 => kernel.static_shared,
            3 => kernel.local,
            5 | 6 => driver().arch.number(),
            MAX_DYNAMIC_SHARED => self.max_dynamic_shared(),
            9 => return Ok(self.set_to(9).unwrap_or(-1)), // carveout: the driver's choice
            10 => u32::from(kernel.cluster.is_some()),
            11..=13 => self
                .required_cluster()
                .map_or(0, |dims| dims[attribute as usize - 11]),
            // Constant memory, registers (known to ptxas alone), cache mode.
            2 | 4 | 7 => 0,
            other if ATTRIBUTES.contains(&other) => return Ok(self.set_to(other).unwrap_or(0)),
            _ => return Err(CuError::INVALID_VALUE),
        };
        Ok(c_int::try_from(value).unwrap_or(c_int::MAX))
    }

    fn set_attribute(&self, attribute: c_int, value: c_int) -> CuResult {
        if attribute == MAX_DYNAMIC_SHARED {
            let room = limits()
                .shared_per_block_optin
                .saturating_sub(self.kernel.static_shared);
            if !u32::try_from(value).is_ok_and(|value| value <= room) {
                complain(
                    "cuFuncSetAttribute",
                    &format!(
                        "{value} bytes of dynamic shared memory for {}, where 0 to {room} are possible",
                        self.kernel.name
                    ),
                );
                return Err(CuError::INVALID_VALUE);
            }
        } else if !SETTABLE.contains(&attribute) || (attribute != 9 && value < 0) || value < -1 {
            return Err(CuError::INVALID_VALUE);
        }
        lock(&self.set)[attribute as usize] = Some(value);
        Ok(())
    }
}

entry! {
    /// An attribute of a kernel.
    fn cuFuncGetAttribute(out: Out<c_int>, attribute: c_int, function: Handle) {
        context::current()?;
        out.put(driver().functions.get(function)?.attribute(attribute)?)
    }

    /// Sets an attribute of a kernel.
    fn cuFuncSetAttribute(function: Handle, attribute: c_int, value: c_int) {
        context::current()?;
        driver().functions.get(function)?.set_attribute(attribute, value)
    }

    /// A preference between cache and shared memory, which changes nothing here.
    fn cuFuncSetCacheConfig(function: Handle, preference: c_int) {
        context::current()?;
        driver().functions.get(function)?;
        if (0..4).contains(&preference) { Ok(()) } else { Err(CuError::INVALID_VALUE) }
    }

    /// A kernel's name, valid as long as its module.
    fn cuFuncGetName(out: Out<*const c_char>, function: Handle) {
        context::current()?;
        out.put(driver().functions.get(function)?.c_name.as_ptr())
    }

    /// Where a parameter lies in the parameter buffer.
    fn cuFuncGetParamInfo(function: Handle, index: usize, offset: Out<usize>, size: Out<usize>) {
        context::current()?;
        let function = driver().functions.get(function)?;
        let parameter = function.kernel().parameters.get(index).ok_or(CuError::INVALID_VALUE)?;
        offset.put(parameter.offset as usize)?;
        size.put_if_wanted(parameter.size as usize);
        Ok(())
    }

    /// An attribute of a kernel of a library.
    fn cuKernelGetAttribute(out: Out<c_int>, attribute: c_int, kernel: Handle, device: c_int) {
        context::current()?;
        super::device::valid_device(device)?;
        out.put(driver().functions.get(kernel)?.attribute(attribute)?)
    }

    /// Sets an attribute of a kernel of a library.
    fn cuKernelSetAttribute(attribute: c_int, value: c_int, kernel: Handle, device: c_int) {
        context::current()?;
        super::device::valid_device(device)?;
        driver().functions.get(kernel)?.set_attribute(attribute, value)
    }
}

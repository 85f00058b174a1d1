//! A loaded module: kernels with their decoded instructions, and the addresses of module data.

use std::collections::HashMap;

use crate::fault::{Fault, Kind};
use crate::memory::Memory;

/// A module's PTX, decoded for execution, its data placed in device memory.
#[derive(Debug)]
pub struct Module {
    kernels: HashMap<String, Kernel>,
    globals: HashMap<String, Global>,
}

/// A `.global` or `.const` variable of a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Global {
    /// Its device address.
    pub address: u64,
    /// Its size in bytes.
    pub size: u64,
}

/// Where one kernel parameter lies in the parameter buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Offset in bytes.
    pub offset: u32,
    /// Size in bytes.
    pub size: u32,
}

/// An entry function.
#[derive(Debug)]
pub struct Kernel {
    /// Its name.
    pub name: String,
    /// Its parameters, in order.
    pub parameters: Vec<Parameter>,
    /// Static shared memory, bytes.
    pub static_shared: u32,
    /// Local memory of a thread, bytes.
    pub local: u32,
    /// `.maxntid`: the most threads of a block in x, y, z.
    pub max_threads: Option<[u32; 3]>,
    /// `.reqntid`: the exact shape of a block.
    pub required_threads: Option<[u32; 3]>,
    /// `.reqnctapercluster`: the shape of a cluster.
    pub cluster: Option<[u32; 3]>,
}

impl Kernel {
    /// The size of the parameter buffer, bytes.
    #[must_use]
    pub fn parameter_bytes(&self) -> u32 {
        self.parameters
            .last()
            .map_or(0, |last| last.offset + last.size)
    }
}

impl Module {
    /// Reads PTX, decodes every function, and places module data in device memory.
    ///
    /// # Errors
    /// `Parse` or `Unsupported` with the line of the PTX; `OutOfMemory` for the data.
    pub fn load(ptx: &str, memory: &mut Memory) -> Result<Self, Fault> {
        let _ = (ptx, memory);
        Err(Fault::new(Kind::Unsupported, "modules"))
    }

    /// Frees the module's data.
    pub fn unload(self, memory: &mut Memory) {
        for global in self.globals.values() {
            let _ = memory.free(global.address);
        }
    }

    /// The kernel of that name.
    #[must_use]
    pub fn kernel(&self, name: &str) -> Option<&Kernel> {
        self.kernels.get(name)
    }

    /// The variable of that name.
    #[must_use]
    pub fn global(&self, name: &str) -> Option<Global> {
        self.globals.get(name).copied()
    }
}

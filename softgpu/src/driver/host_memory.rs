//! Pinned and managed memory: host memory that kernels may use as well.
//!
//! It lives on the host. A kernel sees a copy at the same address, made just before it runs; what
//! the kernel changed goes back when it is done.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::BTreeMap;
use std::sync::Mutex;

use super::abi::{HostPtr, complain};
use super::clock::lock;
use super::error::{CuError, CuResult};
use crate::fault::Fault;
use crate::memory::{Memory, Order};

/// Pinned memory comes in pages on a GPU's host.
const ALIGNMENT: usize = 4096;

/// All pinned and managed allocations of the process.
#[derive(Debug, Default)]
pub struct HostMemory(Mutex<BTreeMap<u64, Allocation>>);

#[derive(Debug)]
struct Allocation {
    pointer: HostPtr,
    layout: Layout,
    managed: bool,
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: made by `alloc_zeroed` with this layout in `HostMemory::allocate`; the table
        // owned it, so it goes once.
        unsafe { dealloc(self.pointer.as_ptr().cast(), self.layout) };
    }
}

/// What is known of an address in pinned or managed memory.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    /// Where its allocation begins.
    pub start: u64,
    /// How long that is.
    pub size: u64,
    /// Managed rather than pinned.
    pub managed: bool,
}

impl HostMemory {
    /// Allocates; the bytes are zero.
    pub fn allocate(&self, size: usize, managed: bool) -> CuResult<HostPtr> {
        let layout = Layout::from_size_align(size, ALIGNMENT)
            .ok()
            .filter(|layout| layout.size() > 0)
            .ok_or(CuError::INVALID_VALUE)?;
        // SAFETY: the layout is not empty.
        let pointer = unsafe { alloc_zeroed(layout) };
        if pointer.is_null() {
            return Err(CuError::OUT_OF_MEMORY);
        }
        let pointer = HostPtr::of(pointer);
        let allocation = Allocation {
            pointer,
            layout,
            managed,
        };
        lock(&self.0).insert(pointer.address() as u64, allocation);
        Ok(pointer)
    }

    /// Frees what begins at `address`, if it is of that kind.
    pub fn free(&self, address: u64, managed: bool) -> CuResult {
        let mut allocations = lock(&self.0);
        match allocations.get(&address) {
            Some(allocation) if allocation.managed == managed => {
                allocations.remove(&address);
                Ok(())
            }
            _ => Err(CuError::INVALID_VALUE),
        }
    }

    /// The allocation an address lies in.
    pub fn range_of(&self, address: u64) -> Option<Range> {
        let allocations = lock(&self.0);
        let (start, allocation) = allocations.range(..=address).next_back()?;
        let range = Range {
            start: *start,
            size: allocation.layout.size() as u64,
            managed: allocation.managed,
        };
        (address - start < range.size).then_some(range)
    }

    /// Whether an address lies in any of it.
    pub fn holds(&self, address: u64) -> bool {
        self.range_of(address).is_some()
    }

    /// The error if `len` bytes from `address` do not all lie in one allocation.
    pub fn check(&self, what: &str, address: u64, len: u64) -> CuResult {
        let range = self.range_of(address).ok_or(CuError::INVALID_VALUE)?;
        let room = range.size - (address - range.start);
        if len <= room {
            return Ok(());
        }
        complain(
            what,
            &format!("{len} bytes from {address:#x}, where only {room} are allocated"),
        );
        Err(CuError::INVALID_VALUE)
    }

    /// Runs a kernel, `act`, that sees all of it; then brings back what the kernel changed.
    ///
    /// Only that: another thread may be writing its own buffers meanwhile.
    pub fn visible_during<T>(
        &self,
        memory: &mut Memory,
        order: &Order,
        act: impl FnOnce(&mut Memory) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let mut shown: Vec<(u64, Vec<u8>)> = Vec::new();
        for (address, allocation) in &*lock(&self.0) {
            // SAFETY: the allocation is alive while the table is locked; nobody but the host
            // program writes it, who must not while a kernel of its own may use it.
            let bytes = unsafe { allocation.pointer.bytes(allocation.layout.size()) }.to_vec();
            memory.allocate_at(*address, bytes.len() as u64)?;
            memory.write(*address, &bytes, order)?;
            shown.push((*address, bytes));
        }
        let result = act(memory);
        for (address, before) in shown {
            let mut after = vec![0; before.len()];
            memory.read(address, &mut after, order)?;
            memory.free(address)?;
            let allocations = lock(&self.0);
            // Freed, and perhaps allocated anew, while the kernel ran?
            let same = |found: &&Allocation| found.layout.size() == before.len();
            if let Some(allocation) = allocations.get(&address).filter(same) {
                // SAFETY: as above, for writing what the kernel wrote.
                let host = unsafe { allocation.pointer.bytes_mut(before.len()) };
                for (at, byte) in after
                    .into_iter()
                    .enumerate()
                    .filter(|(at, b)| before[*at] != *b)
                {
                    host[at] = byte;
                }
            }
        }
        result
    }
}

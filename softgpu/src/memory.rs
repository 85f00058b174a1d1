//! The device's global memory: allocations, their contents, and what is known about every byte.

use crate::fault::Fault;

/// Where device addresses begin: nothing that a host process maps lies here, so that a host
/// dereference of a device address fails as it would with a GPU.
pub const BASE: u64 = 0x1000_0000_0000;

/// When something happens, as streams see it: a vector clock.
///
/// The driver numbers the operations of every stream from 1. Operation `clock[stream]` of `stream`
/// comes after operations up to `clock[s]` of every other stream `s` (missing entries are 0).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Order {
    /// The stream that the operation is on.
    pub stream: u32,
    /// For each stream, the last operation that this one comes after; for its own, its number.
    pub clock: Vec<u64>,
}

/// Global memory of one device.
#[derive(Debug)]
pub struct Memory {
    capacity: u64,
    used: u64,
}

impl Memory {
    /// A device with `capacity` bytes.
    #[must_use]
    pub fn new(capacity: u64) -> Self {
        Self { capacity, used: 0 }
    }

    /// (free, total) bytes.
    #[must_use]
    pub fn info(&self) -> (u64, u64) {
        (self.capacity - self.used, self.capacity)
    }

    /// Allocates `size` bytes, uninitialised, at a multiple of 256.
    ///
    /// # Errors
    /// `OutOfMemory`; `InvalidValue` for 0 bytes.
    pub fn allocate(&mut self, size: u64) -> Result<u64, Fault> {
        let _ = size;
        todo_fault()
    }

    /// Frees an allocation; `address` is its first byte.
    ///
    /// # Errors
    /// `InvalidValue` if no allocation begins there.
    pub fn free(&mut self, address: u64) -> Result<(), Fault> {
        let _ = address;
        todo_fault()
    }

    /// The allocation that `address` lies in: (first byte, size).
    #[must_use]
    pub fn range_of(&self, address: u64) -> Option<(u64, u64)> {
        let _ = address;
        None
    }

    /// Copies device memory to the host. Bytes that were never written read as 0: copying them is
    /// no fault.
    ///
    /// # Errors
    /// `OutOfBounds`, `UseAfterFree`; `GlobalRace` against a launch that `order` does not come after.
    pub fn read(&mut self, address: u64, out: &mut [u8], order: &Order) -> Result<(), Fault> {
        let _ = (address, out, order);
        todo_fault()
    }

    /// Copies host memory to the device.
    ///
    /// # Errors
    /// As `read`.
    pub fn write(&mut self, address: u64, bytes: &[u8], order: &Order) -> Result<(), Fault> {
        let _ = (address, bytes, order);
        todo_fault()
    }

    /// Copies `size` bytes from device to device.
    ///
    /// # Errors
    /// As `read`.
    pub fn copy(&mut self, to: u64, from: u64, size: u64, order: &Order) -> Result<(), Fault> {
        let _ = (to, from, size, order);
        todo_fault()
    }

    /// Fills `count` repetitions of `pattern` (1, 2 or 4 bytes).
    ///
    /// # Errors
    /// As `read`.
    pub fn fill(
        &mut self,
        address: u64,
        pattern: &[u8],
        count: u64,
        order: &Order,
    ) -> Result<(), Fault> {
        let _ = (address, pattern, count, order);
        todo_fault()
    }
}

fn todo_fault<T>() -> Result<T, Fault> {
    Err(Fault::new(crate::fault::Kind::Unsupported, "memory"))
}

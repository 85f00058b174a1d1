//! The device's global memory: allocations, their contents, and what is known about every byte.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::fault::{Fault, Kind, Site};
use crate::shadow::{Cells, Mark, Written};

/// Where device addresses begin: nothing that a host process maps lies here, so that a host
/// dereference of a device address fails as it would with a GPU.
pub const BASE: u64 = 0x1000_0000_0000;

/// The alignment of allocations.
const ALIGNMENT: u64 = 256;

/// The least distance between two allocations: a kernel that runs past one hits no other.
const GAP: u64 = 1 << 24;

/// How many freed allocations are remembered, to tell a use after free from a wild address.
const GRAVES: usize = 4096;

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

impl Order {
    fn time(&self, stream: usize) -> u64 {
        self.clock.get(stream).copied().unwrap_or(0)
    }
}

/// Bytes with their shadow: an allocation, or the shared memory of a block.
#[derive(Debug, Default)]
pub(crate) struct Extent {
    pub(crate) bytes: Vec<u8>,
    pub(crate) written: Written,
    pub(crate) cells: Cells,
}

/// What bytes of an allocation hold that nobody has written: no zeros, which a kernel that forgets to
/// write one would pass with, but NaN in every format of floats. In shared memory, which only kernels
/// read, every such read is found.
const UNWRITTEN: u8 = 0xFF;

impl Extent {
    pub(crate) fn new(size: usize) -> Self {
        Self {
            bytes: vec![0; size],
            written: Written::new(size),
            cells: Cells::default(),
        }
    }
}

/// One allocation.
#[derive(Debug)]
pub(crate) struct Allocation {
    pub(crate) base: u64,
    pub(crate) extent: Extent,
    /// Host-side operations on it that a later launch may not come after.
    host: Vec<HostAccess>,
}

#[derive(Clone, Debug)]
struct HostAccess {
    stamp: u32,
    from: u64,
    to: u64,
    write: bool,
}

/// A launch or host-side operation that touched memory.
#[derive(Debug)]
struct Operation {
    /// Its number in its stream.
    time: u64,
    /// The logical time at which it began.
    start: u32,
    what: What,
}

/// What an operation is, for reports.
#[derive(Clone, Debug)]
pub(crate) enum What {
    /// The kernel of that name.
    Kernel(Arc<str>),
    Host(&'static str),
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel(name) => write!(f, "kernel {name}"),
            Self::Host(what) => f.write_str(what),
        }
    }
}

/// Global memory of one device.
#[derive(Debug)]
pub struct Memory {
    capacity: u64,
    used: u64,
    next: u64,
    /// The index in `allocations` by first address.
    by_base: BTreeMap<u64, usize>,
    pub(crate) allocations: Vec<Option<Allocation>>,
    free: Vec<usize>,
    graves: BTreeMap<u64, u64>,
    /// Logical time: goes up at every synchronisation of any thread.
    pub(crate) now: u32,
    /// For each stream its operations, by number.
    streams: Vec<Vec<Operation>>,
    /// What is stamped up to here is taken to come before everything.
    forgotten: u32,
}

type Result<T> = std::result::Result<T, Fault>;

impl Memory {
    /// A device with `capacity` bytes.
    #[must_use]
    pub fn new(capacity: u64) -> Self {
        Self {
            capacity,
            used: 0,
            next: BASE,
            by_base: BTreeMap::new(),
            allocations: Vec::new(),
            free: Vec::new(),
            graves: BTreeMap::new(),
            now: 1,
            streams: Vec::new(),
            forgotten: 0,
        }
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
    pub fn allocate(&mut self, size: u64) -> Result<u64> {
        let base = self.next;
        self.allocate_at(base, size)?;
        self.next = (base + size + GAP).next_multiple_of(ALIGNMENT);
        Ok(base)
    }

    /// Allocates `size` bytes at an address of the caller's: for host memory that kernels reach.
    ///
    /// # Errors
    /// `OutOfMemory`; `InvalidValue` for 0 bytes or an overlap.
    pub fn allocate_at(&mut self, base: u64, size: u64) -> Result<()> {
        if size == 0 {
            return Err(Fault::new(Kind::InvalidValue, "an allocation of 0 bytes"));
        }
        if size > self.capacity - self.used {
            let what = format!("{size} bytes asked for, {} free", self.capacity - self.used);
            return Err(Fault::new(Kind::OutOfMemory, what));
        }
        let end = base.checked_add(size);
        let before = self.by_base.range(..end.unwrap_or(u64::MAX)).next_back();
        let overlaps = before.is_some_and(|(at, index)| at + self.size_of(*index) > base);
        if end.is_none() || overlaps {
            let what = format!("{size} bytes at {base:#x} overlap another allocation");
            return Err(Fault::new(Kind::InvalidValue, what));
        }
        let mut bytes: Vec<u8> = Vec::new();
        if bytes.try_reserve_exact(size as usize).is_err() {
            return Err(Fault::new(
                Kind::OutOfMemory,
                format!("{size} bytes on the host"),
            ));
        }
        drop(bytes);
        let mut extent = Extent::new(size as usize);
        extent.bytes.fill(UNWRITTEN);
        let allocation = Allocation {
            base,
            extent,
            host: Vec::new(),
        };
        let index = self.free.pop().unwrap_or_else(|| {
            self.allocations.push(None);
            self.allocations.len() - 1
        });
        self.allocations[index] = Some(allocation);
        self.by_base.insert(base, index);
        self.graves.remove(&base);
        self.used += size;
        Ok(())
    }

    fn size_of(&self, index: usize) -> u64 {
        self.allocations[index]
            .as_ref()
            .map_or(0, |found| found.extent.bytes.len() as u64)
    }

    /// Frees an allocation; `address` is its first byte.
    ///
    /// # Errors
    /// `InvalidValue` if no allocation begins there.
    pub fn free(&mut self, address: u64) -> Result<()> {
        let Some(index) = self.by_base.remove(&address) else {
            let what = match self.graves.contains_key(&address) {
                true => format!("{address:#x} was freed before"),
                false => format!("no allocation begins at {address:#x}"),
            };
            return Err(Fault::new(Kind::InvalidValue, what));
        };
        let size = self.size_of(index);
        self.used -= size;
        self.allocations[index] = None;
        self.free.push(index);
        if self.graves.len() >= GRAVES {
            self.graves.pop_first();
        }
        self.graves.insert(address, size);
        Ok(())
    }

    /// Frees an allocation in stream order: whatever used it must come before.
    ///
    /// # Errors
    /// As `free`; `GlobalRace` against a use that `order` does not come after.
    pub fn free_in_order(&mut self, address: u64, order: &Order) -> Result<()> {
        if let Some(index) = self.by_base.get(&address) {
            let size = self.size_of(*index);
            self.host_access(address, size, true, order, "a free")?;
        }
        self.free(address)
    }

    /// The allocation that `address` lies in: (first byte, size).
    #[must_use]
    pub fn range_of(&self, address: u64) -> Option<(u64, u64)> {
        let index = self.find(address)?;
        Some((self.allocations[index].as_ref()?.base, self.size_of(index)))
    }

    /// The index of the allocation that `address` lies in.
    pub(crate) fn find(&self, address: u64) -> Option<usize> {
        let (base, index) = self.by_base.range(..=address).next_back()?;
        (address - base < self.size_of(*index)).then_some(*index)
    }

    /// Whether an address lies in memory that was freed.
    pub(crate) fn was_freed(&self, address: u64) -> bool {
        let grave = self.graves.range(..=address).next_back();
        grave.is_some_and(|(base, size)| address - base < *size)
    }

    /// What is wrong with an access to `bytes` bytes at `address`, which lies in no allocation.
    pub(crate) fn stray(&self, address: u64, bytes: u64) -> Fault {
        let grave = self.graves.range(..=address).next_back();
        if let Some((base, size)) = grave
            && address - base < *size
        {
            let what = format!("{address:#x} lies in {size} bytes at {base:#x}, which were freed");
            return Fault::new(Kind::UseAfterFree, what);
        }
        let near = self.by_base.range(..=address).next_back();
        let what = match near.map(|(base, index)| (*base, self.size_of(*index))) {
            Some((base, size)) if address - base < size + (1 << 20) => format!(
                "{bytes} bytes at offset {} of an allocation of {size} bytes at {base:#x}",
                address - base
            ),
            _ => format!("{bytes} bytes at {address:#x}, where nothing is allocated"),
        };
        Fault::new(Kind::OutOfBounds, what)
    }

    fn extent(
        &mut self,
        address: u64,
        size: u64,
    ) -> Result<(&mut Allocation, std::ops::Range<usize>)> {
        let fits = self.find(address).filter(|index| {
            let base = self.allocations[*index]
                .as_ref()
                .map_or(0, |found| found.base);
            size <= self.size_of(*index) - (address - base)
        });
        match fits {
            Some(index) => {
                let allocation = self.allocations[index]
                    .as_mut()
                    .expect("`find` finds live ones");
                let from = (address - allocation.base) as usize;
                Ok((allocation, from..from + size as usize))
            }
            None => Err(self.stray(address, size)),
        }
    }

    /// Begins an operation: what it does is stamped later than everything before. Returns the last
    /// stamp up to which everything comes before it.
    pub(crate) fn begin(&mut self, order: &Order, what: What) -> u32 {
        self.advance();
        let floor = self.floor(order);
        let stream = order.stream as usize;
        if self.streams.len() <= stream {
            self.streams.resize_with(stream + 1, Vec::new);
        }
        let operations = &mut self.streams[stream];
        // Operations of long ago are taken to be ordered.
        if operations.len() >= 1024 {
            operations.drain(..512);
            // Or their accesses would count as those of another stream's operation before them.
            self.forgotten = self.forgotten.max(operations[0].start - 1);
        }
        operations.push(Operation {
            time: order.time(stream),
            start: self.now,
            what,
        });
        floor
    }

    /// The last stamp up to which everything comes before an operation.
    fn floor(&self, order: &Order) -> u32 {
        let unordered = self
            .streams
            .iter()
            .enumerate()
            .filter_map(|(stream, operations)| {
                let known = order.time(stream);
                operations.get(operations.partition_point(|operation| operation.time <= known))
            });
        unordered
            .map(|operation| operation.start - 1)
            .min()
            .unwrap_or(self.now - 1)
            .max(self.forgotten)
    }

    /// Whether what was stamped `stamp`, before this operation, comes before it in order.
    pub(crate) fn precedes(&self, stamp: u32, order: &Order) -> bool {
        self.operation_at(stamp)
            .is_none_or(|(stream, operation)| operation.time <= order.time(stream))
    }

    fn operation_at(&self, stamp: u32) -> Option<(usize, &Operation)> {
        let latest = self
            .streams
            .iter()
            .enumerate()
            .filter_map(|(stream, operations)| {
                let next = operations.partition_point(|operation| operation.start <= stamp);
                Some((stream, operations.get(next.checked_sub(1)?)?))
            });
        latest.max_by_key(|(_, operation)| operation.start)
    }

    /// What happened at `stamp`, for reports: an operation's name and stream.
    pub(crate) fn describe(&self, stamp: u32) -> String {
        match self.operation_at(stamp) {
            Some((stream, operation)) => format!("{} on stream {stream}", operation.what),
            None => "an earlier operation".into(),
        }
    }

    /// The next moment of logical time.
    pub(crate) fn advance(&mut self) {
        if self.now == u32::MAX - 1 {
            // Four thousand million synchronisations: begin anew, all accesses forgotten.
            for allocation in self.allocations.iter_mut().flatten() {
                allocation.extent.cells.clear();
                allocation.host.clear();
            }
            self.streams.clear();
            self.now = 0;
            self.forgotten = 0;
        }
        self.now += 1;
    }

    /// A host access that `order`'s operation does not come after, in an allocation.
    pub(crate) fn host_conflict(
        &self,
        index: usize,
        (from, to): (u64, u64),
        write: bool,
        floor: u32,
        order: &Order,
    ) -> Option<u32> {
        let allocation = self.allocations[index].as_ref()?;
        let unordered = allocation.host.iter().find(|access| {
            access.stamp > floor
                && access.from < to
                && from < access.to
                && (write || access.write)
                && !self.precedes(access.stamp, order)
        });
        unordered.map(|access| access.stamp)
    }

    /// Whether any allocation may have unordered host accesses (seldom).
    pub(crate) fn has_host_accesses(&self, index: usize, floor: u32) -> bool {
        let allocation = self.allocations[index].as_ref();
        allocation.is_some_and(|found| found.host.last().is_some_and(|last| last.stamp > floor))
    }

    /// Checks a host-side access against launches that it does not come after, and records it.
    fn host_access(
        &mut self,
        address: u64,
        size: u64,
        write: bool,
        order: &Order,
        what: &'static str,
    ) -> Result<()> {
        if size == 0 {
            return Ok(());
        }
        self.extent(address, size)?;
        let floor = self.begin(order, What::Host(what));
        let index = self.find(address).expect("just found");
        let now = self.now;
        if floor < now - 1 {
            self.host_race(index, address, size, write, floor, order, what)?;
        }
        let allocation = self.allocations[index].as_mut().expect("just found");
        let (from, to) = (address - allocation.base, address - allocation.base + size);
        if allocation.host.len() >= 64 {
            allocation.host.drain(..32);
        }
        allocation.host.push(HostAccess {
            stamp: now,
            from,
            to,
            write,
        });
        self.advance();
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    fn host_race(
        &self,
        index: usize,
        address: u64,
        size: u64,
        write: bool,
        floor: u32,
        order: &Order,
        what: &'static str,
    ) -> Result<()> {
        let Some(allocation) = self.allocations[index].as_ref() else {
            return Ok(());
        };
        let from = address - allocation.base;
        let race = |mark: Mark| mark.stamp > floor && !self.precedes(mark.stamp, order);
        let bytes = from as usize..(from + size) as usize;
        let cells = allocation.extent.cells.touched(bytes.start, bytes.end);
        for (byte, cell) in cells {
            let reads = [cell.read, cell.other_read]
                .into_iter()
                .find(|mark| write && race(*mark));
            let Some(mark) = Some(cell.write).filter(|mark| race(*mark)).or(reads) else {
                continue;
            };
            return Err(self.host_race_fault(
                allocation.base + byte as u64,
                mark.stamp,
                what,
                order,
            ));
        }
        match self.host_conflict(index, (from, from + size), write, floor, order) {
            Some(stamp) => Err(self.host_race_fault(address, stamp, what, order)),
            None => Ok(()),
        }
    }

    fn host_race_fault(&self, address: u64, stamp: u32, what: &str, order: &Order) -> Fault {
        Fault::new(
            Kind::GlobalRace,
            format!(
                "{what} on stream {} and {} touch {address:#x}, and neither waits for the other",
                order.stream,
                self.describe(stamp)
            ),
        )
    }

    /// Copies device memory to the host. Bytes that were never written read as 0xFF: copying them is
    /// no fault.
    ///
    /// # Errors
    /// `OutOfBounds`, `UseAfterFree`; `GlobalRace` against a launch that `order` does not come after.
    pub fn read(&mut self, address: u64, out: &mut [u8], order: &Order) -> Result<()> {
        self.host_access(
            address,
            out.len() as u64,
            false,
            order,
            "a copy to the host",
        )?;
        if out.is_empty() {
            return Ok(());
        }
        let (allocation, range) = self.extent(address, out.len() as u64)?;
        out.copy_from_slice(&allocation.extent.bytes[range]);
        Ok(())
    }

    /// Copies host memory to the device.
    ///
    /// # Errors
    /// As `read`.
    pub fn write(&mut self, address: u64, bytes: &[u8], order: &Order) -> Result<()> {
        self.host_access(
            address,
            bytes.len() as u64,
            true,
            order,
            "a copy from the host",
        )?;
        if bytes.is_empty() {
            return Ok(());
        }
        let (allocation, range) = self.extent(address, bytes.len() as u64)?;
        allocation.extent.written.mark(range.start, bytes.len());
        allocation.extent.bytes[range].copy_from_slice(bytes);
        Ok(())
    }

    /// Copies `size` bytes from device to device; bytes never written stay so.
    ///
    /// # Errors
    /// As `read`.
    pub fn copy(&mut self, to: u64, from: u64, size: u64, order: &Order) -> Result<()> {
        self.host_access(from, size, false, order, "a device-to-device copy")?;
        self.host_access(to, size, true, order, "a device-to-device copy")?;
        if size == 0 {
            return Ok(());
        }
        let (source, range) = self.extent(from, size)?;
        let bytes = source.extent.bytes[range.clone()].to_vec();
        let written: Vec<bool> = range.map(|at| source.extent.written.all(at, 1)).collect();
        let (target, range) = self.extent(to, size)?;
        let start = range.start;
        target.extent.bytes[range].copy_from_slice(&bytes);
        for (at, _) in written.iter().enumerate().filter(|(_, written)| **written) {
            target.extent.written.mark(start + at, 1);
        }
        Ok(())
    }

    /// Fills `count` repetitions of `pattern` (1, 2 or 4 bytes).
    ///
    /// # Errors
    /// As `read`.
    pub fn fill(&mut self, address: u64, pattern: &[u8], count: u64, order: &Order) -> Result<()> {
        let size = count.saturating_mul(pattern.len() as u64);
        self.host_access(address, size, true, order, "a memset")?;
        if size == 0 {
            return Ok(());
        }
        let (allocation, range) = self.extent(address, size)?;
        allocation.extent.written.mark(range.start, range.len());
        for chunk in allocation.extent.bytes[range].chunks_exact_mut(pattern.len()) {
            chunk.copy_from_slice(pattern);
        }
        Ok(())
    }

    /// The bytes of an allocation, whoever may use them: for a driver that mirrors host memory.
    #[must_use]
    pub fn bytes(&self, address: u64) -> Option<&[u8]> {
        let allocation = self.allocations[self.find(address)?].as_ref()?;
        Some(&allocation.extent.bytes)
    }
}

/// The place of a host-side access in a race with a kernel.
pub(crate) fn host_site(action: String) -> Site {
    Site {
        action,
        ..Site::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(stream: u32, clock: &[u64]) -> Order {
        Order {
            stream,
            clock: clock.to_vec(),
        }
    }

    #[test]
    fn contents_bounds_and_lifetimes() {
        let mut memory = Memory::new(1 << 20);
        let at = memory.allocate(100).unwrap();
        assert!(at >= BASE && at.is_multiple_of(256));
        let mut fresh = [0; 100];
        memory.read(at, &mut fresh, &order(0, &[1])).unwrap();
        assert_eq!(fresh, [UNWRITTEN; 100]);
        memory.fill(at, &[1, 2], 50, &order(0, &[1])).unwrap();
        let mut out = [0; 4];
        memory.read(at + 96, &mut out, &order(0, &[2])).unwrap();
        assert_eq!(out, [1, 2, 1, 2]);
        let fault = memory.read(at + 97, &mut out, &order(0, &[3])).unwrap_err();
        assert_eq!(fault.kind, Kind::OutOfBounds);
        memory.free(at).unwrap();
        let fault = memory.write(at, &out, &order(0, &[4])).unwrap_err();
        assert_eq!(fault.kind, Kind::UseAfterFree);
        assert_eq!(memory.free(at).unwrap_err().kind, Kind::InvalidValue);
        assert_eq!(
            memory.allocate(1 << 21).unwrap_err().kind,
            Kind::OutOfMemory
        );
        assert_eq!(memory.info(), (1 << 20, 1 << 20));
    }

    #[test]
    fn copies_on_unordered_streams_race() {
        let mut memory = Memory::new(1 << 20);
        let at = memory.allocate(8).unwrap();
        memory.write(at, &[0; 8], &order(1, &[0, 1])).unwrap();
        let fault = memory
            .read(at, &mut [0; 8], &order(2, &[0, 0, 1]))
            .unwrap_err();
        assert_eq!(fault.kind, Kind::GlobalRace);
        memory.read(at, &mut [0; 8], &order(2, &[0, 1, 2])).unwrap();
    }

    /// What one stream did before an operation that is forgotten is not taken for another stream's.
    #[test]
    fn operations_of_long_ago_race_with_nothing() {
        let mut memory = Memory::new(1 << 20);
        let (one, other) = (memory.allocate(8).unwrap(), memory.allocate(8).unwrap());
        memory.write(other, &[0; 8], &order(1, &[0, 1])).unwrap();
        for time in 1..=1500 {
            let at = if time == 1 { one } else { other + 4 };
            let clock = order(0, &[time, 1]);
            memory.write(at, &[0; 4], &clock).unwrap();
        }
        // The second stream knows nothing of the first, nor the other way round any more.
        memory.write(one, &[0; 8], &order(0, &[1501])).unwrap();
    }
}

//! `cp.async`, and memory as the copy engines see it.

use super::landing::{Landing, addresses};
use super::race::{Access, visit};
use super::trouble::{Attempt, Trouble};
use super::{Machine, Result, lanes};
use crate::copy::{Engine, Fabric, Location, Piece, Space as CopySpace, Use};
use crate::fault::{Fault, Kind};
use crate::ir::{AsyncCopy, Space};
use crate::launch::Copies;
use crate::shadow::{Mark, words};
use crate::warp::Warp;

/// Who issued an asynchronous operation, and where.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin {
    /// The thread's number in the launch: warp serial times 32, plus lane.
    pub(crate) thread: u32,
    /// The resident block whose thread it is.
    pub(crate) block: usize,
    pub(crate) at: u16,
    /// The lane of the target block's pseudo-warp that writes; `None` for the thread itself.
    pub(crate) actor: Option<u32>,
}

impl Machine<'_> {
    pub(super) fn origin(warp: &Warp, lane: usize, pc: u32) -> Origin {
        Origin {
            thread: warp.serial << 5 | lane as u32,
            block: warp.block,
            at: u16::try_from(pc).unwrap_or(u16::MAX),
            actor: None,
        }
    }

    /// A thread's number in its cluster, as the engine knows it.
    pub(super) fn thread_number(&self, warp: &Warp, lane: usize) -> u32 {
        (self.blocks[warp.block].rank * self.warps + warp.index) * 32 + lane as u32
    }

    /// Runs `f` with the engine of the warp's cluster, which works on the rest of the machine.
    pub(super) fn with_engine<T>(
        &mut self,
        block: usize,
        f: impl FnOnce(&mut Self, &mut Engine<Origin>) -> T,
    ) -> T {
        let cluster = self.blocks[block].cluster;
        let idle = Engine::new(Copies::Early, 0, false);
        let mut engine = std::mem::replace(&mut self.engines[cluster], idle);
        let result = f(self, &mut engine);
        self.engines[cluster] = engine;
        result
    }

    pub(super) fn copy_async(
        &mut self,
        warp: &mut Warp,
        copy: &AsyncCopy,
        mask: u32,
        pc: u32,
    ) -> Result<()> {
        let to = addresses(&warp.registers, copy.to);
        let from = addresses(&warp.registers, copy.from);
        let ignored = match copy.ignore {
            Some((p, negated)) => warp.registers.predicate(p) ^ if negated { !0 } else { 0 },
            None => 0,
        };
        let bytes = copy.bytes as usize;
        for lane in lanes(mask) {
            let mut source = match copy.source_bytes {
                Some(register) => warp.registers.row::<u32>(register)[lane],
                None => copy.bytes,
            };
            if ignored >> lane & 1 != 0 {
                source = 0;
            }
            if source > copy.bytes {
                if self.flags.bounds {
                    let what = format!("a copy of {bytes} bytes is to read {source}");
                    let site = self.site(warp, lane as u32, pc, "starts it");
                    return Err(Fault::new(Kind::OutOfBounds, what).at(site));
                }
                source = copy.bytes;
            }
            // Aligned by the size of the copy, however much of it is read.
            let size = u64::from(copy.bytes);
            if source > 0 && self.flags.alignment && !from[lane].is_multiple_of(size) {
                return Err(self.misaligned(warp, lane, &from, size, pc, false));
            }
            // The checks of an ordinary access, at the moment of issue: what happens until the
            // copy has landed is the engine's to watch.
            if source > 0 {
                let mut data = [0; 16];
                let out = &mut data[..source as usize];
                self.read_row(warp, Space::Global, &from, lane, out, pc)?;
                // Counted when it lands.
                self.counters.bytes_read -= u64::from(source);
            }
            let landing = self.landing(warp, Space::Shared, &to, 1 << lane);
            self.before_copy(warp, landing, &to, bytes, pc)?;
            let offset = to[lane].wrapping_sub(landing.base);
            let piece = Piece::zero_filled(
                Location::global(from[lane]),
                Location::shared(self.blocks[warp.block].rank, offset as u32),
                copy.bytes,
                source,
            );
            let origin = Self::origin(warp, lane, pc);
            let thread = self.thread_number(warp, lane);
            self.with_engine(warp.block, |machine, engine| {
                engine.copy(thread, piece, origin, machine)
            })?;
        }
        Ok(())
    }

    /// Checks the target of a copy as if it were written now.
    fn before_copy(
        &mut self,
        warp: &mut Warp,
        landing: Landing,
        to: &[u64; 32],
        bytes: usize,
        pc: u32,
    ) -> Result<()> {
        let lane = landing.mask.trailing_zeros() as usize & 31;
        let access = Access::WRITE;
        let offset = to[lane].wrapping_sub(landing.base) as usize;
        if self.flags.alignment && !offset.is_multiple_of(bytes) {
            let what = format!("{offset} is no multiple of {bytes}");
            let action = format!("copies {bytes} bytes there");
            let site = self.site(warp, lane as u32, pc, &action);
            return Err(Fault::new(Kind::Misaligned, what).at(site));
        }
        let accessor = self.accessor(warp, pc, true);
        let shared_races = self.flags.shared_races;
        let extent = &mut self.blocks[warp.block].shared;
        let trouble = if landing.span(extent, to[lane], bytes).is_none() {
            self.flags.bounds.then_some(Trouble::Bounds)
        } else if shared_races {
            let context = super::race::Context {
                known: &warp.known,
                memory_order: None,
                write_stamp: None,
            };
            visit(extent, offset, bytes, lane, access, &accessor, &context)
                .err()
                .map(Trouble::Race)
        } else {
            None
        };
        let attempt = Attempt {
            landing,
            lane,
            address: to[lane],
            bytes: bytes as u64,
            pc,
            access,
        };
        trouble.map_or(Ok(()), |trouble| Err(self.trouble(trouble, warp, attempt)))
    }

    pub(super) fn commit_copies(&mut self, warp: &Warp, mask: u32) {
        for lane in lanes(mask) {
            let thread = self.thread_number(warp, lane);
            let cluster = self.blocks[warp.block].cluster;
            self.engines[cluster].commit(thread);
        }
    }

    pub(super) fn wait_copies(
        &mut self,
        warp: &Warp,
        groups: Option<u32>,
        mask: u32,
    ) -> Result<()> {
        for lane in lanes(mask) {
            let thread = self.thread_number(warp, lane);
            self.with_engine(warp.block, |machine, engine| match groups {
                Some(groups) => engine.wait(thread, groups as usize, machine),
                None => engine.wait_all(thread, machine),
            })?;
        }
        Ok(())
    }

    /// What a thread's exit does to its copies.
    pub(super) fn end_copies(&mut self, warp: &Warp, mask: u32) -> Result<()> {
        if self.engines[self.blocks[warp.block].cluster].is_idle() {
            return Ok(());
        }
        self.wait_copies(warp, None, mask)
    }

    /// Lands what waits for somebody to look; whether anything did.
    pub(crate) fn land_copies(&mut self) -> Result<bool> {
        let mut landed = false;
        for cluster in (0..self.blocks.len()).step_by(self.blocks_in_cluster as usize) {
            if !self.engines[cluster].is_idle() {
                landed |= self.with_engine(cluster, |machine, engine| engine.poll_all(machine))?;
            }
        }
        Ok(landed)
    }

    /// The resident blocks have ended: what is in flight lands.
    pub(crate) fn finish_copies(&mut self) -> Result<()> {
        for cluster in (0..self.blocks.len()).step_by(self.blocks_in_cluster as usize) {
            if !self.engines[cluster].is_idle() {
                self.with_engine(cluster, |machine, engine| engine.finish(machine))?;
            }
        }
        Ok(())
    }

    fn copy_fault(&self, kind: Kind, what: String, origin: &Origin, action: &str) -> Fault {
        Fault::new(kind, what).at(self.site_of(origin.thread, origin.at, action.into()))
    }

    /// The resident block that a rank of the origin's cluster stands for.
    pub(super) fn block_of(&self, rank: u32, origin: &Origin) -> usize {
        self.blocks[origin.block].cluster + rank as usize
    }
}

impl Fabric<Origin> for Machine<'_> {
    fn read(&mut self, from: Location, bytes: &mut [u8], origin: &Origin) -> Result<()> {
        let (extent, offset) = match from.space {
            CopySpace::Shared(rank) => {
                self.counters.shared_bytes += bytes.len() as u64;
                let block = self.block_of(rank, origin);
                (&self.blocks[block].shared, from.address)
            }
            CopySpace::Global => {
                self.counters.bytes_read += bytes.len() as u64;
                let found = self.memory.find(from.address);
                let found = found.and_then(|index| self.memory.allocations[index].as_ref());
                let Some(allocation) = found else {
                    return self.copy_bounds(from, bytes.len(), origin);
                };
                (&allocation.extent, from.address - allocation.base)
            }
        };
        let offset = offset as usize;
        match offset
            .checked_add(bytes.len())
            .and_then(|end| extent.bytes.get(offset..end))
        {
            Some(found) => {
                bytes.copy_from_slice(found);
                Ok(())
            }
            None => self.copy_bounds(from, bytes.len(), origin),
        }
    }

    fn write(&mut self, to: Location, bytes: &[u8], origin: &Origin) -> Result<()> {
        let now = self.memory.now;
        // Seen by others as a write at the time of landing.
        let writer = self.writer(to, origin);
        let (extent, offset) = match to.space {
            CopySpace::Shared(rank) => {
                self.counters.shared_bytes += bytes.len() as u64;
                let block = self.block_of(rank, origin);
                (&mut self.blocks[block].shared, to.address)
            }
            CopySpace::Global => {
                self.counters.bytes_written += bytes.len() as u64;
                let found = self.memory.find(to.address);
                let found = found.and_then(|index| self.memory.allocations[index].as_mut());
                let Some(allocation) = found else {
                    return self.copy_bounds(to, bytes.len(), origin);
                };
                (&mut allocation.extent, to.address - allocation.base)
            }
        };
        let offset = offset as usize;
        let end = offset.saturating_add(bytes.len());
        if end > extent.bytes.len() {
            return self.copy_bounds(to, bytes.len(), origin);
        }
        extent.bytes[offset..end].copy_from_slice(bytes);
        extent.written.mark(offset, bytes.len());
        for (word, bytes) in words(offset, end) {
            for cell in extent.cells.of(word, bytes) {
                cell.write = Mark::new(now, writer, 0);
                cell.write_at = origin.at;
            }
        }
        self.progress += 1;
        Ok(())
    }

    fn complete(&mut self, barrier: Location, bytes: u32, origin: &Origin) -> Result<()> {
        self.complete_bytes(barrier, bytes, origin)
    }

    fn expect_arrival(&mut self, barrier: Location, origin: &Origin) -> Result<()> {
        self.expect_copies(barrier, origin)
    }

    fn arrive(&mut self, barrier: Location, origin: &Origin) -> Result<()> {
        self.arrive_after_copies(barrier, origin)
    }

    fn conflict(&self, at: Location, earlier: (&Origin, Use), later: (&Origin, Use)) -> Fault {
        let action = |by: Use| match by {
            Use::Source => "started a copy that reads it",
            Use::Target => "started a copy that writes it",
        };
        let what = format!("two copies in flight use shared address {}", at.address);
        let (origin, by) = later;
        let fault = self.copy_fault(Kind::AsyncCopy, what, origin, action(by));
        let (origin, by) = earlier;
        fault.at(self.site_of(origin.thread, origin.at, action(by).into()))
    }
}

impl Machine<'_> {
    #[cold]
    fn copy_bounds(&self, at: Location, bytes: usize, origin: &Origin) -> Result<()> {
        let freed = at.space == CopySpace::Global && self.memory.was_freed(at.address);
        if !(if freed {
            self.flags.freed
        } else {
            self.flags.bounds
        }) {
            return Ok(());
        }
        let fault = match at.space {
            CopySpace::Global => self.memory.stray(at.address, bytes as u64),
            CopySpace::Shared(_) => Fault::new(
                Kind::OutOfBounds,
                format!("{bytes} bytes at shared address {}", at.address),
            ),
        };
        Err(fault.at(self.site_of(origin.thread, origin.at, "copies them".into())))
    }
}

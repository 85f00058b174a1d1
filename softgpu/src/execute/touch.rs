//! Accesses of the asynchronous engines, with the checks of ordinary ones.

use super::landing::{Landing, Target};
use super::race::{Access, Context, visit};
use super::trouble::{Attempt, Trouble};
use super::{Machine, Result};
use crate::fault::{Fault, Kind};
use crate::memory::Extent;
use crate::shadow::{Mark, WHOLE, words};
use crate::warp::Warp;

/// Which writes the asynchronous proxy must have been shown by a fence.
#[derive(Clone, Copy)]
struct Generic {
    /// When the launch began: older writes are visible to every proxy.
    started: u32,
    /// Warps of a block, the pseudo-warp of its copies included.
    warps: u32,
    /// The serial numbers of the warps whose writes count.
    first: u32,
    count: u32,
    /// The sequence number of the accessing thread's block.
    sequence: u32,
}

impl Generic {
    /// Whether a fence must show `write` to the asynchronous proxy, and none has.
    fn hides(&self, write: Mark, context: &Context, lane: usize) -> bool {
        let warp = write.warp();
        let concerns = write.stamp >= self.started
            && warp.wrapping_sub(self.first) < self.count
            && warp % self.warps != self.warps - 1;
        if !concerns {
            return false;
        }
        let Some(known) = &context.known[lane] else {
            return true;
        };
        let per_block = self.warps * 32;
        let (block, thread) = (write.thread() / per_block, write.thread() % per_block);
        if block == self.sequence {
            !known.proxy.own.knows(thread, write.stamp)
        } else {
            !known.proxy.knows_other(block, thread, write.stamp)
        }
    }

    /// The first hidden write of a range, if any.
    fn find(
        &self,
        extent: &mut Extent,
        range: std::ops::Range<usize>,
        context: &Context,
        lane: usize,
    ) -> Option<(Mark, u16, usize)> {
        (range.start / 4..range.end.div_ceil(4)).find_map(|word| {
            let cells = extent.cells.of(word, WHOLE);
            let hidden = cells
                .iter()
                .find(|cell| self.hides(cell.write, context, lane));
            hidden.map(|cell| (cell.write, cell.write_at, word))
        })
    }
}

impl Machine<'_> {
    /// Checks an access of `bytes` bytes at `address` on behalf of a lane.
    pub(super) fn touch(
        &mut self,
        warp: &mut Warp,
        landing: Landing,
        lane: usize,
        (address, bytes): (u64, u32),
        access: Access,
        pc: u32,
    ) -> Result<()> {
        let (flags, bounds) = (self.flags, self.bounds(landing));
        let reads = matches!(access, Access::Read { .. });
        self.check_host(warp, landing, lane, (address, bytes), !reads, pc)?;
        self.visit_peer(warp, landing, 1 << lane, pc)?;
        let result = self.with_extent(warp, landing, pc, None, |extent, _, accessor, context| {
            let Some(span) = landing.span(extent, address, bytes as usize) else {
                return if bounds { Err(Trouble::Bounds) } else { Ok(()) };
            };
            if reads && flags.uninitialised && !extent.written.all(span.start, span.len()) {
                return Err(Trouble::Unwritten);
            }
            let Some(accessor) = accessor else {
                return Ok(());
            };
            let (offset, bytes) = (span.start, span.len());
            visit(extent, offset, bytes, lane, access, accessor, context).map_err(Trouble::Race)
        });
        let attempt = Attempt {
            landing,
            lane,
            address,
            bytes: bytes.into(),
            pc,
            access,
        };
        match result {
            Ok(()) => Ok(()),
            Err(Trouble::Unwritten) => self.defer(warp, attempt),
            Err(trouble) => Err(self.trouble(trouble, warp, attempt)),
        }
    }

    /// Checks that the asynchronous proxy has been shown what it is about to use.
    pub(super) fn check_proxy(
        &mut self,
        warp: &mut Warp,
        landing: Landing,
        lane: usize,
        (address, bytes): (u64, u32),
        pc: u32,
    ) -> Result<()> {
        if !self.flags.proxies {
            return Ok(());
        }
        let generic = self.generic(warp, landing);
        let offset = address.wrapping_sub(landing.base) as usize;
        let end = offset.saturating_add(bytes as usize);
        let hidden = self.with_extent(warp, landing, pc, None, |extent, _, _, context| {
            let fits = end <= extent.bytes.len();
            fits.then(|| generic.find(extent, offset..end, context, lane))
                .flatten()
        });
        let Some((mark, at, word)) = hidden else {
            return Ok(());
        };
        let place = match landing.target {
            Target::Shared(_) => format!("shared address {}", 4 * word),
            _ => format!(
                "offset {} of the allocation at {:#x}",
                4 * word,
                landing.base
            ),
        };
        let what = format!(
            "the asynchronous proxy uses {place}, written by the generic one with no \
             fence.proxy.async after it"
        );
        let fault = Fault::new(Kind::MissingProxyFence, what);
        let fault = fault.at(self.site(warp, lane as u32, pc, "hands it over"));
        Err(fault.at(self.site_of(mark.thread(), at, "wrote it".into())))
    }

    /// Marks the target of a copy as written by the engine from now on.
    pub(super) fn claim(
        &mut self,
        warp: &mut Warp,
        landing: Landing,
        (address, bytes): (u64, u32),
        writer: u32,
        pc: u32,
    ) {
        let now = self.memory.now;
        let offset = address.wrapping_sub(landing.base) as usize;
        let end = offset.saturating_add(bytes as usize);
        self.with_extent(warp, landing, pc, None, |extent, _, accessor, _| {
            if accessor.is_some() && end <= extent.bytes.len() {
                for (word, bytes) in words(offset, end) {
                    for cell in extent.cells.of(word, bytes) {
                        cell.write = Mark::new(now, writer, 0);
                    }
                }
            }
        });
    }

    fn generic(&self, warp: &Warp, landing: Landing) -> Generic {
        let warps = self.warps + 1;
        let block = &self.blocks[warp.block];
        let (first, count) = match landing.target {
            // What older blocks left in shared memory is nobody's.
            Target::Shared(_) => {
                let first = block.sequence - block.rank;
                (first * warps, self.blocks_in_cluster * warps)
            }
            _ => (0, u32::MAX),
        };
        Generic {
            started: self.started,
            warps,
            first,
            count,
            sequence: block.sequence,
        }
    }

    /// Host-side operations on global memory that the access is not ordered with.
    fn check_host(
        &self,
        warp: &Warp,
        landing: Landing,
        lane: usize,
        (address, bytes): (u64, u32),
        write: bool,
        pc: u32,
    ) -> Result<()> {
        let Target::Allocation(index) = landing.target else {
            return Ok(());
        };
        if !self.flags.global_races || !self.memory.has_host_accesses(index, self.floor) {
            return Ok(());
        }
        let from = address.wrapping_sub(landing.base);
        let range = (from, from + u64::from(bytes));
        match self
            .memory
            .host_conflict(index, range, write, self.floor, self.order)
        {
            Some(stamp) => self.host_race(stamp, address, warp, lane, pc),
            None => Ok(()),
        }
    }

    /// The copy in flight that forbids reading shared memory of the own block.
    pub(super) fn check_in_flight(
        &self,
        warp: &Warp,
        offset: u32,
        bytes: u32,
        lane: usize,
        pc: u32,
    ) -> Result<()> {
        let block = &self.blocks[warp.block];
        let engine = &self.engines[block.cluster];
        if engine.is_idle() {
            return Ok(());
        }
        match engine.owner(block.rank, offset.into(), bytes, false) {
            Some((origin, by)) => {
                let mut fault = self.in_flight(origin, by, offset, false);
                fault
                    .sites
                    .insert(0, self.site(warp, lane as u32, pc, "reads there"));
                Err(fault)
            }
            None => Ok(()),
        }
    }
}

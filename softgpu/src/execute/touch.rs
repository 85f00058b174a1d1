//! Accesses of the asynchronous engines, with the checks of ordinary ones.

use super::access::{Landing, Target, Trouble, is_reserved};
use super::race::{Access, Context, visit};
use super::{Machine, Result};
use crate::fault::{Fault, Kind};
use crate::memory::Extent;
use crate::shadow::Mark;
use crate::warp::Warp;

/// Why an access of the asynchronous proxy fails.
enum Refusal {
    Trouble(Trouble),
    /// A write of the generic proxy that no fence has handed over: which, where, and the word.
    Unfenced(Mark, u16, usize),
}

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
        let concerns = write.bytes() != 0
            && write.stamp >= self.started
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
            let cell = extent.cells.cell(word);
            self.hides(cell.write, context, lane)
                .then_some((cell.write, cell.write_at, word))
        })
    }
}

impl Machine<'_> {
    /// Checks an access of `bytes` bytes at `address` on behalf of a lane; with `proxy`, by the
    /// asynchronous proxy.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn touch(
        &mut self,
        warp: &mut Warp,
        landing: Landing,
        lane: usize,
        (address, bytes): (u64, u32),
        access: Access,
        proxy: bool,
        pc: u32,
    ) -> Result<()> {
        let flags = self.flags;
        let reads = matches!(access, Access::Read { .. });
        self.check_host(warp, landing, lane, (address, bytes), !reads, pc)?;
        if let Target::Shared(block) = landing.target
            && self.blocks[block].alive == 0
            && flags.bounds
        {
            let what = "shared memory of a block of the cluster that has ended";
            let site = self.site(warp, lane as u32, pc, "uses it");
            return Err(Fault::new(Kind::UseAfterFree, what).at(site));
        }
        let generic = (proxy && flags.proxies).then(|| self.generic(warp, landing));
        let offset = address.wrapping_sub(landing.base) as usize;
        let end = offset.saturating_add(bytes as usize);
        let check = |extent: &mut Extent, accessor: Option<&_>, context: &Context| {
            if end > extent.bytes.len() || is_reserved(landing, offset) {
                return if flags.bounds {
                    Err(Refusal::Trouble(Trouble::Bounds))
                } else {
                    Ok(())
                };
            }
            if reads && flags.uninitialised && !extent.written.all(offset, end - offset) {
                return Err(Refusal::Trouble(Trouble::Unwritten));
            }
            // Before `visit`, which takes the word over.
            let hidden = generic.and_then(|g| g.find(extent, offset..end, context, lane));
            if let Some((mark, at, word)) = hidden {
                return Err(Refusal::Unfenced(mark, at, word));
            }
            if let Some(accessor) = accessor {
                visit(
                    extent,
                    offset,
                    end - offset,
                    lane,
                    access,
                    accessor,
                    context,
                )
                .map_err(|conflict| Refusal::Trouble(Trouble::Race(conflict)))?;
            }
            Ok(())
        };
        let result = self.with_extent(warp, landing, pc, None, |extent, _, accessor, context| {
            check(extent, accessor, context)
        });
        match result {
            Ok(()) => Ok(()),
            Err(Refusal::Trouble(Trouble::Unwritten)) => {
                self.defer(landing, warp, lane, address, bytes.into(), pc)
            }
            Err(Refusal::Trouble(trouble)) => Err(self.trouble(
                trouble,
                landing,
                warp,
                lane,
                address,
                bytes.into(),
                pc,
                access,
            )),
            Err(Refusal::Unfenced(mark, at, word)) => {
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
                let action = if reads { "reads it" } else { "writes it" };
                let fault = Fault::new(Kind::MissingProxyFence, what);
                let fault = fault.at(self.site(warp, lane as u32, pc, action));
                Err(fault.at(self.site_of(mark.thread(), at, "wrote it".into())))
            }
        }
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

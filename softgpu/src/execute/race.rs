//! Races: an access against the last ones of the same word.

use super::{Machine, Result};
use crate::clock::Known;
use crate::fault::{Fault, Kind};
use crate::memory::{Extent, Memory, Order, host_site};
use crate::shadow::{Cell, Mark};
use crate::warp::Warp;

/// The accessing warp, with what all of its lanes know.
#[derive(Clone, Copy)]
pub(super) struct Accessor {
    /// Everything stamped up to here comes before.
    pub(super) floor: u32,
    /// When the launch began: what is stamped before belongs to other operations.
    started: u32,
    now: u32,
    serial: u32,
    /// The serial numbers of the block's warps: the first, and how many.
    first: u32,
    warps: u32,
    block_base: u32,
    warp_base: u32,
    at: u16,
}

/// An access and the earlier one that it is not ordered with.
pub(super) struct Conflict {
    earlier: Mark,
    earlier_wrote: bool,
    earlier_at: u16,
    word: usize,
}

/// How an access uses a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Read {
        strong: bool,
    },
    /// `same`: the bytes written are those that were there; such writes by several threads are
    /// harmless.
    Write {
        strong: bool,
        same: bool,
    },
}

impl Access {
    /// An ordinary load's.
    pub(super) const READ: Self = Self::Read { strong: false };
    /// An ordinary store's.
    pub(super) const WRITE: Self = Self::Write {
        strong: false,
        same: false,
    };
}

impl Accessor {
    /// Whether the access at `mark` comes before what the lane does now.
    #[inline(always)]
    fn is_after(&self, mark: Mark, lane: u32, context: &Context) -> bool {
        if mark.stamp <= self.floor {
            return true;
        }
        if mark.stamp >= self.started {
            let warp = mark.warp();
            if warp == self.serial {
                if mark.stamp <= self.warp_base || mark.thread() & 31 == lane {
                    return true;
                }
            } else if warp.wrapping_sub(self.first) < self.warps && mark.stamp <= self.block_base {
                return true;
            }
        }
        self.is_known(mark, lane, context)
    }

    #[cold]
    fn is_known(&self, mark: Mark, lane: u32, context: &Context) -> bool {
        if mark.stamp < self.started {
            return context
                .memory_order
                .is_some_and(|(memory, order)| memory.precedes(mark.stamp, order));
        }
        let Some(known) = &context.known[lane as usize] else {
            return false;
        };
        let thread = mark.thread();
        let own = thread.wrapping_sub(self.first * 32);
        let mut clocks = [Some(&known.seen), None];
        // A thread that has seen an atomic's result comes after that atomic itself, fence or not.
        if mark.flag() {
            clocks[1] = Some(&known.pending);
        }
        clocks.into_iter().flatten().any(|clock| {
            if own < self.warps * 32 {
                clock.own.knows(own, mark.stamp)
            } else {
                let per_block = self.warps * 32;
                clock.knows_other(thread / per_block, thread % per_block, mark.stamp)
            }
        })
    }

    /// Checks an access of bytes of a word and records it.
    #[inline(always)]
    fn visit(
        &self,
        cell: &mut Cell,
        lane: u32,
        bytes: u32,
        access: Access,
        context: &Context,
    ) -> std::result::Result<(), (Mark, bool, u16)> {
        let write = cell.write;
        match access {
            Access::Read { strong } => {
                if write.bytes() & bytes != 0
                    && !(strong && write.flag())
                    && !self.is_after(write, lane, context)
                {
                    return Err((write, true, cell.write_at));
                }
                if !strong {
                    self.note_read(cell, lane, bytes);
                }
            }
            Access::Write { strong, same } => {
                if write.bytes() & bytes != 0
                    && !(same || strong && write.flag())
                    && !self.is_after(write, lane, context)
                {
                    return Err((write, true, cell.write_at));
                }
                for read in [cell.read, cell.other_read] {
                    if read.bytes() & bytes != 0
                        && !same
                        && !self.is_after_read(read, lane, context)
                    {
                        return Err((read, false, cell.read_at));
                    }
                }
                let thread = self.serial << 5 | lane;
                cell.write = Mark::new(
                    context.write_stamp.unwrap_or(self.now),
                    thread,
                    strong,
                    bytes,
                );
                cell.write_at = self.at;
            }
        }
        Ok(())
    }

    /// As [`Self::is_after`], for a read that several lanes of a warp may have made.
    #[inline(always)]
    fn is_after_read(&self, read: Mark, lane: u32, context: &Context) -> bool {
        if read.stamp <= self.floor {
            return true;
        }
        if !read.flag() || read.warp() != self.serial || read.stamp < self.started {
            return self.is_after(read, lane, context);
        }
        // Others of the own warp read it: ordered if the lane knows any other lane's read.
        read.stamp <= self.warp_base
            || (0..32).filter(|other| *other != lane).any(|other| {
                let thread = read.thread() & !31 | other;
                self.is_known(Mark::new(read.stamp, thread, false, 0), lane, context)
            })
    }

    #[inline(always)]
    fn note_read(&self, cell: &mut Cell, lane: u32, bytes: u32) {
        let thread = self.serial << 5 | lane;
        let old = cell.read;
        let mut mark = Mark::new(self.now, thread, false, bytes);
        if old.warp() == self.serial && old.stamp >= self.started {
            let both = old.bytes() & bytes;
            if both != 0 && old.stamp > self.warp_base && (old.flag() || old.thread() != thread) {
                mark = Mark::new(self.now, thread, true, both);
            }
        } else if old.stamp > self.floor {
            cell.other_read = old;
        }
        cell.read = mark;
        cell.read_at = self.at;
    }
}

/// What the slow paths need.
pub(super) struct Context<'a> {
    pub(super) known: &'a [Known; 32],
    /// Global memory and the launch's place in it; `None` for shared memory.
    pub(super) memory_order: Option<(&'a Memory, &'a Order)>,
    /// The stamp of a strong write that releases what was published earlier.
    pub(super) write_stamp: Option<u32>,
}

/// Checks an access to `[offset, offset + bytes)` of an extent.
#[inline(always)]
pub(super) fn visit(
    extent: &mut Extent,
    offset: usize,
    bytes: usize,
    lane: usize,
    access: Access,
    accessor: &Accessor,
    context: &Context,
) -> std::result::Result<(), Conflict> {
    let mut at = offset;
    let end = offset + bytes;
    while at < end {
        let word = at / 4;
        let until = end.min(4 * word + 4);
        let mask = ((1_u32 << (until - at)) - 1) << (at % 4);
        let cell = extent.cells.cell(word);
        if let Err((earlier, earlier_wrote, earlier_at)) =
            accessor.visit(cell, lane as u32, mask, access, context)
        {
            return Err(Conflict {
                earlier,
                earlier_wrote,
                earlier_at,
                word,
            });
        }
        at = until;
    }
    Ok(())
}

impl Machine<'_> {
    /// The accessor for a warp's accesses to global memory or, with `shared`, to that of its cluster's blocks.
    #[inline(always)]
    pub(super) fn accessor(&self, warp: &Warp, pc: u32, shared: bool) -> Accessor {
        let block = &self.blocks[warp.block];
        Accessor {
            floor: match shared {
                // All that is in a block's shared memory is its own threads' or older than it.
                true if self.blocks_in_cluster == 1 => block.base,
                true => block.born,
                false => self.floor,
            },
            started: self.started,
            now: self.memory.now,
            serial: warp.serial,
            first: block.sequence * (self.warps + 1),
            warps: self.warps + 1,
            block_base: block.base,
            warp_base: warp.base.max(block.base),
            at: u16::try_from(pc).unwrap_or(u16::MAX),
        }
    }

    /// The fault of a race at byte `address` of global memory, or of the shared memory of a block.
    #[cold]
    pub(super) fn race(
        &self,
        conflict: &Conflict,
        place: Place,
        warp: &Warp,
        lane: usize,
        pc: u32,
        access: Access,
    ) -> Fault {
        let (kind, what) = match place {
            Place::Global { base } => (
                Kind::GlobalRace,
                format!(
                    "word at offset {} of the allocation at {base:#x}",
                    4 * conflict.word
                ),
            ),
            Place::Shared => (
                Kind::SharedRace,
                format!("word at shared address {}", 4 * conflict.word),
            ),
            Place::OtherShared => (
                Kind::GlobalRace,
                format!(
                    "word at address {} of another block's shared memory",
                    4 * conflict.word
                ),
            ),
        };
        let what = format!("{what} is accessed twice with nothing to order the accesses");
        let action = match access {
            Access::Read { .. } => "reads it",
            Access::Write { strong: true, .. } => "updates it atomically",
            Access::Write { .. } => "writes it",
        };
        let earlier = match (conflict.earlier_wrote, conflict.earlier.flag()) {
            (true, true) => "updated it atomically",
            (true, false) => "wrote it",
            (false, _) => "read it",
        };
        let fault = Fault::new(kind, what).at(self.site(warp, lane as u32, pc, action));
        if conflict.earlier.stamp < self.started {
            let what = self.memory.describe(conflict.earlier.stamp);
            return fault.at(host_site(format!("{what} {earlier}")));
        }
        let site = self.site_of(
            conflict.earlier.thread(),
            conflict.earlier_at,
            earlier.into(),
        );
        fault.at(site)
    }

    /// The fault of a kernel's access that a host-side operation is not ordered with.
    #[cold]
    pub(super) fn host_race(
        &self,
        stamp: u32,
        address: u64,
        warp: &Warp,
        lane: usize,
        pc: u32,
    ) -> Result<()> {
        let what = format!(
            "{address:#x} is also touched by {}",
            self.memory.describe(stamp)
        );
        let site = self.site(warp, lane as u32, pc, "touches it");
        Err(Fault::new(Kind::GlobalRace, what).at(site))
    }
}

/// Whose memory a race is in.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    Global { base: u64 },
    Shared,
    OtherShared,
}

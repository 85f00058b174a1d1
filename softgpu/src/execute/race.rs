//! Races: an access against the last ones of the same word.

use super::{Machine, Result};
use crate::clock::Known;
use crate::fault::{Fault, Kind};
use crate::ir::Scope;
use crate::memory::{Extent, Memory, Order, host_site};
use crate::shadow::{Cell, Mark, words};
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
    /// Whether only the block's own warps access the memory: sets of them are kept.
    own_only: bool,
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
    /// `strong`: the scope in which it may run beside other strong ones.
    Read { strong: Option<Scope> },
    /// `same`: the bytes written are those that were there; such writes by several threads are
    /// harmless.
    Write { strong: Option<Scope>, same: bool },
}

impl Access {
    /// An ordinary load's.
    pub(super) const READ: Self = Self::Read { strong: None };
    /// One of an mbarrier's state.
    pub(super) const STRONG_READ: Self = Self::Read {
        strong: Some(Scope::Device),
    };
    /// An ordinary store's.
    pub(super) const WRITE: Self = Self::Write {
        strong: None,
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
        let mut clocks = [Some(&known.seen), None, None];
        // A thread that has seen an atomic's result comes after that atomic itself, fence or not.
        if mark.has(Mark::STRONG) {
            let [near, far] = &known.pending;
            clocks[1..].copy_from_slice(&[Some(near), Some(far)]);
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

    /// Whether an access and that at `mark` are both strong, each in a scope that includes the other's
    /// thread.
    #[inline(always)]
    fn are_strong(&self, access: Option<Scope>, mark: Mark) -> bool {
        let Some(scope) = access else {
            return false;
        };
        let wide = scope == Scope::Device && !mark.has(Mark::NARROW);
        mark.has(Mark::STRONG) && (wide || mark.warp().wrapping_sub(self.first) < self.warps)
    }

    fn flags(strong: Option<Scope>) -> u32 {
        match strong {
            None => 0,
            Some(Scope::Device) => Mark::STRONG,
            Some(Scope::Block) => Mark::STRONG | Mark::NARROW,
        }
    }

    /// Checks an access of what a cell describes and records it.
    #[inline(always)]
    fn visit(
        &self,
        cell: &mut Cell,
        lane: u32,
        access: Access,
        context: &Context,
    ) -> std::result::Result<(), (Mark, bool, u16)> {
        let write = cell.write;
        match access {
            Access::Read { strong } => {
                if !self.is_after(write, lane, context) && !self.are_strong(strong, write) {
                    return Err((write, true, cell.write_at));
                }
                match strong {
                    None => self.note_read(cell, lane),
                    Some(_) => self.note_strong_read(cell, lane, strong),
                }
            }
            Access::Write { strong, same } => {
                if !same && !self.is_after(write, lane, context) && !self.are_strong(strong, write)
                {
                    return Err((write, true, cell.write_at));
                }
                if !same {
                    self.check_reads(cell, lane, strong, context)?;
                }
                // Whoever comes after a plain write comes after the reads before it.
                if !same && strong.is_none() {
                    (cell.read, cell.other_read) = (Mark::default(), Mark::default());
                }
                let thread = self.serial << 5 | lane;
                let stamp = context.write_stamp.unwrap_or(self.now);
                cell.write = Mark::new(stamp, thread, Self::flags(strong));
                cell.write_at = self.at;
            }
        }
        Ok(())
    }

    /// Checks a write against the reads before it.
    #[inline(always)]
    fn check_reads(
        &self,
        cell: &Cell,
        lane: u32,
        strong: Option<Scope>,
        context: &Context,
    ) -> std::result::Result<(), (Mark, bool, u16)> {
        let is_ordered =
            |read: Mark| self.is_after_read(read, lane, context) || self.are_strong(strong, read);
        if !is_ordered(cell.read) {
            return Err((cell.read, false, cell.read_at));
        }
        if cell.read.has(Mark::MANY) {
            return match self.unordered_of(cell.other_read, lane, context) {
                Some(read) => Err((read, false, u16::MAX)),
                None => Ok(()),
            };
        }
        if !is_ordered(cell.other_read) {
            return Err((cell.other_read, false, cell.read_at));
        }
        Ok(())
    }

    /// A read of a set of warps that the lane does not come after. It must know of some lane of each
    /// at the time of the set's first read; what a warp has read since then is not known.
    #[cold]
    fn unordered_of(&self, set: Mark, lane: u32, context: &Context) -> Option<Mark> {
        if set.stamp <= self.floor.max(self.block_base) {
            return None;
        }
        (0..32)
            .filter(|warp| set.who >> warp & 1 != 0 && self.first + warp != self.serial)
            .map(|warp| Mark::new(set.stamp, (self.first + warp) << 5, 0))
            .find(|read| {
                !(0..32).any(|other| {
                    let read = Mark::new(set.stamp, read.thread() | other, 0);
                    self.is_known(read, lane, context)
                })
            })
    }

    /// As [`Self::is_after`], for a read that several lanes of a warp may have made.
    #[inline(always)]
    fn is_after_read(&self, read: Mark, lane: u32, context: &Context) -> bool {
        if read.stamp <= self.floor {
            return true;
        }
        if !read.has(Mark::SEVERAL) || read.warp() != self.serial || read.stamp < self.started {
            // What is known of a strong write beyond its fences is not of a read.
            let read = Mark::new(read.stamp, read.thread(), 0);
            return self.is_after(read, lane, context);
        }
        // Others of the own warp read it: ordered if the lane knows any other lane's read.
        read.stamp <= self.warp_base
            || (0..32).filter(|other| *other != lane).any(|other| {
                let thread = read.thread() & !31 | other;
                self.is_known(Mark::new(read.stamp, thread, 0), lane, context)
            })
    }

    #[inline(always)]
    fn note_read(&self, cell: &mut Cell, lane: u32) {
        let thread = self.serial << 5 | lane;
        let old = cell.read;
        let mut flags = 0;
        if old.has(Mark::STRONG) {
            // It gives way: a weak read conflicts with more.
        } else if old.warp() == self.serial && old.stamp >= self.started {
            if old.stamp > self.warp_base && (old.has(Mark::SEVERAL) || old.thread() != thread) {
                flags = Mark::SEVERAL;
            }
            if old.has(Mark::MANY) && cell.other_read.stamp > self.floor {
                flags |= Mark::MANY;
            }
        } else if old.stamp > self.floor {
            flags = self.keep_reader(cell, old);
        }
        cell.read = Mark::new(self.now, thread, flags);
        cell.read_at = self.at;
    }

    /// Keeps the last read, by another warp, beside the one that takes its place.
    #[inline(always)]
    fn keep_reader(&self, cell: &mut Cell, old: Mark) -> u32 {
        let other = cell.other_read;
        if self.own_only && other.stamp > self.floor {
            let bit = |read: Mark| 1_u32 << (read.warp().wrapping_sub(self.first) & 31);
            let set = match old.has(Mark::MANY) {
                true => other.who,
                false if other.warp() == self.serial => 0,
                false => bit(other),
            };
            if set != 0 {
                cell.other_read = Mark {
                    stamp: other.stamp.min(old.stamp),
                    who: set | bit(old),
                };
                return Mark::MANY;
            }
        }
        cell.other_read = old;
        0
    }

    /// A strong read takes the place of another and of what is ordered, never of a weak one.
    fn note_strong_read(&self, cell: &mut Cell, lane: u32, strong: Option<Scope>) {
        let old = cell.read;
        if old.stamp <= self.floor || old.has(Mark::STRONG) {
            let thread = self.serial << 5 | lane;
            cell.read = Mark::new(self.now, thread, Self::flags(strong));
            cell.read_at = self.at;
        }
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
    for (word, bytes) in words(offset, offset + bytes) {
        for cell in extent.cells.of(word, bytes) {
            if let Err((earlier, earlier_wrote, earlier_at)) =
                accessor.visit(cell, lane as u32, access, context)
            {
                return Err(Conflict {
                    earlier,
                    earlier_wrote,
                    earlier_at,
                    word,
                });
            }
        }
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
            own_only: shared && self.blocks_in_cluster == 1,
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
            Access::Write {
                strong: Some(_), ..
            } => "updates it atomically",
            Access::Write { .. } => "writes it",
        };
        let strong = conflict.earlier.has(Mark::STRONG);
        let earlier = match (conflict.earlier_wrote, strong) {
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

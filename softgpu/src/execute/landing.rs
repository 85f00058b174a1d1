//! Where addresses lead: the memory that lanes land on.

use std::ops::Range;

use super::race::{Accessor, Context};
use super::{Machine, lanes};
use crate::ir::{Address, Space};
use crate::memory::Extent;
use crate::registers::{LANES, Registers};
use crate::space;
use crate::warp::Warp;

/// What an access lands on, for lanes that land together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Allocation(usize),
    /// The shared memory of a resident block.
    Shared(usize),
    Local,
    Parameters,
    /// Memory that was freed.
    Freed,
    /// Nothing.
    Nowhere,
}

/// Lanes that land on the same target.
#[derive(Clone, Copy, Debug)]
pub(super) struct Landing {
    pub(super) target: Target,
    /// The address of the target's first byte.
    pub(super) base: u64,
    pub(super) mask: u32,
}

impl Landing {
    /// The place of an access in the bytes of the target; `None` if it does not lie in them.
    #[inline(always)]
    pub(super) fn span(self, extent: &Extent, address: u64, bytes: usize) -> Option<Range<usize>> {
        let offset = address.wrapping_sub(self.base) as usize;
        let end = offset.checked_add(bytes)?;
        // The first part of shared memory is no variable's.
        let is_reserved = matches!(self.target, Target::Shared(_))
            && offset < crate::lower::SHARED_START as usize;
        (end <= extent.bytes.len() && !is_reserved).then_some(offset..end)
    }
}

/// The addresses of all lanes.
#[inline(always)]
pub(super) fn addresses(registers: &Registers, address: Address) -> [u64; LANES] {
    if address.is_wide {
        registers
            .row::<u64>(address.base)
            .map(|base| base.wrapping_add_signed(address.offset))
    } else {
        // Addresses of 32 bits wrap at 32 bits.
        let offset = address.offset as u32;
        registers
            .row::<u32>(address.base)
            .map(|base| u64::from(base.wrapping_add(offset)))
    }
}

impl Machine<'_> {
    /// Where the first of the lanes lands, and which land with it.
    pub(super) fn landing(
        &mut self,
        warp: &Warp,
        space: Space,
        addresses: &[u64; LANES],
        mask: u32,
    ) -> Landing {
        let first = addresses[mask.trailing_zeros() as usize & 31];
        let (space, window) = match space {
            Space::Generic => {
                let (found, _) = space::resolve(first);
                (found, space::window(found))
            }
            space => (space, 0),
        };
        let together = |low: u64, size: u64| {
            lanes(mask)
                .filter(|lane| addresses[*lane].wrapping_sub(low) < size)
                .fold(0, |all, lane| all | 1 << lane)
        };
        match space {
            Space::Shared => {
                let (rank, _) = space::shared(first.wrapping_sub(window));
                let cluster = self.blocks[warp.block].cluster;
                let (block, base) = match rank {
                    None => (warp.block, window),
                    Some(rank) => {
                        let base = window + (u64::from(rank + 1) << space::RANK_SHIFT);
                        (cluster + rank as usize, base)
                    }
                };
                let known = rank.is_none_or(|rank| rank < self.blocks_in_cluster);
                let target = if known {
                    Target::Shared(block)
                } else {
                    Target::Nowhere
                };
                let size = 1 << space::RANK_SHIFT;
                // An address beyond every window still makes progress, as an error.
                let together = together(base, size) | mask & mask.wrapping_neg();
                Landing {
                    target,
                    base,
                    mask: together,
                }
            }
            Space::Local | Space::Param => {
                let target = if space == Space::Local {
                    Target::Local
                } else {
                    Target::Parameters
                };
                let together = together(window, space::SIZE) | mask & mask.wrapping_neg();
                Landing {
                    target,
                    base: window,
                    mask: together,
                }
            }
            Space::Global | Space::Const | Space::Generic => match self.find(first) {
                Some((index, base, size)) => Landing {
                    target: Target::Allocation(index),
                    base,
                    mask: together(base, size),
                },
                None => Landing {
                    target: if self.memory.was_freed(first) {
                        Target::Freed
                    } else {
                        Target::Nowhere
                    },
                    base: 0,
                    mask: mask & mask.wrapping_neg(),
                },
            },
        }
    }

    /// Whether it is an error to land beyond the bytes of a target.
    #[inline(always)]
    pub(super) fn bounds(&self, landing: Landing) -> bool {
        match landing.target {
            Target::Freed => self.flags.freed,
            _ => self.flags.bounds,
        }
    }

    /// The allocation that an address lies in, its first address and its size.
    #[inline(always)]
    fn find(&mut self, address: u64) -> Option<(usize, u64, u64)> {
        let lies_in = |index: usize, this: &Self| {
            let allocation = this.memory.allocations.get(index)?.as_ref()?;
            let size = allocation.extent.bytes.len() as u64;
            (address.wrapping_sub(allocation.base) < size).then_some((index, allocation.base, size))
        };
        if let Some(found) = lies_in(self.last_allocation, self) {
            return Some(found);
        }
        let index = self.memory.find(address)?;
        self.last_allocation = index;
        lies_in(index, self)
    }

    /// Runs `f` on the bytes of a target with everything that checking them needs.
    #[inline(always)]
    pub(super) fn with_extent<T>(
        &mut self,
        warp: &mut Warp,
        landing: Landing,
        pc: u32,
        write_stamp: Option<u32>,
        f: impl FnOnce(&mut Extent, &mut Registers, Option<&Accessor>, &Context) -> T,
    ) -> T {
        match landing.target {
            Target::Shared(block) => {
                let accessor = self
                    .flags
                    .shared_races
                    .then(|| self.accessor(warp, pc, true));
                let context = Context {
                    known: &warp.known,
                    memory_order: None,
                    write_stamp,
                };
                let extent = &mut self.blocks[block].shared;
                f(extent, &mut warp.registers, accessor.as_ref(), &context)
            }
            Target::Allocation(index) => {
                let accessor = self
                    .flags
                    .global_races
                    .then(|| self.accessor(warp, pc, false));
                // Out of its place, so that the rest of memory can be looked at meanwhile.
                let mut taken = self.memory.allocations[index].take();
                let memory_order = Some((&*self.memory, self.order));
                let context = Context {
                    known: &warp.known,
                    memory_order,
                    write_stamp,
                };
                let mut empty = Extent::default();
                let extent = taken.as_mut().map_or(&mut empty, |found| &mut found.extent);
                let result = f(extent, &mut warp.registers, accessor.as_ref(), &context);
                self.memory.allocations[index] = taken;
                result
            }
            _ => {
                let context = Context {
                    known: &warp.known,
                    memory_order: None,
                    write_stamp,
                };
                f(&mut Extent::default(), &mut warp.registers, None, &context)
            }
        }
    }
}

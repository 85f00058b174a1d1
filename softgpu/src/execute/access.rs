//! Loads and stores: where an address leads, and every check on the way.

use super::race::{Access, Accessor, Conflict, Context, Place, visit};
use super::{Machine, Result, lanes};
use crate::copy::Use;
use crate::fault::{Fault, Kind};
use crate::ir::{Address, Load, Space, Store, Width};
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

/// Why a lane's access fails.
pub(super) enum Trouble {
    Bounds,
    Unwritten,
    Race(Conflict),
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

/// An element of memory as the bits of a register.
#[inline(always)]
pub(super) fn element(bytes: &[u8], width: Width, signed: bool) -> u64 {
    match (width, signed) {
        (Width::B8, false) => bytes[0].into(),
        (Width::B8, true) => bytes[0] as i8 as u64,
        (Width::B16, false) => u16::from_le_bytes([bytes[0], bytes[1]]).into(),
        (Width::B16, true) => i16::from_le_bytes([bytes[0], bytes[1]]) as u64,
        (Width::B32, signed) => {
            let word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            if signed {
                word as i32 as u64
            } else {
                word.into()
            }
        }
        (Width::B64, _) => {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[..8]);
            u64::from_le_bytes(word)
        }
    }
}

/// Writes one lane of a register of any width.
#[inline(always)]
pub(super) fn set(registers: &mut Registers, d: u32, width: Width, lane: usize, value: u64) {
    match width {
        Width::B64 => registers.wide[d as usize][lane] = value,
        Width::B32 => registers.narrow[d as usize][lane] = value as u32,
        Width::B16 => registers.narrow[d as usize][lane] = u32::from(value as u16),
        Width::B8 => registers.narrow[d as usize][lane] = u32::from(value as u8),
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

    /// Faults of alignment, of copies in flight, and of host-side accesses: what concerns all
    /// lanes of a landing before the bytes are looked at.
    pub(super) fn before_access(
        &mut self,
        warp: &Warp,
        landing: Landing,
        addresses: &[u64; LANES],
        bytes: u64,
        pc: u32,
        write: bool,
    ) -> Result<()> {
        let mask = landing.mask;
        if self.flags.alignment {
            let all = lanes(mask).fold(0, |all, lane| all | addresses[lane]);
            if all & (bytes - 1) != 0 {
                let lane = lanes(mask).find(|lane| addresses[*lane] & (bytes - 1) != 0);
                return Err(self.misaligned(warp, lane.unwrap_or(0), addresses, bytes, pc, write));
            }
        }
        match landing.target {
            Target::Shared(block) => {
                self.visit_peer(warp, landing, mask, pc)?;
                self.counters.shared_bytes += u64::from(mask.count_ones()) * bytes;
                let engine = &self.engines[self.blocks[block].cluster];
                if !engine.is_idle() {
                    let rank = self.blocks[block].rank;
                    for lane in lanes(mask) {
                        let offset = (addresses[lane] - landing.base) as u32;
                        if let Some((origin, by)) =
                            engine.owner(rank, offset.into(), bytes as u32, write)
                        {
                            let fault = self.in_flight(origin, by, offset, write);
                            let action = if write { "writes there" } else { "reads there" };
                            let site = self.site(warp, lane as u32, pc, action);
                            let mut fault = fault;
                            fault.sites.insert(0, site);
                            return Err(fault);
                        }
                    }
                }
            }
            Target::Allocation(index) => {
                let count = u64::from(mask.count_ones()) * bytes;
                if write {
                    self.counters.bytes_written += count;
                } else {
                    self.counters.bytes_read += count;
                }
                if self.flags.global_races && self.memory.has_host_accesses(index, self.floor) {
                    for lane in lanes(mask) {
                        let from = addresses[lane] - landing.base;
                        let range = (from, from + bytes);
                        let found = self
                            .memory
                            .host_conflict(index, range, write, self.floor, self.order);
                        if let Some(stamp) = found {
                            self.host_race(stamp, addresses[lane], warp, lane, pc)?;
                        }
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The fault for shared memory that a copy in flight uses; its site comes second.
    #[cold]
    pub(super) fn in_flight(
        &self,
        origin: &super::Origin,
        by: Use,
        offset: u32,
        write: bool,
    ) -> Fault {
        let verb = if write { "written" } else { "read" };
        let what = format!("shared address {offset} is {verb} while an asynchronous copy uses it");
        let action = match by {
            Use::Source => "started the copy that reads it",
            Use::Target => "started the copy that writes it",
        };
        Fault::new(Kind::AsyncCopy, what).at(self.site_of(origin.thread, origin.at, action.into()))
    }

    #[cold]
    fn misaligned(
        &self,
        warp: &Warp,
        lane: usize,
        addresses: &[u64; LANES],
        bytes: u64,
        pc: u32,
        write: bool,
    ) -> Fault {
        let what = format!("{:#x} is no multiple of {bytes}", addresses[lane]);
        let verb = if write { "writes" } else { "reads" };
        let site = self.site(
            warp,
            lane as u32,
            pc,
            &format!("{verb} {bytes} bytes there"),
        );
        Fault::new(Kind::Misaligned, what).at(site)
    }

    /// The fault for a lane's trouble.
    #[cold]
    #[allow(clippy::too_many_arguments)]
    pub(super) fn trouble(
        &self,
        trouble: Trouble,
        landing: Landing,
        warp: &Warp,
        lane: usize,
        address: u64,
        bytes: u64,
        pc: u32,
        access: Access,
    ) -> Fault {
        let verb = match access {
            Access::Read { .. } => "reads",
            Access::Write { .. } => "writes",
        };
        let site = || self.site(warp, lane as u32, pc, &format!("{verb} {bytes} bytes"));
        let offset = address.wrapping_sub(landing.base);
        match (trouble, landing.target) {
            (Trouble::Bounds, Target::Allocation(_) | Target::Freed | Target::Nowhere) => {
                self.memory.stray(address, bytes).at(site())
            }
            (Trouble::Bounds, target) => {
                let what = match target {
                    Target::Local => {
                        format!("local address {offset} of {} bytes", self.kernel.local)
                    }
                    Target::Parameters => {
                        format!("parameter byte {offset} of {}", self.parameters.len())
                    }
                    Target::Shared(block) => {
                        let end = self.blocks[block].shared_size;
                        format!("shared address {offset}, where variables lie from 1024 to {end}")
                    }
                    _ => format!("{address:#x}"),
                };
                Fault::new(Kind::OutOfBounds, what).at(site())
            }
            (Trouble::Unwritten, target) => {
                let place = match target {
                    Target::Shared(_) => format!("shared address {offset}"),
                    Target::Local => format!("local address {offset}"),
                    _ => format!("offset {offset} of the allocation at {:#x}", landing.base),
                };
                let what = format!("nobody has written {place}");
                Fault::new(Kind::Uninitialised, what).at(site())
            }
            (Trouble::Race(conflict), target) => {
                let place = match target {
                    Target::Allocation(_) => Place::Global { base: landing.base },
                    Target::Shared(block) if block == warp.block => Place::Shared,
                    _ => Place::OtherShared,
                };
                self.race(&conflict, place, warp, lane, pc, access)
            }
        }
    }

    /// A read of unwritten bytes: an error at the end of the block, unless a race explains it by
    /// then (the write may only be late).
    #[cold]
    pub(super) fn defer(
        &mut self,
        landing: Landing,
        warp: &Warp,
        lane: usize,
        address: u64,
        bytes: u64,
        pc: u32,
    ) -> Result<()> {
        let access = Access::Read { strong: false };
        let trouble = Trouble::Unwritten;
        let fault = self.trouble(trouble, landing, warp, lane, address, bytes, pc, access);
        let races = match landing.target {
            Target::Shared(_) => self.flags.shared_races,
            _ => self.flags.global_races,
        };
        if !races {
            return Err(fault);
        }
        self.deferred.get_or_insert(fault);
        Ok(())
    }

    pub(super) fn load(&mut self, warp: &mut Warp, load: &Load, mask: u32, pc: u32) -> Result<()> {
        let addresses = addresses(&warp.registers, load.address);
        let size = load.element.bytes();
        let total = size * load.d.len();
        let access = Access::Read {
            strong: load.strength.strong,
        };
        let flags = self.flags;
        let mut rest = mask;
        while rest != 0 {
            let landing = self.landing(warp, load.space, &addresses, rest);
            rest &= !landing.mask;
            let bounds = self.bounds(landing);
            self.before_access(warp, landing, &addresses, total as u64, pc, false)?;
            if matches!(landing.target, Target::Local | Target::Parameters) {
                self.load_private(warp, load, landing, &addresses, pc)?;
                continue;
            }
            let race_checked = load.space != Space::Const;
            let mut unwritten = None;
            let result = self.with_extent(
                warp,
                landing,
                pc,
                None,
                |extent, registers, accessor, context| {
                    for lane in lanes(landing.mask) {
                        let offset = addresses[lane].wrapping_sub(landing.base) as usize;
                        let end = offset.wrapping_add(total);
                        if offset > end || end > extent.bytes.len() || is_reserved(landing, offset)
                        {
                            if bounds {
                                return Err((lane, Trouble::Bounds));
                            }
                            for (d, width) in &load.d {
                                set(registers, *d, *width, lane, 0);
                            }
                            continue;
                        }
                        if flags.uninitialised && !extent.written.all(offset, total) {
                            unwritten.get_or_insert(lane);
                        }
                        if let Some(accessor) = accessor
                            && race_checked
                        {
                            visit(extent, offset, total, lane, access, accessor, context)
                                .map_err(|conflict| (lane, Trouble::Race(conflict)))?;
                        }
                        let bytes = &extent.bytes[offset..end];
                        for (bytes, (d, width)) in bytes.chunks_exact(size).zip(&load.d) {
                            let value = element(bytes, load.element, load.signed);
                            set(registers, *d, *width, lane, value);
                        }
                    }
                    Ok(())
                },
            );
            if let Some(lane) = unwritten {
                self.defer(landing, warp, lane, addresses[lane], total as u64, pc)?;
            }
            if let Err((lane, trouble)) = result {
                let address = addresses[lane];
                return Err(self.trouble(
                    trouble,
                    landing,
                    warp,
                    lane,
                    address,
                    total as u64,
                    pc,
                    access,
                ));
            }
        }
        if load.strength.strong {
            self.observe(warp, load.space, &addresses, mask, load.strength);
        }
        Ok(())
    }

    pub(super) fn store(
        &mut self,
        warp: &mut Warp,
        store: &Store,
        mask: u32,
        pc: u32,
    ) -> Result<()> {
        let addresses = addresses(&warp.registers, store.address);
        let size = store.element.bytes();
        let total = size * store.sources.len();
        let strong = store.strength.strong;
        let access = Access::Write {
            strong,
            same: false,
        };
        let stamps = if strong {
            self.publish(warp, store.space, &addresses, mask, store.strength, false)
        } else {
            None
        };
        let mut rest = mask;
        while rest != 0 {
            let landing = self.landing(warp, store.space, &addresses, rest);
            rest &= !landing.mask;
            let bounds = self.bounds(landing);
            self.before_access(warp, landing, &addresses, total as u64, pc, true)?;
            if landing.target == Target::Local {
                self.store_local(warp, store, landing, &addresses, pc)?;
                continue;
            }
            let result = self.with_extent(
                warp,
                landing,
                pc,
                stamps,
                |extent, registers, accessor, context| {
                    for lane in lanes(landing.mask) {
                        let offset = addresses[lane].wrapping_sub(landing.base) as usize;
                        let end = offset.wrapping_add(total);
                        if offset > end || end > extent.bytes.len() || is_reserved(landing, offset)
                        {
                            if bounds {
                                return Err((lane, Trouble::Bounds));
                            }
                            continue;
                        }
                        let mut value = [0; 32];
                        gather(&mut value, registers, store, lane);
                        let value = &value[..total];
                        if let Some(accessor) = accessor {
                            let same = extent.bytes[offset..end] == *value
                                && extent.written.all(offset, total);
                            let access = Access::Write { strong, same };
                            visit(extent, offset, total, lane, access, accessor, context)
                                .map_err(|conflict| (lane, Trouble::Race(conflict)))?;
                        }
                        extent.written.mark(offset, total);
                        extent.bytes[offset..end].copy_from_slice(value);
                    }
                    Ok(())
                },
            );
            if let Err((lane, trouble)) = result {
                let address = addresses[lane];
                return Err(self.trouble(
                    trouble,
                    landing,
                    warp,
                    lane,
                    address,
                    total as u64,
                    pc,
                    access,
                ));
            }
        }
        Ok(())
    }
}

/// Whether an offset lies in the part of shared memory that no variable has.
#[inline(always)]
pub(super) fn is_reserved(landing: Landing, offset: usize) -> bool {
    matches!(landing.target, Target::Shared(_)) && offset < crate::lower::SHARED_START as usize
}

/// The bytes that a lane stores.
#[inline(always)]
pub(super) fn gather(value: &mut [u8; 32], registers: &Registers, store: &Store, lane: usize) {
    let size = store.element.bytes();
    for (bytes, (source, is_wide)) in value.chunks_exact_mut(size).zip(&store.sources) {
        let bits = if *is_wide {
            registers.wide[*source as usize][lane]
        } else {
            registers.narrow[*source as usize][lane].into()
        };
        bytes.copy_from_slice(&bits.to_le_bytes()[..size]);
    }
}

//! Loads and stores, and every check on their way.

use super::landing::{Landing, Target, addresses};
use super::race::{Access, visit};
use super::trouble::{Attempt, Trouble};
use super::{Machine, Result, lanes};
use crate::ir::{Load, Space, Store, Width};
use crate::registers::{LANES, Registers};
use crate::warp::Warp;

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

    pub(super) fn load(&mut self, warp: &mut Warp, load: &Load, mask: u32, pc: u32) -> Result<()> {
        let addresses = addresses(&warp.registers, load.address);
        let size = load.element.bytes();
        let total = size * load.d.len();
        let access = Access::Read {
            strong: load.strength.scope_if_strong(),
        };
        let flags = self.flags;
        let mut rest = mask;
        while rest != 0 {
            let landing = self.landing(warp, load.space, &addresses, rest);
            rest &= !landing.mask;
            let bounds = self.bounds(landing);
            let attempt = |lane: usize| Attempt {
                landing,
                lane,
                address: addresses[lane],
                bytes: total as u64,
                pc,
                access,
            };
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
                        let Some(span) = landing.span(extent, addresses[lane], total) else {
                            if bounds {
                                return Err((lane, Trouble::Bounds));
                            }
                            for (d, width) in &load.d {
                                set(registers, *d, *width, lane, 0);
                            }
                            continue;
                        };
                        let offset = span.start;
                        if flags.uninitialised && !extent.written.all(offset, total) {
                            unwritten.get_or_insert(lane);
                        }
                        if let Some(accessor) = accessor
                            && race_checked
                        {
                            visit(extent, offset, total, lane, access, accessor, context)
                                .map_err(|conflict| (lane, Trouble::Race(conflict)))?;
                        }
                        let bytes = &extent.bytes[span];
                        for (bytes, (d, width)) in bytes.chunks_exact(size).zip(&load.d) {
                            let value = element(bytes, load.element, load.signed);
                            set(registers, *d, *width, lane, value);
                        }
                    }
                    Ok(())
                },
            );
            if let Some(lane) = unwritten {
                self.defer(warp, attempt(lane))?;
            }
            if let Err((lane, trouble)) = result {
                return Err(self.trouble(trouble, warp, attempt(lane)));
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
        let strong = store.strength.scope_if_strong();
        let access = Access::Write {
            strong,
            same: false,
        };
        let stamps = if strong.is_some() {
            self.publish(warp, store.space, &addresses, mask, store.strength, false)
        } else {
            None
        };
        let mut rest = mask;
        while rest != 0 {
            let landing = self.landing(warp, store.space, &addresses, rest);
            rest &= !landing.mask;
            let bounds = self.bounds(landing);
            let attempt = |lane: usize| Attempt {
                landing,
                lane,
                address: addresses[lane],
                bytes: total as u64,
                pc,
                access,
            };
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
                        let Some(span) = landing.span(extent, addresses[lane], total) else {
                            if bounds {
                                return Err((lane, Trouble::Bounds));
                            }
                            continue;
                        };
                        let offset = span.start;
                        let mut value = [0; 32];
                        gather(&mut value, registers, store, lane);
                        let value = &value[..total];
                        if let Some(accessor) = accessor {
                            let same = extent.bytes[span.clone()] == *value
                                && extent.written.all(offset, total);
                            let access = Access::Write { strong, same };
                            visit(extent, offset, total, lane, access, accessor, context)
                                .map_err(|conflict| (lane, Trouble::Race(conflict)))?;
                        }
                        extent.written.mark(offset, total);
                        extent.bytes[span].copy_from_slice(value);
                    }
                    Ok(())
                },
            );
            if let Err((lane, trouble)) = result {
                return Err(self.trouble(trouble, warp, attempt(lane)));
            }
        }
        Ok(())
    }
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

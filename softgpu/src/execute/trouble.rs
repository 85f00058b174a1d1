//! The faults of accesses.

use super::landing::{Landing, Target};
use super::race::{Access, Conflict, Place};
use super::{Machine, Result};
use crate::copy::Use;
use crate::fault::{Fault, Kind};
use crate::registers::LANES;
use crate::warp::Warp;

/// Why a lane's access fails.
pub(super) enum Trouble {
    Bounds,
    Unwritten,
    Race(Conflict),
}

/// A lane's access that may fail.
#[derive(Clone, Copy)]
pub(super) struct Attempt {
    pub(super) landing: Landing,
    pub(super) lane: usize,
    pub(super) address: u64,
    pub(super) bytes: u64,
    pub(super) pc: u32,
    pub(super) access: Access,
}

impl Machine<'_> {
    /// The fault for a lane's trouble.
    #[cold]
    pub(super) fn trouble(&self, trouble: Trouble, warp: &Warp, attempt: Attempt) -> Fault {
        let Attempt {
            landing,
            lane,
            address,
            bytes,
            pc,
            access,
        } = attempt;
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
    pub(super) fn defer(&mut self, warp: &Warp, attempt: Attempt) -> Result<()> {
        let fault = self.trouble(Trouble::Unwritten, warp, attempt);
        let races = match attempt.landing.target {
            Target::Shared(_) => self.flags.shared_races,
            _ => self.flags.global_races,
        };
        if !races {
            return Err(fault);
        }
        self.deferred.get_or_insert(fault);
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
    pub(super) fn misaligned(
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
}

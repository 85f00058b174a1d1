//! Accesses of one lane at a time: matrix rows, and atomic updates.

use super::access::element;
use super::landing::{Target, addresses};
use super::race::{Access, visit};
use super::trouble::{Attempt, Trouble};
use super::{Machine, Result};
use crate::ir::{Address, Scope, Space, Width};
use crate::registers::LANES;
use crate::tensor::matrix;
use crate::warp::Warp;

/// Where one lane accesses memory.
#[derive(Clone, Copy)]
pub(super) struct LaneAccess<'a> {
    space: Space,
    addresses: &'a [u64; LANES],
    lane: usize,
    bytes: usize,
    pc: u32,
    /// The stamp of a write that releases what was published earlier.
    pub(super) stamp: Option<u32>,
    /// Of an atomic update.
    pub(super) scope: Scope,
}

impl<'a> LaneAccess<'a> {
    pub(super) fn of(
        space: Space,
        addresses: &'a [u64; LANES],
        lane: usize,
        bytes: usize,
        pc: u32,
    ) -> Self {
        Self {
            space,
            addresses,
            lane,
            bytes,
            pc,
            stamp: None,
            scope: Scope::Device,
        }
    }
}

impl Machine<'_> {
    /// `ldmatrix`: lanes 8i to 8i + 7 name the rows of matrix i.
    pub(super) fn load_matrix(
        &mut self,
        warp: &mut Warp,
        address: Address,
        space: Space,
        transpose: bool,
        d: &[u32],
        pc: u32,
    ) -> Result<()> {
        let addresses = addresses(&warp.registers, address);
        for (number, d) in d.iter().enumerate() {
            let mut rows = [[0; 16]; 8];
            for (row, bytes) in rows.iter_mut().enumerate() {
                let lane = 8 * number + row;
                self.read_row(warp, space, &addresses, lane, bytes, pc)?;
            }
            warp.registers
                .put(*d, !0, &matrix::distribute(&rows, transpose));
        }
        Ok(())
    }

    /// `stmatrix`.
    pub(super) fn store_matrix(
        &mut self,
        warp: &mut Warp,
        address: Address,
        space: Space,
        transpose: bool,
        sources: &[u32],
        pc: u32,
    ) -> Result<()> {
        let addresses = addresses(&warp.registers, address);
        for (number, source) in sources.iter().enumerate() {
            let rows = matrix::collect(warp.registers.row::<u32>(*source), transpose);
            for (row, bytes) in rows.iter().enumerate() {
                self.write_row(warp, space, &addresses, 8 * number + row, bytes, pc)?;
            }
        }
        Ok(())
    }

    /// Reads at one lane's address.
    pub(super) fn read_row(
        &mut self,
        warp: &mut Warp,
        space: Space,
        addresses: &[u64; LANES],
        lane: usize,
        out: &mut [u8],
        pc: u32,
    ) -> Result<()> {
        let place = LaneAccess::of(space, addresses, lane, out.len(), pc);
        self.at_lane(
            warp,
            place,
            |_| Access::READ,
            |bytes| {
                out.copy_from_slice(bytes);
            },
        )?;
        Ok(())
    }

    /// Writes at one lane's address.
    pub(super) fn write_row(
        &mut self,
        warp: &mut Warp,
        space: Space,
        addresses: &[u64; LANES],
        lane: usize,
        value: &[u8],
        pc: u32,
    ) -> Result<()> {
        let place = LaneAccess::of(space, addresses, lane, value.len(), pc);
        let access = |old: Option<&[u8]>| Access::Write {
            strong: None,
            same: old == Some(value),
        };
        self.at_lane(warp, place, access, |bytes| bytes.copy_from_slice(value))?;
        Ok(())
    }

    /// One lane's atomic update at its address; returns the old value.
    pub(super) fn update(
        &mut self,
        warp: &mut Warp,
        place: LaneAccess,
        width: Width,
        f: impl FnOnce(u64) -> u64,
    ) -> Result<u64> {
        let access = |_: Option<&[u8]>| Access::Write {
            strong: Some(place.scope),
            same: false,
        };
        let old = self.at_lane(warp, place, access, |bytes| {
            let old = element(bytes, width, false);
            bytes.copy_from_slice(&f(old).to_le_bytes()[..width.bytes()]);
            old
        })?;
        Ok(old.unwrap_or(0))
    }

    /// Checks one lane's access and lets `f` at the bytes; `None` where there are none and that is
    /// no error. `access` says how they are used, given those that are there if all were written.
    fn at_lane<T>(
        &mut self,
        warp: &mut Warp,
        place: LaneAccess,
        access: impl Fn(Option<&[u8]>) -> Access,
        f: impl FnOnce(&mut [u8]) -> T,
    ) -> Result<Option<T>> {
        let LaneAccess {
            space,
            addresses,
            lane,
            bytes,
            pc,
            stamp,
            ..
        } = place;
        let first = access(None);
        let landing = self.landing(warp, space, addresses, 1 << lane);
        let attempt = Attempt {
            landing,
            lane,
            address: addresses[lane],
            bytes: bytes as u64,
            pc,
            access: first,
        };
        let stores = matches!(first, Access::Write { .. });
        let reads = matches!(
            first,
            Access::Read { .. }
                | Access::Write {
                    strong: Some(_),
                    ..
                }
        );
        self.before_access(warp, landing, addresses, bytes as u64, pc, stores)?;
        if stores && reads && matches!(landing.target, Target::Allocation(_)) {
            self.counters.bytes_read += bytes as u64;
        }
        let (flags, bounds) = (self.flags, self.bounds(landing));
        let mut unwritten = false;
        let result = self.with_extent(warp, landing, pc, stamp, |extent, _, accessor, context| {
            let Some(span) = landing.span(extent, addresses[lane], bytes) else {
                return if bounds {
                    Err(Trouble::Bounds)
                } else {
                    Ok(None)
                };
            };
            let offset = span.start;
            let written = extent.written.all(offset, bytes);
            unwritten = reads && flags.uninitialised && !written;
            if let Some(accessor) = accessor {
                let access = access(written.then(|| &extent.bytes[span.clone()]));
                visit(extent, offset, bytes, lane, access, accessor, context)
                    .map_err(Trouble::Race)?;
            }
            if stores && !reads {
                extent.written.mark(offset, bytes);
            }
            Ok(Some(f(&mut extent.bytes[span])))
        });
        if unwritten {
            self.defer(warp, attempt)?;
        }
        result.map_err(|trouble| self.trouble(trouble, warp, attempt))
    }
}

//! Accesses of one lane at a time: matrix rows, and atomic updates.

use super::access::{Target, Trouble, addresses, element, is_reserved};
use super::race::{Access, visit};
use super::{Machine, Result};
use crate::ir::{Address, Space, Width};
use crate::registers::LANES;
use crate::tensor::matrix;
use crate::warp::Warp;

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
        let total = out.len();
        let access = Access::Read { strong: false };
        let landing = self.landing(warp, space, addresses, 1 << lane);
        self.before_access(warp, landing, addresses, total as u64, pc, false)?;
        let (flags, bounds) = (self.flags, self.bounds(landing));
        let offset = addresses[lane].wrapping_sub(landing.base) as usize;
        let mut unwritten = false;
        let result = self.with_extent(warp, landing, pc, None, |extent, _, accessor, context| {
            let end = offset.wrapping_add(total);
            if offset > end || end > extent.bytes.len() || is_reserved(landing, offset) {
                return if bounds { Err(Trouble::Bounds) } else { Ok(()) };
            }
            if flags.uninitialised && !extent.written.all(offset, total) {
                unwritten = true;
            }
            if let Some(accessor) = accessor {
                visit(extent, offset, total, lane, access, accessor, context)
                    .map_err(Trouble::Race)?;
            }
            out.copy_from_slice(&extent.bytes[offset..end]);
            Ok(())
        });
        if unwritten {
            self.defer(landing, warp, lane, addresses[lane], total as u64, pc)?;
        }
        result.map_err(|trouble| {
            let address = addresses[lane];
            self.trouble(
                trouble,
                landing,
                warp,
                lane,
                address,
                total as u64,
                pc,
                access,
            )
        })
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
        let total = value.len();
        let landing = self.landing(warp, space, addresses, 1 << lane);
        self.before_access(warp, landing, addresses, total as u64, pc, true)?;
        let bounds = self.bounds(landing);
        let offset = addresses[lane].wrapping_sub(landing.base) as usize;
        let result = self.with_extent(warp, landing, pc, None, |extent, _, accessor, context| {
            let end = offset.wrapping_add(total);
            if offset > end || end > extent.bytes.len() || is_reserved(landing, offset) {
                return if bounds { Err(Trouble::Bounds) } else { Ok(()) };
            }
            if let Some(accessor) = accessor {
                let same = extent.bytes[offset..end] == *value && extent.written.all(offset, total);
                let access = Access::Write {
                    strong: false,
                    same,
                };
                visit(extent, offset, total, lane, access, accessor, context)
                    .map_err(Trouble::Race)?;
            }
            extent.written.mark(offset, total);
            extent.bytes[offset..end].copy_from_slice(value);
            Ok(())
        });
        result.map_err(|trouble| {
            let access = Access::Write {
                strong: false,
                same: false,
            };
            let address = addresses[lane];
            self.trouble(
                trouble,
                landing,
                warp,
                lane,
                address,
                total as u64,
                pc,
                access,
            )
        })
    }

    /// One lane's atomic update of `width` at its address; returns the old value.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn update(
        &mut self,
        warp: &mut Warp,
        space: Space,
        addresses: &[u64; LANES],
        lane: usize,
        width: Width,
        pc: u32,
        stamp: Option<u32>,
        f: impl FnOnce(u64) -> u64,
    ) -> Result<u64> {
        let total = width.bytes();
        let access = Access::Write {
            strong: true,
            same: false,
        };
        let landing = self.landing(warp, space, addresses, 1 << lane);
        self.before_access(warp, landing, addresses, total as u64, pc, true)?;
        let (flags, bounds) = (self.flags, self.bounds(landing));
        let offset = addresses[lane].wrapping_sub(landing.base) as usize;
        let mut unwritten = false;
        let result = self.with_extent(warp, landing, pc, stamp, |extent, _, accessor, context| {
            let end = offset.wrapping_add(total);
            if offset > end || end > extent.bytes.len() || is_reserved(landing, offset) {
                return if bounds { Err(Trouble::Bounds) } else { Ok(0) };
            }
            if flags.uninitialised && !extent.written.all(offset, total) {
                unwritten = true;
            }
            if let Some(accessor) = accessor {
                visit(extent, offset, total, lane, access, accessor, context)
                    .map_err(Trouble::Race)?;
            }
            let old = element(&extent.bytes[offset..end], width, false);
            extent.bytes[offset..end].copy_from_slice(&f(old).to_le_bytes()[..total]);
            Ok(old)
        });
        if unwritten {
            self.defer(landing, warp, lane, addresses[lane], total as u64, pc)?;
        }
        if let Target::Allocation(_) = landing.target {
            self.counters.bytes_read += total as u64;
        }
        result.map_err(|trouble| {
            let address = addresses[lane];
            self.trouble(
                trouble,
                landing,
                warp,
                lane,
                address,
                total as u64,
                pc,
                access,
            )
        })
    }
}

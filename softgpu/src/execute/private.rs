//! Loads and stores of what only one thread sees: its local memory, and the parameters.

use super::access::{element, gather, set};
use super::landing::{Landing, Target};
use super::race::Access;
use super::trouble::{Attempt, Trouble};
use super::{Machine, Result, lanes};
use crate::ir::{Load, Store};
use crate::registers::LANES;
use crate::warp::Warp;

impl Machine<'_> {
    /// Loads from local memory and parameters.
    pub(super) fn load_private(
        &mut self,
        warp: &mut Warp,
        load: &Load,
        landing: Landing,
        addresses: &[u64; LANES],
        pc: u32,
    ) -> Result<()> {
        let size = load.element.bytes();
        let total = size * load.d.len();
        let local = self.kernel.local as usize;
        for lane in lanes(landing.mask) {
            let attempt = Attempt {
                landing,
                lane,
                address: addresses[lane],
                bytes: total as u64,
                pc,
                access: Access::READ,
            };
            let offset = addresses[lane].wrapping_sub(landing.base) as usize;
            let all = match landing.target {
                Target::Local => &warp.local[lane * local..(lane + 1) * local],
                _ => self.parameters,
            };
            let Some(bytes) = offset
                .checked_add(total)
                .and_then(|end| all.get(offset..end))
            else {
                if self.flags.bounds {
                    return Err(self.trouble(Trouble::Bounds, warp, attempt));
                }
                continue;
            };
            // Whole elements only: compilers copy the padding of structs along.
            let unwritten = landing.target == Target::Local
                && self.flags.uninitialised
                && (0..load.d.len())
                    .any(|i| warp.written.none(lane * local + offset + i * size, size));
            if unwritten {
                return Err(self.trouble(Trouble::Unwritten, warp, attempt));
            }
            for (bytes, (d, width)) in bytes.chunks_exact(size).zip(&load.d) {
                let value = element(bytes, load.element, load.signed);
                set(&mut warp.registers, *d, *width, lane, value);
            }
        }
        Ok(())
    }

    pub(super) fn store_local(
        &mut self,
        warp: &mut Warp,
        store: &Store,
        landing: Landing,
        addresses: &[u64; LANES],
        pc: u32,
    ) -> Result<()> {
        let total = store.element.bytes() * store.sources.len();
        let local = self.kernel.local as usize;
        for lane in lanes(landing.mask) {
            let offset = addresses[lane].wrapping_sub(landing.base) as usize;
            let mut value = [0; 32];
            gather(&mut value, &warp.registers, store, lane);
            let all = &mut warp.local[lane * local..(lane + 1) * local];
            let place = offset
                .checked_add(total)
                .and_then(|end| all.get_mut(offset..end));
            if let Some(bytes) = place {
                bytes.copy_from_slice(&value[..total]);
                warp.written.mark(lane * local + offset, total);
            } else if self.flags.bounds {
                let attempt = Attempt {
                    landing,
                    lane,
                    address: addresses[lane],
                    bytes: total as u64,
                    pc,
                    access: Access::WRITE,
                };
                return Err(self.trouble(Trouble::Bounds, warp, attempt));
            }
        }
        Ok(())
    }
}

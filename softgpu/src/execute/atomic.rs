//! Atomics, and what strong accesses and fences publish and acquire.

use std::rc::Rc;

use super::landing::addresses;
use super::row::LaneAccess;
use super::{Location, Machine, Result, lanes};
use crate::clock::{Clock, Knowledge, View};
use crate::ir::{Atomic, Fence, Scope, Space, Strength, Width};
use crate::number::arithmetic;
use crate::registers::LANES;
use crate::space;
use crate::warp::Warp;

impl Machine<'_> {
    pub(super) fn atomic(
        &mut self,
        warp: &mut Warp,
        atomic: &Atomic,
        mask: u32,
        pc: u32,
    ) -> Result<()> {
        let addresses = addresses(&warp.registers, atomic.address);
        self.progress += 1;
        for lane in lanes(mask) {
            let stamp = self.publish(
                warp,
                atomic.space,
                &addresses,
                1 << lane,
                atomic.strength,
                true,
            );
            let operand = |index: u32| match atomic.width {
                Width::B64 => warp.registers.wide[index as usize][lane],
                _ => warp.registers.narrow[index as usize][lane].into(),
            };
            let (b, c) = (operand(atomic.b), operand(atomic.c));
            let space = match atomic.space {
                Space::Generic => space::resolve(addresses[lane]).0,
                space => space,
            };
            let flushes = atomic.flushes && space != Space::Shared;
            let flush = |bits: u64| match flushes {
                true => arithmetic::flush(f32::from_bits(bits as u32))
                    .to_bits()
                    .into(),
                false => bits,
            };
            let f = |old| flush((atomic.f)(flush(old), flush(b), c));
            let bytes = atomic.width.bytes();
            let mut place = LaneAccess::of(atomic.space, &addresses, lane, bytes, pc);
            place.stamp = stamp;
            place.scope = atomic.strength.scope;
            let old = self.update(warp, place, atomic.width, f)?;
            if let Some(d) = atomic.d {
                super::access::set(&mut warp.registers, d, atomic.width, lane, old);
            }
        }
        self.observe(warp, atomic.space, &addresses, mask, atomic.strength);
        Ok(())
    }

    /// The key of an address among the locations that threads synchronise on.
    fn location(&self, warp: &Warp, space: Space, address: u64) -> u64 {
        let (space, address) = match space {
            Space::Generic => space::resolve(address),
            space => (space, address),
        };
        if space != Space::Shared {
            return address;
        }
        let (rank, offset) = space::shared(address);
        let block = match rank {
            Some(rank) => self.blocks[warp.block].cluster + rank as usize,
            None => warp.block,
        };
        space::SHARED | (block as u64) << 24 | u64::from(offset)
    }

    /// What a lane's release now would publish: all that comes before it.
    pub(super) fn snapshot(&self, warp: &Warp, lane: usize) -> Clock {
        let mut clock = match &warp.known[lane] {
            Some(known) => known.seen.clone(),
            None => Clock::default(),
        };
        let view = self.own_view(warp, lane);
        clock.join(&Clock::of(view), self.threads());
        clock
    }

    /// What a lane knows of its block without special knowledge, its own accesses included.
    pub(super) fn own_view(&self, warp: &Warp, lane: usize) -> View {
        View::of_thread(
            self.blocks[warp.block].base,
            warp.base,
            warp.index * 32 + lane as u32,
            self.memory.now,
        )
    }

    /// A fence: publishes what comes before, and makes seen what relaxed reads found published.
    pub(super) fn fence(&mut self, warp: &mut Warp, fence: Fence, mask: u32) {
        if fence == Fence::None || !(self.flags.global_races || self.flags.shared_races) {
            return;
        }
        for lane in lanes(mask) {
            let snapshot = self.snapshot(warp, lane);
            let size = self.threads();
            let known = Rc::make_mut(warp.known[lane].get_or_insert_default());
            match fence {
                Fence::Memory(scope) => {
                    known.published[0].join(&snapshot, size);
                    if scope == Scope::Device {
                        known.published[1].join(&snapshot, size);
                    }
                    let acquired = if scope == Scope::Device { 2 } else { 1 };
                    for pending in &mut known.pending[..acquired] {
                        known.seen.join(&std::mem::take(pending), size);
                    }
                }
                Fence::Proxy => known.proxy.join(&snapshot, size),
                Fence::None => {}
            }
        }
        warp.informed = true;
        self.memory.advance();
    }

    /// Before a strong write of each lane: what the lane has published goes to the location.
    /// Returns the stamp of the write where that differs from now.
    pub(super) fn publish(
        &mut self,
        warp: &mut Warp,
        space: Space,
        addresses: &[u64; LANES],
        mask: u32,
        strength: Strength,
        is_update: bool,
    ) -> Option<u32> {
        if strength.release {
            self.fence(warp, Fence::Memory(strength.scope), mask);
        }
        if !warp.informed {
            if !is_update && !self.locations.is_empty() {
                for lane in lanes(mask) {
                    let key = self.location(warp, space, addresses[lane]);
                    self.locations.remove(&key);
                }
            }
            return None;
        }
        let sequence = self.blocks[warp.block].sequence;
        let size = self.threads();
        let mut stamp = None;
        for lane in lanes(mask) {
            let Some(known) = warp.known[lane].clone() else {
                continue;
            };
            let [inner, device] = &known.published;
            if inner.is_empty() {
                continue;
            }
            let key = self.location(warp, space, addresses[lane]);
            let location = self.locations.entry(key).or_default();
            if !is_update {
                *location = Location::default();
            }
            if location.block == sequence || location.inner.is_empty() {
                location.inner.join(inner, size);
            } else {
                location.inner = inner.clone();
                let mut moved = Clock::default();
                moved.import(sequence, location.block, &location.device, size);
                location.device = moved;
            }
            location.block = sequence;
            location.device.join(device, size);
            stamp = device.own.stamp_of(warp.index * 32 + lane as u32);
        }
        stamp
    }

    /// After a strong read of each lane: what was published at the location is acquired.
    pub(super) fn observe(
        &mut self,
        warp: &mut Warp,
        space: Space,
        addresses: &[u64; LANES],
        mask: u32,
        strength: Strength,
    ) {
        if self.locations.is_empty() {
            return;
        }
        let sequence = self.blocks[warp.block].sequence;
        let size = self.threads();
        for lane in lanes(mask) {
            let key = self.location(warp, space, addresses[lane]);
            let Some(location) = self.locations.get(&key) else {
                continue;
            };
            let mut found = [Clock::default(), Clock::default()];
            found[1].import(sequence, location.block, &location.device, size);
            if location.block == sequence {
                found[0].join(&location.inner, size);
            }
            if found.iter().all(Clock::is_empty) {
                continue;
            }
            warp.informed = true;
            let known: &mut Knowledge = Rc::make_mut(warp.known[lane].get_or_insert_default());
            for (far, (found, pending)) in found.iter().zip(&mut known.pending).enumerate() {
                // What other blocks have published is not acquired within the own one.
                if strength.acquire && (far == 0 || strength.scope == Scope::Device) {
                    known.seen.join(found, size);
                } else {
                    pending.join(found, size);
                }
            }
        }
    }
}

//! mbarriers: their state lies in shared memory, and what threads know travels beside it.

use std::rc::Rc;

use super::landing::{Landing, Target, addresses};
use super::race::Access;
use super::{Machine, Origin, Result, lanes};
use crate::barrier::{Mbarrier, Misuse};
use crate::clock::{Clock, Knowledge, View};
use crate::copy::Location;
use crate::fault::{Fault, Kind};
use crate::ir::Space;
use crate::ir::asynchronous::{Arrive, Phase, Pointer};
use crate::space;
use crate::warp::Warp;

/// What the arrivals at an mbarrier have released, by the sequence number of their block. Later
/// arrivals continue the release of earlier ones, so that nothing is ever forgotten.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    gathered: Vec<(u32, Knowledge)>,
    /// As it was when the last phase completed.
    released: Option<Rc<Vec<(u32, Knowledge)>>>,
}

/// An mbarrier's place: the resident block, and the offset in its shared memory.
type Place = (usize, u32);

impl Machine<'_> {
    /// Where a pointer to shared memory leads: the resident block and the offset.
    ///
    /// # Errors
    /// If it is no address of shared memory, or of a block that is not in the cluster.
    pub(super) fn shared_place(
        &self,
        warp: &Warp,
        pointer: Pointer,
        address: u64,
        lane: usize,
        pc: u32,
    ) -> Result<Place> {
        let (found, offset) = match pointer.space {
            Space::Generic => {
                let (space, offset) = space::resolve(address);
                (space == Space::Shared, offset)
            }
            _ => (true, address),
        };
        let (rank, offset) = space::shared(offset);
        let fits = rank.is_none_or(|rank| rank < self.blocks_in_cluster);
        if !found || !fits {
            let what = format!("{address:#x} is no address in shared memory of the cluster");
            let site = self.site(warp, lane as u32, pc, "uses it");
            return Err(Fault::new(Kind::OutOfBounds, what).at(site));
        }
        let block = match rank {
            Some(rank) => self.blocks[warp.block].cluster + rank as usize,
            None => warp.block,
        };
        Ok((block, offset))
    }

    /// The lanes of `mask`, by the mbarrier that each names.
    fn gates(
        &self,
        warp: &Warp,
        barrier: Pointer,
        mask: u32,
        pc: u32,
    ) -> Result<Vec<(Place, u32)>> {
        let addresses = addresses(&warp.registers, barrier.address);
        let mut gates: Vec<(Place, u32)> = Vec::new();
        for lane in lanes(mask) {
            let place = self.shared_place(warp, barrier, addresses[lane], lane, pc)?;
            match gates.iter_mut().find(|(known, _)| *known == place) {
                Some((_, mask)) => *mask |= 1 << lane,
                None => gates.push((place, 1 << lane)),
            }
        }
        Ok(gates)
    }

    /// Checks a thread's access to an mbarrier's bytes.
    fn touch_gate(
        &mut self,
        warp: &mut Warp,
        (block, offset): Place,
        lane: usize,
        pc: u32,
        access: Access,
    ) -> Result<()> {
        if offset % Mbarrier::BYTES != 0 {
            let what = format!("an mbarrier at shared address {offset}, no multiple of 8");
            let site = self.site(warp, lane as u32, pc, "uses it");
            return Err(Fault::new(Kind::Misaligned, what).at(site));
        }
        let landing = Landing {
            target: Target::Shared(block),
            base: 0,
            mask: 1 << lane,
        };
        let range = (offset.into(), Mbarrier::BYTES);
        self.touch(warp, landing, lane, range, access, pc)
    }

    fn state(&self, (block, offset): Place) -> std::result::Result<Mbarrier, Misuse> {
        let at = offset as usize;
        let bytes = self.blocks[block].shared.bytes.get(at..at + 8);
        let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
        Mbarrier::unpack(u64::from_le_bytes(bytes.ok_or(Misuse::NotInitialised)?))
    }

    /// Stores the state; where a phase has completed, releases what was gathered.
    fn set_state(&mut self, place: Place, old: Option<Mbarrier>, new: u64) {
        let (block, offset) = place;
        let at = offset as usize;
        if let Some(bytes) = self.blocks[block].shared.bytes.get_mut(at..at + 8) {
            bytes.copy_from_slice(&new.to_le_bytes());
            self.progress += 1;
        }
        let completed =
            old.is_some_and(|old| Mbarrier::unpack(new).is_ok_and(|new| new.is_over(old.is_odd())));
        if completed && let Some(gate) = self.gates.get_mut(&place) {
            gate.released = Some(Rc::new(gate.gathered.clone()));
        }
    }

    #[cold]
    fn misuse(&self, misuse: Misuse, offset: u32, site: crate::fault::Site) -> Fault {
        let kind = match misuse {
            Misuse::NotInitialised => Kind::Uninitialised,
            _ => Kind::InvalidValue,
        };
        Fault::new(kind, format!("{misuse} (shared address {offset})")).at(site)
    }

    /// `mbarrier.init`, and with no count `mbarrier.inval`.
    pub(super) fn init_gate(
        &mut self,
        warp: &mut Warp,
        barrier: Pointer,
        count: Option<u32>,
        mask: u32,
        pc: u32,
    ) -> Result<()> {
        for (place, mask) in self.gates(warp, barrier, mask, pc)? {
            let lane = mask.trailing_zeros() as usize & 31;
            let access = Access::WRITE;
            for lane in lanes(mask) {
                self.touch_gate(warp, place, lane, pc, access)?;
            }
            let bits = match count {
                Some(count) => {
                    let count = warp.registers.row::<u32>(count)[lane];
                    let made = Mbarrier::new(count).map_err(|misuse| {
                        let site = self.site(warp, lane as u32, pc, "initialises it");
                        self.misuse(misuse, place.1, site)
                    })?;
                    made.pack()
                }
                None => 0,
            };
            self.gates.remove(&place);
            self.set_state(place, None, bits);
            self.blocks[place.0]
                .shared
                .written
                .mark(place.1 as usize, 8);
        }
        Ok(())
    }

    /// Arrivals, and changes of the bytes that are expected.
    pub(super) fn arrive(
        &mut self,
        warp: &mut Warp,
        arrive: &Arrive,
        mask: u32,
        pc: u32,
    ) -> Result<()> {
        for (place, mask) in self.gates(warp, arrive.barrier, mask, pc)? {
            for lane in lanes(mask) {
                self.touch_gate(warp, place, lane, pc, Access::STRONG_READ)?;
            }
            if arrive.release && arrive.count.is_some() {
                self.release_to(warp, place, mask);
            }
            for lane in lanes(mask) {
                let number =
                    |index: Option<u32>| index.map(|index| warp.registers.row::<u32>(index)[lane]);
                let (expect, complete) = (number(arrive.expect), number(arrive.complete));
                let count = number(arrive.count);
                let state = self.change(place, |state| {
                    expect.map_or(Ok(()), |bytes| state.expect_tx(bytes))?;
                    complete.map_or(Ok(()), |bytes| state.complete_tx(bytes))?;
                    match count {
                        Some(count) if arrive.drop => state.arrive_drop(count),
                        Some(count) => state.arrive(count),
                        None => Ok(0),
                    }
                });
                let state = state.map_err(|misuse| {
                    let site = self.site(warp, lane as u32, pc, "arrives");
                    self.misuse(misuse, place.1, site)
                })?;
                if let Some(d) = arrive.d {
                    warp.registers.put(d, 1 << lane, &[state; 32]);
                }
            }
        }
        Ok(())
    }

    /// Applies a change to the state in memory.
    fn change<T>(
        &mut self,
        place: Place,
        f: impl FnOnce(&mut Mbarrier) -> std::result::Result<T, Misuse>,
    ) -> std::result::Result<T, Misuse> {
        let old = self.state(place)?;
        let mut new = old;
        let result = f(&mut new)?;
        self.set_state(place, Some(old), new.pack());
        Ok(result)
    }

    /// Adds what the lanes know to what the barrier releases.
    fn release_to(&mut self, warp: &Warp, place: Place, mask: u32) {
        if !(self.flags.shared_races || self.flags.global_races) {
            return;
        }
        let mut gathered = Knowledge::default();
        self.contribute(warp, mask, true, &mut gathered);
        let sequence = self.blocks[warp.block].sequence;
        self.gather_at(place, sequence, &gathered);
    }

    fn gather_at(&mut self, place: Place, sequence: u32, knowledge: &Knowledge) {
        let size = self.threads();
        let gate = self.gates.entry(place).or_default();
        match gate
            .gathered
            .iter_mut()
            .find(|(known, _)| *known == sequence)
        {
            Some((_, known)) => known.join(knowledge, size),
            None => gate.gathered.push((sequence, knowledge.clone())),
        }
    }

    /// `mbarrier.test_wait` and `.try_wait`; whether some lane's phase is not over.
    pub(super) fn test_gate(
        &mut self,
        warp: &mut Warp,
        (d, barrier): (u32, Pointer),
        (phase, acquire): (&Phase, bool),
        mask: u32,
        pc: u32,
    ) -> Result<bool> {
        let mut waiting = false;
        for (place, mask) in self.gates(warp, barrier, mask, pc)? {
            for lane in lanes(mask) {
                self.touch_gate(warp, place, lane, pc, Access::STRONG_READ)?;
            }
            let mut over = self.over(warp, place, phase, mask, pc)?;
            if over != mask {
                let rank = self.blocks[place.0].rank;
                let moved = self.with_engine(place.0, |machine, engine| {
                    engine.poll(Location::shared(rank, place.1), machine)
                })?;
                if moved {
                    over = self.over(warp, place, phase, mask, pc)?;
                }
            }
            if acquire
                && over != 0
                && let Some(gate) = self.gates.get(&place)
                && let Some(released) = gate.released.clone()
            {
                self.learn_cluster(warp, over, &released);
            }
            waiting |= over != mask;
            warp.registers.put_predicate(d, mask, over);
        }
        Ok(waiting)
    }

    /// The lanes whose phase is over.
    fn over(&self, warp: &Warp, place: Place, phase: &Phase, mask: u32, pc: u32) -> Result<u32> {
        let mut over = 0;
        for lane in lanes(mask) {
            let result = self.state(place).and_then(|state| match phase {
                Phase::Parity(index) => {
                    Ok(state.is_over(warp.registers.row::<u32>(*index)[lane] & 1 == 1))
                }
                Phase::State(index) => state.is_over_since(warp.registers.row::<u64>(*index)[lane]),
            });
            let is_over = result.map_err(|misuse| {
                let site = self.site(warp, lane as u32, pc, "waits");
                self.misuse(misuse, place.1, site)
            })?;
            over |= u32::from(is_over) << lane;
        }
        Ok(over)
    }

    /// `mbarrier.pending_count`.
    pub(super) fn pending_count(
        &self,
        warp: &mut Warp,
        (d, state): (u32, u32),
        mask: u32,
        pc: u32,
    ) -> Result<()> {
        for lane in lanes(mask) {
            let count = Mbarrier::pending_count(warp.registers.row::<u64>(state)[lane]);
            let count = count.map_err(|misuse| {
                let site = self.site(warp, lane as u32, pc, "asks for the pending count");
                self.misuse(misuse, 0, site)
            })?;
            warp.registers.put(d, 1 << lane, &[count; 32]);
        }
        Ok(())
    }

    /// `cp.async.mbarrier.arrive`.
    pub(super) fn arrive_on_copies(
        &mut self,
        warp: &mut Warp,
        barrier: Pointer,
        noinc: bool,
        mask: u32,
        pc: u32,
    ) -> Result<()> {
        for ((block, offset), mask) in self.gates(warp, barrier, mask, pc)? {
            for lane in lanes(mask) {
                let access = Access::STRONG_READ;
                self.touch_gate(warp, (block, offset), lane, pc, access)?;
                let at = Location::shared(self.blocks[block].rank, offset);
                let origin = Self::origin(warp, lane, pc);
                let thread = self.thread_number(warp, lane);
                self.with_engine(warp.block, |machine, engine| {
                    engine.arrive_when_done(thread, at, noinc, origin, machine)
                })?;
            }
        }
        Ok(())
    }

    /// A change by a copy engine.
    fn engine_change(
        &mut self,
        barrier: Location,
        origin: &Origin,
        f: impl FnOnce(&mut Mbarrier) -> std::result::Result<(), Misuse>,
    ) -> Result<()> {
        let rank = match barrier.space {
            crate::copy::Space::Shared(rank) => rank,
            crate::copy::Space::Global => 0,
        };
        let place = (self.block_of(rank, origin), barrier.address as u32);
        self.change(place, f).map_err(|misuse| {
            let site = self.site_of(origin.thread, origin.at, "started the copy".into());
            self.misuse(misuse, place.1, site)
        })
    }

    /// The bytes of a bulk copy are complete at a barrier: who waits for it comes after them.
    pub(super) fn complete_bytes(
        &mut self,
        barrier: Location,
        bytes: u32,
        origin: &Origin,
    ) -> Result<()> {
        let crate::copy::Space::Shared(rank) = barrier.space else {
            return Ok(());
        };
        let block = self.block_of(rank, origin);
        if self.flags.shared_races || self.flags.global_races {
            let sequence = self.blocks[block].sequence;
            let thread = self.warps * 32 + Self::load_lane(barrier.address);
            let view = View::of_thread(0, 0, thread, self.memory.now);
            let known = Knowledge {
                seen: Clock::of(view),
                ..Knowledge::default()
            };
            self.gather_at((block, barrier.address as u32), sequence, &known);
            self.memory.advance();
        }
        self.engine_change(barrier, origin, |state| state.complete_tx(bytes))
    }

    /// The lane of a block's pseudo-warp that stands for the copies which complete at a barrier.
    pub(super) const fn load_lane(barrier: u64) -> u32 {
        (barrier >> 3) as u32 & 15
    }

    /// `cp.async.mbarrier.arrive` without `.noinc`, at issue.
    pub(super) fn expect_copies(&mut self, barrier: Location, origin: &Origin) -> Result<()> {
        self.engine_change(barrier, origin, Mbarrier::increment)
    }

    /// `cp.async.mbarrier.arrive`, when the copies before it have landed.
    pub(super) fn arrive_after_copies(&mut self, barrier: Location, origin: &Origin) -> Result<()> {
        let crate::copy::Space::Shared(rank) = barrier.space else {
            return Ok(());
        };
        let block = self.block_of(rank, origin);
        if self.flags.shared_races || self.flags.global_races {
            // The copies count as writes of the thread that issued them.
            let sequence = self.blocks[origin.block].sequence;
            let thread = origin.thread - sequence * (self.warps + 1) * 32;
            let view = View::of_thread(0, 0, thread, self.memory.now);
            let known = Knowledge {
                seen: Clock::of(view),
                ..Knowledge::default()
            };
            self.gather_at((block, barrier.address as u32), sequence, &known);
            self.memory.advance();
        }
        self.engine_change(barrier, origin, |state| state.arrive(1).map(|_| ()))
    }
}

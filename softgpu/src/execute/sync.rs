//! Waiting for each other: within a warp, a block, a cluster.

use std::rc::Rc;

use super::{Flow, Machine, Result, lanes};
use crate::block::Released;
use crate::clock::{Knowledge, View, gather, teach};
use crate::fault::{Fault, Kind};
use crate::ir::{Barrier, BarrierKind, Op};
use crate::registers::Index;
use crate::warp::{Group, Wait, Warp};

impl Machine<'_> {
    /// The lanes of a group that may execute a collective: those that name the same members, once
    /// all of these are there. `None`: no such lanes yet, and the group is parked.
    pub(super) fn assemble(
        &mut self,
        warp: &mut Warp,
        register: Index,
        mask: u32,
        pc: u32,
        warp_barrier: bool,
    ) -> Result<Option<u32>> {
        let named = *warp.registers.row::<u32>(register);
        let forced = std::mem::take(&mut warp.forced);
        let mut rest = mask;
        while rest != 0 {
            let first = rest.trailing_zeros() as usize;
            let members = named[first];
            let there = lanes(rest)
                .filter(|lane| named[*lane] == members)
                .fold(0, |all, lane| all | 1 << lane);
            rest &= !there;
            if self.flags.barriers && there & !members != 0 {
                let lane = (there & !members).trailing_zeros();
                let what = format!("lane {lane} takes part, but the mask {members:#010x} lacks it");
                let site = self.site(warp, lane, pc, "waits for other lanes");
                return Err(Fault::new(Kind::DivergentBarrier, what).at(site));
            }
            let missing = members & warp.alive & !there;
            if missing == 0 || forced || warp_barrier && self.meet(warp, members, missing) {
                return Ok(Some(there));
            }
        }
        // Nobody is complete: all wait.
        let mut rest = mask;
        while rest != 0 {
            let members = named[rest.trailing_zeros() as usize];
            let mask = lanes(rest)
                .filter(|lane| named[*lane] == members)
                .fold(0, |all, lane| all | 1 << lane);
            rest &= !mask;
            let wait = Wait::Lanes {
                members,
                warp_barrier,
            };
            warp.groups.push(Group { pc, mask, wait });
        }
        Ok(None)
    }

    /// Whether the missing lanes wait at another `bar.warp.sync` for the same members; if so, they
    /// go on.
    fn meet(&mut self, warp: &mut Warp, members: u32, missing: u32) -> bool {
        let wait = Wait::Lanes {
            members,
            warp_barrier: true,
        };
        let waiting = warp.groups.iter().filter(|group| group.wait == wait);
        let there = waiting.fold(0, |all, group| all | group.mask);
        if missing & !there != 0 {
            return false;
        }
        for group in warp.groups.iter_mut().filter(|group| group.wait == wait) {
            group.wait = Wait::None;
            group.pc += 1;
        }
        // `sync_warp` is called for the lanes of this instruction only; the others meet here.
        self.sync_warp(warp, members & warp.alive);
        true
    }

    /// `bar.warp.sync`: what each of the lanes did comes before what any of them does next.
    pub(super) fn sync_warp(&mut self, warp: &mut Warp, mask: u32) {
        let whole = mask & warp.alive == warp.alive;
        if !whole || warp.informed {
            let mut joined = Knowledge::default();
            let size = self.threads();
            gather(&warp.known, mask, &mut joined, size);
            if !whole {
                for lane in lanes(mask) {
                    joined.seen.join(&self.snapshot(warp, lane), size);
                }
            }
            if !joined.is_empty() {
                warp.informed = true;
                teach(&mut warp.known, mask, &Rc::new(joined), size);
            }
        }
        if whole {
            warp.base = self.memory.now;
        }
        self.memory.advance();
    }

    pub(super) fn barrier(
        &mut self,
        warp: &mut Warp,
        barrier: &Barrier,
        mask: u32,
        pc: u32,
    ) -> Result<Flow> {
        if barrier.aligned && mask != warp.alive && !std::mem::take(&mut warp.forced) {
            return Ok(Flow::Park(Wait::Warp, pc));
        }
        let lane = mask.trailing_zeros() as usize & 31;
        let id = warp.registers.row::<u32>(barrier.id)[lane];
        let count = barrier
            .count
            .map(|count| warp.registers.row::<u32>(count)[lane]);
        // A count of 0 means all threads, as none does.
        let count = count.filter(|count| *count != 0);
        let uniform = self.flags.barriers && {
            let ids = warp.registers.row::<u32>(barrier.id);
            lanes(mask).any(|lane| ids[lane] != id)
        };
        let site = |this: &Self| this.site(warp, lane as u32, pc, "arrives");
        if uniform {
            let what = "lanes of one warp arrive at different barriers";
            return Err(Fault::new(Kind::DivergentBarrier, what).at(site(self)));
        }
        let odd = |count: u32| self.flags.barriers && !count.is_multiple_of(32);
        if id >= 16 || count.is_some_and(|count| odd(count) || count > 1024) {
            let what = format!("barrier {id} for {count:?} threads: 0 to 15, a multiple of 32");
            return Err(Fault::new(Kind::DivergentBarrier, what).at(site(self)));
        }
        let waits = barrier.kind != BarrierKind::Arrive;
        if !waits && count.is_none() {
            let what = format!("bar.arrive on barrier {id} without a number of threads");
            return Err(Fault::new(Kind::DivergentBarrier, what).at(site(self)));
        }
        let threads = self.warps * 32;
        let here = self.blocks[warp.block].barrier(id as usize);
        let (first, own) = (here.expected.unwrap_or(threads), count.unwrap_or(threads));
        if self.flags.barriers && here.arrived > 0 && first != own {
            let what = format!(
                "barrier {id} is to complete with {} threads for some and with {} for others",
                here.expected
                    .map_or("all".into(), |count| count.to_string()),
                count.map_or("all".into(), |count| count.to_string()),
            );
            return Err(Fault::new(Kind::DivergentBarrier, what).at(site(self)));
        }
        let votes = match barrier.kind {
            BarrierKind::And { p, negated, .. }
            | BarrierKind::Or { p, negated, .. }
            | BarrierKind::Count { p, negated, .. } => {
                let bits = warp.registers.predicate(p);
                (if negated { !bits } else { bits } & mask).count_ones()
            }
            _ => 0,
        };
        self.progress += 1;
        let mut gathered = Knowledge::default();
        self.contribute(warp, mask, count.is_some(), &mut gathered);
        let size = self.threads();
        let here = self.blocks[warp.block].barrier(id as usize);
        here.gathered.join(&gathered, size);
        // Where some name the number of the whole block and others none, it is the whole block.
        let named = here.arrived == 0 || here.expected.is_some();
        here.expected = count.filter(|_| named);
        here.arrived += mask.count_ones();
        here.counted += mask.count_ones();
        if mask >> warp.alive.trailing_zeros() & 1 == 1 {
            here.counted += warp.alive.count_zeros();
        }
        here.arrivals_only |= !waits;
        here.votes += votes;
        let generation = here.generation;
        self.complete(warp.block, id as usize);
        Ok(if waits {
            Flow::Park(Wait::Block { id, generation }, pc)
        } else {
            Flow::Next
        })
    }

    /// Adds to `into` what arriving lanes know, their own accesses included if `own`.
    pub(super) fn contribute(&mut self, warp: &Warp, mask: u32, own: bool, into: &mut Knowledge) {
        let size = self.threads();
        if warp.informed {
            gather(&warp.known, mask, into, size);
        }
        if own {
            if mask == warp.alive {
                let mut view = self.own_view(warp, 0);
                view.warp_base = self.memory.now;
                into.seen.join(&crate::clock::Clock::of(view), size);
            } else {
                for lane in lanes(mask) {
                    into.seen.join(&self.snapshot(warp, lane), size);
                }
            }
            self.memory.advance();
        }
    }

    /// Completes a barrier if everybody has arrived.
    fn complete(&mut self, block: usize, id: usize) {
        let now = self.memory.now;
        let block = &mut self.blocks[block];
        let here = &mut block.barriers[id];
        let complete = match here.expected {
            Some(expected) => here.counted >= expected,
            None => here.arrived >= block.alive,
        };
        if here.arrived == 0 || !complete {
            return;
        }
        let whole = here.arrived == block.alive && !here.arrivals_only;
        let mut knowledge = std::mem::take(&mut here.gathered);
        if whole {
            block.base = now;
            // Everything of the block up to now is known by its base.
            knowledge.seen.own = View::default();
        }
        here.results.push(Released {
            knowledge: Rc::new(knowledge),
            whole_block: whole,
            votes: here.votes,
            voters: here.arrived,
        });
        here.arrived = 0;
        here.counted = 0;
        here.expected = None;
        here.arrivals_only = false;
        here.votes = 0;
        here.generation += 1;
        self.memory.advance();
    }

    /// Lets the groups go on whose barrier is complete.
    pub(super) fn wake(&mut self, warp: &mut Warp) -> Result<()> {
        for at in 0..warp.groups.len() {
            let Group { pc, mask, wait } = warp.groups[at];
            match wait {
                Wait::Block { id, generation } => {
                    let here = &self.blocks[warp.block].barriers[id as usize];
                    let Some(released) = here.results.get(generation as usize).cloned() else {
                        continue;
                    };
                    self.release(warp, &released, mask, pc);
                }
                Wait::Cluster { generation } => {
                    let cluster = self.blocks[warp.block].cluster;
                    let released = self.clusters[cluster].released.get(generation as usize);
                    let Some(released) = released.cloned() else {
                        continue;
                    };
                    self.learn_cluster(warp, mask, &released);
                }
                _ => continue,
            }
            warp.groups[at].wait = Wait::None;
            warp.groups[at].pc += 1;
        }
        Ok(())
    }

    fn release(&mut self, warp: &mut Warp, released: &Released, mask: u32, pc: u32) {
        let size = self.threads();
        if released.whole_block && mask == warp.alive {
            // It includes what the lanes knew themselves.
            let known = &released.knowledge;
            if !known.is_empty() {
                warp.known = std::array::from_fn(|_| Some(known.clone()));
                warp.informed = true;
            } else if warp.informed {
                warp.known = [const { None }; 32];
                warp.informed = false;
            }
        } else if !released.knowledge.is_empty() {
            warp.informed = true;
            teach(&mut warp.known, mask, &released.knowledge, size);
        }
        let Op::Barrier(barrier) = &self.kernel.code.instructions[pc as usize].op else {
            return;
        };
        let all = |truth: bool| if truth { !0 } else { 0 };
        match barrier.kind {
            BarrierKind::And { d, .. } => {
                let result = all(released.votes == released.voters);
                warp.registers.put_predicate(d, mask, result);
            }
            BarrierKind::Or { d, .. } => {
                warp.registers
                    .put_predicate(d, mask, all(released.votes > 0));
            }
            BarrierKind::Count { d, .. } => warp.registers.put(d, mask, &[released.votes; 32]),
            _ => {}
        }
    }

    /// Lanes end: barriers over the whole block no longer wait for them.
    pub(super) fn exit(&mut self, warp: &mut Warp, mask: u32, pc: u32) -> Result<()> {
        self.end_copies(warp, mask)?;
        self.take_leave(warp, mask, pc)?;
        warp.alive &= !mask;
        self.progress += 1;
        self.blocks[warp.block].alive -= mask.count_ones();
        if self.blocks[warp.block].alive == 0 {
            self.check_left_copies(warp.block)?;
        }
        for id in 0..self.blocks[warp.block].barriers.len() {
            if self.blocks[warp.block].barriers[id].expected.is_none() {
                self.complete(warp.block, id);
            }
        }
        self.leave_cluster(warp, mask);
        // Lanes that waited for these need not any more.
        for group in &mut warp.groups {
            if matches!(group.wait, Wait::Lanes { .. } | Wait::Warp) {
                group.wait = Wait::None;
            }
        }
        Ok(())
    }

    /// No group of the warp can run. Whether it waits for others; a fault if it waits for itself.
    pub(super) fn blocked(&mut self, warp: &mut Warp) -> Result<bool> {
        let waits_for_others =
            |group: &Group| matches!(group.wait, Wait::Block { .. } | Wait::Cluster { .. });
        if warp.groups.iter().any(waits_for_others) && !self.stuck {
            return Ok(true);
        }
        let for_itself = |group: &&mut Group| matches!(group.wait, Wait::Lanes { .. } | Wait::Warp);
        let Some(group) = warp
            .groups
            .iter_mut()
            .filter(for_itself)
            .min_by_key(|group| group.pc)
        else {
            return Ok(true);
        };
        if !self.flags.barriers {
            group.wait = Wait::None;
            warp.forced = true;
            return Ok(false);
        }
        let group = *group;
        Err(self.divergence(warp, group))
    }

    fn divergence(&self, warp: &Warp, group: Group) -> Fault {
        let missing = match group.wait {
            Wait::Lanes { members, .. } => members & warp.alive & !group.mask,
            _ => warp.alive & !group.mask,
        };
        let count = missing.count_ones();
        let lane = missing.trailing_zeros();
        let what = format!(
            "{count} of the {} lanes that must take part do not get there",
            count + group.mask.count_ones()
        );
        let site = self.site(
            warp,
            group.mask.trailing_zeros(),
            group.pc,
            "waits for them",
        );
        let fault = Fault::new(Kind::DivergentBarrier, what).at(site);
        let elsewhere = warp.groups.iter().find(|other| other.mask >> lane & 1 != 0);
        match elsewhere {
            Some(other) => fault.at(self.site(warp, lane, other.pc, "has gone to wait")),
            None => fault,
        }
    }

    /// The fault of a machine in which everybody waits.
    pub(crate) fn deadlock<'w>(&self, warps: impl Iterator<Item = &'w Warp>) -> Fault {
        for warp in warps {
            for group in &warp.groups {
                let lane = group.mask.trailing_zeros();
                let what = match group.wait {
                    Wait::Block { id, .. } => {
                        let here = &self.blocks[warp.block].barriers[id as usize];
                        let alive = self.blocks[warp.block].alive;
                        let (expected, arrived) = match here.expected {
                            Some(expected) => (expected, here.counted),
                            None => (alive, here.arrived),
                        };
                        format!(
                            "barrier {id} waits for {expected} threads, and only {arrived} ever \
                             arrive"
                        )
                    }
                    Wait::Cluster { .. } => {
                        "the cluster's barrier waits for threads that never arrive".into()
                    }
                    Wait::Lanes { .. } | Wait::Warp => return self.divergence(warp, *group),
                    Wait::None => continue,
                };
                let site = self.site(warp, lane, group.pc, "waits");
                // Without the check it is a hang like any other.
                let kind = if self.flags.barriers {
                    Kind::DivergentBarrier
                } else {
                    Kind::StepLimit
                };
                return Fault::new(kind, what).at(site);
            }
        }
        Fault::new(
            Kind::StepLimit,
            "every thread waits for something that never happens",
        )
    }
}

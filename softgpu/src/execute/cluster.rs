//! Blocks of a cluster: their barrier, and the shared memory that they lend each other.

use std::rc::Rc;

use super::landing::{Landing, Target};
use super::{Flow, Machine, Result, lanes};
use crate::clock::{Knowledge, gather, teach};
use crate::fault::{Fault, Kind};
use crate::warp::{Wait, Warp};

/// The barrier of a cluster.
#[derive(Debug, Default)]
pub(crate) struct ClusterBarrier {
    /// Threads that arrived in this generation and have not exited.
    arrived: u32,
    pub(crate) generation: u32,
    /// What the arrived threads know, by the sequence number of their block.
    gathered: Vec<(u32, Knowledge)>,
    pub(super) released: Vec<Rc<Vec<(u32, Knowledge)>>>,
}

/// A thread's last use of another block's shared memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Visit {
    thread: u32,
    stamp: u32,
    at: u16,
}

/// What a block must know of its peers before it ends, since its shared memory ends with it.
#[derive(Debug, Default)]
pub(crate) struct Visits {
    /// By thread of the peers.
    last: Vec<Visit>,
    /// What its own threads knew when they ended.
    known: Knowledge,
}

impl Visits {
    pub(crate) fn clear(&mut self) {
        if !self.last.is_empty() {
            *self = Self::default();
        }
    }
}

const ENDED: &str = "shared memory of a block of the cluster that may have ended";

impl Machine<'_> {
    /// `barrier.cluster.arrive` and `.wait`.
    pub(super) fn cluster_barrier(
        &mut self,
        warp: &mut Warp,
        arrive: bool,
        wait: bool,
        mask: u32,
        pc: u32,
    ) -> Result<Flow> {
        if mask != warp.alive && !std::mem::take(&mut warp.forced) {
            return Ok(Flow::Park(Wait::Warp, pc));
        }
        let cluster = self.blocks[warp.block].cluster;
        if arrive {
            let mut gathered = Knowledge::default();
            self.contribute(warp, mask, true, &mut gathered);
            let sequence = self.blocks[warp.block].sequence;
            let size = self.threads();
            let here = &mut self.clusters[cluster];
            match here
                .gathered
                .iter_mut()
                .find(|(known, _)| *known == sequence)
            {
                Some((_, known)) => known.join(&gathered, size),
                None => here.gathered.push((sequence, gathered)),
            }
            here.arrived += mask.count_ones();
            warp.cluster_generation = here.generation;
            warp.cluster_arrived = true;
            self.complete_cluster(cluster);
            self.progress += 1;
        }
        if wait {
            let generation = warp.cluster_generation;
            return Ok(Flow::Park(Wait::Cluster { generation }, pc));
        }
        Ok(Flow::Next)
    }

    /// Completes the barrier of a cluster if all threads have arrived that have not exited.
    fn complete_cluster(&mut self, cluster: usize) {
        let last = cluster + self.blocks_in_cluster as usize;
        let blocks = &self.blocks[cluster..last];
        let alive: u32 = blocks.iter().map(|block| block.alive).sum();
        let here = &mut self.clusters[cluster];
        if !here.gathered.is_empty() && here.arrived >= alive {
            here.arrived = 0;
            here.generation += 1;
            let gathered = std::mem::take(&mut here.gathered);
            here.released.push(Rc::new(gathered));
        }
    }

    /// Threads have exited: the barrier of the cluster no longer waits for them, nor counts them where
    /// they have arrived and not waited.
    pub(super) fn leave_cluster(&mut self, warp: &Warp, mask: u32) {
        let cluster = self.blocks[warp.block].cluster;
        let here = &mut self.clusters[cluster];
        if warp.cluster_arrived && warp.cluster_generation == here.generation {
            here.arrived = here.arrived.saturating_sub(mask.count_ones());
        }
        self.complete_cluster(cluster);
    }

    pub(super) fn learn_cluster(
        &mut self,
        warp: &mut Warp,
        mask: u32,
        released: &[(u32, Knowledge)],
    ) {
        let sequence = self.blocks[warp.block].sequence;
        let size = self.threads();
        let mut known = Knowledge::default();
        for (theirs, knowledge) in released {
            known.import(sequence, *theirs, knowledge, size);
        }
        warp.informed = true;
        teach(&mut warp.known, mask, &Rc::new(known), size);
    }

    /// Threads use shared memory, perhaps another block's, which must not have ended, now or under
    /// another schedule.
    #[inline(always)]
    pub(super) fn visit_peer(
        &mut self,
        warp: &Warp,
        landing: Landing,
        mask: u32,
        pc: u32,
    ) -> Result<()> {
        match landing.target {
            Target::Shared(block) if block != warp.block && self.flags.freed => {
                self.enter_visit(warp, block, mask, pc)
            }
            _ => Ok(()),
        }
    }

    #[cold]
    fn enter_visit(&mut self, warp: &Warp, block: usize, mask: u32, pc: u32) -> Result<()> {
        if self.blocks[block].alive == 0 {
            let site = self.site(warp, mask.trailing_zeros(), pc, "uses it");
            return Err(Fault::new(Kind::UseAfterFree, ENDED).at(site));
        }
        let visits = &mut self.blocks[block].visits.last;
        for lane in lanes(mask) {
            let visit = Visit {
                thread: warp.serial << 5 | lane as u32,
                stamp: self.memory.now,
                at: u16::try_from(pc).unwrap_or(u16::MAX),
            };
            match visits.iter_mut().find(|known| known.thread == visit.thread) {
                Some(known) => *known = visit,
                None => visits.push(visit),
            }
        }
        Ok(())
    }

    /// Threads end. The last of a block must come after all that its peers did in its shared memory.
    pub(super) fn take_leave(&mut self, warp: &Warp, mask: u32, pc: u32) -> Result<()> {
        let size = self.threads();
        let block = &mut self.blocks[warp.block];
        if block.visits.last.is_empty() {
            return Ok(());
        }
        gather(&warp.known, mask, &mut block.visits.known, size);
        if block.alive != mask.count_ones() || !self.flags.global_races {
            return Ok(());
        }
        let visits = &self.blocks[warp.block].visits;
        let unknown = visits.last.iter().find(|visit| {
            let (peer, thread) = (visit.thread / size as u32, visit.thread % size as u32);
            !visits.known.seen.knows_other(peer, thread, visit.stamp)
        });
        let Some(visit) = unknown else {
            return Ok(());
        };
        let fault = Fault::new(Kind::UseAfterFree, ENDED).at(self.site_of(
            visit.thread,
            visit.at,
            "uses it".into(),
        ));
        let end = self.site(
            warp,
            mask.trailing_zeros(),
            pc,
            "ends and waits for no peer",
        );
        Err(fault.at(end))
    }
}

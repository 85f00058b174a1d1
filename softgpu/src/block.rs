//! A resident block: shared memory and barriers.

use std::rc::Rc;

use crate::clock::Knowledge;
use crate::execute::Visits;
use crate::memory::Extent;

/// One of a block's 16 barriers.
#[derive(Debug, Default)]
pub(crate) struct Barrier {
    /// Threads that arrived in this generation.
    pub(crate) arrived: u32,
    /// The same by whole warps, which a number of threads is counted in: lanes that have ended or never
    /// were are counted with the others.
    pub(crate) counted: u32,
    /// Threads that it waits for; `None`: all of the block.
    pub(crate) expected: Option<u32>,
    /// Whether some arrived without waiting.
    pub(crate) arrivals_only: bool,
    /// How often it was completed.
    pub(crate) generation: u32,
    /// What the arrived threads know together.
    pub(crate) gathered: Knowledge,
    /// The votes of `bar.red`: how many were true.
    pub(crate) votes: u32,
    /// For each completed generation: what it taught, whether it was all of the block, the votes
    /// and the number of voters.
    pub(crate) results: Vec<Released>,
}

/// What a completed barrier gives those who waited.
#[derive(Clone, Debug)]
pub(crate) struct Released {
    pub(crate) knowledge: Rc<Knowledge>,
    pub(crate) whole_block: bool,
    pub(crate) votes: u32,
    pub(crate) voters: u32,
}

/// A resident block.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) index: [u32; 3],
    /// Its number in the order in which blocks run.
    pub(crate) sequence: u32,
    /// Its rank in its cluster.
    pub(crate) rank: u32,
    /// The resident block that is first in its cluster.
    pub(crate) cluster: usize,
    pub(crate) shared: Extent,
    pub(crate) shared_size: u32,
    /// Logical time at which it took its place: what its shared memory saw before is not its own.
    pub(crate) born: u32,
    /// Everything that its threads did up to here comes before whatever they do next.
    pub(crate) base: u32,
    /// Threads that have not exited.
    pub(crate) alive: u32,
    /// Its barriers, up to the last that anybody used.
    pub(crate) barriers: Vec<Barrier>,
    /// What its peers did in its shared memory.
    pub(crate) visits: Visits,
}

impl Block {
    pub(crate) fn new(shared_size: u32) -> Self {
        Self {
            index: [0; 3],
            sequence: 0,
            rank: 0,
            cluster: 0,
            shared: Extent::new(shared_size as usize),
            shared_size,
            born: 0,
            base: 0,
            alive: 0,
            barriers: Vec::new(),
            visits: Visits::default(),
        }
    }

    /// Makes the block the one with this index, as if new.
    pub(crate) fn start(&mut self, index: [u32; 3], sequence: u32, threads: u32, now: u32) {
        self.index = index;
        self.sequence = sequence;
        self.born = now;
        self.base = now;
        self.alive = threads;
        self.shared.written.clear();
        self.barriers.clear();
        self.visits.clear();
    }

    /// One of its barriers.
    pub(crate) fn barrier(&mut self, id: usize) -> &mut Barrier {
        if id >= self.barriers.len() {
            self.barriers.resize_with(id + 1, Barrier::default);
        }
        &mut self.barriers[id]
    }
}

//! A warp: registers, local memory, and its lanes grouped by where they are.
//!
//! Lanes that are at the same instruction form a group. The group that is furthest behind runs
//! first, so that lanes meet again where their paths join.

use crate::clock::Known;
use crate::execute::Origin;
use crate::registers::{LANES, Registers};
use crate::shadow::Written;
use crate::tensor::pipe::Pipe;

/// Why a group does not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// It can run.
    None,
    /// At a collective instruction or `bar.warp.sync`, for these lanes.
    Lanes { members: u32, warp_barrier: bool },
    /// At an aligned barrier that the other lanes of the warp have not reached.
    Warp,
    /// At barrier `id` of the block, for generation `generation` to be complete.
    Block { id: u32, generation: u32 },
    /// At the barrier of the cluster.
    Cluster { generation: u32 },
}

/// Lanes at the same instruction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Group {
    pub(crate) pc: u32,
    pub(crate) mask: u32,
    pub(crate) wait: Wait,
}

/// A warp of a resident block.
#[derive(Debug)]
pub(crate) struct Warp {
    pub(crate) registers: Registers,
    /// The lanes' local memory, one after the other.
    pub(crate) local: Vec<u8>,
    /// Which of its bytes were written.
    pub(crate) written: Written,
    /// Its number in its block.
    pub(crate) index: u32,
    /// Which resident block it belongs to.
    pub(crate) block: usize,
    /// Its serial number in the launch.
    pub(crate) serial: u32,
    /// Lanes that exist and have not exited.
    pub(crate) alive: u32,
    pub(crate) groups: Vec<Group>,
    /// Accesses of its lanes up to here come before everything that they do next.
    pub(crate) base: u32,
    /// What each lane knows beyond that.
    pub(crate) known: [Known; LANES],
    /// Whether any lane knows anything.
    pub(crate) informed: bool,
    /// Whether the next collective or barrier goes ahead with the lanes that are there.
    pub(crate) forced: bool,
    /// The phase of the cluster's barrier that it has arrived at.
    pub(crate) cluster_generation: u32,
    /// Whether it has arrived at any.
    pub(crate) cluster_arrived: bool,
    /// The wgmma operations in flight; `None` before the first.
    pub(crate) pipe: Option<Box<Pipe<Origin>>>,
}

impl Warp {
    /// A warp without threads, to be placed in blocks.
    pub(crate) fn new(registers: Registers, local: u32, index: u32) -> Self {
        Self {
            registers,
            local: vec![0; local as usize * LANES],
            written: Written::new(local as usize * LANES),
            index,
            block: 0,
            serial: 0,
            alive: 0,
            groups: Vec::new(),
            base: 0,
            known: [const { None }; LANES],
            informed: false,
            forced: false,
            cluster_generation: 0,
            cluster_arrived: false,
            pipe: None,
        }
    }

    /// Puts the warp at the start of the kernel in a block.
    pub(crate) fn start(&mut self, block: usize, serial: u32, lanes: u32, now: u32) {
        self.block = block;
        self.serial = serial;
        self.alive = if lanes >= 32 { !0 } else { (1 << lanes) - 1 };
        self.written.clear();
        self.groups.clear();
        self.groups.push(Group {
            pc: 0,
            mask: self.alive,
            wait: Wait::None,
        });
        self.base = now;
        if self.informed {
            self.known = [const { None }; LANES];
            self.informed = false;
        }
        self.cluster_generation = 0;
        self.cluster_arrived = false;
        self.pipe = None;
    }

    /// Takes out the group that runs next, joined with those that wait at the same instruction.
    pub(crate) fn take_next(&mut self) -> Option<Group> {
        let ready = self.groups.iter().filter(|group| group.wait == Wait::None);
        let pc = ready.map(|group| group.pc).min()?;
        let mut joined = Group {
            pc,
            mask: 0,
            wait: Wait::None,
        };
        self.groups.retain(|group| {
            let joins = group.pc == pc
                && matches!(group.wait, Wait::None | Wait::Warp | Wait::Lanes { .. });
            if joins {
                joined.mask |= group.mask;
            }
            !joins
        });
        Some(joined)
    }

    /// Where the running group must stop to let another run or join.
    pub(crate) fn limit(&self) -> u32 {
        let others = self
            .groups
            .iter()
            .filter(|group| matches!(group.wait, Wait::None | Wait::Warp | Wait::Lanes { .. }));
        others.map(|group| group.pc).min().unwrap_or(u32::MAX)
    }

    /// Whether some group can run.
    pub(crate) fn is_ready(&self) -> bool {
        self.groups.iter().any(|group| group.wait == Wait::None)
    }
}

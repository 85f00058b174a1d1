//! Execution: a machine with resident blocks, and the loop that steps a warp.

mod access;
mod asynchronous;
mod atomic;
mod bulk;
mod cluster;
mod copy;
mod landing;
mod locate;
mod mbarrier;
mod private;
mod race;
mod row;
mod site;
mod sync;
#[cfg(test)]
mod tests;
mod touch;
mod trouble;
mod wgmma;

use std::collections::HashMap;

use crate::block::Block;
use crate::check::{Check, Checks};
use crate::clock::Clock;
use crate::copy::Engine;
use crate::counters::Counters;
use crate::fault::{Fault, Kind};
use crate::ir::{Kernel, Op, Width};
use crate::launch::Copies;
use crate::memory::{Memory, Order};
use crate::warp::{Group, Wait, Warp};
pub(crate) use cluster::Visits;
pub(crate) use copy::Origin;

type Result<T> = std::result::Result<T, Fault>;

/// Checks as flags, for the paths where every instruction passes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flags {
    pub(crate) bounds: bool,
    pub(crate) freed: bool,
    pub(crate) alignment: bool,
    pub(crate) uninitialised: bool,
    pub(crate) shared_races: bool,
    pub(crate) global_races: bool,
    pub(crate) barriers: bool,
    pub(crate) copies: bool,
    pub(crate) proxies: bool,
}

impl Flags {
    pub(crate) fn new(checks: Checks) -> Self {
        Self {
            bounds: checks.has(Check::Bounds),
            freed: checks.has(Check::Freed),
            alignment: checks.has(Check::Alignment),
            uninitialised: checks.has(Check::Uninitialised),
            shared_races: checks.has(Check::SharedRaces),
            global_races: checks.has(Check::GlobalRaces),
            barriers: checks.has(Check::Barriers),
            copies: checks.has(Check::AsyncCopies),
            // It goes by the marks that race detection makes.
            proxies: checks.has(Check::Proxies) && checks.has(Check::SharedRaces),
        }
    }
}

/// Everything that a warp works on besides itself.
pub(crate) struct Machine<'a> {
    pub(crate) memory: &'a mut Memory,
    pub(crate) kernel: &'a Kernel,
    pub(crate) parameters: &'a [u8],
    pub(crate) order: &'a Order,
    pub(crate) flags: Flags,
    pub(crate) counters: Counters,
    /// Resident blocks.
    pub(crate) blocks: Vec<Block>,
    /// Asynchronous copies in flight, for each cluster of resident blocks.
    pub(crate) engines: Vec<Engine<Origin>>,
    /// What releases on global and shared addresses have published.
    pub(crate) locations: HashMap<u64, Location>,
    /// Barriers of the clusters, by their first resident block.
    pub(crate) clusters: Vec<cluster::ClusterBarrier>,
    /// What is known of mbarriers, by resident block and shared address.
    pub(crate) gates: HashMap<(usize, u32), mbarrier::Gate>,
    /// When asynchronous operations land.
    pub(crate) copies: Copies,
    pub(crate) seed: u64,
    /// Accesses stamped up to here come before the launch.
    pub(crate) floor: u32,
    /// Logical time at which the launch began.
    pub(crate) started: u32,
    pub(crate) grid: [u32; 3],
    pub(crate) block_shape: [u32; 3],
    /// Warps of a block.
    pub(crate) warps: u32,
    pub(crate) blocks_in_cluster: u32,
    /// The block that runs as number n: a permutation of the grid's linear indices.
    pub(crate) sequence: Vec<u32>,
    /// The allocation that the last access found.
    pub(crate) last_allocation: usize,
    /// A counter that waiting threads watch: anything that may end a wait moves it.
    pub(crate) progress: u64,
    /// The first read of unwritten bytes.
    pub(crate) deferred: Option<Fault>,
    /// Whether nobody can go on: barriers then count those who wait.
    pub(crate) stuck: bool,
}

/// What releases on an address have published.
#[derive(Debug, Default)]
pub(crate) struct Location {
    /// At the device's scope, as known by the block `block`.
    pub(crate) device: Clock,
    /// At the scope of the block `block`.
    pub(crate) inner: Clock,
    pub(crate) block: u32,
}

/// What became of a warp that was run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Its time is over, or it gave way to others.
    Yielded,
    /// It waits.
    Blocked,
    Finished,
}

/// Where a group goes after an instruction.
enum Flow {
    Next,
    Jump(u32),
    /// These lanes go there, the others on.
    Branch(u32, u32),
    /// The group waits, at this instruction or behind it.
    Park(Wait, u32),
    /// These lanes end.
    Exit(u32),
    /// On to the next instruction, but others first.
    Yield,
    /// Only these lanes execute the instruction; the others go on.
    Only(u32),
    /// The lanes are in groups of their own by now.
    Scattered,
}

impl Machine<'_> {
    /// Threads of a block, rounded up to warps, plus a warp for the copy engines.
    pub(crate) fn threads(&self) -> usize {
        (self.warps as usize + 1) * 32
    }

    /// Runs a warp for at most `budget` instructions.
    pub(crate) fn run(&mut self, warp: &mut Warp, mut budget: u32) -> Result<Outcome> {
        self.wake(warp)?;
        loop {
            let Some(mut group) = warp.take_next() else {
                if warp.alive == 0 {
                    return Ok(Outcome::Finished);
                }
                if self.blocked(warp)? {
                    return Ok(Outcome::Blocked);
                }
                continue;
            };
            let limit = warp.limit();
            let mut first = true;
            loop {
                if budget == 0 {
                    warp.groups.push(group);
                    return Ok(Outcome::Yielded);
                }
                if !first && group.pc >= limit {
                    warp.groups.push(group);
                    break;
                }
                first = false;
                budget -= 1;
                match self.step(warp, group)? {
                    Flow::Next => group.pc += 1,
                    Flow::Jump(target) => group.pc = target,
                    Flow::Branch(target, mask) => {
                        let taken = Group {
                            pc: target,
                            mask,
                            wait: Wait::None,
                        };
                        group.mask &= !mask;
                        group.pc += 1;
                        warp.groups.push(taken);
                        warp.groups.push(group);
                        break;
                    }
                    Flow::Only(mask) => {
                        let rest = group.mask & !mask;
                        warp.groups.push(Group {
                            pc: group.pc + 1,
                            mask: rest,
                            wait: Wait::None,
                        });
                        warp.groups.push(Group { mask, ..group });
                        break;
                    }
                    Flow::Scattered => break,
                    Flow::Park(wait, pc) => {
                        warp.groups.push(Group { pc, wait, ..group });
                        self.wake(warp)?;
                        break;
                    }
                    Flow::Exit(mask) => {
                        self.exit(warp, mask, group.pc)?;
                        group.mask &= !mask;
                        if group.mask != 0 {
                            group.pc += 1;
                            warp.groups.push(group);
                        }
                        break;
                    }
                    Flow::Yield => {
                        group.pc += 1;
                        warp.groups.push(group);
                        return Ok(Outcome::Yielded);
                    }
                }
            }
        }
    }

    /// Executes one instruction for a group.
    fn step(&mut self, warp: &mut Warp, group: Group) -> Result<Flow> {
        let kernel = self.kernel;
        let instruction = &kernel.code.instructions[group.pc as usize];
        self.counters.instructions += 1;
        let mask = match instruction.guard {
            None => group.mask,
            Some((predicate, negated)) => {
                let bits = warp.registers.predicate(predicate);
                group.mask & if negated { !bits } else { bits }
            }
        };
        if mask == 0 {
            return Ok(Flow::Next);
        }
        let pc = group.pc;
        if let Some(touched) = kernel.code.touched.get(pc as usize)
            && !touched.registers.is_empty()
        {
            self.wgmma_access(warp, touched, pc)?;
        }
        if instruction.op.is_aligned()
            && let Some(flow) = self.await_warp(warp, mask, group)?
        {
            return Ok(flow);
        }
        match &instruction.op {
            Op::Compute(action) => action(&mut warp.registers, mask),
            Op::Load(load) => self.load(warp, load, mask, pc)?,
            Op::Store(store) => self.store(warp, store, mask, pc)?,
            Op::Jump(target) if mask == group.mask => return Ok(Flow::Jump(*target)),
            Op::Jump(target) => return Ok(Flow::Branch(*target, mask)),
            Op::Matrix { operations, action } => {
                self.counters.tensor_operations += operations;
                action(&mut warp.registers, mask);
            }
            Op::LoadMatrix {
                address,
                space,
                transpose,
                d,
            } => {
                self.load_matrix(warp, *address, *space, *transpose, d, pc)?;
            }
            Op::StoreMatrix {
                address,
                space,
                transpose,
                sources,
            } => {
                self.store_matrix(warp, *address, *space, *transpose, sources, pc)?;
            }
            Op::Atomic(atomic) => self.atomic(warp, atomic, mask, pc)?,
            Op::Exit => return Ok(Flow::Exit(mask)),
            Op::Switch { index, targets } => {
                return self.switch(warp, *index, targets, mask, group);
            }
            Op::Trap(kind) => {
                let site = self.site(warp, mask.trailing_zeros(), pc, "stops");
                return Err(Fault::new(*kind, "the kernel ends itself").at(site));
            }
            Op::Fence(fence) => self.fence(warp, *fence, mask),
            Op::Clock { d, width } => {
                let time = self.counters.instructions;
                match width {
                    Width::B64 => warp.registers.put(*d, mask, &[time; 32]),
                    _ => warp.registers.put(*d, mask, &[time as u32; 32]),
                }
            }
            Op::Locate(locate) => self.locate(warp, locate, mask),
            Op::Copy(copy) => self.copy_async(warp, copy, mask, pc)?,
            Op::CommitGroup => self.commit_copies(warp, mask),
            Op::WaitGroup(groups) => self.wait_copies(warp, *groups, mask)?,
            Op::Yield => return Ok(Flow::Yield),
            Op::Asynchronous(operation) => {
                return self.asynchronous(warp, operation, mask, group);
            }
            Op::Collective { .. }
            | Op::Barrier(_)
            | Op::WarpBarrier { .. }
            | Op::ClusterBarrier { .. }
                if mask != group.mask =>
            {
                return Ok(Flow::Only(mask));
            }
            Op::Collective { members, action } => {
                let Some(there) = self.assemble(warp, *members, mask, pc, false)? else {
                    return Ok(Flow::Scattered);
                };
                action(&mut warp.registers, there);
                return Ok(Self::part(warp, group, there));
            }
            Op::WarpBarrier { members } => {
                let Some(there) = self.assemble(warp, *members, mask, pc, true)? else {
                    return Ok(Flow::Scattered);
                };
                self.sync_warp(warp, there);
                return Ok(Self::part(warp, group, there));
            }
            Op::Barrier(barrier) => return self.barrier(warp, barrier, mask, pc),
            Op::ClusterBarrier { arrive, wait } => {
                return self.cluster_barrier(warp, *arrive, *wait, mask, pc);
            }
        }
        Ok(Flow::Next)
    }

    /// Before an instruction that the whole warp executes together: what to do instead while it is
    /// not there.
    fn await_warp(&self, warp: &mut Warp, mask: u32, group: Group) -> Result<Option<Flow>> {
        if mask != group.mask {
            return Ok(Some(Flow::Only(mask)));
        }
        if mask == !0 || std::mem::take(&mut warp.forced) {
            return Ok(None);
        }
        if mask != warp.alive {
            return Ok(Some(Flow::Park(Wait::Warp, group.pc)));
        }
        if !self.flags.barriers {
            return Ok(None);
        }
        let what = format!(
            "all 32 lanes of the warp must take part, and {} have ended or never were",
            mask.count_zeros()
        );
        let site = self.site(warp, mask.trailing_zeros(), group.pc, "takes part");
        Err(Fault::new(Kind::DivergentBarrier, what).at(site))
    }

    /// These lanes of a group go on to the next instruction, the others stay.
    fn part(warp: &mut Warp, group: Group, mask: u32) -> Flow {
        if mask == group.mask {
            return Flow::Next;
        }
        warp.groups.push(Group {
            pc: group.pc + 1,
            mask,
            wait: Wait::None,
        });
        warp.groups.push(Group {
            mask: group.mask & !mask,
            ..group
        });
        Flow::Scattered
    }

    /// `brx.idx`: a group for each target.
    fn switch(
        &self,
        warp: &mut Warp,
        index: u32,
        targets: &[u32],
        mask: u32,
        group: Group,
    ) -> Result<Flow> {
        let rest = group.mask & !mask;
        if rest != 0 {
            warp.groups.push(Group {
                pc: group.pc + 1,
                mask: rest,
                wait: Wait::None,
            });
        }
        let index = *warp.registers.row::<u32>(index);
        for lane in lanes(mask) {
            let Some(target) = targets.get(index[lane] as usize) else {
                let site = self.site(warp, lane as u32, group.pc, "jumps");
                return Err(Fault::new(Kind::Trap, "an index beyond the jump table").at(site));
            };
            warp.groups.push(Group {
                pc: *target,
                mask: 1 << lane,
                wait: Wait::None,
            });
        }
        Ok(Flow::Scattered)
    }
}

/// The lanes of a mask.
pub(crate) fn lanes(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let lane = mask.trailing_zeros() as usize;
        mask &= mask.wrapping_sub(1);
        (lane < 32).then_some(lane)
    })
}

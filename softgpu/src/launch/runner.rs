//! The loop over blocks: resident blocks, their warps, and whose turn it is.

use std::cell::RefCell;
use std::sync::Arc;

use super::{Blocks, Launch, Options};
use crate::block::Block;
use crate::check::Check;
use crate::copy::Engine;
use crate::counters::Counters;
use crate::execute::{Flags, Machine, Outcome};
use crate::fault::{Fault, Kind};
use crate::ir::{Kernel, Ordering, Special, Width};
use crate::memory::Memory;
use crate::random;
use crate::warp::Warp;

/// Instructions that a warp executes before another has its turn.
const TURN: u32 = 4096;

/// Turns in a row in which every thread only waits, after which none will ever go on.
const IDLE_TURNS: u32 = 100_000;

/// The coordinates of a warp's threads in its block, without a division for each of them.
fn threads(warp: u32, block: [u32; 3], axis: usize) -> [u32; 32] {
    let mut at = Machine::unravel(warp * 32, block);
    std::array::from_fn(|_| {
        let own = at[axis];
        at[0] += 1;
        for axis in 0..2 {
            if at[axis] == block[axis] {
                at[axis] = 0;
                at[axis + 1] += 1;
            }
        }
        own
    })
}

/// What the last launch of this thread ran on, kept for the next one of the same kernel and shape:
/// making it anew was a third of a small launch's time (1.7 µs with it, 1.0 without).
struct Idle {
    kernel: Arc<Kernel>,
    shape: [[u32; 3]; 3],
    dynamic_shared: u32,
    blocks: Vec<Block>,
    warps: Vec<Warp>,
    /// Nothing in the blocks' shared memory is stamped later.
    until: u32,
}

/// The most warps that are kept.
const MOST_IDLE: usize = 64;

thread_local! {
    static IDLE: RefCell<Option<Idle>> = const { RefCell::new(None) };
}

impl Idle {
    fn shape(launch: &Launch, cluster: [u32; 3]) -> [[u32; 3]; 3] {
        [launch.grid, launch.block, cluster]
    }

    fn keep(launch: &Launch, cluster: [u32; 3], blocks: Vec<Block>, warps: Vec<Warp>, until: u32) {
        if warps.len() > MOST_IDLE {
            return;
        }
        IDLE.set(Some(Self {
            kernel: Arc::clone(launch.kernel),
            shape: Self::shape(launch, cluster),
            dynamic_shared: launch.dynamic_shared,
            blocks,
            warps,
            until,
        }));
    }

    fn take(launch: &Launch, cluster: [u32; 3], now: u32) -> Option<Self> {
        IDLE.take().filter(|idle| {
            Arc::ptr_eq(&idle.kernel, launch.kernel)
                && idle.shape == Self::shape(launch, cluster)
                && idle.dynamic_shared == launch.dynamic_shared
                && idle.until <= now
                && !launch.cooperative
        })
    }
}

/// A machine and the warps that it runs.
pub(super) struct Runner<'a> {
    machine: Machine<'a>,
    /// The warps of every resident block, block after block.
    warps: Vec<Warp>,
    blocks: u32,
    cluster: [u32; 3],
    threads: u32,
    options: &'a Options,
    random: u64,
    /// For each warp whether it has finished.
    done: Vec<bool>,
}

impl<'a> Runner<'a> {
    pub(super) fn new(
        launch: &'a Launch,
        memory: &'a mut Memory,
        options: &'a Options,
        cluster: [u32; 3],
        floor: u32,
        workspace: Option<u64>,
    ) -> Self {
        let kernel = launch.kernel;
        let blocks = launch.grid.iter().product::<u32>();
        let threads = launch.block.iter().product::<u32>();
        let in_cluster = cluster.iter().product::<u32>();
        let resident = if launch.cooperative {
            blocks
        } else {
            in_cluster
        };
        let shared = crate::lower::SHARED_START + kernel.static_shared + launch.dynamic_shared;
        let checked = options.checks.has(Check::AsyncCopies);
        let seed = options.schedule.seed;
        let engine = || Engine::new(options.schedule.copies, seed, checked);
        let started = memory.now;
        let (blocks_there, warps_there) = match Idle::take(launch, cluster, started) {
            Some(idle) => (idle.blocks, idle.warps),
            None => (
                (0..resident).map(|_| Block::new(shared)).collect(),
                Vec::new(),
            ),
        };
        let machine = Machine {
            memory,
            kernel,
            parameters: launch.parameters,
            order: launch.order,
            flags: Flags::new(options.checks),
            counters: Counters::default(),
            blocks: blocks_there,
            engines: (0..resident).map(|_| engine()).collect(),
            locations: Default::default(),
            gates: Default::default(),
            copies: options.schedule.copies,
            seed,
            clusters: (0..resident).map(|_| Default::default()).collect(),
            floor,
            started,
            grid: launch.grid,
            block_shape: launch.block,
            warps: threads.div_ceil(32),
            blocks_in_cluster: in_cluster,
            sequence: Vec::new(),
            last_allocation: 0,
            progress: 0,
            deferred: None,
            stuck: false,
        };
        let mut runner = Self {
            machine,
            warps: warps_there,
            blocks,
            cluster,
            threads,
            options,
            random: seed ^ 0x9e37_79b9_7f4a_7c15,
            done: Vec::new(),
        };
        runner.arrange(launch);
        runner.prepare(launch, workspace);
        runner
    }

    /// A number drawn from the seed.
    fn draw(&mut self, below: u32) -> u32 {
        let high = u64::from(random::draw(&mut self.random));
        ((high * u64::from(below)) >> 32) as u32
    }

    /// The order of the blocks, cluster by cluster.
    fn arrange(&mut self, launch: &Launch) {
        let shape: [u32; 3] = std::array::from_fn(|axis| launch.grid[axis] / self.cluster[axis]);
        let clusters: u32 = shape.iter().product();
        let mut order: Vec<u32> = (0..clusters).collect();
        match self.options.schedule.blocks {
            Blocks::InOrder => {}
            Blocks::Reversed => order.reverse(),
            Blocks::Random => {
                for last in (1..order.len()).rev() {
                    let other = self.draw(last as u32 + 1) as usize;
                    order.swap(last, other);
                }
            }
        }
        let inside: u32 = self.cluster.iter().product();
        if inside == 1 {
            self.machine.sequence = order;
            return;
        }
        for number in order {
            let corner = Machine::unravel(number, shape);
            for rank in 0..inside {
                let offset = Machine::unravel(rank, self.cluster);
                let at: [u32; 3] =
                    std::array::from_fn(|axis| corner[axis] * self.cluster[axis] + offset[axis]);
                let [width, height, _] = launch.grid;
                self.machine
                    .sequence
                    .push((at[2] * height + at[1]) * width + at[0]);
            }
        }
    }

    /// Puts the parameters where the warps expect them.
    fn prepare(&mut self, launch: &Launch, workspace: Option<u64>) {
        let kernel = self.machine.kernel;
        if self.warps.is_empty() {
            self.make_warps(launch, workspace);
        }
        for (offset, width, index) in &kernel.code.parameters {
            let at = *offset as usize;
            let mut value = [0; 8];
            if let Some(bytes) = launch.parameters.get(at..at + width.bytes()) {
                value[..bytes.len()].copy_from_slice(bytes);
            }
            let value = u64::from_le_bytes(value);
            for warp in &mut self.warps {
                match width {
                    Width::B64 => warp.registers.wide[*index as usize] = [value; 32],
                    _ => warp.registers.narrow[*index as usize] = [value as u32; 32],
                }
            }
        }
        self.done = vec![true; self.warps.len()];
    }

    /// Makes the warps, with what their registers hold in every block.
    fn make_warps(&mut self, launch: &Launch, workspace: Option<u64>) {
        let kernel = self.machine.kernel;
        let warps = self.machine.blocks.len() * self.machine.warps as usize;
        for (number, registers) in
            std::iter::repeat_n(kernel.code.registers.clone(), warps).enumerate()
        {
            let index = number as u32 % self.machine.warps;
            let mut warp = Warp::new(registers, kernel.local, index);
            for (special, register) in &kernel.code.specials {
                self.set_fixed(&mut warp, *special, *register, launch, workspace);
            }
            self.warps.push(warp);
        }
    }

    /// Special registers that are the same in every block.
    fn set_fixed(
        &self,
        warp: &mut Warp,
        special: Special,
        register: u32,
        launch: &Launch,
        workspace: Option<u64>,
    ) {
        let lane_masks = |ordering: Ordering| {
            std::array::from_fn(|lane| {
                let own = 1_u32 << lane;
                match ordering {
                    Ordering::Eq => own,
                    Ordering::Lt => own - 1,
                    Ordering::Le => own | (own - 1),
                    Ordering::Gt => !(own | (own - 1)),
                    Ordering::Ge => !(own - 1),
                }
            })
        };
        let workspace = workspace.unwrap_or(0);
        let same = match special {
            Special::GridId => {
                warp.registers.wide[register as usize] = [1; 32];
                return;
            }
            Special::Thread(axis) => {
                warp.registers.narrow[register as usize] = threads(warp.index, launch.block, axis);
                return;
            }
            Special::Lane => {
                warp.registers.narrow[register as usize] = std::array::from_fn(|lane| lane as u32);
                return;
            }
            Special::LaneMask(ordering) => {
                warp.registers.narrow[register as usize] = lane_masks(ordering);
                return;
            }
            Special::BlockSize(axis) => launch.block[axis],
            Special::Grid(axis) => launch.grid[axis],
            Special::Warp => warp.index,
            Special::Warps => self.machine.warps,
            Special::Multiprocessors => 132,
            Special::DynamicShared => launch.dynamic_shared,
            Special::TotalShared => self.machine.kernel.static_shared + launch.dynamic_shared,
            Special::Clusters(axis) => launch.grid[axis] / self.cluster[axis],
            Special::BlocksInCluster(axis) => self.cluster[axis],
            Special::ClusterBlocks => self.machine.blocks_in_cluster,
            Special::Environment(1) => (workspace >> 32) as u32,
            Special::Environment(2) => workspace as u32,
            _ => 0,
        };
        warp.registers.narrow[register as usize] = [same; 32];
    }

    /// Runs all blocks; returns what they did even where one fails.
    pub(super) fn run(mut self, launch: &Launch) -> (Result<(), Fault>, Counters) {
        let result = self.run_blocks();
        let counters = self.machine.counters;
        let (blocks, warps) = (self.machine.blocks, self.warps);
        let memory = self.machine.memory;
        memory.advance();
        if result.is_ok() && !launch.cooperative {
            Idle::keep(launch, self.cluster, blocks, warps, memory.now);
        }
        (result, counters)
    }

    fn run_blocks(&mut self) -> Result<(), Fault> {
        let resident = self.machine.blocks.len() as u32;
        for first in (0..self.blocks).step_by(resident as usize) {
            for slot in 0..resident {
                self.place(slot, first + slot);
            }
            let result = self.finish_resident();
            let deferred = self.machine.deferred.take();
            match (result, deferred) {
                // A race explains an unwritten byte; anything else may follow from one.
                (Err(fault), _) if matches!(fault.kind, Kind::SharedRace | Kind::GlobalRace) => {
                    return Err(fault);
                }
                (_, Some(deferred)) => return Err(deferred),
                (result, None) => result?,
            }
        }
        Ok(())
    }

    /// Puts the block that is number `sequence` into a slot.
    fn place(&mut self, slot: u32, sequence: u32) {
        let inside = self.machine.blocks_in_cluster;
        let linear = self.machine.sequence[sequence as usize];
        let index = Machine::unravel(linear, self.machine.grid);
        let rank = slot % inside;
        let now = self.machine.memory.now;
        let block = &mut self.machine.blocks[slot as usize];
        block.rank = rank;
        block.cluster = (slot - rank) as usize;
        block.start(index, sequence, self.threads, now);
        if rank == 0 {
            self.machine.clusters[slot as usize] = Default::default();
        }
        let kernel = self.machine.kernel;
        let warps = self.machine.warps;
        for number in 0..warps {
            let at = (slot * warps + number) as usize;
            let warp = &mut self.warps[at];
            let lanes = self.threads - number * 32;
            warp.start(slot as usize, sequence * (warps + 1) + number, lanes, now);
            self.done[at] = false;
            for (special, register) in &kernel.code.specials {
                let value = match special {
                    Special::Block(axis) => index[*axis],
                    Special::ClusterId(axis) => index[*axis] / self.cluster[*axis],
                    Special::BlockInCluster(axis) => index[*axis] % self.cluster[*axis],
                    Special::ClusterRank => rank,
                    Special::Multiprocessor => sequence % 132,
                    _ => continue,
                };
                warp.registers.narrow[*register as usize] = [value; 32];
            }
        }
        self.machine.memory.advance();
    }

    /// Runs the resident blocks to their end.
    fn finish_resident(&mut self) -> Result<(), Fault> {
        let count = self.warps.len();
        let mut left = count;
        let mut idle = 0;
        while left > 0 {
            let before = self.machine.progress;
            for turn in 0..count {
                let (at, budget) = match self.options.schedule.blocks {
                    // After an idle round everybody has a turn, lest one is missed that can go on.
                    Blocks::Random if idle == 0 => {
                        (self.draw(count as u32) as usize, 1 + self.draw(64))
                    }
                    Blocks::Reversed => (count - 1 - turn, TURN),
                    _ => (turn, TURN),
                };
                if self.done[at] {
                    continue;
                }
                let outcome = self.machine.run(&mut self.warps[at], budget)?;
                if outcome == Outcome::Finished {
                    self.done[at] = true;
                    left -= 1;
                }
            }
            self.check_steps()?;
            if self.machine.progress != before {
                idle = 0;
                self.machine.stuck = false;
                continue;
            }
            idle += 1;
            if left > 0 && !self.unblock(idle)? {
                let waiting = self
                    .warps
                    .iter()
                    .zip(&self.done)
                    .filter(|(_, done)| !**done);
                return Err(self.machine.deadlock(waiting.map(|(warp, _)| warp)));
            }
        }
        self.machine.finish_copies()
    }

    fn check_steps(&self) -> Result<(), Fault> {
        let steps = self.machine.counters.instructions;
        if steps <= self.options.step_limit || !self.options.checks.has(Check::Steps) {
            return Ok(());
        }
        let busy = self.warps.iter().zip(&self.done).find(|(_, done)| !**done);
        let fault = Fault::new(
            Kind::StepLimit,
            format!("{steps} instructions, and no end: most likely a loop that never ends"),
        );
        Err(
            match busy.and_then(|(warp, _)| Some((warp, warp.groups.first()?))) {
                Some((warp, group)) => {
                    let lane = group.mask.trailing_zeros();
                    fault.at(self.machine.site(warp, lane, group.pc, "is still running"))
                }
                None => fault,
            },
        )
    }

    /// Nothing moved: whether anything still can.
    fn unblock(&mut self, idle: u32) -> Result<bool, Fault> {
        if self.machine.land_copies()? {
            return Ok(true);
        }
        let runnable = |(warp, done): (&Warp, &bool)| !*done && warp.is_ready();
        let any = self.warps.iter().zip(&self.done).any(runnable);
        // Now warps whose lanes wait for each other may say so, or go ahead unchecked.
        self.machine.stuck = true;
        Ok(idle < if any { IDLE_TURNS } else { 3 })
    }
}

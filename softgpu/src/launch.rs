//! A launch: its configuration and its options.

mod runner;

use std::sync::Arc;

use crate::check::Checks;
use crate::counters::Counters;
use crate::fault::{Fault, Kind};
use crate::ir::Kernel;
use crate::memory::{Memory, Order, What};
use runner::Runner;

/// In which order blocks, and the warps of a block, run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Blocks {
    /// Ascending.
    #[default]
    InOrder,
    /// Descending.
    Reversed,
    /// Shuffled by the seed; warps also yield at random instructions.
    Random,
}

/// When an asynchronous copy lands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Copies {
    /// When it is issued.
    Early,
    /// When somebody waits for it and could not go on otherwise.
    #[default]
    Late,
    /// At a moment drawn from the seed.
    Random,
}

/// The schedule of a launch: everything that a real device leaves open, fixed by a seed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Schedule {
    /// The order of blocks and warps.
    pub blocks: Blocks,
    /// When asynchronous copies land.
    pub copies: Copies,
    /// The seed of what is random.
    pub seed: u64,
}

/// How to run launches: nothing here changes what a correct kernel computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// The schedule.
    pub schedule: Schedule,
    /// The checks.
    pub checks: Checks,
    /// The most instructions (one per warp) that a launch may execute.
    pub step_limit: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            schedule: Schedule::default(),
            checks: Checks::all(),
            step_limit: 1 << 28,
        }
    }
}

/// One kernel launch.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// The kernel, of a module that is loaded.
    pub kernel: &'a Arc<Kernel>,
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y, z.
    pub block: [u32; 3],
    /// Blocks of a cluster in x, y, z; `[1, 1, 1]` without clusters (a kernel's own
    /// `.reqnctapercluster` applies then).
    pub cluster: [u32; 3],
    /// Dynamic shared memory, bytes.
    pub dynamic_shared: u32,
    /// The parameters, laid out as `Kernel::parameters` says.
    pub parameters: &'a [u8],
    /// Whether all blocks are resident together (a cooperative launch).
    pub cooperative: bool,
    /// Which stream the launch is on and what came before it.
    pub order: &'a Order,
}

/// Blocks of a cooperative launch or cluster that may be resident together.
const MOST_RESIDENT: u64 = 132 * 32;

/// Runs one launch to its end.
///
/// # Errors
/// The first fault that a check finds. Device memory keeps what was written before it.
pub fn run(launch: &Launch, memory: &mut Memory, options: &Options) -> Result<Counters, Fault> {
    let kernel = launch.kernel;
    let cluster = kernel.cluster.unwrap_or(launch.cluster);
    validate(launch, kernel, cluster)?;
    let floor = memory.begin(launch.order, What::Kernel(kernel.name.clone()));
    let workspace = if launch.cooperative {
        Some(grid_workspace(memory)?)
    } else {
        None
    };
    let runner = Runner::new(launch, memory, options, cluster, floor, workspace);
    let (result, counters) = runner.run(launch);
    if let Some(workspace) = workspace {
        memory.free(workspace)?;
    }
    result.map(|()| counters)
}

/// Refuses what the interpreter itself cannot run; the device's limits are the driver's.
fn validate(launch: &Launch, kernel: &Kernel, cluster: [u32; 3]) -> Result<(), Fault> {
    let fail = |what: String| Err(Fault::new(Kind::LaunchLimit, what));
    let count = |shape: [u32; 3]| shape.iter().map(|n| u64::from(*n)).product::<u64>();
    let threads = count(launch.block);
    if !(1..=1024).contains(&threads) {
        return fail(format!(
            "{threads} threads in a block; 1 to 1024 are possible"
        ));
    }
    let blocks = count(launch.grid);
    if !(1..=u64::from(u32::MAX)).contains(&blocks) || blocks > 1 << 31 {
        return fail(format!("{blocks} blocks"));
    }
    let divides = launch
        .grid
        .iter()
        .zip(cluster)
        .all(|(blocks, n)| n > 0 && blocks % n == 0);
    if !divides || count(cluster) > 16 {
        return fail(format!(
            "clusters of {cluster:?} in a grid of {:?}",
            launch.grid
        ));
    }
    let shared = u64::from(kernel.static_shared) + u64::from(launch.dynamic_shared);
    if shared >= 1 << 24 {
        return fail(format!("{shared} bytes of shared memory"));
    }
    if launch.cooperative && blocks > MOST_RESIDENT {
        return fail(format!("{blocks} blocks cannot be resident together"));
    }
    if (launch.parameters.len() as u64) < u64::from(kernel.parameter_bytes()) {
        let what = format!(
            "{} bytes of parameters, {} expected",
            launch.parameters.len(),
            kernel.parameter_bytes()
        );
        return Err(Fault::new(Kind::InvalidValue, what));
    }
    Ok(())
}

/// The words that cooperative groups' grid barrier counts in.
fn grid_workspace(memory: &mut Memory) -> Result<u64, Fault> {
    let address = memory.allocate(64)?;
    let allocation = memory
        .find(address)
        .and_then(|at| memory.allocations[at].as_mut());
    if let Some(allocation) = allocation {
        allocation.extent.written.mark(0, 64);
        allocation.extent.bytes.fill(0);
    }
    Ok(address)
}

//! A launch: its configuration, its options, and the loop over blocks.

use crate::check::Checks;
use crate::counters::Counters;
use crate::fault::{Fault, Kind};
use crate::ir::Module;
use crate::memory::{Memory, Order};

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
    /// The loaded module.
    pub module: &'a Module,
    /// The kernel's name in it.
    pub kernel: &'a str,
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y, z.
    pub block: [u32; 3],
    /// Blocks of a cluster in x, y, z; `[1, 1, 1]` without clusters (a kernel's own
    /// `.reqnctapercluster` applies then).
    pub cluster: [u32; 3],
    /// Dynamic shared memory, bytes.
    pub dynamic_shared: u32,
    /// The most dynamic shared memory that the function's attribute allows, bytes.
    pub dynamic_shared_limit: u32,
    /// The parameters, laid out as `Kernel::parameters` says.
    pub parameters: &'a [u8],
    /// Whether all blocks are resident together (a cooperative launch).
    pub cooperative: bool,
    /// Which stream the launch is on and what came before it.
    pub order: &'a Order,
}

/// Runs one launch to its end.
///
/// # Errors
/// The first fault that a check finds. Device memory keeps what was written before it.
pub fn run(launch: &Launch, memory: &mut Memory, options: &Options) -> Result<Counters, Fault> {
    let _ = (memory, options);
    Err(Fault::new(
        Kind::Unsupported,
        format!("launch of {}", launch.kernel),
    ))
}

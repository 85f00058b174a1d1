//! A loaded module: kernels with their decoded instructions, and the addresses of module data.

pub(crate) mod asynchronous;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use crate::fault::{Fault, Kind};
use crate::lower;
use crate::memory::Memory;
use crate::registers::{Action, Index, Registers};

/// A module's PTX, decoded for execution, its data placed in device memory.
#[derive(Debug)]
pub struct Module {
    pub(crate) kernels: HashMap<Arc<str>, Arc<Kernel>>,
    pub(crate) globals: HashMap<String, Global>,
}

/// A `.global` or `.const` variable of a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Global {
    /// Its device address.
    pub address: u64,
    /// Its size in bytes.
    pub size: u64,
}

/// Where one kernel parameter lies in the parameter buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Offset in bytes.
    pub offset: u32,
    /// Size in bytes.
    pub size: u32,
}

/// An entry function.
#[derive(Debug)]
pub struct Kernel {
    /// Its name.
    pub name: Arc<str>,
    /// Its parameters, in order.
    pub parameters: Vec<Parameter>,
    /// Static shared memory, bytes.
    pub static_shared: u32,
    /// Local memory of a thread, bytes.
    pub local: u32,
    /// `.maxntid`: the most threads of a block in x, y, z.
    pub max_threads: Option<[u32; 3]>,
    /// `.reqntid`: the exact shape of a block.
    pub required_threads: Option<[u32; 3]>,
    /// `.reqnctapercluster`: the shape of a cluster.
    pub cluster: Option<[u32; 3]>,
    pub(crate) code: Code,
}

impl Kernel {
    /// The size of the parameter buffer, bytes.
    #[must_use]
    pub fn parameter_bytes(&self) -> u32 {
        self.parameters
            .last()
            .map_or(0, |last| last.offset + last.size)
    }
}

impl Module {
    /// Reads PTX, decodes every kernel, and places module data in device memory.
    ///
    /// # Errors
    /// `Parse` or `Unsupported` with the line of the PTX; `OutOfMemory` for the data.
    pub fn load(ptx: &str, memory: &mut Memory) -> Result<Self, Fault> {
        lower::module(ptx, memory)
    }

    /// Frees the module's data.
    pub fn unload(self, memory: &mut Memory) {
        for global in self.globals.values() {
            // The address comes from `allocate`, so that `free` cannot fail.
            let _ = memory.free(global.address);
        }
    }

    /// The kernel of that name.
    #[must_use]
    pub fn kernel(&self, name: &str) -> Option<&Arc<Kernel>> {
        self.kernels.get(name)
    }

    /// The variable of that name.
    #[must_use]
    pub fn global(&self, name: &str) -> Option<Global> {
        self.globals.get(name).copied()
    }
}

/// A kernel's instructions, device functions inlined, and the registers that they use.
#[derive(Default)]
pub(crate) struct Code {
    pub(crate) instructions: Vec<Instruction>,
    /// For each instruction, the registers that it shares with some wgmma of the kernel; empty
    /// without wgmma.
    pub(crate) touched: Vec<Touched>,
    /// For each instruction, its source: file number and line.
    pub(crate) lines: Vec<(u32, u32)>,
    pub(crate) files: HashMap<u32, String>,
    /// The registers of a warp at its start: zeros and constants.
    pub(crate) registers: Registers,
    pub(crate) specials: Vec<(Special, Index)>,
    /// Parameter values that are loaded before the kernel starts: offset, size, register.
    pub(crate) parameters: Vec<(u32, Width, Index)>,
}

/// Registers that an instruction shares with some wgmma of the kernel.
#[derive(Clone, Debug, Default)]
pub(crate) struct Touched {
    pub(crate) registers: Box<[Index]>,
    /// Whether it is a `mov`: the compiler places those as it likes (initial values of accumulators
    /// end up behind `wgmma.fence`), and ptxas makes them anew.
    pub(crate) is_move: bool,
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Code({} instructions)", self.instructions.len())
    }
}

impl Code {
    /// The source of an instruction: `file:line`, or the line of the PTX.
    pub(crate) fn location(&self, at: u32) -> String {
        match self.lines.get(at as usize) {
            Some((file, line)) => match self.files.get(file) {
                Some(name) => format!("{name}:{line}"),
                None => format!("line {line} of the PTX"),
            },
            None => "an unknown line".into(),
        }
    }
}

/// One instruction, decoded.
pub(crate) struct Instruction {
    /// Predicate register and negation; `None` runs always.
    pub(crate) guard: Option<(Index, bool)>,
    pub(crate) op: Op,
}

/// What an instruction does.
pub(crate) enum Op {
    /// Registers alone.
    Compute(Action),
    /// Registers alone, across the lanes named by the member mask.
    Collective {
        members: Index,
        action: Action,
    },
    Jump(u32),
    /// A jump table: `brx.idx`.
    Switch {
        index: Index,
        targets: Vec<u32>,
    },
    Exit,
    /// `trap`, or a failed `assert`.
    Trap(Kind),
    Load(Load),
    Store(Store),
    Atomic(Atomic),
    /// `bar` and `barrier`.
    Barrier(Barrier),
    /// `bar.warp.sync`.
    WarpBarrier {
        members: Index,
    },
    /// `barrier.cluster`.
    ClusterBarrier {
        arrive: bool,
        wait: bool,
    },
    Fence(Fence),
    /// A clock read: 64 bits or 32.
    Clock {
        d: Index,
        width: Width,
    },
    /// `isspacep`, `mapa`, `getctarank`: what needs to know the block.
    Locate(Locate),
    /// `nanosleep` and the like: other warps first.
    Yield,
    /// A tensor-core instruction on registers alone: multiply-adds, and what it does.
    Matrix {
        operations: u64,
        action: Action,
    },
    /// `ldmatrix`: one register a matrix.
    LoadMatrix {
        address: Address,
        space: Space,
        transpose: bool,
        d: Vec<Index>,
    },
    /// `stmatrix`.
    StoreMatrix {
        address: Address,
        space: Space,
        transpose: bool,
        sources: Vec<Index>,
    },
    /// `cp.async`.
    Copy(AsyncCopy),
    /// `cp.async.commit_group`.
    CommitGroup,
    /// `cp.async.wait_group`; `None` waits for everything.
    WaitGroup(Option<u32>),
    /// mbarriers, bulk copies, wgmma.
    Asynchronous(Box<asynchronous::Asynchronous>),
}

impl Op {
    /// Whether all 32 lanes of the warp execute it together (`.sync.aligned`, beside barriers, which
    /// lanes that have ended are not part of).
    #[inline(always)]
    pub(crate) fn is_aligned(&self) -> bool {
        match self {
            Self::Matrix { .. } | Self::LoadMatrix { .. } | Self::StoreMatrix { .. } => true,
            Self::Asynchronous(operation) => operation.is_aligned(),
            _ => false,
        }
    }
}

/// The file that a register lies in, and how many of its bytes count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Width {
    B8,
    B16,
    B32,
    B64,
}

impl Width {
    pub(crate) const fn bytes(self) -> usize {
        match self {
            Self::B8 => 1,
            Self::B16 => 2,
            Self::B32 => 4,
            Self::B64 => 8,
        }
    }
}

/// A state space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    Generic,
    Global,
    Const,
    Shared,
    Local,
    Param,
}

/// An address operand: a register of 32 or 64 bits, and an offset.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Address {
    pub(crate) base: Index,
    pub(crate) is_wide: bool,
    pub(crate) offset: i64,
}

/// How an access orders and may race.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Strength {
    /// `volatile`, `relaxed` and stronger: may run beside other strong accesses.
    pub(crate) strong: bool,
    pub(crate) acquire: bool,
    pub(crate) release: bool,
    pub(crate) scope: Scope,
}

impl Strength {
    /// The scope of an access that is strong.
    pub(crate) fn scope_if_strong(self) -> Option<Scope> {
        self.strong.then_some(self.scope)
    }
}

/// How far a fence or atomic reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    Block,
    Device,
}

/// `ld`: `count` elements into consecutive entries of `d`.
pub(crate) struct Load {
    pub(crate) space: Space,
    pub(crate) address: Address,
    /// Size of one element in memory.
    pub(crate) element: Width,
    pub(crate) signed: bool,
    /// Destination registers and the width that each is extended to.
    pub(crate) d: Vec<(Index, Width)>,
    pub(crate) strength: Strength,
}

/// `st`.
pub(crate) struct Store {
    pub(crate) space: Space,
    pub(crate) address: Address,
    pub(crate) element: Width,
    /// Source registers; wide if the register has 64 bits.
    pub(crate) sources: Vec<(Index, bool)>,
    pub(crate) strength: Strength,
}

/// `atom` and `red`.
pub(crate) struct Atomic {
    pub(crate) space: Space,
    pub(crate) address: Address,
    pub(crate) width: Width,
    pub(crate) d: Option<Index>,
    pub(crate) b: Index,
    /// The third operand of `cas`.
    pub(crate) c: Index,
    /// The new value from the old one and the operands.
    pub(crate) f: Box<dyn Fn(u64, u64, u64) -> u64 + Send + Sync>,
    /// Whether subnormal f32 operands and results count as zero, which they do not in shared memory.
    pub(crate) flushes: bool,
    pub(crate) strength: Strength,
}

/// `cp.async`: global to shared.
pub(crate) struct AsyncCopy {
    pub(crate) to: Address,
    pub(crate) from: Address,
    pub(crate) bytes: u32,
    /// How many bytes are read; the rest is zeros.
    pub(crate) source_bytes: Option<Index>,
    /// A predicate (and its negation) that makes the copy write zeros only.
    pub(crate) ignore: Option<(Index, bool)>,
}

/// `bar` and `barrier`.
pub(crate) struct Barrier {
    pub(crate) id: Index,
    /// Number of threads; `None`: all of the block.
    pub(crate) count: Option<Index>,
    pub(crate) aligned: bool,
    pub(crate) kind: BarrierKind,
}

/// What a barrier does beyond counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BarrierKind {
    Sync,
    Arrive,
    /// `bar.red`: the votes' register and negation, and where the result goes.
    And {
        p: Index,
        negated: bool,
        d: Index,
    },
    Or {
        p: Index,
        negated: bool,
        d: Index,
    },
    Count {
        p: Index,
        negated: bool,
        d: Index,
    },
}

/// `fence`, `membar`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fence {
    Memory(Scope),
    /// `fence.proxy.async`.
    Proxy,
    /// Fences that order nothing the interpreter reorders.
    None,
}

/// Instructions about where an address lies.
pub(crate) enum Locate {
    /// `isspacep`: predicate, address, state space; whether windows of other blocks count.
    InSpace {
        p: Index,
        a: Index,
        space: Space,
        cluster: bool,
    },
    /// `mapa`.
    Map {
        d: Index,
        a: Index,
        rank: Index,
        is_wide: bool,
        is_generic: bool,
    },
    /// `getctarank`.
    Rank { d: Index, a: Index, is_wide: bool },
}

/// Registers that hold a thread's or block's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Special {
    Thread(usize),
    BlockSize(usize),
    Block(usize),
    Grid(usize),
    Lane,
    Warp,
    Warps,
    LaneMask(Ordering),
    Multiprocessor,
    Multiprocessors,
    DynamicShared,
    TotalShared,
    ClusterId(usize),
    Clusters(usize),
    BlockInCluster(usize),
    BlocksInCluster(usize),
    ClusterRank,
    ClusterBlocks,
    Environment(u32),
    GridId,
}

/// The relation of a lane mask register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Ordering {
    Eq,
    Lt,
    Le,
    Gt,
    Ge,
}

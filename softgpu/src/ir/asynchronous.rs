//! Decoded instructions of mbarriers, bulk copies and wgmma.

use std::sync::Arc;

use super::{Address, Space};
use crate::registers::Index;
use crate::tensor::wgmma::Wgmma;

/// An address that must lie in shared memory: an offset there, or a generic address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pointer {
    pub(crate) address: Address,
    pub(crate) space: Space,
}

/// An instruction of an asynchronous engine, or of the barriers that engines complete.
pub(crate) enum Asynchronous {
    /// `mbarrier.init`.
    Init { barrier: Pointer, count: Index },
    /// `mbarrier.inval`.
    Invalidate { barrier: Pointer },
    /// `mbarrier.arrive`, `.arrive_drop`, `.expect_tx`, `.complete_tx`.
    Arrive(Arrive),
    /// `mbarrier.test_wait`, `.try_wait`: register of the state, or of the parity.
    Test {
        d: Index,
        barrier: Pointer,
        phase: Phase,
        acquire: bool,
    },
    /// `mbarrier.pending_count`.
    PendingCount { d: Index, state: Index },
    /// `cp.async.mbarrier.arrive`.
    ArriveOnCopies { barrier: Pointer, noinc: bool },
    /// Bulk copies that complete on an mbarrier.
    BulkLoad {
        source: BulkSource,
        to: Pointer,
        barrier: Pointer,
        multicast: Option<Index>,
    },
    /// Bulk copies that complete by groups.
    BulkStore { target: BulkTarget, from: Pointer },
    /// `cp.async.bulk.commit_group`.
    CommitBulk,
    /// `cp.async.bulk.wait_group`, with `.read`.
    WaitBulk { groups: u32, read: bool },
    /// `wgmma.mma_async`.
    Wgmma(WarpgroupMatrix),
    /// `wgmma.fence`.
    WgmmaFence,
    /// `wgmma.commit_group`.
    WgmmaCommit,
    /// `wgmma.wait_group`.
    WgmmaWait(u32),
}

impl Asynchronous {
    /// Whether all lanes of the warp execute it together (`.sync.aligned`).
    pub(crate) const fn is_aligned(&self) -> bool {
        matches!(
            self,
            Self::Wgmma(_) | Self::WgmmaFence | Self::WgmmaCommit | Self::WgmmaWait(_)
        )
    }
}

/// An operation on the counts of an mbarrier.
pub(crate) struct Arrive {
    pub(crate) barrier: Pointer,
    /// Where the state of the phase goes.
    pub(crate) d: Option<Index>,
    /// How many arrivals; `None` for `expect_tx` and `complete_tx` alone.
    pub(crate) count: Option<Index>,
    /// Bytes that are expected, before the arrival.
    pub(crate) expect: Option<Index>,
    /// Bytes that are completed.
    pub(crate) complete: Option<Index>,
    /// `arrive_drop`.
    pub(crate) drop: bool,
    /// Whether it releases what came before (`.relaxed` does not).
    pub(crate) release: bool,
}

/// Which phase a thread waits for.
pub(crate) enum Phase {
    State(Index),
    Parity(Index),
}

/// Where a bulk load reads.
pub(crate) enum BulkSource {
    /// Bytes of global memory.
    Global { from: Address, bytes: Index },
    /// Bytes of the own block's shared memory.
    Shared { from: Pointer, bytes: Index },
    /// A box of a tensor map.
    Tensor {
        map: Address,
        coordinates: Vec<Index>,
    },
}

/// Where a bulk store writes.
pub(crate) enum BulkTarget {
    Global {
        to: Address,
        bytes: Index,
    },
    Tensor {
        map: Address,
        coordinates: Vec<Index>,
    },
}

/// `wgmma.mma_async`.
pub(crate) struct WarpgroupMatrix {
    pub(crate) form: Wgmma,
    pub(crate) accumulators: Arc<[Index]>,
    /// The registers of A, or none and its descriptor.
    pub(crate) a_registers: Arc<[Index]>,
    pub(crate) a: Option<Index>,
    pub(crate) b: Index,
    /// scale-d: predicate and negation.
    pub(crate) keep: (Index, bool),
}

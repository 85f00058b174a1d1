//! Chapter "Occupancy": how many blocks a multiprocessor holds.
//!
//! Counted from threads, blocks and shared memory. Registers, which ptxas alone knows, are left
//! out: a real device may hold fewer.

use std::ffi::{c_int, c_uint};

use super::abi::{In, Out, entry};
use super::context;
use super::device::{
    BLOCKS_PER_MULTIPROCESSOR, SHARED_RESERVED, THREADS_PER_MULTIPROCESSOR, limits,
};
use super::error::{CuError, CuResult};
use super::function::Function;
use super::launch::{Config, volume};
use super::{Handle, driver};

const WARP: u32 = 32;

/// Blocks of a kernel that a multiprocessor holds at once.
pub fn resident_blocks(function: &Function, threads: u32, dynamic_shared: u32) -> u32 {
    if threads == 0 || threads > function.max_threads() {
        return 0;
    }
    let by_threads = THREADS_PER_MULTIPROCESSOR / threads.next_multiple_of(WARP);
    let shared = function
        .kernel()
        .static_shared
        .saturating_add(dynamic_shared)
        .saturating_add(SHARED_RESERVED);
    let by_shared = limits().shared_per_multiprocessor / shared;
    by_threads.min(by_shared).min(BLOCKS_PER_MULTIPROCESSOR)
}

fn function(handle: Handle) -> CuResult<std::sync::Arc<Function>> {
    context::current()?;
    driver().functions.get(handle)
}

fn positive(value: c_int) -> CuResult<u32> {
    u32::try_from(value)
        .ok()
        .filter(|value| *value > 0)
        .ok_or(CuError::INVALID_VALUE)
}

fn active_blocks(out: &Out<c_int>, handle: Handle, threads: c_int, shared: usize) -> CuResult {
    let function = function(handle)?;
    let shared = u32::try_from(shared).map_err(|_| CuError::INVALID_VALUE)?;
    out.put(resident_blocks(&function, positive(threads)?, shared) as c_int)
}

/// How `cuOccupancyMaxPotentialBlockSize` learns the shared memory of a block size.
type SharedOfBlock = Option<unsafe extern "C" fn(c_int) -> usize>;

fn best_block(
    grid: &Out<c_int>,
    block: &Out<c_int>,
    handle: Handle,
    shared_of: SharedOfBlock,
    shared: usize,
    limit: c_int,
) -> CuResult {
    let function = function(handle)?;
    let most = function.max_threads();
    let limit = if limit == 0 {
        most
    } else {
        positive(limit)?.min(most)
    };
    let mut best = (0, 0, 0);
    for threads in (1..=limit)
        .rev()
        .filter(|t| t.is_multiple_of(WARP) || *t == limit)
    {
        let shared = match shared_of {
            // SAFETY: the caller vouches for the function it passes.
            Some(shared_of) => unsafe { shared_of(threads as c_int) },
            None => shared,
        };
        let shared = u32::try_from(shared).map_err(|_| CuError::INVALID_VALUE)?;
        let blocks = resident_blocks(&function, threads, shared);
        if blocks * threads > best.0 {
            best = (blocks * threads, threads, blocks);
        }
    }
    let (_, threads, blocks) = best;
    grid.put((blocks * limits().multiprocessors) as c_int)?;
    block.put(threads as c_int)
}

/// Multiprocessors that a cluster can be spread over: a processing cluster of an H100.
const MULTIPROCESSORS_A_CLUSTER: u32 = 16;

fn active_clusters(out: &Out<c_int>, handle: Handle, config: &In<Config>) -> CuResult {
    let function = function(handle)?;
    let shape = config.read()?.shape()?;
    let cluster = match shape.cluster {
        Some(cluster) => cluster,
        None => function.required_cluster().unwrap_or([1, 1, 1]),
    };
    let blocks = volume(cluster);
    if blocks == 0 || blocks > u64::from(function.max_cluster()) {
        return Err(CuError::INVALID_CLUSTER_SIZE);
    }
    let threads = u32::try_from(volume(shape.block)).unwrap_or(u32::MAX);
    let held = resident_blocks(&function, threads, shape.dynamic_shared);
    let groups = limits().multiprocessors / MULTIPROCESSORS_A_CLUSTER;
    let in_a_group = u64::from(held * MULTIPROCESSORS_A_CLUSTER) / blocks;
    out.put((in_a_group as u32 * groups) as c_int)
}

entry! {
    /// Blocks that a multiprocessor holds.
    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
        out: Out<c_int>,
        function: Handle,
        threads: c_int,
        dynamic_shared: usize,
    ) {
        active_blocks(&out, function, threads, dynamic_shared)
    }

    /// The same; the flag concerns caches.
    fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
        out: Out<c_int>,
        function: Handle,
        threads: c_int,
        dynamic_shared: usize,
        _flags: c_uint,
    ) {
        active_blocks(&out, function, threads, dynamic_shared)
    }

    /// The block size with the most threads resident.
    fn cuOccupancyMaxPotentialBlockSize(
        grid: Out<c_int>,
        block: Out<c_int>,
        function: Handle,
        shared_of: SharedOfBlock,
        shared: usize,
        limit: c_int,
    ) {
        best_block(&grid, &block, function, shared_of, shared, limit)
    }

    /// The same; the flag concerns caches.
    fn cuOccupancyMaxPotentialBlockSizeWithFlags(
        grid: Out<c_int>,
        block: Out<c_int>,
        function: Handle,
        shared_of: SharedOfBlock,
        shared: usize,
        limit: c_int,
        _flags: c_uint,
    ) {
        best_block(&grid, &block, function, shared_of, shared, limit)
    }

    /// The dynamic shared memory that leaves room for so many blocks.
    fn cuOccupancyAvailableDynamicSMemPerBlock(
        out: Out<usize>,
        handle: Handle,
        blocks: c_int,
        threads: c_int,
    ) {
        let function = function(handle)?;
        positive(threads)?;
        let limits = limits();
        let each = limits.shared_per_multiprocessor / positive(blocks)?;
        let each = each.saturating_sub(SHARED_RESERVED).min(limits.shared_per_block_optin);
        out.put(each.saturating_sub(function.kernel().static_shared) as usize)
    }

    /// Clusters that the device holds.
    fn cuOccupancyMaxActiveClusters(out: Out<c_int>, function: Handle, config: In<Config>) {
        active_clusters(&out, function, &config)
    }

    /// The most blocks of a cluster.
    fn cuOccupancyMaxPotentialClusterSize(out: Out<c_int>, handle: Handle, config: In<Config>) {
        let function = function(handle)?;
        config.read()?;
        out.put(function.max_cluster() as c_int)
    }
}

//! Where the state spaces lie in generic addresses.

use crate::ir::Space;

/// Shared memory: the own block's offsets, and those of other blocks of the cluster above them.
pub(crate) const SHARED: u64 = 0x2000_0000_0000;
/// A thread's local memory.
pub(crate) const LOCAL: u64 = 0x3000_0000_0000;
/// A kernel's parameters.
pub(crate) const PARAMETERS: u64 = 0x4000_0000_0000;
/// The size of each window.
pub(crate) const SIZE: u64 = 1 << 32;

/// The bits of an address in shared memory that are the offset; above them lies the rank of the
/// block in its cluster plus one, or 0 for the own block.
pub(crate) const RANK_SHIFT: u32 = 24;

/// What to add to an address of a space to make it generic.
pub(crate) const fn window(space: Space) -> u64 {
    match space {
        Space::Shared => SHARED,
        Space::Local => LOCAL,
        Space::Param => PARAMETERS,
        Space::Generic | Space::Global | Space::Const => 0,
    }
}

/// The space that a generic address lies in, and the address in it.
#[inline(always)]
pub(crate) const fn resolve(address: u64) -> (Space, u64) {
    if address.wrapping_sub(SHARED) < SIZE {
        (Space::Shared, address - SHARED)
    } else if address.wrapping_sub(LOCAL) < SIZE {
        (Space::Local, address - LOCAL)
    } else if address.wrapping_sub(PARAMETERS) < SIZE {
        (Space::Param, address - PARAMETERS)
    } else {
        (Space::Global, address)
    }
}

/// The rank (`None`: the own block) and offset of an address in shared memory.
#[inline(always)]
pub(crate) const fn shared(address: u64) -> (Option<u32>, u32) {
    let offset = address as u32 & ((1 << RANK_SHIFT) - 1);
    match (address as u32 >> RANK_SHIFT).checked_sub(1) {
        Some(rank) => (Some(rank), offset),
        None => (None, offset),
    }
}

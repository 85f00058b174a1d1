//! Asynchronous copies: what moves, when it lands, and who may touch it meanwhile.
//!
//! A copy is a list of [`Piece`]s. [`Engine`] keeps the copies of one block (or of the blocks of
//! one cluster) that were issued and not waited for, lands them early, late or at random as the
//! schedule says, and knows for every word of shared memory whether a copy in flight owns it.
//! It touches memory only through a [`Fabric`], the executor's checked accesses.
//! [`tile`] cuts the box of a tensor map into pieces.

mod engine;
mod groups;
pub mod tile;
mod watch;

pub use engine::Engine;
pub use groups::Groups;
pub use watch::{Use, Watch};

use crate::fault::Fault;

/// Which memory an address lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    /// Device memory.
    Global,
    /// The shared memory of the block with this rank in its cluster (0 without clusters).
    Shared(u32),
}

/// An address: in device memory, or an offset in a block's shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Location {
    /// The memory.
    pub space: Space,
    /// The address or offset.
    pub address: u64,
}

impl Location {
    /// An address of device memory.
    #[must_use]
    pub const fn global(address: u64) -> Self {
        Self {
            space: Space::Global,
            address,
        }
    }

    /// An offset in the shared memory of the block of this rank.
    #[must_use]
    pub const fn shared(rank: u32, offset: u32) -> Self {
        Self {
            space: Space::Shared(rank),
            address: offset as u64,
        }
    }

    /// The same offset in the shared memory of another block of the cluster.
    #[must_use]
    pub const fn in_block(self, rank: u32) -> Self {
        Self {
            space: Space::Shared(rank),
            address: self.address,
        }
    }

    /// The location `bytes` further on.
    #[must_use]
    pub const fn plus(self, bytes: u64) -> Self {
        Self {
            space: self.space,
            address: self.address.wrapping_add(bytes),
        }
    }
}

/// Bytes that a copy writes without reading any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fill {
    /// Zero bytes.
    #[default]
    Zeros,
    /// A NaN of this pattern, repeated: `(bits, bytes of an element)`.
    Nans(u64, u32),
}

/// One contiguous part of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where the bytes come from; `None` fills.
    pub from: Option<Location>,
    /// Where they go.
    pub to: Location,
    /// How many bytes are written: at most 256.
    pub bytes: u32,
    /// How many of them are read; the rest, at the end, is filled.
    pub read: u32,
    /// With what.
    pub fill: Fill,
}

impl Piece {
    /// The largest piece: longer copies are several.
    pub const MOST: u32 = 256;

    /// A plain copy of at most [`Piece::MOST`] bytes.
    #[must_use]
    pub const fn plain(from: Location, to: Location, bytes: u32) -> Self {
        Self {
            from: Some(from),
            to,
            bytes,
            read: bytes,
            fill: Fill::Zeros,
        }
    }

    /// `cp.async` of `bytes` with a source size: what lies beyond it is written as zeros.
    #[must_use]
    pub const fn zero_filled(from: Location, to: Location, bytes: u32, source: u32) -> Self {
        let read = if source < bytes { source } else { bytes };
        Self {
            from: Some(from),
            to,
            bytes,
            read,
            fill: Fill::Zeros,
        }
    }

    /// Pieces that together copy `bytes` bytes.
    pub fn split(from: Location, to: Location, bytes: u32) -> impl Iterator<Item = Self> {
        (0..bytes).step_by(Self::MOST as usize).map(move |offset| {
            let part = Self::MOST.min(bytes - offset);
            Self::plain(from.plus(offset.into()), to.plus(offset.into()), part)
        })
    }
}

/// Who issued a copy, and where: carried for the reports, and for the clocks of race detection.
///
/// The executor makes one value for each issued instruction and lane.
pub trait Origin: Clone + std::fmt::Debug {}

impl<T: Clone + std::fmt::Debug> Origin for T {}

/// The executor's memory, with its checks, as copy engines see it.
pub trait Fabric<O: Origin> {
    /// Reads on behalf of an engine.
    ///
    /// # Errors
    /// Whatever the executor's checks find.
    fn read(&mut self, from: Location, bytes: &mut [u8], origin: &O) -> Result<(), Fault>;

    /// Writes on behalf of an engine.
    ///
    /// # Errors
    /// Whatever the executor's checks find.
    fn write(&mut self, to: Location, bytes: &[u8], origin: &O) -> Result<(), Fault>;

    /// `complete_tx` of `bytes` bytes on the mbarrier at `barrier`.
    ///
    /// # Errors
    /// If there is no mbarrier.
    fn complete(&mut self, barrier: Location, bytes: u32, origin: &O) -> Result<(), Fault>;

    /// The increment of the pending count by `cp.async.mbarrier.arrive` without `.noinc`.
    ///
    /// # Errors
    /// If there is no mbarrier.
    fn expect_arrival(&mut self, barrier: Location, origin: &O) -> Result<(), Fault>;

    /// The arrival that `cp.async.mbarrier.arrive` asked for.
    ///
    /// # Errors
    /// If there is no mbarrier.
    fn arrive(&mut self, barrier: Location, origin: &O) -> Result<(), Fault>;

    /// The fault for a copy that uses shared memory which an earlier copy still uses.
    fn conflict(&self, at: Location, earlier: (&O, Use), later: (&O, Use)) -> Fault;
}

/// Moves one piece; to the same offset of the blocks `multicast` if there are any.
fn move_piece<O: Origin>(
    piece: &Piece,
    multicast: &[u32],
    origin: &O,
    fabric: &mut dyn Fabric<O>,
) -> Result<(), Fault> {
    let mut buffer = [0; Piece::MOST as usize];
    let bytes = piece.bytes.min(Piece::MOST) as usize;
    let read = match piece.from {
        Some(from) if piece.read > 0 => {
            let read = (piece.read as usize).min(bytes);
            fabric.read(from, &mut buffer[..read], origin)?;
            read
        }
        _ => 0,
    };
    if let Fill::Nans(bits, size) = piece.fill {
        let pattern = bits.to_le_bytes();
        for (i, byte) in buffer[read..bytes].iter_mut().enumerate() {
            *byte = pattern[i % (size.clamp(1, 8) as usize)];
        }
    }
    if multicast.is_empty() {
        return fabric.write(piece.to, &buffer[..bytes], origin);
    }
    multicast
        .iter()
        .try_for_each(|&rank| fabric.write(piece.to.in_block(rank), &buffer[..bytes], origin))
}

#[cfg(test)]
pub(crate) mod fake;

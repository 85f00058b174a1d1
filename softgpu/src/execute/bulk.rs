//! Bulk copies: issued by a thread, moved by the copy engine of the cluster.

use std::rc::Rc;

use super::landing::{Landing, Target, addresses};
use super::race::Access;
use super::{Machine, Origin, Result, lanes};
use crate::clock::{Clock, Knowledge, View, teach};
use crate::copy::{Location, Piece, Space as CopySpace, tile};
use crate::fault::{Fault, Kind};
use crate::ir::asynchronous::{BulkSource, BulkTarget, Pointer};
use crate::ir::{Address, Space};
use crate::tensor_map::{self, TensorMap};
use crate::warp::Warp;

impl Machine<'_> {
    /// A location in the shared memory of the cluster.
    fn shared_location(
        &self,
        warp: &Warp,
        pointer: Pointer,
        lane: usize,
        pc: u32,
    ) -> Result<Location> {
        let address = addresses(&warp.registers, pointer.address)[lane];
        let (block, offset) = self.shared_place(warp, pointer, address, lane, pc)?;
        Ok(Location::shared(self.blocks[block].rank, offset))
    }

    /// `cp.async.bulk` to shared memory.
    pub(super) fn bulk_load(
        &mut self,
        warp: &mut Warp,
        source: &BulkSource,
        (to, barrier, multicast): (Pointer, Pointer, Option<u32>),
        mask: u32,
        pc: u32,
    ) -> Result<()> {
        for lane in lanes(mask) {
            let to = self.shared_location(warp, to, lane, pc)?;
            let barrier = self.shared_location(warp, barrier, lane, pc)?;
            let pieces = match source {
                BulkSource::Global { from, bytes } => {
                    let from = addresses(&warp.registers, *from)[lane];
                    let bytes = warp.registers.row::<u32>(*bytes)[lane];
                    self.line(warp, Location::global(from), to, bytes, lane, pc)?
                }
                BulkSource::Shared { from, bytes } => {
                    let from = self.shared_location(warp, *from, lane, pc)?;
                    let bytes = warp.registers.row::<u32>(*bytes)[lane];
                    self.line(warp, from, to, bytes, lane, pc)?
                }
                BulkSource::Tensor { map, coordinates } => {
                    let (map, at) = self.tensor_map(warp, *map, coordinates, lane, pc)?;
                    tile::load(&map, &at, to)
                        .map_err(|fault| fault.at(self.site(warp, lane as u32, pc, "copies")))?
                }
            };
            let ranks: Vec<u32> = match multicast {
                Some(register) => {
                    let ranks = warp.registers.row::<u32>(register)[lane] & 0xffff;
                    let ranks: Vec<u32> = lanes(ranks).map(|rank| rank as u32).collect();
                    if ranks.is_empty() || ranks.iter().any(|r| *r >= self.blocks_in_cluster) {
                        let what = format!("a multicast to the blocks {ranks:?} of the cluster");
                        let site = self.site(warp, lane as u32, pc, "copies");
                        return Err(Fault::new(Kind::OutOfBounds, what).at(site));
                    }
                    ranks
                }
                None => Vec::new(),
            };
            let origin = Origin {
                actor: Some(Self::load_lane(barrier.address)),
                ..Self::origin(warp, lane, pc)
            };
            self.check_pieces(warp, &pieces, &ranks, &origin, (lane, pc))?;
            self.with_engine(warp.block, |machine, engine| {
                engine.load(pieces, ranks, barrier, origin, machine)
            })?;
        }
        Ok(())
    }

    /// `cp.async.bulk` to global memory.
    pub(super) fn bulk_store(
        &mut self,
        warp: &mut Warp,
        target: &BulkTarget,
        from: Pointer,
        mask: u32,
        pc: u32,
    ) -> Result<()> {
        for lane in lanes(mask) {
            let from = self.shared_location(warp, from, lane, pc)?;
            let pieces = match target {
                BulkTarget::Global { to, bytes } => {
                    let to = addresses(&warp.registers, *to)[lane];
                    let bytes = warp.registers.row::<u32>(*bytes)[lane];
                    self.line(warp, from, Location::global(to), bytes, lane, pc)?
                }
                BulkTarget::Tensor { map, coordinates } => {
                    let (map, at) = self.tensor_map(warp, *map, coordinates, lane, pc)?;
                    tile::store(&map, &at, from)
                        .map_err(|fault| fault.at(self.site(warp, lane as u32, pc, "copies")))?
                }
            };
            let origin = Origin {
                actor: Some(Self::store_lane(warp)),
                ..Self::origin(warp, lane, pc)
            };
            self.check_pieces(warp, &pieces, &[], &origin, (lane, pc))?;
            let thread = self.thread_number(warp, lane);
            self.with_engine(warp.block, |machine, engine| {
                engine.store(thread, pieces, origin, machine)
            })?;
        }
        Ok(())
    }

    /// The pieces of a copy without a tensor map: addresses and size are multiples of 16.
    fn line(
        &self,
        warp: &Warp,
        from: Location,
        to: Location,
        bytes: u32,
        lane: usize,
        pc: u32,
    ) -> Result<Vec<Piece>> {
        if self.flags.alignment {
            let all = from.address | to.address | u64::from(bytes);
            if !all.is_multiple_of(16) {
                let what = format!(
                    "a bulk copy of {bytes} bytes from {:#x} to {:#x}: multiples of 16 are needed",
                    from.address, to.address
                );
                let site = self.site(warp, lane as u32, pc, "copies");
                return Err(Fault::new(Kind::Misaligned, what).at(site));
            }
        }
        Ok(Piece::split(from, to, bytes).collect())
    }

    /// Reads a tensor map and the coordinates of a box.
    fn tensor_map(
        &mut self,
        warp: &mut Warp,
        map: Address,
        coordinates: &[u32],
        lane: usize,
        pc: u32,
    ) -> Result<(TensorMap, Vec<i32>)> {
        let at = addresses(&warp.registers, map);
        let mut bytes = [0; tensor_map::BYTES];
        self.read_map(warp, &at, lane, &mut bytes, pc)?;
        let map = TensorMap::decode(&bytes).ok_or_else(|| {
            let what = format!("no tensor map lies at {:#x}", at[lane]);
            let site = self.site(warp, lane as u32, pc, "copies through it");
            Fault::new(Kind::InvalidValue, what).at(site)
        })?;
        let coordinate = |index: &u32| warp.registers.row::<u32>(*index)[lane] as i32;
        Ok((map, coordinates.iter().map(coordinate).collect()))
    }

    fn read_map(
        &mut self,
        warp: &mut Warp,
        at: &[u64; 32],
        lane: usize,
        bytes: &mut [u8; tensor_map::BYTES],
        pc: u32,
    ) -> Result<()> {
        let (space, offset) = crate::space::resolve(at[lane]);
        if space == Space::Param {
            let from = offset as usize;
            let found = from
                .checked_add(bytes.len())
                .and_then(|end| self.parameters.get(from..end));
            if let Some(found) = found {
                bytes.copy_from_slice(found);
            }
            return Ok(());
        }
        for (number, chunk) in bytes.chunks_exact_mut(16).enumerate() {
            let at = at.map(|at| at + 16 * number as u64);
            self.read_row(warp, Space::Generic, &at, lane, chunk, pc)?;
        }
        Ok(())
    }

    /// The checks of ordinary accesses by the issuing thread, at the moment of issue. From then
    /// on the targets count as written by the engine.
    fn check_pieces(
        &mut self,
        warp: &mut Warp,
        pieces: &[Piece],
        multicast: &[u32],
        origin: &Origin,
        (lane, pc): (usize, u32),
    ) -> Result<()> {
        let read = Access::READ;
        let write = Access::WRITE;
        let mut uses = Vec::new();
        for piece in pieces {
            uses.extend(piece.from.map(|from| (from, piece.read, read)));
            if multicast.is_empty() {
                uses.push((piece.to, piece.bytes, write));
            }
            uses.extend(
                multicast
                    .iter()
                    .map(|rank| (piece.to.in_block(*rank), piece.bytes, write)),
            );
        }
        uses.retain(|(_, bytes, _)| *bytes > 0);
        // Pieces may share words: each pass looks at what was there before the copy.
        for (at, bytes, _) in &uses {
            let landing = self.landing_of(warp, *at, lane);
            self.check_proxy(warp, landing, lane, (at.address, *bytes), pc)?;
        }
        for (at, bytes, access) in &uses {
            let landing = self.landing_of(warp, *at, lane);
            self.touch(warp, landing, lane, (at.address, *bytes), *access, pc)?;
        }
        for (at, bytes, _) in uses.iter().filter(|(_, _, access)| *access == write) {
            let landing = self.landing_of(warp, *at, lane);
            let writer = self.writer(*at, origin);
            self.claim(warp, landing, (at.address, *bytes), writer, pc);
        }
        Ok(())
    }

    fn landing_of(&mut self, warp: &Warp, at: Location, lane: usize) -> Landing {
        match at.space {
            CopySpace::Shared(rank) => {
                let block = self.blocks[warp.block].cluster + rank as usize;
                Landing {
                    target: Target::Shared(block),
                    base: 0,
                    mask: 1 << lane,
                }
            }
            CopySpace::Global => self.landing(warp, Space::Global, &[at.address; 32], 1 << lane),
        }
    }

    /// The thread that counts as the writer of what a copy writes: a lane of the pseudo-warp of
    /// the block whose shared memory it is, or that stores; the issuing thread for `cp.async`.
    pub(super) fn writer(&self, to: Location, origin: &Origin) -> u32 {
        let Some(lane) = origin.actor else {
            return origin.thread;
        };
        let block = match to.space {
            CopySpace::Shared(rank) => self.block_of(rank, origin),
            CopySpace::Global => origin.block,
        };
        let warp = self.blocks[block].sequence * (self.warps + 1) + self.warps;
        warp << 5 | lane
    }

    /// The lane of a block's pseudo-warp that stands for the stores of a warp.
    const fn store_lane(warp: &Warp) -> u32 {
        16 + warp.index % 16
    }

    /// `cp.async.bulk.commit_group`.
    pub(super) fn commit_bulk(&mut self, warp: &Warp, mask: u32) {
        for lane in lanes(mask) {
            let thread = self.thread_number(warp, lane);
            let cluster = self.blocks[warp.block].cluster;
            self.engines[cluster].commit_stores(thread);
        }
    }

    /// `cp.async.bulk.wait_group`.
    pub(super) fn wait_bulk(
        &mut self,
        warp: &mut Warp,
        groups: u32,
        read: bool,
        mask: u32,
    ) -> Result<()> {
        for lane in lanes(mask) {
            let thread = self.thread_number(warp, lane);
            self.with_engine(warp.block, |machine, engine| {
                if read {
                    engine.wait_stores_read(thread, groups as usize, machine)
                } else {
                    engine.wait_stores(thread, groups as usize, machine)
                }
            })?;
        }
        if !read && (self.flags.shared_races || self.flags.global_races) {
            // What the stores wrote comes before what the thread does next.
            let thread = self.warps * 32 + Self::store_lane(warp);
            let view = View::of_thread(0, 0, thread, self.memory.now);
            let known = Knowledge {
                seen: Clock::of(view),
                ..Knowledge::default()
            };
            warp.informed = true;
            teach(&mut warp.known, mask, &Rc::new(known), self.threads());
            self.memory.advance();
        }
        Ok(())
    }

    /// A block has ended: no bulk copy may still use its shared memory.
    pub(super) fn check_left_copies(&self, block: usize) -> Result<()> {
        let here = &self.blocks[block];
        if !self.flags.copies {
            return Ok(());
        }
        let Some((origin, _)) = self.engines[here.cluster].left_by(here.rank) else {
            return Ok(());
        };
        let what = "the block ends while a bulk copy still uses its shared memory";
        let site = self.site_of(origin.thread, origin.at, "started the copy".into());
        Err(Fault::new(Kind::AsyncCopy, what).at(site))
    }
}

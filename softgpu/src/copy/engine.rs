//! The copies of a block or cluster that are in flight.

use super::{Fabric, Groups, Location, Origin, Piece, Space, Use, Watch, move_piece};
use crate::fault::Fault;
use crate::launch::Copies;
use crate::random;

/// A copy that was issued and whose end nobody has seen.
#[derive(Clone, Debug)]
struct Flight<O> {
    pieces: Pieces,
    multicast: Vec<u32>,
    /// The mbarriers to complete bytes on, and how many.
    barriers: Vec<(Location, u32)>,
    origin: O,
    landed: bool,
}

/// `cp.async` has one piece: it must not allocate.
#[derive(Clone, Debug)]
enum Pieces {
    One(Piece),
    Many(Vec<Piece>),
}

impl Pieces {
    fn as_slice(&self) -> &[Piece] {
        match self {
            Self::One(piece) => std::slice::from_ref(piece),
            Self::Many(pieces) => pieces,
        }
    }
}

impl<O> Flight<O> {
    /// Calls `f` with every range of shared memory that the copy uses: rank, offset, bytes, use.
    fn shared_ranges(&self, mut f: impl FnMut(u32, u64, u32, Use)) {
        for piece in self.pieces.as_slice() {
            if let Some(Location {
                space: Space::Shared(rank),
                address,
            }) = piece.from
            {
                f(rank, address, piece.read, Use::Source);
            }
            if let Space::Shared(rank) = piece.to.space {
                let one = [rank];
                let ranks = if self.multicast.is_empty() {
                    &one
                } else {
                    &self.multicast[..]
                };
                for &rank in ranks {
                    f(rank, piece.to.address, piece.bytes, Use::Target);
                }
            }
        }
    }
}

/// What a thread's `cp.async` queue holds.
#[derive(Clone, Debug)]
enum Entry<O> {
    Copy(usize),
    /// `cp.async.mbarrier.arrive`: arrives when everything before it has landed.
    Arrive(Location, O),
}

/// The copies in flight of one block, or of all blocks of one cluster.
///
/// Threads are numbered by the executor, across the cluster.
#[derive(Clone, Debug)]
pub struct Engine<O> {
    policy: Copies,
    random: u64,
    watch: Option<Watch>,
    flights: Vec<Option<Flight<O>>>,
    free: Vec<usize>,
    /// By thread, as are the stores.
    copies: Vec<Groups<Entry<O>>>,
    stores: Vec<Groups<usize>>,
    loads: Vec<usize>,
}

impl<O: Origin> Engine<O> {
    /// An engine with nothing in flight. `checked` says whether it watches over the memory that
    /// copies in flight use.
    #[must_use]
    pub fn new(policy: Copies, seed: u64, checked: bool) -> Self {
        Self {
            policy,
            random: seed ^ 0x9e37_79b9_7f4a_7c15,
            watch: checked.then(Watch::default),
            flights: Vec::new(),
            free: Vec::new(),
            copies: Vec::new(),
            stores: Vec::new(),
            loads: Vec::new(),
        }
    }

    /// Whether nothing is in flight.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.free.len() == self.flights.len()
    }

    /// The copy in flight that forbids an ordinary access to shared memory, and what it does there.
    #[must_use]
    pub fn owner(&self, rank: u32, offset: u64, bytes: u32, write: bool) -> Option<(&O, Use)> {
        let (number, by) = self.watch.as_ref()?.owner(rank, offset, bytes, write)?;
        Some((&self.flights.get(number as usize)?.as_ref()?.origin, by))
    }

    /// `cp.async`.
    ///
    /// # Errors
    /// Those of the fabric; a conflict with a copy in flight.
    pub fn copy(
        &mut self,
        thread: u32,
        piece: Piece,
        origin: O,
        fabric: &mut dyn Fabric<O>,
    ) -> Result<(), Fault> {
        let number = self.issue(Pieces::One(piece), Vec::new(), Vec::new(), origin, fabric)?;
        of(&mut self.copies, thread).issue(Entry::Copy(number));
        if self.early() {
            self.land(number, fabric)
        } else {
            Ok(())
        }
    }

    /// `cp.async.commit_group`.
    pub fn commit(&mut self, thread: u32) {
        of(&mut self.copies, thread).commit();
    }

    /// `cp.async.wait_group n`.
    ///
    /// # Errors
    /// Those of the fabric.
    pub fn wait(&mut self, thread: u32, n: usize, fabric: &mut dyn Fabric<O>) -> Result<(), Fault> {
        let Some(groups) = self.copies.get_mut(thread as usize) else {
            return Ok(());
        };
        let done = groups.wait(n);
        self.end_entries(done, fabric)
    }

    /// `cp.async.wait_all`; also what a thread's exit does.
    ///
    /// # Errors
    /// Those of the fabric.
    pub fn wait_all(&mut self, thread: u32, fabric: &mut dyn Fabric<O>) -> Result<(), Fault> {
        let Some(groups) = self.copies.get_mut(thread as usize) else {
            return Ok(());
        };
        let all = groups.take_all();
        self.end_entries(all, fabric)
    }

    /// `cp.async.mbarrier.arrive`.
    ///
    /// # Errors
    /// Those of the fabric.
    pub fn arrive_when_done(
        &mut self,
        thread: u32,
        barrier: Location,
        noinc: bool,
        origin: O,
        fabric: &mut dyn Fabric<O>,
    ) -> Result<(), Fault> {
        if !noinc {
            fabric.expect_arrival(barrier, &origin)?;
        }
        of(&mut self.copies, thread).issue(Entry::Arrive(barrier, origin));
        if self.early() {
            self.end_copies_before_arrival(thread, barrier, fabric)
        } else {
            Ok(())
        }
    }

    /// `cp.async.bulk` and `cp.async.bulk.tensor` that complete on an mbarrier, which lies at
    /// `barrier`; with `multicast`, at that offset in each of these blocks, to which the pieces go.
    ///
    /// # Errors
    /// Those of the fabric; a conflict with a copy in flight.
    pub fn load(
        &mut self,
        pieces: Vec<Piece>,
        multicast: Vec<u32>,
        barrier: Location,
        origin: O,
        fabric: &mut dyn Fabric<O>,
    ) -> Result<(), Fault> {
        let bytes = pieces.iter().map(|piece| piece.bytes).sum();
        let barriers = if multicast.is_empty() {
            vec![(barrier, bytes)]
        } else {
            multicast
                .iter()
                .map(|&rank| (barrier.in_block(rank), bytes))
                .collect()
        };
        let number = self.issue(Pieces::Many(pieces), multicast, barriers, origin, fabric)?;
        if self.early() {
            return self.end(number, fabric);
        }
        self.loads.push(number);
        Ok(())
    }

    /// `cp.async.bulk` and `cp.async.bulk.tensor` that complete by `.bulk_group`.
    ///
    /// # Errors
    /// Those of the fabric; a conflict with a copy in flight.
    pub fn store(
        &mut self,
        thread: u32,
        pieces: Vec<Piece>,
        origin: O,
        fabric: &mut dyn Fabric<O>,
    ) -> Result<(), Fault> {
        let number = self.issue(Pieces::Many(pieces), Vec::new(), Vec::new(), origin, fabric)?;
        of(&mut self.stores, thread).issue(number);
        if self.early() {
            self.land(number, fabric)
        } else {
            Ok(())
        }
    }

    /// `cp.async.bulk.commit_group`.
    pub fn commit_stores(&mut self, thread: u32) {
        of(&mut self.stores, thread).commit();
    }

    /// `cp.async.bulk.wait_group n`.
    ///
    /// # Errors
    /// Those of the fabric.
    pub fn wait_stores(
        &mut self,
        thread: u32,
        n: usize,
        fabric: &mut dyn Fabric<O>,
    ) -> Result<(), Fault> {
        let Some(groups) = self.stores.get_mut(thread as usize) else {
            return Ok(());
        };
        for number in groups.wait(n) {
            self.end(number, fabric)?;
        }
        Ok(())
    }

    /// `cp.async.bulk.wait_group.read n`: the sources may be written again.
    ///
    /// # Errors
    /// Those of the fabric.
    pub fn wait_stores_read(
        &mut self,
        thread: u32,
        n: usize,
        fabric: &mut dyn Fabric<O>,
    ) -> Result<(), Fault> {
        let Some(groups) = self.stores.get(thread as usize) else {
            return Ok(());
        };
        let numbers: Vec<usize> = groups.older(n).copied().collect();
        for number in numbers {
            self.land(number, fabric)?;
            self.release(number, |by| by == Use::Source);
        }
        Ok(())
    }

    /// A thread looks at an mbarrier whose phase is not complete: what completes there lands.
    /// Says whether anything did.
    ///
    /// # Errors
    /// Those of the fabric.
    pub fn poll(&mut self, barrier: Location, fabric: &mut dyn Fabric<O>) -> Result<bool, Fault> {
        let completes_here = |number: &usize| {
            let flight = self.flights[*number].as_ref();
            flight.is_some_and(|flight| flight.barriers.iter().any(|(at, _)| *at == barrier))
        };
        let (done, rest): (Vec<_>, Vec<_>) = self.loads.iter().partition(|n| completes_here(n));
        self.loads = rest;
        let mut moved = !done.is_empty();
        for number in done {
            self.end(number, fabric)?;
        }
        let arrives_here = |groups: &Groups<Entry<O>>| {
            groups
                .iter()
                .any(|entry| matches!(entry, Entry::Arrive(at, _) if *at == barrier))
        };
        let threads = 0..self.copies.len() as u32;
        let arriving: Vec<u32> = threads
            .filter(|&thread| arrives_here(&self.copies[thread as usize]))
            .collect();
        moved |= !arriving.is_empty();
        for thread in arriving {
            self.end_copies_before_arrival(thread, barrier, fabric)?;
        }
        Ok(moved)
    }

    /// Lands everything that completes on any mbarrier: for an executor in which every thread
    /// waits. Says whether anything did.
    ///
    /// # Errors
    /// Those of the fabric.
    pub fn poll_all(&mut self, fabric: &mut dyn Fabric<O>) -> Result<bool, Fault> {
        let flights = self
            .loads
            .iter()
            .filter_map(|&number| self.flights[number].as_ref());
        let mut barriers: Vec<Location> = flights
            .flat_map(|flight| flight.barriers.iter().map(|(at, _)| *at))
            .collect();
        for entry in self.copies.iter().flat_map(Groups::iter) {
            if let Entry::Arrive(at, _) = entry {
                barriers.push(*at);
            }
        }
        let mut moved = false;
        for barrier in barriers {
            moved |= self.poll(barrier, fabric)?;
        }
        Ok(moved)
    }

    /// A bulk copy that still uses the shared memory of a block which has ended.
    #[must_use]
    pub fn left_by(&self, rank: u32) -> Option<(&O, Use)> {
        let bulk = self
            .loads
            .iter()
            .chain(self.stores.iter().flat_map(Groups::iter));
        bulk.filter_map(|&number| self.flights[number].as_ref())
            .filter(|flight| !flight.landed)
            .find_map(|flight| {
                let mut found = None;
                flight.shared_ranges(|at, _, _, by| {
                    if at == rank {
                        found = Some((&flight.origin, by));
                    }
                });
                found
            })
    }

    /// The end of the grid or cluster: everything lands.
    ///
    /// # Errors
    /// Those of the fabric.
    pub fn finish(&mut self, fabric: &mut dyn Fabric<O>) -> Result<(), Fault> {
        for number in 0..self.flights.len() {
            if self.flights[number].is_some() {
                self.land(number, fabric)?;
                self.release(number, |_| true);
            }
        }
        self.flights.clear();
        self.free.clear();
        self.copies.clear();
        self.stores.clear();
        self.loads.clear();
        Ok(())
    }

    /// Whether the copy just issued lands at once.
    fn early(&mut self) -> bool {
        match self.policy {
            Copies::Early => true,
            Copies::Late => false,
            Copies::Random => random::flip(&mut self.random),
        }
    }

    fn issue(
        &mut self,
        pieces: Pieces,
        multicast: Vec<u32>,
        barriers: Vec<(Location, u32)>,
        origin: O,
        fabric: &dyn Fabric<O>,
    ) -> Result<usize, Fault> {
        let flight = Flight {
            pieces,
            multicast,
            barriers,
            origin,
            landed: false,
        };
        let number = self.free.pop().unwrap_or_else(|| {
            self.flights.push(None);
            self.flights.len() - 1
        });
        let mut conflict = None;
        if let Some(watch) = &mut self.watch {
            flight.shared_ranges(|rank, offset, bytes, by| {
                let earlier = watch.owner(rank, offset, bytes, by == Use::Target);
                // Pieces of one copy may touch the same word.
                if let Some((earlier, its)) = earlier.filter(|(n, _)| *n != number as u64) {
                    let at = Location {
                        space: Space::Shared(rank),
                        address: offset,
                    };
                    conflict.get_or_insert((at, earlier as usize, its, by));
                }
                watch.mark(rank, offset, bytes, number as u64, by);
            });
        }
        if let Some((at, earlier, its, by)) = conflict
            && let Some(earlier) = &self.flights[earlier]
        {
            return Err(fabric.conflict(at, (&earlier.origin, its), (&flight.origin, by)));
        }
        self.flights[number] = Some(flight);
        Ok(number)
    }

    /// Moves the bytes, once.
    fn land(&mut self, number: usize, fabric: &mut dyn Fabric<O>) -> Result<(), Fault> {
        let Some(flight) = &mut self.flights[number] else {
            return Ok(());
        };
        if std::mem::replace(&mut flight.landed, true) {
            return Ok(());
        }
        let mut pieces = flight.pieces.as_slice().iter();
        pieces.try_for_each(|piece| move_piece(piece, &flight.multicast, &flight.origin, fabric))
    }

    fn release(&mut self, number: usize, which: impl Fn(Use) -> bool) {
        if let (Some(watch), Some(flight)) = (&mut self.watch, &self.flights[number]) {
            flight.shared_ranges(|rank, offset, bytes, by| {
                if which(by) {
                    watch.release(rank, offset, bytes, number as u64);
                }
            });
        }
    }

    /// Lands a copy, frees what it used and completes its bytes.
    fn end(&mut self, number: usize, fabric: &mut dyn Fabric<O>) -> Result<(), Fault> {
        self.land(number, fabric)?;
        self.release(number, |_| true);
        let Some(flight) = self.flights[number].take() else {
            return Ok(());
        };
        self.free.push(number);
        let mut barriers = flight.barriers.iter();
        barriers.try_for_each(|&(at, bytes)| fabric.complete(at, bytes, &flight.origin))
    }

    fn end_entries(
        &mut self,
        entries: impl Iterator<Item = Entry<O>>,
        fabric: &mut dyn Fabric<O>,
    ) -> Result<(), Fault> {
        for entry in entries {
            match entry {
                Entry::Copy(number) => self.end(number, fabric)?,
                Entry::Arrive(barrier, origin) => fabric.arrive(barrier, &origin)?,
            }
        }
        Ok(())
    }

    /// Ends a thread's copies up to its last arrival on `barrier`, that one included.
    ///
    /// The groups keep their number, so that a later `wait_group` still counts them.
    fn end_copies_before_arrival(
        &mut self,
        thread: u32,
        barrier: Location,
        fabric: &mut dyn Fabric<O>,
    ) -> Result<(), Fault> {
        let Some(groups) = self.copies.get_mut(thread as usize) else {
            return Ok(());
        };
        let is_here = |entry: &Entry<O>| matches!(entry, Entry::Arrive(at, _) if *at == barrier);
        let Some(last) = groups.iter().enumerate().filter(|(_, e)| is_here(e)).last() else {
            return Ok(());
        };
        let count = last.0 + 1;
        let done = groups.take_oldest(count);
        self.end_entries(done.into_iter(), fabric)
    }
}

/// The groups of a thread, made on its first copy.
fn of<T>(groups: &mut Vec<Groups<T>>, thread: u32) -> &mut Groups<T> {
    let thread = thread as usize;
    if groups.len() <= thread {
        groups.resize_with(thread + 1, Groups::default);
    }
    &mut groups[thread]
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;

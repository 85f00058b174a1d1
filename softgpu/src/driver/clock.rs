//! What is ordered before what, and when: vector clocks and modelled device time.
//!
//! Work runs in the order in which it is submitted, one piece after the other, so a missing event
//! between two streams would never show in the results. Every stream therefore carries a vector
//! clock: work that was not ordered after an access conflicts with it, whatever the order in which
//! softgpu happened to run them.
//!
//! Event times are modelled, and reproducible: streams run side by side, a warp's instruction
//! takes a nanosecond, a copied byte a sixteenth of one. They say what waits for what, and nothing
//! about the speed of a GPU.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The work done before a point, by stream: the tick each one had reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Clock(Vec<u64>);

impl Clock {
    /// Takes over everything that `other` knows of.
    pub fn join(&mut self, other: &Clock) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        for (mine, theirs) in self.0.iter_mut().zip(&other.0) {
            *mine = (*mine).max(*theirs);
        }
    }

    /// Knows of the first `tick` pieces of work on `slot`.
    fn reach(&mut self, slot: usize, tick: u64) {
        if self.0.len() <= slot {
            self.0.resize(slot + 1, 0);
        }
        self.0[slot] = self.0[slot].max(tick);
    }

    /// The ticks, by slot.
    pub fn ticks(&self) -> &[u64] {
        &self.0
    }
}

/// A point on a stream (or on the host): what came before it, and the modelled time.
#[derive(Clone, Debug, Default)]
pub struct Moment {
    /// What is ordered before it.
    pub clock: Clock,
    /// Nanoseconds since the driver began.
    pub nanos: u64,
}

impl Moment {
    /// Waits for another point.
    pub fn join(&mut self, other: &Moment) {
        self.clock.join(&other.clock);
        self.nanos = self.nanos.max(other.nanos);
    }
}

/// What the host has waited for: all threads together, since softgpu does not see how they order
/// one another.
static HOST: Mutex<Clock> = Mutex::new(Clock(Vec::new()));

thread_local! {
    /// The modelled time that this thread has waited for; others must not hold its work back.
    static HOST_NANOS: Cell<u64> = const { Cell::new(0) };
}

impl Moment {
    /// The host waits for this point.
    pub fn teach_host(&self) {
        lock(&HOST).join(&self.clock);
        HOST_NANOS.set(HOST_NANOS.get().max(self.nanos));
    }

    /// Comes after everything that the host has waited for.
    pub fn learn_from_host(&mut self) {
        self.clock.join(&lock(&HOST));
        self.nanos = self.nanos.max(HOST_NANOS.get());
    }
}

/// A line of work in the vector clocks: a stream, or a branch of a graph.
///
/// When its owner is gone, the line goes to another, who goes on from the last tick: that one can
/// only seem ordered after what the old owner did, never race with it.
#[derive(Debug)]
pub struct Line {
    slot: usize,
    tick: AtomicU64,
}

/// How many lines there are, and those without an owner with the tick they reached.
static LINES: Mutex<(usize, Vec<(usize, u64)>)> = Mutex::new((0, Vec::new()));

impl Line {
    /// A line that nobody holds.
    pub fn new() -> Line {
        let mut lines = lock(&LINES);
        if let Some((slot, tick)) = lines.1.pop() {
            return Line {
                slot,
                tick: AtomicU64::new(tick),
            };
        }
        lines.0 += 1;
        Line {
            slot: lines.0 - 1,
            tick: AtomicU64::new(0),
        }
    }

    /// Its place in the clocks.
    pub fn slot(&self) -> usize {
        self.slot
    }

    /// Begins a piece of work after what `clock` knows, and enters it there.
    pub fn begin(&self, clock: &mut Clock) {
        let tick = self.tick.fetch_add(1, Ordering::Relaxed) + 1;
        clock.reach(self.slot, tick);
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        lock(&LINES).1.push((self.slot, *self.tick.get_mut()));
    }
}

/// Locks, also after a panic elsewhere: every critical section here leaves its data sound.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

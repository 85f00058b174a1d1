//! Vector clocks: which accesses of other threads come before what a thread does next.
//!
//! Logical time is one counter for the whole device. What a thread knows of a block's threads is a
//! [`View`]; of all blocks, a [`Clock`]; and [`Knowledge`] adds what it has published by fences.
//! Barriers over whole blocks and warps need none of this: they move a number that stands for
//! everything before (`base` of the block, `base` of the warp). Knowledge exists only where
//! something finer happened, so that ordinary kernels never allocate it.

use std::collections::BTreeMap;
use std::rc::Rc;

/// What is known of one block: everything up to `base`; of the threads of one warp up to
/// `warp_base`; of one thread in it up to `stamp`; and of each thread up to its entry.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    pub(crate) base: u32,
    pub(crate) warp_base: u32,
    pub(crate) thread: u32,
    pub(crate) stamp: u32,
    threads: Option<Rc<[u32]>>,
}

impl View {
    pub(crate) fn is_empty(&self) -> bool {
        self.base == 0 && self.warp_base == 0 && self.stamp == 0 && self.threads.is_none()
    }

    /// What a thread knows of its own block: the block up to `base`, its warp up to `warp_base`,
    /// itself up to `stamp`.
    pub(crate) fn of_thread(base: u32, warp_base: u32, thread: u32, stamp: u32) -> Self {
        Self {
            base,
            warp_base,
            thread,
            stamp,
            threads: None,
        }
    }

    /// Up to when a thread is known.
    pub(crate) fn stamp_of(&self, thread: u32) -> Option<u32> {
        let entry = self
            .threads
            .as_ref()
            .and_then(|threads| threads.get(thread as usize));
        let own = if thread == self.thread { self.stamp } else { 0 };
        let warp = if thread / 32 == self.thread / 32 {
            self.warp_base
        } else {
            0
        };
        let known = self
            .base
            .max(own)
            .max(warp)
            .max(entry.copied().unwrap_or(0));
        (known > 0).then_some(known)
    }

    /// Whether the access of a thread (numbered in its block) at `stamp` is known.
    #[inline]
    pub(crate) fn knows(&self, thread: u32, stamp: u32) -> bool {
        stamp <= self.base
            || (thread / 32 == self.thread / 32 && stamp <= self.warp_base)
            || (thread == self.thread && stamp <= self.stamp)
            || self.threads.as_ref().is_some_and(|threads| {
                threads
                    .get(thread as usize)
                    .is_some_and(|known| stamp <= *known)
            })
    }

    /// Adds what `other` knows; a block has `size` threads.
    fn join(&mut self, other: &Self, size: usize) {
        if other.is_empty() || self.covers(other) {
            return;
        }
        if self.is_empty() || other.covers(self) {
            *self = other.clone();
            return;
        }
        let mut threads = match &self.threads {
            Some(threads) => threads.to_vec(),
            None => vec![0; size],
        };
        self.spread(&mut threads);
        other.spread(&mut threads);
        if let Some(more) = &other.threads {
            for (known, more) in threads.iter_mut().zip(more.iter()) {
                *known = (*known).max(*more);
            }
        }
        *self = Self {
            base: self.base.max(other.base),
            threads: Some(threads.into()),
            ..Self::default()
        };
    }

    /// Writes the entries for a warp and a thread into a list of all threads.
    fn spread(&self, threads: &mut [u32]) {
        let first = self.thread as usize / 32 * 32;
        if self.warp_base > 0
            && let Some(warp) = threads.get_mut(first..first + 32)
        {
            for known in warp {
                *known = (*known).max(self.warp_base);
            }
        }
        if let Some(known) = threads.get_mut(self.thread as usize) {
            *known = (*known).max(self.stamp);
        }
    }

    /// Whether this view certainly includes the other (it may without this saying so).
    fn covers(&self, other: &Self) -> bool {
        let same = match (&self.threads, &other.threads) {
            (_, None) => true,
            (Some(a), Some(b)) => Rc::ptr_eq(a, b),
            (None, Some(_)) => false,
        };
        let thread =
            other.stamp <= self.base || other.stamp == 0 || self.knows(other.thread, other.stamp);
        let warp = other.warp_base <= self.base
            || (self.thread / 32 == other.thread / 32 && other.warp_base <= self.warp_base);
        same && thread && warp && other.base <= self.base
    }
}

/// What is known of all blocks of a launch.
#[derive(Clone, Debug, Default)]
pub(crate) struct Clock {
    /// Of the block that the clock belongs to.
    pub(crate) own: View,
    /// Of others, by their serial number.
    others: Option<Rc<BTreeMap<u32, View>>>,
}

impl Clock {
    pub(crate) fn is_empty(&self) -> bool {
        self.own.is_empty() && self.others.is_none()
    }

    /// A clock that knows only its own block.
    pub(crate) fn of(own: View) -> Self {
        Self { own, others: None }
    }

    /// Whether an access of a thread of another block is known.
    pub(crate) fn knows_other(&self, block: u32, thread: u32, stamp: u32) -> bool {
        let others = self.others.as_ref();
        others
            .and_then(|others| others.get(&block))
            .is_some_and(|view| view.knows(thread, stamp))
    }

    /// Adds a clock of the same block.
    pub(crate) fn join(&mut self, other: &Self, size: usize) {
        self.own.join(&other.own, size);
        match (&mut self.others, &other.others) {
            (_, None) => {}
            (mine @ None, Some(theirs)) => *mine = Some(theirs.clone()),
            (Some(mine), Some(theirs)) if Rc::ptr_eq(mine, theirs) => {}
            (Some(mine), Some(theirs)) => {
                let mine = Rc::make_mut(mine);
                for (block, view) in theirs.iter() {
                    mine.entry(*block).or_default().join(view, size);
                }
            }
        }
    }

    /// Adds a clock of block `theirs` to one of block `mine`.
    pub(crate) fn import(&mut self, mine: u32, theirs: u32, other: &Self, size: usize) {
        if mine == theirs {
            return self.join(other, size);
        }
        if other.is_empty() {
            return;
        }
        let others = Rc::make_mut(self.others.get_or_insert_default());
        others.entry(theirs).or_default().join(&other.own, size);
        for (block, view) in other.others.iter().flat_map(|others| others.iter()) {
            if *block == mine {
                self.own.join(view, size);
            } else {
                others.entry(*block).or_default().join(view, size);
            }
        }
    }
}

/// What a thread knows and has published.
#[derive(Clone, Debug, Default)]
pub(crate) struct Knowledge {
    /// What comes before whatever it does next.
    pub(crate) seen: Clock,
    /// What it saw published through relaxed reads, by its own block and by any: becomes seen at its
    /// next fence, of the block's scope and of the device's.
    pub(crate) pending: [Clock; 2],
    /// What fences of the block's scope, and of the device's, have published.
    pub(crate) published: [Clock; 2],
    /// What `fence.proxy.async` has made visible to the asynchronous proxy.
    pub(crate) proxy: Clock,
}

impl Knowledge {
    pub(crate) fn is_empty(&self) -> bool {
        self.clocks().into_iter().all(Clock::is_empty)
    }

    fn clocks(&self) -> [&Clock; 6] {
        let Self {
            seen,
            pending: [near, far],
            published: [block, device],
            proxy,
        } = self;
        [seen, near, far, block, device, proxy]
    }

    /// Adds a thread's knowledge in the same block.
    pub(crate) fn join(&mut self, other: &Self, size: usize) {
        let Self {
            seen,
            pending: [near, far],
            published: [block, device],
            proxy,
        } = self;
        for (mine, theirs) in [seen, near, far, block, device, proxy]
            .into_iter()
            .zip(other.clocks())
        {
            mine.join(theirs, size);
        }
    }

    /// Adds knowledge of a thread of another block.
    pub(crate) fn import(&mut self, mine: u32, theirs: u32, other: &Self, size: usize) {
        let Self {
            seen,
            pending: [near, far],
            published: [block, device],
            proxy,
        } = self;
        for (to, from) in [seen, near, far, block, device, proxy]
            .into_iter()
            .zip(other.clocks())
        {
            to.import(mine, theirs, from, size);
        }
    }
}

/// A thread's knowledge, shared between threads that know the same; `None` knows nothing special.
pub(crate) type Known = Option<Rc<Knowledge>>;

/// Adds `more` to the knowledge of each lane in `mask`; lanes that share go on sharing.
pub(crate) fn teach(lanes: &mut [Known; 32], mask: u32, more: &Rc<Knowledge>, size: usize) {
    if more.is_empty() {
        return;
    }
    let mut last: Option<(Rc<Knowledge>, Rc<Knowledge>)> = None;
    for (lane, known) in lanes.iter_mut().enumerate() {
        if mask >> lane & 1 == 0 {
            continue;
        }
        *known = Some(match known.take() {
            None => more.clone(),
            Some(old) if Rc::ptr_eq(&old, more) => old,
            Some(old) => match &last {
                Some((from, to)) if Rc::ptr_eq(from, &old) => to.clone(),
                _ => {
                    let mut joined = (*old).clone();
                    joined.join(more, size);
                    let joined = Rc::new(joined);
                    last = Some((old, joined.clone()));
                    joined
                }
            },
        });
    }
}

/// Everything that the lanes of `mask` know together.
pub(crate) fn gather(lanes: &[Known; 32], mask: u32, into: &mut Knowledge, size: usize) {
    let mut last: Option<&Rc<Knowledge>> = None;
    for (lane, known) in lanes.iter().enumerate() {
        if mask >> lane & 1 != 0
            && let Some(known) = known
            && !last.is_some_and(|last| Rc::ptr_eq(last, known))
        {
            into.join(known, size);
            last = Some(known);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(base: u32, warp_base: u32, thread: u32, stamp: u32) -> View {
        View {
            base,
            warp_base,
            thread,
            stamp,
            threads: None,
        }
    }

    #[test]
    fn a_joined_view_knows_what_either_knew_and_no_more() {
        let a = view(5, 8, 3, 9);
        let b = view(4, 11, 40, 20);
        let mut joined = a.clone();
        joined.join(&b, 96);
        for thread in 0..96 {
            for stamp in 0..25 {
                let expected = a.knows(thread, stamp) || b.knows(thread, stamp);
                assert_eq!(joined.knows(thread, stamp), expected, "{thread} {stamp}");
            }
        }
    }

    #[test]
    fn a_clock_of_another_block_becomes_a_view_of_it() {
        let mut mine = Clock::default();
        let theirs = Clock {
            own: view(7, 0, 0, 9),
            others: None,
        };
        mine.import(1, 2, &theirs, 32);
        assert!(mine.knows_other(2, 5, 7) && mine.knows_other(2, 0, 9));
        assert!(!mine.knows_other(2, 5, 8) && !mine.knows_other(3, 5, 1));
        let mut back = Clock::default();
        back.import(2, 1, &mine, 32);
        assert!(back.own.knows(0, 9));
    }
}

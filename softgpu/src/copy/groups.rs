//! Groups of asynchronous operations: `commit_group` and `wait_group`.

use std::collections::VecDeque;

/// What one thread (or, for wgmma, one warp) issued and has not waited for, oldest first.
#[derive(Clone, Debug)]
pub struct Groups<T> {
    open: Vec<T>,
    committed: VecDeque<Vec<T>>,
}

impl<T> Default for Groups<T> {
    fn default() -> Self {
        Self {
            open: Vec::new(),
            committed: VecDeque::new(),
        }
    }
}

impl<T> Groups<T> {
    /// Adds an operation to the group that the next commit closes.
    pub fn issue(&mut self, operation: T) {
        self.open.push(operation);
    }

    /// `commit_group`: closes the current group, also an empty one.
    pub fn commit(&mut self) {
        self.committed.push_back(std::mem::take(&mut self.open));
    }

    /// `wait_group n`: takes out the operations of all committed groups but the latest `n`.
    pub fn wait(&mut self, n: usize) -> impl Iterator<Item = T> + use<T> {
        let done = self.committed.len().saturating_sub(n);
        let groups: Vec<Vec<T>> = self.committed.drain(..done).collect();
        groups.into_iter().flatten()
    }

    /// `wait_all`: takes out everything, committed or not.
    pub fn take_all(&mut self) -> impl Iterator<Item = T> + use<T> {
        self.commit();
        self.wait(0)
    }

    /// The operations in flight, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.committed.iter().flatten().chain(&self.open)
    }

    /// The operations in flight, oldest first.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.committed.iter_mut().flatten().chain(&mut self.open)
    }

    /// The operations of all committed groups but the latest `n`, oldest first.
    pub fn older(&self, n: usize) -> impl Iterator<Item = &T> {
        self.committed
            .iter()
            .take(self.committed.len().saturating_sub(n))
            .flatten()
    }

    /// Takes out the oldest `count` operations; their groups stay, emptier, and still count.
    pub fn take_oldest(&mut self, count: usize) -> Vec<T> {
        let mut taken = Vec::new();
        for group in self.committed.iter_mut().chain([&mut self.open]) {
            let part = (count - taken.len()).min(group.len());
            taken.extend(group.drain(..part));
        }
        taken
    }

    /// Whether nothing is in flight.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_leaves_the_latest_groups() {
        let mut groups = Groups::default();
        for value in 0..5 {
            groups.issue(value);
            groups.commit();
        }
        groups.issue(5);
        assert_eq!(groups.wait(2).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(groups.wait(2).count(), 0);
        assert_eq!(groups.iter().copied().collect::<Vec<_>>(), [3, 4, 5]);
        assert_eq!(
            groups.wait(0).collect::<Vec<_>>(),
            [3, 4],
            "5 is not committed"
        );
        assert_eq!(groups.take_all().collect::<Vec<_>>(), [5]);
        assert!(groups.is_empty());
    }

    #[test]
    fn empty_groups_count() {
        let mut groups = Groups::default();
        groups.issue(1);
        groups.commit();
        groups.commit();
        assert_eq!(groups.wait(1).collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn taking_the_oldest_keeps_the_groups() {
        let mut groups = Groups::default();
        for value in 0..3 {
            groups.issue(10 * value);
            groups.issue(10 * value + 1);
            groups.commit();
        }
        assert_eq!(groups.older(2).copied().collect::<Vec<_>>(), [0, 1]);
        assert_eq!(groups.take_oldest(3), [0, 1, 10]);
        assert_eq!(groups.wait(1).collect::<Vec<_>>(), [11]);
        assert_eq!(groups.take_oldest(9), [20, 21]);
    }
}

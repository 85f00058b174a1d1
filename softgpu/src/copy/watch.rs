//! Which words of shared memory a copy in flight owns.

use std::collections::HashMap;

/// What a copy in flight does with a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// It will read it, or has: nobody may write it.
    Source,
    /// It will write it, or has: nobody may read or write it.
    Target,
}

/// For each block of a cluster and each 4-byte word of its shared memory, the number of the copy
/// that owns it.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    /// 0 for a free word, else 2·number + 1 for a source, 2·number + 2 for a target.
    words: HashMap<u32, Vec<u64>>,
}

impl Watch {
    fn range(address: u64, bytes: u32) -> std::ops::Range<usize> {
        let end = address.saturating_add(bytes.into());
        (address / 4) as usize..end.div_ceil(4) as usize
    }

    /// Marks words as used by the copy `number`. A target is not overwritten by a source.
    pub fn mark(&mut self, rank: u32, address: u64, bytes: u32, number: u64, by: Use) {
        let range = Self::range(address, bytes);
        let words = self.words.entry(rank).or_default();
        if words.len() < range.end {
            words.resize(range.end, 0);
        }
        for word in &mut words[range] {
            match by {
                Use::Target => *word = 2 * number + 2,
                Use::Source if *word == 0 || *word % 2 == 1 => *word = 2 * number + 1,
                Use::Source => {}
            }
        }
    }

    /// Frees the words that the copy `number` still owns.
    pub fn release(&mut self, rank: u32, address: u64, bytes: u32, number: u64) {
        if let Some(words) = self.words.get_mut(&rank) {
            let range = Self::range(address, bytes);
            let end = range.end.min(words.len());
            for word in &mut words[range.start.min(end)..end] {
                if *word != 0 && (*word - 1) / 2 == number {
                    *word = 0;
                }
            }
        }
    }

    /// The copy in flight that forbids an access, if any, and what it does there.
    #[must_use]
    pub fn owner(&self, rank: u32, address: u64, bytes: u32, write: bool) -> Option<(u64, Use)> {
        let words = self.words.get(&rank)?;
        let range = Self::range(address, bytes);
        let end = range.end.min(words.len());
        words[range.start.min(end)..end]
            .iter()
            .find_map(|&word| match word {
                0 => None,
                word if word % 2 == 0 => Some(((word - 1) / 2, Use::Target)),
                word => write.then_some(((word - 1) / 2, Use::Source)),
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_forbid_everything_and_sources_only_writes() {
        let mut watch = Watch::default();
        watch.mark(0, 16, 8, 7, Use::Target);
        watch.mark(1, 16, 8, 8, Use::Source);
        assert_eq!(watch.owner(0, 12, 4, true), None);
        assert_eq!(watch.owner(0, 13, 4, false), Some((7, Use::Target)));
        assert_eq!(watch.owner(0, 23, 1, false), Some((7, Use::Target)));
        assert_eq!(watch.owner(0, 24, 1000, true), None);
        assert_eq!(watch.owner(1, 16, 4, false), None);
        assert_eq!(watch.owner(1, 16, 4, true), Some((8, Use::Source)));
        assert_eq!(watch.owner(2, 16, 4, true), None);
        watch.release(0, 16, 8, 9);
        assert_eq!(
            watch.owner(0, 16, 4, false),
            Some((7, Use::Target)),
            "not its owner"
        );
        watch.release(0, 16, 8, 7);
        assert_eq!(watch.owner(0, 16, 4, true), None);
    }

    #[test]
    fn the_latest_target_owns_a_word() {
        let mut watch = Watch::default();
        watch.mark(0, 0, 4, 1, Use::Target);
        watch.mark(0, 0, 4, 2, Use::Source);
        assert_eq!(watch.owner(0, 0, 4, false), Some((1, Use::Target)));
        watch.mark(0, 0, 4, 3, Use::Target);
        watch.release(0, 0, 4, 1);
        assert_eq!(watch.owner(0, 0, 4, false), Some((3, Use::Target)));
    }
}

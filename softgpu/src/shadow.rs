//! What is known about every byte of a memory: whether it was written, and the last accesses.
//!
//! One [`Cell`] of 28 bytes describes a word of 4, made when the word is first touched, and one
//! bit describes whether a byte was ever written: 7.2 bytes of shadow for a byte touched.

/// One access: when, and by whom.
///
/// `stamp` is the device's logical time, which goes up at every synchronisation; `who` packs the
/// warp's serial number in its launch (22 bits), the lane (5), a flag, and the bytes of the word
/// (4). The flag of a write says that it was strong (an atomic, a volatile or relaxed store); that
/// of a read says that several lanes of the warp read these bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) stamp: u32,
    who: u32,
}

impl Mark {
    #[inline(always)]
    pub(crate) const fn new(stamp: u32, thread: u32, flag: bool, bytes: u32) -> Self {
        Self {
            stamp,
            who: thread << 5 | (flag as u32) << 4 | bytes,
        }
    }

    /// Warp serial times 32, plus the lane.
    #[inline(always)]
    pub(crate) const fn thread(self) -> u32 {
        self.who >> 5
    }

    #[inline(always)]
    pub(crate) const fn warp(self) -> u32 {
        self.who >> 10
    }

    #[inline(always)]
    pub(crate) const fn flag(self) -> bool {
        self.who & 16 != 0
    }

    #[inline(always)]
    pub(crate) const fn bytes(self) -> u32 {
        self.who & 15
    }
}

/// The last write of a word, its last read, and the last read by another warp than that one.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cell {
    pub(crate) write: Mark,
    pub(crate) read: Mark,
    pub(crate) other_read: Mark,
    pub(crate) write_at: u16,
    pub(crate) read_at: u16,
}

/// Words of a page of cells.
const PAGE: usize = 256;

/// The cells of a memory, in pages that are made when touched.
#[derive(Debug, Default)]
pub(crate) struct Cells {
    pages: Vec<Option<Box<[Cell; PAGE]>>>,
}

impl Cells {
    #[inline(always)]
    pub(crate) fn cell(&mut self, word: usize) -> &mut Cell {
        let page = word / PAGE;
        if page >= self.pages.len() {
            self.pages.resize_with(page + 1, || None);
        }
        let page = self.pages[page].get_or_insert_with(|| Box::new([Cell::default(); PAGE]));
        &mut page[word % PAGE]
    }

    /// The cells of a range of words that were ever touched.
    pub(crate) fn touched(&self, from: usize, to: usize) -> impl Iterator<Item = (usize, &Cell)> {
        let pages = self
            .pages
            .iter()
            .enumerate()
            .take(to.div_ceil(PAGE))
            .skip(from / PAGE);
        pages
            .filter_map(|(number, page)| Some((number * PAGE, page.as_ref()?)))
            .flat_map(|(first, page)| {
                page.iter()
                    .enumerate()
                    .map(move |(i, cell)| (first + i, cell))
            })
            .filter(move |(word, _)| (from..to).contains(word))
    }

    /// Forgets every access.
    pub(crate) fn clear(&mut self) {
        self.pages.clear();
    }
}

/// One bit a byte: whether it was written.
#[derive(Debug, Default)]
pub(crate) struct Written {
    bits: Vec<u64>,
}

impl Written {
    pub(crate) fn new(bytes: usize) -> Self {
        Self {
            bits: vec![0; bytes.div_ceil(64)],
        }
    }

    /// Whether all of the bytes were written.
    #[inline(always)]
    pub(crate) fn all(&self, from: usize, bytes: usize) -> bool {
        let (word, shift) = (from / 64, from % 64);
        if shift + bytes <= 64 {
            let ones = if bytes == 64 { !0 } else { (1 << bytes) - 1 };
            self.bits[word] >> shift & ones == ones
        } else {
            (from..from + bytes).all(|byte| self.bits[byte / 64] >> (byte % 64) & 1 != 0)
        }
    }

    /// Whether none of the bytes was written.
    pub(crate) fn none(&self, from: usize, bytes: usize) -> bool {
        (from..from + bytes).all(|byte| self.bits[byte / 64] >> (byte % 64) & 1 == 0)
    }

    /// Marks bytes as written.
    #[inline(always)]
    pub(crate) fn mark(&mut self, from: usize, bytes: usize) {
        let (word, shift) = (from / 64, from % 64);
        if bytes > 0 && shift + bytes <= 64 {
            let ones = if bytes == 64 { !0 } else { (1 << bytes) - 1 };
            self.bits[word] |= ones << shift;
        } else {
            self.mark_range(from, bytes);
        }
    }

    fn mark_range(&mut self, from: usize, bytes: usize) {
        let mut at = from;
        while at < from + bytes {
            let count = (64 - at % 64).min(from + bytes - at);
            let ones = if count == 64 { !0 } else { (1 << count) - 1 };
            self.bits[at / 64] |= ones << (at % 64);
            at += count;
        }
    }

    /// Forgets every write.
    pub(crate) fn clear(&mut self) {
        self.bits.fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shadow_memory_keeps_to_eight_bytes_a_byte() {
        assert!(size_of::<Cell>() as f64 / 4.0 + 1.0 / 8.0 <= 8.0);
    }

    #[test]
    fn bits_across_words() {
        let mut written = Written::new(256);
        written.mark(60, 100);
        assert!(written.all(60, 4) && written.all(60, 8) && written.all(64, 64));
        assert!(!written.all(59, 2) && written.all(159, 1) && !written.all(160, 1));
    }
}

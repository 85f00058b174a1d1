//! What is known about every byte of a memory: whether it was written, and the last accesses.
//!
//! One [`Cell`] of 28 bytes describes a word of 4, made when the word is first touched, and one
//! bit describes whether a byte was ever written: 7.2 bytes of shadow for a byte touched. Where less
//! than a word is accessed by itself, its page has a cell for each byte from then on.

/// One access: when, and by whom.
///
/// `stamp` is the device's logical time, which goes up at every synchronisation and is 0 where there
/// was no access; `who` packs the warp's serial number in its launch (22 bits), the lane (5), and
/// flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) stamp: u32,
    pub(crate) who: u32,
}

impl Mark {
    /// It was strong: an atomic, a volatile or relaxed access.
    pub(crate) const STRONG: u32 = 1;
    /// It was strong among the threads of its block only.
    pub(crate) const NARROW: u32 = 2;
    /// Of a read: several lanes of the warp made it.
    pub(crate) const SEVERAL: u32 = 4;
    /// Of a word's last read: the other mark is a set of warps.
    pub(crate) const MANY: u32 = 8;

    #[inline(always)]
    pub(crate) const fn new(stamp: u32, thread: u32, flags: u32) -> Self {
        Self {
            stamp,
            who: thread << 5 | flags,
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
    pub(crate) const fn has(self, flag: u32) -> bool {
        self.who & flag != 0
    }
}

/// The last write of a word, its last read, and the last read by another warp than that one.
///
/// Where more than two warps have read a word of shared memory, `other_read` is a set instead: `who`
/// has a bit for each warp of the block but the last reader's, and `stamp` is the first read's.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cell {
    pub(crate) write: Mark,
    pub(crate) read: Mark,
    pub(crate) other_read: Mark,
    pub(crate) write_at: u16,
    pub(crate) read_at: u16,
}

/// The words that `[from, to)` lies in, and which of their bytes.
#[inline(always)]
pub(crate) fn words(from: usize, to: usize) -> impl Iterator<Item = (usize, u32)> {
    let mut at = from;
    std::iter::from_fn(move || {
        (at < to).then(|| {
            let word = at / 4;
            let until = to.min(4 * word + 4);
            let bytes = ((1_u32 << (until - at)) - 1) << (at % 4);
            at = until;
            (word, bytes)
        })
    })
}

/// All bytes of a word.
pub(crate) const WHOLE: u32 = 15;

/// Words of a page of cells.
const PAGE: usize = 256;

/// A cell for each word, or for each byte.
#[derive(Debug)]
enum Page {
    Words(Box<[Cell; PAGE]>),
    Bytes(Box<[Cell; 4 * PAGE]>),
}

impl Default for Page {
    fn default() -> Self {
        Self::Words(Box::new([Cell::default(); PAGE]))
    }
}

/// The cells of a memory, in pages that are made when touched.
#[derive(Debug, Default)]
pub(crate) struct Cells {
    pages: Vec<Option<Page>>,
}

impl Cells {
    /// The cells that describe some neighbouring bytes of a word.
    #[inline(always)]
    pub(crate) fn of(&mut self, word: usize, bytes: u32) -> &mut [Cell] {
        let page = word / PAGE;
        if page >= self.pages.len() {
            self.pages.resize_with(page + 1, || None);
        }
        let page = self.pages[page].get_or_insert_default();
        if bytes != WHOLE {
            Self::split(page);
        }
        match page {
            Page::Words(cells) => std::slice::from_mut(&mut cells[word % PAGE]),
            Page::Bytes(cells) => {
                let first = word % PAGE * 4 + bytes.trailing_zeros() as usize;
                &mut cells[first..first + bytes.count_ones() as usize]
            }
        }
    }

    /// Gives every byte of a page a cell of its own.
    #[cold]
    fn split(page: &mut Page) {
        if let Page::Words(words) = page {
            let bytes = std::array::from_fn(|byte| words[byte / 4]);
            *page = Page::Bytes(Box::new(bytes));
        }
    }

    /// The cells of a range of bytes that were ever touched, with the first byte of each.
    pub(crate) fn touched(&self, from: usize, to: usize) -> impl Iterator<Item = (usize, &Cell)> {
        const BYTES: usize = 4 * PAGE;
        let pages = self
            .pages
            .iter()
            .enumerate()
            .take(to.div_ceil(BYTES))
            .skip(from / BYTES);
        pages
            .filter_map(|(number, page)| Some((number * BYTES, page.as_ref()?)))
            .flat_map(|(first, page)| {
                let (cells, width) = match page {
                    Page::Words(cells) => (cells.as_slice(), 4),
                    Page::Bytes(cells) => (cells.as_slice(), 1),
                };
                let places = (first..).step_by(width);
                places.zip(cells).map(move |place| (place, width))
            })
            .filter(move |((byte, _), width)| *byte < to && byte + width > from)
            .map(|(place, _)| place)
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
    fn a_page_is_split_where_part_of_a_word_is_accessed() {
        let parts: Vec<_> = words(2, 9).collect();
        assert_eq!(parts, [(0, 0b1100), (1, WHOLE), (2, 0b0001)]);
        let mut cells = Cells::default();
        cells.of(1, WHOLE)[0].write_at = 7;
        assert_eq!(cells.touched(6, 7).count(), 1);
        for cell in cells.of(1, 0b0110) {
            assert_eq!(std::mem::replace(&mut cell.write_at, 8), 7);
        }
        let at = |cells: &mut Cells| {
            cells
                .of(1, WHOLE)
                .iter()
                .map(|c| c.write_at)
                .collect::<Vec<_>>()
        };
        assert_eq!(at(&mut cells), [7, 8, 8, 7]);
        let touched: Vec<_> = cells
            .touched(5, 8)
            .map(|(byte, c)| (byte, c.write_at))
            .collect();
        assert_eq!(touched, [(5, 8), (6, 8), (7, 7)]);
    }

    #[test]
    fn bits_across_words() {
        let mut written = Written::new(256);
        written.mark(60, 100);
        assert!(written.all(60, 4) && written.all(60, 8) && written.all(64, 64));
        assert!(!written.all(59, 2) && written.all(159, 1) && !written.all(160, 1));
    }
}

//! The shared-memory matrix descriptors of wgmma, and the swizzles that they share with TMA.
//!
//! PTX ISA, "Asynchronous Warpgroup Level Matrix Shared Memory Layout". A matrix is made of chunks
//! of 16 bytes: along K if it is K-major, along M or N otherwise ("transposed"). The addresses
//! below are those of the canonical layouts, in bytes; `r` counts rows (M or N), `c` the chunks:
//!
//! | | K-major: row r, chunk c along K | M/N-major: chunk c along M/N, index k |
//! |---|---|---|
//! | none | 16·(r mod 8) + stride·⌊r/8⌋ + leading·c | stride·c + 16·(k mod 8) + leading·⌊k/8⌋ |
//! | W = 32, 64, 128 | W·(r mod 8) + stride·⌊r/8⌋ + 16·c | 16·(c mod W/16) + leading·⌊c/(W/16)⌋ + W·(k mod 8) + stride·⌊k/8⌋ |

/// How chunks of 16 bytes are permuted within rows of 32, 64 or 128 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Swizzle {
    /// Not at all ("interleaved" without swizzle).
    #[default]
    None,
    /// Within 32 bytes: address bit 4 is exchanged by bit 7.
    Bytes32,
    /// Within 64 bytes: bits 4 and 5 by bits 7 and 8.
    Bytes64,
    /// Within 128 bytes: bits 4 to 6 by bits 7 to 9.
    Bytes128,
}

impl Swizzle {
    /// Bytes of a row of the pattern: 16 (one chunk) without swizzle.
    #[must_use]
    pub const fn width(self) -> u32 {
        match self {
            Self::None => 16,
            Self::Bytes32 => 32,
            Self::Bytes64 => 64,
            Self::Bytes128 => 128,
        }
    }

    /// Where the byte with linear shared address `address` really lies: bits 7 and up are added
    /// without carry (exclusive or) to the number of the chunk in its row. `base` is the
    /// descriptor's base offset: by how many 128-byte rows the pattern starts off its alignment.
    #[must_use]
    pub const fn apply(self, address: u32, base: u32) -> u32 {
        let row = (address >> 7).wrapping_sub(base);
        address ^ ((row & (self.width() / 16 - 1)) << 4)
    }
}

/// A decoded matrix descriptor; offsets in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Where the matrix starts, in the 18-bit window of shared memory.
    pub start: u32,
    /// The leading dimension byte offset.
    pub leading: u32,
    /// The stride dimension byte offset.
    pub stride: u32,
    /// The base offset, 0 to 7.
    pub base: u32,
    /// The swizzle.
    pub swizzle: Swizzle,
}

impl Descriptor {
    /// Reads the 64 bits that `wgmma.mma_async` takes.
    #[must_use]
    pub fn decode(bits: u64) -> Self {
        let field = |at: u32| ((bits >> at) as u32 & 0x3fff) << 4;
        Self {
            start: field(0),
            leading: field(16),
            stride: field(32),
            base: (bits >> 49) as u32 & 7,
            swizzle: match bits >> 62 {
                0 => Swizzle::None,
                1 => Swizzle::Bytes128,
                2 => Swizzle::Bytes64,
                _ => Swizzle::Bytes32,
            },
        }
    }

    /// The shared address of chunk `chunk` (along K) of row `row` of a K-major matrix.
    #[must_use]
    pub const fn k_major(&self, row: u32, chunk: u32) -> u32 {
        let width = self.swizzle.width();
        let along = match self.swizzle {
            Swizzle::None => self.leading * chunk,
            _ => 16 * chunk,
        };
        self.place(width * (row % 8) + self.stride * (row / 8) + along)
    }

    /// The shared address of chunk `chunk` (along M or N) at index `k` of an M- or N-major matrix.
    #[must_use]
    pub const fn mn_major(&self, chunk: u32, k: u32) -> u32 {
        let width = self.swizzle.width();
        let chunks = width / 16;
        let (outer, inner) = match self.swizzle {
            Swizzle::None => (self.stride * chunk, self.leading * (k / 8)),
            _ => (
                16 * (chunk % chunks) + self.leading * (chunk / chunks),
                self.stride * (k / 8),
            ),
        };
        self.place(outer + inner + width * (k % 8))
    }

    const fn place(&self, offset: u32) -> u32 {
        self.swizzle
            .apply((self.start + offset) & 0x3_ffff, self.base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_where_the_isa_puts_them() {
        let bits = 0x1234 >> 4 | (0x400 >> 4) << 16 | (0x800 >> 4) << 32 | 5 << 49 | 2 << 62;
        let expected = Descriptor {
            start: 0x1230,
            leading: 0x400,
            stride: 0x800,
            base: 5,
            swizzle: Swizzle::Bytes64,
        };
        assert_eq!(Descriptor::decode(bits), expected);
        for (mode, swizzle) in [
            (0, Swizzle::None),
            (1, Swizzle::Bytes128),
            (3, Swizzle::Bytes32),
        ] {
            assert_eq!(Descriptor::decode(mode << 62).swizzle, swizzle);
        }
        // Bits between the fields mean nothing.
        let stray = 3 << 14 | 3 << 30 | 7 << 46 | 0x3ff << 52;
        assert_eq!(Descriptor::decode(bits | stray), expected);
    }

    /// The order of the 16-byte chunks in the first rows of the ISA's swizzle figures.
    #[test]
    fn swizzles_permute_chunks_as_the_figures_show() {
        let row = |swizzle: Swizzle, row: u32| -> Vec<u32> {
            let first = row * 128 / 16;
            (0..8)
                .map(|chunk| swizzle.apply(16 * (first + chunk), 0) / 16 - first)
                .collect()
        };
        assert_eq!(row(Swizzle::Bytes128, 0), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(row(Swizzle::Bytes128, 1), [1, 0, 3, 2, 5, 4, 7, 6]);
        assert_eq!(row(Swizzle::Bytes128, 2), [2, 3, 0, 1, 6, 7, 4, 5]);
        assert_eq!(row(Swizzle::Bytes128, 7), [7, 6, 5, 4, 3, 2, 1, 0]);
        assert_eq!(row(Swizzle::Bytes128, 8), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(row(Swizzle::Bytes64, 1), [1, 0, 3, 2, 5, 4, 7, 6]);
        assert_eq!(row(Swizzle::Bytes64, 3), [3, 2, 1, 0, 7, 6, 5, 4]);
        assert_eq!(row(Swizzle::Bytes64, 4), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(row(Swizzle::Bytes32, 1), [1, 0, 3, 2, 5, 4, 7, 6]);
        assert_eq!(row(Swizzle::Bytes32, 2), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(row(Swizzle::None, 5), [0, 1, 2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn a_base_offset_shifts_the_pattern() {
        for row in 0..8 {
            for chunk in 0..8 {
                let (aligned, shifted) = (128 * row + 16 * chunk, 128 * (row + 3) + 16 * chunk);
                let offset = |at: u32, base| Swizzle::Bytes128.apply(at, base) & 0x7f;
                assert_eq!(offset(aligned, 0), offset(shifted, 3));
            }
        }
    }
}

//! What the input words of a form are drawn from.

use crate::random;

/// The distribution of an input word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// Any bits; often 0, ±1, the extremes.
    Word,
    /// The upper half of an f64 of any kind (with a `Word` below it).
    DoubleHigh,
    /// Not zero.
    NonZero,
    /// 0 to 79: shift counts, bit positions, lanes.
    Small,
    /// An f32 of any kind, often special.
    Float,
    /// An f32 between −2⁵ and 2⁵, of any sign and exponents down to 2⁻¹⁰.
    Moderate,
    /// Two f16 of any kind.
    Halves,
    /// Two bf16 of any kind.
    Brains,
    /// Two f16 between −2 and 2.
    ModerateHalves,
    /// Two bf16 between −2 and 2.
    ModerateBrains,
    /// Two integers −4 to 4 as f16.
    IntegerHalves,
    /// Two integers −4 to 4 as bf16.
    IntegerBrains,
    /// An integer −4 to 4 as f32.
    IntegerFloat,
    /// Four signed bytes.
    Bytes,
    /// A byte address below 512, a multiple of 16.
    Row,
}

impl Input {
    /// The bits of a word that are no signs.
    pub(super) const fn magnitude_mask(self) -> u32 {
        match self {
            Self::Float | Self::Moderate | Self::IntegerFloat => 0x7fff_ffff,
            Self::Halves
            | Self::Brains
            | Self::ModerateHalves
            | Self::ModerateBrains
            | Self::IntegerHalves
            | Self::IntegerBrains => 0x7fff_7fff,
            _ => !0,
        }
    }
}

/// FNV-1a.
pub(super) fn digest(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Draws inputs from a name.
pub(super) struct Draw(u64);

impl Draw {
    pub(super) fn new(name: &str) -> Self {
        // The generator must not start at 0.
        Self(digest(name.bytes()) | 1)
    }

    fn bits(&mut self) -> u32 {
        random::draw(&mut self.0)
    }

    fn below(&mut self, n: u32) -> u32 {
        ((u64::from(self.bits()) * u64::from(n)) >> 32) as u32
    }

    /// One of the special values, one time in four.
    fn special_or(&mut self, specials: &[u32], other: impl FnOnce(&mut Self) -> u32) -> u32 {
        if self.below(4) == 0 {
            specials[self.below(specials.len() as u32) as usize]
        } else {
            other(self)
        }
    }

    fn pair(&mut self, mut half: impl FnMut(&mut Self) -> u32) -> u32 {
        let low = half(self) & 0xffff;
        half(self) << 16 | low
    }

    fn integer(&mut self) -> i32 {
        self.below(9) as i32 - 4
    }

    pub(super) fn word(&mut self, input: Input) -> u32 {
        use crate::number::{f32_to_bf16, f32_to_f16};
        match input {
            Input::Word => {
                let specials = [
                    0,
                    1,
                    u32::MAX,
                    1 << 31,
                    i32::MAX as u32,
                    0xffff,
                    0x8000,
                    31,
                    32,
                ];
                self.special_or(&specials, |draw| draw.bits() >> draw.below(32))
            }
            Input::DoubleHigh => {
                // Close exponents half of the time, so that sums have something to round.
                let specials = [
                    0,
                    1 << 31,
                    0x7ff0_0000,
                    0x7ff8_0000,
                    0x0000_1234,
                    0x7fef_ffff,
                ];
                self.special_or(&specials, |draw| match draw.below(2) {
                    0 => draw.bits(),
                    _ => draw.bits() & 0x83ff_ffff | 0x3e00_0000,
                })
            }
            Input::NonZero => self.word(Input::Word).max(1),
            Input::Small => self.below(80),
            Input::Float => {
                let specials = [
                    0,
                    1 << 31,
                    0x3f80_0000,
                    0xbf80_0000,
                    0x7f80_0000,
                    0xff80_0000,
                    0x7fc0_0000,
                    0x7f80_0001,
                    0x0000_0001,
                    0x807f_ffff,
                    0x0080_0000,
                    0x7f7f_ffff,
                    0x4f00_0000,
                    0x3f00_0000,
                ];
                self.special_or(&specials, |draw| match draw.below(2) {
                    0 => draw.bits(),
                    _ => draw.bits() & 0x87ff_ffff | 0x3c00_0000,
                })
            }
            Input::Moderate => {
                let exponent = 117 + self.below(15);
                self.bits() & 0x807f_ffff | exponent << 23
            }
            Input::Halves => {
                let specials = [0, 0x8000, 0x3c00, 0x7c00, 0xfc00, 0x7e00, 1, 0x83ff, 0x7bff];
                self.pair(|draw| draw.special_or(&specials, Self::bits))
            }
            Input::Brains => {
                let specials = [0, 0x8000, 0x3f80, 0x7f80, 0xff80, 0x7fc0, 1, 0x807f, 0x7f7f];
                self.pair(|draw| {
                    draw.special_or(&specials, |draw| match draw.below(2) {
                        0 => draw.bits(),
                        _ => draw.bits() & 0x87ff | 0x3c00,
                    })
                })
            }
            Input::ModerateHalves => self.pair(|draw| draw.bits() & 0x9fff | 0x2000),
            Input::ModerateBrains => {
                self.pair(|draw| draw.bits() & 0x807f | (120 + draw.below(8)) << 7)
            }
            Input::IntegerHalves => self.pair(|draw| f32_to_f16(draw.integer() as f32).into()),
            Input::IntegerBrains => self.pair(|draw| f32_to_bf16(draw.integer() as f32).into()),
            Input::IntegerFloat => (self.integer() as f32).to_bits(),
            Input::Bytes => self.bits(),
            Input::Row => self.below(32) * 16,
        }
    }
}

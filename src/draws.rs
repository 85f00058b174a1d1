//! Which rows are mixed, and with which weights: Philox4x32-10 by (seed, step, row, index).
//!
//! A draw depends on nothing but its seed, step, global row and index within its kind, so that it
//! is the same on every device, in any sharding of the batch and in any order of computation.

use crate::error::{Error, Result, expect_length};

/// One block of Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
#[must_use]
pub const fn philox4x32_10(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    const MULTIPLIER_0: u64 = 0xD251_1F53;
    const MULTIPLIER_1: u64 = 0xCD9E_8D57;
    const WEYL_0: u32 = 0x9E37_79B9;
    const WEYL_1: u32 = 0xBB67_AE85;
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let [mut k0, mut k1] = key;
    let mut round = 0;
    while round < 10 {
        let p0 = MULTIPLIER_0 * c0 as u64;
        let p1 = MULTIPLIER_1 * c2 as u64;
        (c0, c1, c2, c3) = (
            (p1 >> 32) as u32 ^ c1 ^ k0,
            p1 as u32,
            (p0 >> 32) as u32 ^ c3 ^ k1,
            p0 as u32,
        );
        k0 = k0.wrapping_add(WEYL_0);
        k1 = k1.wrapping_add(WEYL_1);
        round += 1;
    }
    [c0, c1, c2, c3]
}

/// Two positions in a row's list of hardest and the weight of the first.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MixedDraw {
    /// Position i, weighted by α.
    pub first: u32,
    /// Position j, weighted by 1−α; may equal i.
    pub second: u32,
    /// α in [0, 1).
    pub alpha: f32,
}

/// One position in a row's list of hardest and the weight of the query.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QueryMixedDraw {
    /// Position j, weighted by 1−β.
    pub pick: u32,
    /// β in [0, 0.5), the weight of the query.
    pub beta: f32,
}

/// The largest step plus one: a step's upper bit marks the kind of the draw.
pub const STEP_LIMIT: u64 = 1 << 63;

fn words(seed: u64, step: u64, row: u32, index: u32, tag: u32) -> [u32; 4] {
    debug_assert!(step < STEP_LIMIT);
    philox4x32_10(
        [index, row, step as u32, (step >> 32) as u32 | tag << 31],
        [seed as u32, (seed >> 32) as u32],
    )
}

fn position(word: u32, count: u32) -> u32 {
    ((u64::from(word) * u64::from(count)) >> 32) as u32
}

/// The mixed draw with this index of this global row, over `count` = N_b hardest.
/// Bits of `step` from 2⁶³ up are ignored.
#[must_use]
pub fn mixed_draw(seed: u64, step: u64, row: u32, index: u32, count: u32) -> MixedDraw {
    let w = words(seed, step % STEP_LIMIT, row, index, 0);
    MixedDraw {
        first: position(w[0], count),
        second: position(w[1], count),
        alpha: (w[2] >> 8) as f32 * (1.0 / (1u32 << 24) as f32),
    }
}

/// The query-mixed draw with this index of this global row, over `count` = N_b hardest.
/// Bits of `step` from 2⁶³ up are ignored.
#[must_use]
pub fn query_mixed_draw(seed: u64, step: u64, row: u32, index: u32, count: u32) -> QueryMixedDraw {
    let w = words(seed, step % STEP_LIMIT, row, index, 1);
    QueryMixedDraw {
        pick: position(w[0], count),
        beta: (w[2] >> 8) as f32 * (1.0 / (1u32 << 25) as f32),
    }
}

/// Draws written out, row by row.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GivenDraws {
    /// Positions i of the mixed negatives, [B, s].
    pub first: Vec<u32>,
    /// Positions j of the mixed negatives, [B, s].
    pub second: Vec<u32>,
    /// Weights α of the first, [B, s], in [0, 1].
    pub alpha: Vec<f32>,
    /// Positions of the query-mixed negatives, [B, s′].
    pub pick: Vec<u32>,
    /// Weights β of the query, [B, s′], in [0, 1].
    pub beta: Vec<f32>,
}

/// Where a step's draws come from.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Draws {
    /// From the counter-based generator: fresh for every step, equal on every device.
    Seeded {
        /// The seed of the whole run.
        seed: u64,
        /// The training step, less than 2⁶³; the caller advances it.
        step: u64,
    },
    /// The caller's own.
    Given(GivenDraws),
}

impl Draws {
    /// Draws of this step of this seed.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a step of 2⁶³ or more.
    pub fn seeded(seed: u64, step: u64) -> Result<Self> {
        let draws = Self::Seeded { seed, step };
        draws.check(0, 0, 0)?;
        Ok(draws)
    }

    /// The caller's own draws. Lengths and values are checked by the step that uses them.
    #[must_use]
    pub fn given(draws: GivenDraws) -> Self {
        Self::Given(draws)
    }

    /// Whether these draws serve a batch of `rows` with s = `mixed`, s′ = `query_mixed`: all but
    /// the positions, which depend on each row's number of hardest.
    pub(crate) fn check(&self, rows: usize, mixed: usize, query_mixed: usize) -> Result<()> {
        match self {
            Self::Seeded { step, .. } => {
                if *step >= STEP_LIMIT {
                    return Err(Error::OutOfRange {
                        argument: "step",
                        value: step.to_string(),
                        expected: "less than 2^63",
                    });
                }
            }
            Self::Given(given) => {
                let mixed_len = crate::error::elements("mixed", rows, mixed)?;
                let query_mixed_len = crate::error::elements("query_mixed", rows, query_mixed)?;
                expect_length("first", given.first.len(), mixed_len, "rows × mixed")?;
                expect_length("second", given.second.len(), mixed_len, "rows × mixed")?;
                expect_length("alpha", given.alpha.len(), mixed_len, "rows × mixed")?;
                expect_length(
                    "pick",
                    given.pick.len(),
                    query_mixed_len,
                    "rows × query_mixed",
                )?;
                expect_length(
                    "beta",
                    given.beta.len(),
                    query_mixed_len,
                    "rows × query_mixed",
                )?;
                for (argument, weights) in [("alpha", &given.alpha), ("beta", &given.beta)] {
                    if let Some(weight) = weights.iter().find(|w| !(0.0..=1.0).contains(*w)) {
                        return Err(Error::OutOfRange {
                            argument,
                            value: weight.to_string(),
                            expected: "a weight from 0 to 1",
                        });
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_known_answers() {
        assert_eq!(
            philox4x32_10([0; 4], [0; 2]),
            [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]
        );
        assert_eq!(
            philox4x32_10([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]
        );
        assert_eq!(
            philox4x32_10(
                [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
                [0xa4093822, 0x299f31d0]
            ),
            [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]
        );
    }

    #[test]
    fn known_draws() {
        let seed = 0x0123_4567_89ab_cdef;
        let mixed = |step| mixed_draw(seed, step, 3, 7, 1024);
        let query_mixed = |step| query_mixed_draw(seed, step, 3, 7, 1024);
        let m = mixed(5);
        assert_eq!(
            (m.first, m.second, f64::from(m.alpha)),
            (446, 746, 0.914_166_510_105_133_1)
        );
        let q = query_mixed(5);
        assert_eq!((q.pick, f64::from(q.beta)), (348, 0.425_198_525_190_353_4));
        let m = mixed(0x1_0000_0007);
        assert_eq!(
            (m.first, m.second, f64::from(m.alpha)),
            (694, 392, 0.385_442_852_973_938)
        );
        let q = query_mixed(0x1_0000_0007);
        assert_eq!((q.pick, f64::from(q.beta)), (569, 0.028_173_685_073_852_54));
    }

    #[test]
    fn step_beyond_its_bits_is_refused() {
        assert!(Draws::seeded(0, STEP_LIMIT - 1).is_ok());
        let error = Draws::seeded(0, STEP_LIMIT).unwrap_err().to_string();
        assert_eq!(
            error,
            "step is 9223372036854775808; expected less than 2^63"
        );
    }
}

//! Which rows are mixed, and with which weights: Philox4x32-10 by (seed, step, row, index).
//!
//! A draw depends on nothing but its seed, step, global row and index within its kind, so that it
//! is the same on every device, in any sharding of the batch and in any order of computation.

use crate::error::{Error, Result, expect_length};

const MULTIPLIER_0: u64 = 0xD251_1F53;
const MULTIPLIER_1: u64 = 0xCD9E_8D57;
const WEYL_0: u32 = 0x9E37_79B9;
const WEYL_1: u32 = 0xBB67_AE85;

/// One block of Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
#[must_use]
pub const fn philox4x32_10(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
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

fn alpha_of(word: u32) -> f32 {
    (word >> 8) as f32 * (1.0 / (1u32 << 24) as f32)
}

fn beta_of(word: u32) -> f32 {
    (word >> 8) as f32 * (1.0 / (1u32 << 25) as f32)
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
        alpha: alpha_of(w[2]),
    }
}

/// The query-mixed draw with this index of this global row, over `count` = N_b hardest.
/// Bits of `step` from 2⁶³ up are ignored.
#[must_use]
pub fn query_mixed_draw(seed: u64, step: u64, row: u32, index: u32, count: u32) -> QueryMixedDraw {
    let w = words(seed, step % STEP_LIMIT, row, index, 1);
    QueryMixedDraw {
        pick: position(w[0], count),
        beta: beta_of(w[2]),
    }
}

/// Lanes of the vectorised generator: 16 32-bit words, the widest vector.
const LANES: usize = 16;

/// [`philox4x32_10`] of the counters (index + 0 … index + 15, row, step, tag).
#[multiversion::multiversion(targets = "simd")]
fn word_lanes(seed: u64, step: u64, row: u32, index: u32, tag: u32) -> [[u32; LANES]; 3] {
    let (mut k0, mut k1) = (seed as u32, (seed >> 32) as u32);
    let mut c0: [u32; LANES] = std::array::from_fn(|lane| index.wrapping_add(lane as u32));
    let mut c1 = [row; LANES];
    let mut c2 = [step as u32; LANES];
    let mut c3 = [(step >> 32) as u32 | tag << 31; LANES];
    for _ in 0..10 {
        for lane in 0..LANES {
            let p0 = MULTIPLIER_0 * u64::from(c0[lane]);
            let p1 = MULTIPLIER_1 * u64::from(c2[lane]);
            c0[lane] = (p1 >> 32) as u32 ^ c1[lane] ^ k0;
            c1[lane] = p1 as u32;
            c2[lane] = (p0 >> 32) as u32 ^ c3[lane] ^ k1;
            c3[lane] = p0 as u32;
        }
        k0 = k0.wrapping_add(WEYL_0);
        k1 = k1.wrapping_add(WEYL_1);
    }
    [c0, c1, c2]
}

/// The mixed draws 0, 1, … of a row, many at a time: bit-equal to [`mixed_draw`].
pub(crate) fn fill_mixed(
    (seed, step): (u64, u64),
    row: u32,
    count: u32,
    first: &mut [u32],
    second: &mut [u32],
    alpha: &mut [f32],
) {
    let chunks = first
        .chunks_mut(LANES)
        .zip(second.chunks_mut(LANES))
        .zip(alpha.chunks_mut(LANES));
    for (chunk, ((first, second), alpha)) in chunks.enumerate() {
        let [w0, w1, w2] = word_lanes(seed, step, row, (chunk * LANES) as u32, 0);
        for lane in 0..first.len() {
            first[lane] = position(w0[lane], count);
            second[lane] = position(w1[lane], count);
            alpha[lane] = alpha_of(w2[lane]);
        }
    }
}

/// The query-mixed draws 0, 1, … of a row: bit-equal to [`query_mixed_draw`].
pub(crate) fn fill_query_mixed(
    (seed, step): (u64, u64),
    row: u32,
    count: u32,
    pick: &mut [u32],
    beta: &mut [f32],
) {
    for (chunk, (pick, beta)) in pick
        .chunks_mut(LANES)
        .zip(beta.chunks_mut(LANES))
        .enumerate()
    {
        let [w0, _, w2] = word_lanes(seed, step, row, (chunk * LANES) as u32, 1);
        for lane in 0..pick.len() {
            pick[lane] = position(w0[lane], count);
            beta[lane] = beta_of(w2[lane]);
        }
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
    fn many_at_a_time_are_the_same() {
        let (seed, step, row, count) = (0xfeed_beef_1234_5678, 0x3_0000_0001, 41, 1000);
        for len in [1, 15, 16, 17, 100] {
            let (mut first, mut second, mut pick) = (vec![0; len], vec![0; len], vec![0; len]);
            let (mut alpha, mut beta) = (vec![0.0; len], vec![0.0; len]);
            fill_mixed(
                (seed, step),
                row,
                count,
                &mut first,
                &mut second,
                &mut alpha,
            );
            fill_query_mixed((seed, step), row, count, &mut pick, &mut beta);
            for index in 0..len {
                let one = mixed_draw(seed, step, row, index as u32, count);
                let filled = MixedDraw {
                    first: first[index],
                    second: second[index],
                    alpha: alpha[index],
                };
                assert_eq!(filled, one);
                let one = query_mixed_draw(seed, step, row, index as u32, count);
                assert_eq!(
                    QueryMixedDraw {
                        pick: pick[index],
                        beta: beta[index]
                    },
                    one
                );
            }
        }
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

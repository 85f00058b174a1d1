//! The hardest: for each query the N queue rows with the largest logits.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::contrast::{Block, Partial, Pass, run_blocks};
use super::{LANES, sample, vector};
use crate::error::{Error, Result, elements, expect_length, filled, first_non_finite, whole_rows};
use crate::queue::{NO_ROW, Queue};

/// The hardest of B queries.
#[derive(Debug, Clone, PartialEq)]
pub struct Ranked {
    /// N.
    pub hardest: usize,
    /// Queue rows, ascending, [B, N], padded with [`NO_ROW`].
    pub indices: Vec<u32>,
    /// Their logits q·n, before τ, [B, N], padded with −∞.
    pub logits: Vec<f32>,
    /// N_b, how many rows each list really has, `[B]`.
    pub counts: Vec<u32>,
}

impl Ranked {
    /// Whether these are lists over a queue of `capacity` rows, for `rows` queries.
    pub(super) fn check(&self, rows: usize, capacity: usize) -> Result<()> {
        let len = elements("ranked", rows, self.hardest)?;
        expect_length("ranked.indices", self.indices.len(), len, "rows × hardest")?;
        expect_length("ranked.logits", self.logits.len(), len, "rows × hardest")?;
        expect_length("ranked.counts", self.counts.len(), rows, "rows")?;
        for (row, &count) in self.counts.iter().enumerate() {
            let list = &self.indices[row * self.hardest..(row + 1) * self.hardest];
            let listed = list
                .get(..count as usize)
                .ok_or_else(|| Error::OutOfRange {
                    argument: "ranked.counts",
                    value: count.to_string(),
                    expected: "at most hardest",
                })?;
            if let Some(index) = listed.iter().find(|&&index| index as usize >= capacity) {
                return Err(Error::OutOfRange {
                    argument: "ranked.indices",
                    value: index.to_string(),
                    expected: "less than the queue's capacity",
                });
            }
        }
        Ok(())
    }
}

/// The N = `hardest` queue rows with the largest logits q·n for each of the queries, [B, d], ties
/// to the lower index (−0 equals +0), listed by ascending index (method: Loss, 1).
///
/// With `oracle_labels`, the label of each query, queue rows of the same label are left out; a list
/// is then shorter than N where fewer rows remain.
///
/// # Errors
/// [`Error::HardestBeyondQueue`] for N > K, [`Error::Zero`] for N = 0 or no queries,
/// [`Error::Ragged`] for queries that are no whole rows, [`Error::Length`] for labels that are not
/// one a query,
/// [`Error::MissingLabels`] for an oracle without queue labels, [`Error::NonFinite`] with the row
/// of the queries, or `logits` where a product could overflow.
pub fn rank(
    queries: &[f32],
    queue: &Queue,
    hardest: usize,
    oracle_labels: Option<&[u32]>,
) -> Result<Ranked> {
    let (capacity, dim) = (queue.capacity(), queue.dim());
    let rows = whole_rows("queries", queries.len(), dim)?;
    check_hardest(hardest, capacity)?;
    if let Some(labels) = oracle_labels {
        expect_length("query labels", labels.len(), rows, "rows")?;
        if queue.labels().is_none() {
            return Err(Error::MissingLabels { argument: "queue" });
        }
    }
    if let Some(row) = first_non_finite(queries, dim) {
        return Err(Error::NonFinite {
            argument: "queries",
            row,
        });
    }
    let largest = largest_norm(queue);
    if let Some(row) = queries
        .chunks_exact(dim)
        .position(|query| norm(query) * largest > LARGEST_LOGIT)
    {
        return Err(Error::NonFinite {
            argument: "logits",
            row,
        });
    }

    let oracle = oracle_labels.is_some();
    let mut blocks = Block::all(queries, dim, oracle_labels, &vec![true; rows]);
    sample::set_thresholds(&mut blocks, queue, hardest, oracle);
    let pass = Pass {
        contrast: None,
        uniformity: false,
        candidates: true,
        oracle,
    };
    let mut ranked = Ranked {
        hardest,
        indices: filled("hardest", rows, hardest, NO_ROW)?,
        logits: filled("hardest", rows, hardest, f32::NEG_INFINITY)?,
        counts: vec![0; rows],
    };
    run_blocks(&blocks, queue, pass, &mut Vec::new(), |block, partials| {
        let candidates = Candidates::new(block, queue, oracle, hardest, partials);
        let own = block.rows.start * hardest..block.rows.end * hardest;
        ranked.indices[own.clone()]
            .par_chunks_exact_mut(hardest)
            .zip(ranked.logits[own].par_chunks_exact_mut(hardest))
            .zip(&mut ranked.counts[block.rows.clone()])
            .enumerate()
            .for_each(|(lane, ((indices, logits), count))| {
                *count = select(&candidates.of(lane), indices, logits) as u32;
            });
    });
    Ok(ranked)
}

/// [`rank`] of logits that are there already: [B, K], row-major, K = `capacity`.
///
/// Infinities are ordered like any other value.
///
/// # Errors
/// [`Error::Zero`] for no logits or N = 0, [`Error::Ragged`] for no whole rows,
/// [`Error::HardestBeyondQueue`] for N > K, [`Error::NonFinite`] with the row of a NaN.
pub fn rank_logits(logits: &[f32], capacity: usize, hardest: usize) -> Result<Ranked> {
    if capacity == 0 {
        return Err(Error::Zero {
            argument: "capacity",
        });
    }
    let rows = whole_rows("logits", logits.len(), capacity)?;
    check_hardest(hardest, capacity)?;
    if capacity >= NO_ROW as usize {
        return Err(Error::OutOfRange {
            argument: "capacity",
            value: capacity.to_string(),
            expected: "less than 4294967295 rows",
        });
    }
    if let Some(row) = logits
        .chunks_exact(capacity)
        .position(|row| row.iter().any(|l| l.is_nan()))
    {
        return Err(Error::NonFinite {
            argument: "logits",
            row,
        });
    }
    let mut ranked = Ranked {
        hardest,
        indices: filled("hardest", rows, hardest, NO_ROW)?,
        logits: filled("hardest", rows, hardest, f32::NEG_INFINITY)?,
        counts: vec![hardest as u32; rows],
    };
    let all: Vec<u32> = (0..capacity as u32).collect();
    ranked
        .indices
        .par_chunks_exact_mut(hardest)
        .zip(ranked.logits.par_chunks_exact_mut(hardest))
        .zip(logits.par_chunks_exact(capacity))
        .for_each(|((indices, selected), row)| {
            select(&[(&all, row)], indices, selected);
        });
    Ok(ranked)
}

/// Whether no logit of the query, over a temperature stretched by this much, can overflow, where
/// the longest row it meets has norm `largest`.
pub(super) fn bounded(query: &[f32], largest: f64, stretch: f64) -> bool {
    // Zero times infinity is NaN and not bounded either.
    norm(query) * largest.max(1.0) * stretch <= LARGEST_LOGIT
}

/// The largest product of norms whose partial sums, and exponents at any temperature from 0.1 up,
/// stay clear of f32's end at 3.4e38.
const LARGEST_LOGIT: f64 = 1e37;

pub(super) fn check_hardest(hardest: usize, capacity: usize) -> Result<()> {
    if hardest == 0 {
        return Err(Error::Zero {
            argument: "hardest",
        });
    }
    if hardest > capacity {
        return Err(Error::HardestBeyondQueue { hardest, capacity });
    }
    Ok(())
}

/// ‖x‖, in f64 so that no finite row overflows.
pub(super) fn norm(row: &[f32]) -> f64 {
    row.iter()
        .map(|&x| f64::from(x) * f64::from(x))
        .sum::<f64>()
        .sqrt()
}

/// The largest ‖n‖ of a queue; infinite where its square overflows f32.
pub(super) fn largest_norm(queue: &Queue) -> f64 {
    f64::from(queue.squared_norms().iter().fold(0.0f32, |a, &b| a.max(b))).sqrt()
}

/// The n-th largest key, n from 1 to their number: the largest bound that n keys reach, bit by bit. That
/// takes 32 passes that a processor does not mispredict, where a quickselect's partitions take three
/// that it does: 1 µs against 8 for 2400 keys.
pub(super) fn nth_largest(keys: &[u32], n: usize) -> u32 {
    debug_assert!((1..=keys.len()).contains(&n));
    let mut bound = 0;
    for bit in (0..u32::BITS).rev() {
        let higher = bound | 1 << bit;
        if vector::count_above(keys, higher - 1) >= n {
            bound = higher;
        }
    }
    bound
}

/// Queue rows, ascending, and their logits.
pub(super) type Listed<'a> = (&'a [u32], &'a [f32]);

/// Writes the hardest of the candidates, which come by ascending queue row in `parts`, and returns
/// how many there are: the slices' length, or all candidates where they are fewer.
pub(super) fn select(parts: &[Listed<'_>], indices: &mut [u32], logits: &mut [f32]) -> usize {
    let mut keys = vec![0; parts.iter().map(|(_, logits)| logits.len()).sum()];
    let mut rest = &mut *keys;
    for (_, logits) in parts {
        let own;
        (own, rest) = rest.split_at_mut(logits.len());
        vector::ordered_keys(logits, own);
    }
    let count = indices.len().min(keys.len());
    if count == 0 {
        return 0;
    }
    let boundary = nth_largest(&keys, count);
    // Those at the boundary's own value are taken by lower index, as many as are still free.
    let mut ties = count - vector::count_above(&keys, boundary);
    let (mut keys, mut at) = (&*keys, 0);
    for (rows, values) in parts {
        const WORD: usize = u64::BITS as usize;
        for (rows, values) in rows.chunks(WORD).zip(values.chunks(WORD)) {
            let own;
            (own, keys) = keys.split_at(rows.len());
            let (mut taken, mut equal) = vector::compare(own, boundary);
            while equal != 0 && ties > 0 {
                taken |= equal & equal.wrapping_neg();
                equal &= equal - 1;
                ties -= 1;
            }
            // Which stay is as good as random: their number is mispredicted once a word, not each.
            let end = at + taken.count_ones() as usize;
            for (index, logit) in indices[at..end].iter_mut().zip(&mut logits[at..end]) {
                let place = taken.trailing_zeros() as usize;
                (*index, *logit) = (rows[place], values[place]);
                taken &= taken - 1;
            }
            at = end;
        }
    }
    debug_assert_eq!(at, count);
    count
}

/// The candidates of the rows of a block over all splits, the hardest always among them.
pub(super) struct Candidates<'a> {
    partials: &'a [Partial],
    /// Of the lanes that were passed over again.
    repaired: BTreeMap<usize, (Vec<u32>, Vec<f32>)>,
}

impl<'a> Candidates<'a> {
    /// Gathers them: a row that its threshold left with fewer candidates than it has hardest is
    /// passed over again, with every unmasked logit a candidate.
    pub fn new(
        block: &Block,
        queue: &Queue,
        oracle: bool,
        hardest: usize,
        partials: &'a [Partial],
    ) -> Self {
        let mut repaired = BTreeMap::new();
        let mut thresholds = [f32::INFINITY; LANES];
        for (lane, threshold) in thresholds[..block.rows.len()].iter_mut().enumerate() {
            let found: usize = partials.iter().map(|p| p.candidates[lane].len()).sum();
            let masked: usize = partials.iter().map(|p| p.masked[lane] as usize).sum();
            if found < hardest.min(queue.capacity() - masked) {
                *threshold = f32::NEG_INFINITY;
                repaired.insert(lane, (Vec::new(), Vec::new()));
            }
        }
        if !repaired.is_empty() {
            let pass = Pass {
                contrast: None,
                uniformity: false,
                candidates: true,
                oracle,
            };
            let again = Block {
                thresholds,
                ..block.clone()
            };
            run_blocks(&[again], queue, pass, &mut Vec::new(), |_, partials| {
                for (&lane, (indices, logits)) in &mut repaired {
                    for part in partials.iter().map(|p| &p.candidates[lane]) {
                        indices.extend_from_slice(part.indices());
                        logits.extend_from_slice(part.logits());
                    }
                }
            });
        }
        Self { partials, repaired }
    }

    /// The candidates of a lane, in parts, by ascending queue row.
    pub fn of(&self, lane: usize) -> Vec<Listed<'_>> {
        match self.repaired.get(&lane) {
            Some((indices, logits)) => vec![(indices, logits)],
            None => self
                .partials
                .iter()
                .map(|p| (p.candidates[lane].indices(), p.candidates[lane].logits()))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::DType;

    #[test]
    fn the_nth_largest_is_that_of_sorting() {
        let mut random = fastrand::Rng::with_seed(4);
        for len in [1, 2, 15, 16, 17, 100, 5000] {
            // From many ties to none, and both ends.
            for range in [1, 3, 1000, u32::MAX] {
                let mut keys: Vec<u32> = (0..len).map(|_| random.u32(0..=range)).collect();
                keys[len / 2] = [0, u32::MAX][len % 2];
                let mut sorted = keys.clone();
                sorted.sort_unstable_by(|a, b| b.cmp(a));
                for n in [1, 2, len / 2, len - 1, len] {
                    if (1..=len).contains(&n) {
                        assert_eq!(nth_largest(&keys, n), sorted[n - 1], "{n} of {len}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_threshold_that_is_too_high_is_repaired() {
        let queue = Queue::random(20_000, 8, DType::F32, 1).unwrap();
        let queries = Queue::random(70, 8, DType::F32, 2).unwrap().rows().to_f32();
        let expected = rank(&queries, &queue, 100, None).unwrap();
        let pass = Pass {
            contrast: None,
            uniformity: false,
            candidates: true,
            oracle: false,
        };
        let mut blocks = Block::all(&queries, 8, None, &[true; 70]);
        for (at, block) in blocks.iter_mut().enumerate() {
            for (lane, threshold) in block.thresholds.iter_mut().enumerate() {
                *threshold = [f32::INFINITY, 0.9, f32::NEG_INFINITY][(lane + at) % 3];
            }
        }
        run_blocks(&blocks, &queue, pass, &mut Vec::new(), |block, partials| {
            let candidates = Candidates::new(block, &queue, false, 100, partials);
            for (lane, row) in block.rows.clone().enumerate() {
                let (mut indices, mut logits) = (vec![NO_ROW; 100], vec![0.0; 100]);
                assert_eq!(select(&candidates.of(lane), &mut indices, &mut logits), 100);
                assert_eq!(indices, expected.indices[row * 100..(row + 1) * 100]);
                assert_eq!(logits, expected.logits[row * 100..(row + 1) * 100]);
            }
        });
    }
}

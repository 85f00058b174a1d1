//! The hardest: for each query the N queue rows with the largest logits.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::contrast::{Block, Candidate, Partial, Pass, run_blocks};
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
    ranked
        .indices
        .par_chunks_exact_mut(hardest)
        .zip(ranked.logits.par_chunks_exact_mut(hardest))
        .zip(logits.par_chunks_exact(capacity))
        .for_each(|((indices, selected), row)| {
            let all: Vec<Candidate> = row
                .iter()
                .enumerate()
                .map(|(index, &logit)| Candidate {
                    logit,
                    index: index as u32,
                })
                .collect();
            select(&[&all], indices, selected);
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

/// A key that orders as the logit does, with −0 equal to +0.
fn ordered_key(logit: f32) -> u32 {
    let bits = (logit + 0.0).to_bits();
    if bits >> 31 == 1 {
        !bits
    } else {
        bits | 1 << 31
    }
}

/// Writes the hardest of the candidates, which come by ascending queue row in `parts`, and returns
/// how many there are: the slices' length, or all candidates where they are fewer.
pub(super) fn select(parts: &[&[Candidate]], indices: &mut [u32], logits: &mut [f32]) -> usize {
    let mut keys = Vec::with_capacity(parts.iter().map(|part| part.len()).sum());
    for part in parts {
        keys.extend(part.iter().map(|candidate| ordered_key(candidate.logit)));
    }
    let count = indices.len().min(keys.len());
    if count == 0 {
        return 0;
    }
    let mut sorted = keys.clone();
    let rank = keys.len() - count;
    let (_, &mut boundary, above) = sorted.select_nth_unstable(rank);
    // Those at the boundary's own value are taken by lower index, as many as are still free.
    let mut ties = count - above.iter().filter(|&&key| key > boundary).count();
    let (mut keys, mut at) = (&*keys, 0);
    for part in parts {
        for candidates in part.chunks(u64::BITS as usize) {
            let own;
            (own, keys) = keys.split_at(candidates.len());
            let (mut taken, mut equal) = vector::compare(own, boundary);
            while equal != 0 && ties > 0 {
                taken |= equal & equal.wrapping_neg();
                equal &= equal - 1;
                ties -= 1;
            }
            // Which stay is as good as random: their number is mispredicted once a word, not each.
            let end = at + taken.count_ones() as usize;
            for (index, logit) in indices[at..end].iter_mut().zip(&mut logits[at..end]) {
                let candidate = candidates[taken.trailing_zeros() as usize];
                (*index, *logit) = (candidate.index, candidate.logit);
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
    repaired: BTreeMap<usize, Vec<Candidate>>,
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
                repaired.insert(lane, Vec::new());
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
                for (&lane, all) in &mut repaired {
                    all.extend(partials.iter().flat_map(|p| &p.candidates[lane]));
                }
            });
        }
        Self { partials, repaired }
    }

    /// The candidates of a lane, in parts, by ascending queue row.
    pub fn of(&self, lane: usize) -> Vec<&[Candidate]> {
        match self.repaired.get(&lane) {
            Some(all) => vec![all],
            None => self.partials.iter().map(|p| &*p.candidates[lane]).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::DType;

    #[test]
    fn the_key_orders_as_the_logit() {
        let values = [
            f32::NEG_INFINITY,
            -2.0,
            -1e-40,
            -0.0,
            1e-40,
            2.0,
            f32::INFINITY,
        ];
        assert!(
            values
                .windows(2)
                .all(|pair| ordered_key(pair[0]) < ordered_key(pair[1]))
        );
        assert_eq!(ordered_key(-0.0), ordered_key(0.0));
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

//! Synthetic negatives: mixed from two of a query's hardest, or from the query and one of them.

use rayon::prelude::*;

use super::aligned::Aligned;
use super::contrast::{Totals, exponent_scale};
use super::gather::gather;
use super::rank::{Ranked, norm};
use super::vector;
use crate::batch::Batch;
use crate::config::{Config, QueryGradient};
use crate::draws::{self, Draws, GivenDraws};
use crate::error::{Error, Result, elements, filled, refilled};
use crate::queue::Queue;

/// A mixture shorter than this is the zero vector (method: Loss, 3).
pub(super) const SHORTEST: f64 = 1e-12;

/// Synthetic negatives written out, for those who want them; the step never does.
#[derive(Debug, Clone, PartialEq)]
pub struct Synthetic {
    /// h, mixed from two of the hardest, [B, s, d], of unit norm.
    pub mixed: Vec<f32>,
    /// h′, mixed from the query and one of the hardest, [B, s′, d], of unit norm.
    pub query_mixed: Vec<f32>,
}

/// Mixes `config.mixed()` and `config.query_mixed()` negatives for every query of the batch from
/// its hardest, `ranked` (method: Loss, 2 and 3). A row without any hardest gets zeros.
///
/// ```
/// use hardmix::{Batch, Config, DType, Draws, Queue, cpu};
/// let queue = Queue::random(64, 8, DType::F32, 0)?;
/// let queries = queue.row(3).unwrap();
/// let batch = Batch::new(&queries, &queries, 8)?;
/// let config = Config::mochi(16, 4, 2)?;
/// let ranked = cpu::rank(batch.queries(), &queue, config.hardest(), None)?;
/// let synthetic = cpu::mix(&batch, &queue, &ranked, &config, &Draws::seeded(1, 0)?)?;
/// assert_eq!(synthetic.mixed.len(), 4 * 8);
/// # Ok::<(), hardmix::Error>(())
/// ```
///
/// # Errors
/// [`Error::Dimension`] and [`Error::Length`] for shapes that disagree, [`Error::OutOfRange`] for
/// lists that point behind the queue, [`Error::DrawOutOfRange`] for given draws that point behind
/// a list, [`Error::NonFinite`] with the row of the queries.
pub fn mix(
    batch: &Batch<'_>,
    queue: &Queue,
    ranked: &Ranked,
    config: &Config,
    draws: &Draws,
) -> Result<Synthetic> {
    let (rows, dim) = (batch.rows(), batch.dim());
    let (mixed, query_mixed) = (config.mixed(), config.query_mixed());
    check_dim(queue, dim)?;
    ranked.check(rows, queue.capacity())?;
    draws.check(rows, mixed, query_mixed)?;
    if let Some(row) = crate::error::first_non_finite(batch.queries(), dim) {
        return Err(Error::NonFinite {
            argument: "queries",
            row,
        });
    }
    let mut synthetic = Synthetic {
        mixed: filled("mixed", elements("mixed", rows, mixed)?, dim, 0.0)?,
        query_mixed: filled(
            "query_mixed",
            elements("query_mixed", rows, query_mixed)?,
            dim,
            0.0,
        )?,
    };
    let mut used = empty_draws(GivenDraws::default(), rows, mixed, query_mixed)?;
    let own: Vec<_> = rows_mut(&mut synthetic.mixed, rows)
        .into_iter()
        .zip(rows_mut(&mut synthetic.query_mixed, rows))
        .zip(DrawsMut::rows(&mut used, rows))
        .collect();
    let done: Vec<Result<()>> = own
        .into_par_iter()
        .enumerate()
        .map(|(row, ((mixed, query_mixed), mut used))| {
            let count = ranked.counts[row] as usize;
            resolve(draws, batch, row, count, &mut used)?;
            if count == 0 {
                return Ok(());
            }
            let list = &ranked.indices[row * ranked.hardest..][..count];
            let mut features = [vec![0.0; dim], vec![0.0; dim]];
            for (index, h) in mixed.chunks_exact_mut(dim).enumerate() {
                queue.read_row(list[used.first[index] as usize] as usize, &mut features[0]);
                queue.read_row(list[used.second[index] as usize] as usize, &mut features[1]);
                mix_rows(used.alpha[index], &features[0], &features[1], h);
            }
            let query = &batch.queries()[row * dim..(row + 1) * dim];
            for (index, h) in query_mixed.chunks_exact_mut(dim).enumerate() {
                queue.read_row(list[used.pick[index] as usize] as usize, &mut features[0]);
                mix_rows(used.beta[index], query, &features[0], h);
            }
            Ok(())
        })
        .collect();
    // The first failing row, whatever the threads did.
    done.into_iter().collect::<Result<()>>()?;
    Ok(synthetic)
}

fn mix_rows(weight: f32, a: &[f32], b: &[f32], h: &mut [f32]) {
    let weight = f64::from(weight);
    let sum = |a: &f32, b: &f32| weight * f64::from(*a) + (1.0 - weight) * f64::from(*b);
    let r = a
        .iter()
        .zip(b)
        .map(|(a, b)| sum(a, b).powi(2))
        .sum::<f64>()
        .sqrt();
    for ((h, a), b) in h.iter_mut().zip(a).zip(b) {
        *h = if r < SHORTEST {
            0.0
        } else {
            (sum(a, b) / r) as f32
        };
    }
}

pub(super) fn check_dim(queue: &Queue, dim: usize) -> Result<()> {
    if queue.dim() == dim {
        Ok(())
    } else {
        Err(Error::Dimension {
            argument: "queue",
            dim: queue.dim(),
            expected: dim,
        })
    }
}

/// `data` cut into `rows` equal slices, empty ones where it is empty.
pub(super) fn rows_mut<T>(data: &mut [T], rows: usize) -> Vec<&mut [T]> {
    let width = data.len() / rows;
    let mut rest = data;
    (0..rows)
        .map(|_| {
            let (row, behind) = std::mem::take(&mut rest).split_at_mut(width);
            rest = behind;
            row
        })
        .collect()
}

/// Room for the draws of a batch, in memory that is there already as far as it suffices.
pub(super) fn empty_draws(
    spare: GivenDraws,
    rows: usize,
    mixed: usize,
    query_mixed: usize,
) -> Result<GivenDraws> {
    Ok(GivenDraws {
        first: refilled(spare.first, "mixed", rows, mixed, 0)?,
        second: refilled(spare.second, "mixed", rows, mixed, 0)?,
        alpha: refilled(spare.alpha, "mixed", rows, mixed, 0.0)?,
        pick: refilled(spare.pick, "query_mixed", rows, query_mixed, 0)?,
        beta: refilled(spare.beta, "query_mixed", rows, query_mixed, 0.0)?,
    })
}

/// The place of one row's draws in the output.
#[derive(Debug, Default)]
pub(super) struct DrawsMut<'a> {
    pub first: &'a mut [u32],
    pub second: &'a mut [u32],
    pub alpha: &'a mut [f32],
    pub pick: &'a mut [u32],
    pub beta: &'a mut [f32],
}

impl<'a> DrawsMut<'a> {
    pub fn rows(draws: &'a mut GivenDraws, rows: usize) -> impl Iterator<Item = Self> {
        rows_mut(&mut draws.first, rows)
            .into_iter()
            .zip(rows_mut(&mut draws.second, rows))
            .zip(rows_mut(&mut draws.alpha, rows))
            .zip(rows_mut(&mut draws.pick, rows))
            .zip(rows_mut(&mut draws.beta, rows))
            .map(|((((first, second), alpha), pick), beta)| Self {
                first,
                second,
                alpha,
                pick,
                beta,
            })
    }
}

/// Writes the draws of a row with `count` = N_b hardest.
pub(super) fn resolve(
    draws: &Draws,
    batch: &Batch<'_>,
    row: usize,
    count: usize,
    out: &mut DrawsMut<'_>,
) -> Result<()> {
    match draws {
        Draws::Seeded { seed, step } => {
            let global = (u64::from(batch.row_offset()) + row as u64) as u32;
            let (key, n) = ((*seed, *step), count as u32);
            draws::fill_mixed(key, global, n, out.first, out.second, out.alpha);
            draws::fill_query_mixed(key, global, n, out.pick, out.beta);
        }
        Draws::Given(given) => {
            let (mixed, query_mixed) = (out.first.len(), out.pick.len());
            out.first
                .copy_from_slice(&given.first[row * mixed..][..mixed]);
            out.second
                .copy_from_slice(&given.second[row * mixed..][..mixed]);
            out.alpha
                .copy_from_slice(&given.alpha[row * mixed..][..mixed]);
            out.pick
                .copy_from_slice(&given.pick[row * query_mixed..][..query_mixed]);
            out.beta
                .copy_from_slice(&given.beta[row * query_mixed..][..query_mixed]);
            if count == 0 {
                return Ok(());
            }
            for (argument, positions) in [
                ("first", &*out.first),
                ("second", &*out.second),
                ("pick", &*out.pick),
            ] {
                let beyond = positions
                    .iter()
                    .position(|&position| position as usize >= count);
                if let Some(index) = beyond {
                    let position = positions[index];
                    return Err(Error::DrawOutOfRange {
                        argument,
                        row,
                        index,
                        position,
                        count,
                    });
                }
            }
        }
    }
    Ok(())
}

/// Mixes for one query at a time; the memory is reused from row to row.
///
/// The rows that a query's draws name, and behind them the query itself, are gathered once and then
/// read from a near cache: a mixture is one of two such rows, of either kind.
#[derive(Debug, Default)]
pub(super) struct Mixer {
    /// By position in the list of hardest: where that row is gathered, if any draw names it.
    slots: Vec<u32>,
    /// The queue rows that are gathered, ascending.
    named: Vec<u32>,
    /// The gathered rows, then the query, [named + 1][dim].
    rows: Aligned,
    /// ‖row‖² of each.
    squares: Vec<f32>,
    /// q·row of each.
    logits: Vec<f32>,
    /// What is mixed from what, mixed then query-mixed: α or β, and where its two rows are.
    weights: Vec<f32>,
    first: Vec<u32>,
    second: Vec<u32>,
    /// The product of the two.
    dots: Vec<f32>,
    /// 1/r; 0 where r is too short.
    inverses: Vec<f64>,
    exponentials: Vec<f32>,
    /// What each gathered row weighs in the gradient.
    folded: Vec<f64>,
    rounded: Vec<f32>,
}

/// q·h and 1/r from the rows themselves, in f64; zeros where r is too short.
fn mixture(weight: f32, query: &[f32], a: &[f32], b: &[f32]) -> (f64, f64) {
    let weight = f64::from(weight);
    let (mut squared, mut logit) = (0.0, 0.0);
    for ((q, a), b) in query.iter().zip(a).zip(b) {
        let h = weight * f64::from(*a) + (1.0 - weight) * f64::from(*b);
        squared += h * h;
        logit += f64::from(*q) * h;
    }
    let r = f64::sqrt(squared);
    if r < SHORTEST {
        (0.0, 0.0)
    } else {
        (logit / r, 1.0 / r)
    }
}

impl Mixer {
    /// The logits q·h and q·h′ of a row (method: Loss, 2 and 3).
    pub fn logits(
        &mut self,
        query: &[f32],
        queue: &Queue,
        (hardest, hardest_logits): (&[u32], &[f32]),
        draws: &DrawsMut<'_>,
        mixed_logits: &mut [f32],
        query_mixed_logits: &mut [f32],
    ) {
        self.gather(query, queue, (hardest, hardest_logits), draws);
        let (dim, mixed) = (query.len(), mixed_logits.len());
        self.dots.resize(self.weights.len(), 0.0);
        let (first, second) = (&self.first[..mixed], &self.second[..mixed]);
        vector::pair_dots(&self.rows, dim, first, second, &mut self.dots[..mixed]);
        for (dot, &row) in self.dots[mixed..].iter_mut().zip(&self.second[mixed..]) {
            *dot = self.logits[row as usize];
        }
        self.inverses.resize(self.weights.len(), 0.0);
        let kinds = [
            (0..mixed, mixed_logits),
            (mixed..self.weights.len(), query_mixed_logits),
        ];
        for (range, out) in kinds {
            vector::mixtures(
                &self.weights[range.clone()],
                (&self.first[range.clone()], &self.second[range.clone()]),
                (&self.squares, &self.logits),
                &self.dots[range.clone()],
                out,
                &mut self.inverses[range.clone()],
            );
            for (index, out) in range.zip(out) {
                if self.inverses[index].is_nan() {
                    let row = |at: u32| &self.rows[at as usize * dim..][..dim];
                    let (a, b) = (row(self.first[index]), row(self.second[index]));
                    let (logit, inverse) = mixture(self.weights[index], query, a, b);
                    (*out, self.inverses[index]) = (logit as f32, inverse);
                }
            }
        }
    }

    /// Gathers the rows that the draws name, and the query.
    fn gather(
        &mut self,
        query: &[f32],
        queue: &Queue,
        (hardest, hardest_logits): (&[u32], &[f32]),
        draws: &DrawsMut<'_>,
    ) {
        const NAMED: u32 = u32::MAX;
        self.slots.clear();
        self.slots.resize(hardest.len(), 0);
        for &position in [&*draws.first, &*draws.second, &*draws.pick]
            .into_iter()
            .flatten()
        {
            self.slots[position as usize] = NAMED;
        }
        // Every hardest is written and the cursor moves past those that are named: which are is a
        // matter of chance, and would be mispredicted.
        let mut count = 0;
        self.named.resize(hardest.len(), 0);
        self.logits.resize(hardest.len() + 1, 0.0);
        for ((slot, &row), &logit) in self.slots.iter_mut().zip(hardest).zip(hardest_logits) {
            (self.named[count], self.logits[count]) = (row, logit);
            let named = *slot == NAMED;
            *slot = count as u32;
            count += usize::from(named);
        }
        self.named.truncate(count);
        self.logits.truncate(count);
        let squares = queue.squared_norms();
        self.squares.clear();
        self.squares
            .extend(self.named.iter().map(|&row| squares[row as usize]));
        let gathered = self.named.len() * query.len();
        let rows = self.rows.resize(gathered + query.len());
        gather(queue, &self.named, &mut rows[..gathered]);
        rows[gathered..].copy_from_slice(query);
        let query_square = norm(query).powi(2) as f32;
        self.squares.push(query_square);
        self.logits.push(query_square);

        self.weights.clear();
        self.weights.extend_from_slice(draws.alpha);
        self.weights.extend_from_slice(draws.beta);
        let slot = |&position: &u32| self.slots[position as usize];
        self.first.clear();
        self.first.extend(draws.first.iter().map(slot));
        self.first
            .resize(self.weights.len(), self.named.len() as u32);
        self.second.clear();
        self.second
            .extend(draws.second.iter().chain(&*draws.pick).map(slot));
    }

    /// Adds the synthetic negatives to a row's sums, of which `direction` = Σ e^{(l − shift)/τ}·n.
    /// Their gradient is folded into weights of the gathered rows (method: Gradient, last point),
    /// so that no h is ever written out.
    pub fn fold(
        &mut self,
        config: &Config,
        mixed_logits: &[f32],
        query_mixed_logits: &[f32],
        totals: &mut Totals,
        direction: &mut [f32],
    ) {
        totals.raise(mixed_logits, config.temperature(), direction);
        totals.raise(query_mixed_logits, config.temperature(), direction);
        let scale = exponent_scale(config.temperature());
        self.exponentials.resize(self.weights.len(), 0.0);
        let (mixed, query_mixed) = self.exponentials.split_at_mut(mixed_logits.len());
        vector::exponentials(mixed_logits, totals.shift, scale, mixed);
        vector::exponentials(query_mixed_logits, totals.shift, scale, query_mixed);
        totals.total += self.exponentials.iter().map(|&p| f64::from(p)).sum::<f64>();

        self.folded.clear();
        self.folded.resize(self.squares.len(), 0.0);
        let attached = config.query_gradient() == QueryGradient::Attached;
        for index in 0..self.weights.len() {
            let (w, inverse) = (f64::from(self.weights[index]), self.inverses[index]);
            let share = f64::from(self.exponentials[index]) * inverse;
            let (mut first, mut second) = (share * w, share * (1.0 - w));
            if let (true, Some(position)) = (attached, index.checked_sub(mixed_logits.len())) {
                let tangent = w * f64::from(query_mixed_logits[position]) * inverse;
                first *= 2.0 - tangent;
                second *= 1.0 - tangent;
            }
            self.folded[self.first[index] as usize] += first;
            self.folded[self.second[index] as usize] += second;
        }
        self.rounded.clear();
        self.rounded.extend(self.folded.iter().map(|&w| w as f32));
        vector::add_weighted(&self.rows, direction.len(), &self.rounded, direction);
    }
}

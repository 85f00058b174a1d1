//! Synthetic negatives: mixed from two of a query's hardest, or from the query and one of them.

use rayon::prelude::*;

use super::contrast::{Totals, exponent_scale};
use super::rank::{Ranked, norm};
use super::vector;
use crate::batch::Batch;
use crate::config::{Config, QueryGradient};
use crate::draws::{self, Draws, GivenDraws};
use crate::error::{Error, Result, elements, filled};
use crate::queue::Queue;

/// A mixture shorter than this is the zero vector (method: Loss, 3).
const SHORTEST: f64 = 1e-12;

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
    let mut used = empty_draws(rows, mixed, query_mixed)?;
    let own: Vec<_> = rows_mut(&mut synthetic.mixed, rows)
        .into_iter()
        .zip(rows_mut(&mut synthetic.query_mixed, rows))
        .zip(DrawsMut::rows(&mut used, rows))
        .collect();
    own.into_par_iter()
        .enumerate()
        .try_for_each(|(row, ((mixed, query_mixed), mut used))| {
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
        })?;
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

pub(super) fn empty_draws(rows: usize, mixed: usize, query_mixed: usize) -> Result<GivenDraws> {
    Ok(GivenDraws {
        first: filled("mixed", rows, mixed, 0)?,
        second: filled("mixed", rows, mixed, 0)?,
        alpha: filled("mixed", rows, mixed, 0.0)?,
        pick: filled("query_mixed", rows, query_mixed, 0)?,
        beta: filled("query_mixed", rows, query_mixed, 0.0)?,
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

/// One query and its hardest, as mixing sees them; the memory is reused from row to row.
#[derive(Debug, Default)]
pub(super) struct Mixer {
    /// The hardest as f32, [N_b][dim]: gathered once, then read by every pair from a near cache.
    rows: Vec<f32>,
    squared_norms: Vec<f32>,
    pair_dots: Vec<f32>,
    /// 1/r of the mixed, then of the query-mixed negatives; 0 where r is too short.
    inverses: Vec<f64>,
    exponentials: Vec<f32>,
    weights: Vec<f64>,
    rounded: Vec<f32>,
}

/// The products that a mixture of two rows is a function of.
struct Products {
    /// ‖a‖², ‖b‖².
    squares: [f64; 2],
    /// a·b.
    dot: f64,
    /// q·a, q·b.
    logits: [f64; 2],
}

impl Products {
    /// q·h and 1/r of h = (w a + (1−w) b)/r, or nothing where the rows all but cancel: with r² less
    /// than a sixteenth of its parts the f32 products' error, some 1e-7 of those, would show in the
    /// logit's sixth digit.
    fn mixture(&self, weight: f64) -> Option<(f64, f64)> {
        let [v, w] = [weight, 1.0 - weight];
        let parts = v * v * self.squares[0] + w * w * self.squares[1];
        let squared = parts + 2.0 * v * w * self.dot;
        (squared >= parts * (1.0 / 16.0) && squared >= SHORTEST * SHORTEST).then(|| {
            let inverse = 1.0 / squared.sqrt();
            ((v * self.logits[0] + w * self.logits[1]) * inverse, inverse)
        })
    }
}

/// q·h and 1/r from the rows themselves, in f64; zeros where r is too short.
fn mixture(weight: f64, query: &[f32], a: &[f32], b: &[f32]) -> (f64, f64) {
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
        let dim = query.len();
        queue.gather(hardest, &mut self.rows);
        self.squared_norms.clear();
        self.squared_norms.extend(
            hardest
                .iter()
                .map(|&row| queue.squared_norms()[row as usize]),
        );
        self.pair_dots.resize(mixed_logits.len(), 0.0);
        vector::pair_dots(
            &self.rows,
            dim,
            draws.first,
            draws.second,
            &mut self.pair_dots,
        );
        self.inverses.clear();
        let squared = |position: u32| f64::from(self.squared_norms[position as usize]);
        let logit = |position: u32| f64::from(hardest_logits[position as usize]);
        let feature = |position: u32| &self.rows[position as usize * dim..][..dim];
        for (index, out) in mixed_logits.iter_mut().enumerate() {
            let (i, j) = (draws.first[index], draws.second[index]);
            let weight = f64::from(draws.alpha[index]);
            let products = Products {
                squares: [squared(i), squared(j)],
                dot: f64::from(self.pair_dots[index]),
                logits: [logit(i), logit(j)],
            };
            let (logit, inverse) = products
                .mixture(weight)
                .unwrap_or_else(|| mixture(weight, query, feature(i), feature(j)));
            *out = logit as f32;
            self.inverses.push(inverse);
        }
        let query_squared = norm(query).powi(2);
        for (index, out) in query_mixed_logits.iter_mut().enumerate() {
            let j = draws.pick[index];
            let weight = f64::from(draws.beta[index]);
            let products = Products {
                squares: [query_squared, squared(j)],
                dot: logit(j),
                logits: [query_squared, logit(j)],
            };
            let (logit, inverse) = products
                .mixture(weight)
                .unwrap_or_else(|| mixture(weight, query, query, feature(j)));
            *out = logit as f32;
            self.inverses.push(inverse);
        }
    }

    /// Adds the synthetic negatives to a row's sums, of which `direction` = Σ e^{(l − shift)/τ}·n,
    /// and returns the multiple of the query that belongs to it. Their gradient is folded into
    /// weights of queue rows (method: Gradient, last point), so that each of the hardest is read
    /// once.
    pub fn fold(
        &mut self,
        config: &Config,
        draws: &DrawsMut<'_>,
        mixed_logits: &[f32],
        query_mixed_logits: &[f32],
        totals: &mut Totals,
        direction: &mut [f32],
    ) -> f64 {
        let (dim, s) = (direction.len(), mixed_logits.len());
        totals.raise(mixed_logits, config.temperature(), direction);
        totals.raise(query_mixed_logits, config.temperature(), direction);
        let scale = exponent_scale(config.temperature());
        self.exponentials.resize(s + query_mixed_logits.len(), 0.0);
        let (mixed, query_mixed) = self.exponentials.split_at_mut(s);
        vector::exponentials(mixed_logits, totals.shift, scale, mixed);
        vector::exponentials(query_mixed_logits, totals.shift, scale, query_mixed);
        totals.total += mixed
            .iter()
            .chain(&*query_mixed)
            .map(|&p| f64::from(p))
            .sum::<f64>();
        self.weights.clear();
        self.weights.resize(self.squared_norms.len(), 0.0);
        for (index, &p) in mixed.iter().enumerate() {
            let weight = f64::from(p) * self.inverses[index];
            let a = f64::from(draws.alpha[index]);
            self.weights[draws.first[index] as usize] += weight * a;
            self.weights[draws.second[index] as usize] += weight * (1.0 - a);
        }
        let mut of_query = 0.0;
        let attached = config.query_gradient() == QueryGradient::Attached;
        for (index, &p) in query_mixed.iter().enumerate() {
            let inverse = self.inverses[s + index];
            let a = f64::from(draws.beta[index]);
            let mut row = f64::from(p) * (1.0 - a) * inverse;
            let mut query = f64::from(p) * a * inverse;
            if attached {
                let tangent = a * f64::from(query_mixed_logits[index]) * inverse;
                row *= 1.0 - tangent;
                query *= 2.0 - tangent;
            }
            self.weights[draws.pick[index] as usize] += row;
            of_query += query;
        }
        self.rounded.clear();
        self.rounded.extend(self.weights.iter().map(|&w| w as f32));
        vector::add_weighted(&self.rows, dim, &self.rounded, direction);
        of_query
    }
}

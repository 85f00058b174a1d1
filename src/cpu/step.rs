//! The fused step: loss, gradient and diagnostics of a batch in one pass over the queue.

use std::sync::Mutex;

use rayon::prelude::*;

use super::contrast::{Block, Partial, Pass, Totals, merge, run_blocks};
use super::info_nce::{RowLoss, fold_given, row_loss};
use super::mix::{DrawsMut, Mixer, Synthetic, check_dim, empty_draws, resolve, rows_mut};
use super::rank::{Candidates, bounded, largest_norm, norm, select};
use super::sample;
use crate::batch::Batch;
use crate::config::{Config, Reduction};
use crate::draws::Draws;
use crate::error::{Error, Result, filled, refilled};
use crate::output::{Output, Status};
use crate::queue::{NO_LABEL, NO_ROW, Queue};
use crate::report::{Figures, UNIFORMITY_FACTOR, report};

/// The MoCHi loss on the CPU: settings, and memory that is reused from step to step.
///
/// A row's results depend on its query, its key, the queue and its draws alone, bit by bit: neither
/// on the rest of the batch nor on the number of threads (rayon's current pool is used).
///
/// ```
/// use hardmix::{Batch, Config, DType, Draws, Queue, cpu};
/// let dim = 16;
/// let queue = Queue::random(512, dim, DType::F32, 0)?;
/// let queries = [queue.row(0).unwrap(), queue.row(1).unwrap()].concat();
/// let keys = [queue.row(2).unwrap(), queue.row(3).unwrap()].concat();
///
/// let mut step = cpu::Step::new(Config::mochi(64, 32, 16)?);
/// let output = step.run(&Batch::new(&queries, &keys, dim)?, &queue, &Draws::seeded(1, 0)?)?;
/// assert!(output.loss()? > 0.0);
/// assert_eq!(output.grad_queries.len(), 2 * dim);
/// assert_eq!(output.hardest.len(), 2 * 64);
/// # Ok::<(), hardmix::Error>(())
/// ```
#[derive(Debug)]
pub struct Step {
    config: Config,
    partials: Vec<Partial>,
    /// [B, N].
    hardest_logits: Vec<f32>,
    /// One a thread, so that no lock is ever waited for.
    mixers: Vec<Mutex<Mixer>>,
    /// An output that is no longer needed, for its memory.
    spare: Option<Output>,
}

/// What the pass over the queue found for one row; its Σ e^{(l − shift)/τ}·n lies where the row's
/// gradient will be.
struct Found<'a> {
    positive: f32,
    totals: Totals,
    /// N_b.
    listed: usize,
    hardest_logits: &'a mut [f32],
}

/// Where the synthetic negatives come from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Negatives<'a> {
    /// Mixed from the hardest.
    Drawn(&'a Draws),
    /// Written out.
    Given(&'a Synthetic),
}

/// The places of one row in the output.
struct RowOut<'a> {
    row: usize,
    grad_query: &'a mut [f32],
    grad_key: &'a mut [f32],
    hardest: &'a mut [u32],
    mixed_logits: &'a mut [f32],
    query_mixed_logits: &'a mut [f32],
    draws: DrawsMut<'a>,
    /// Probabilities of the hardest by rank, where asked for.
    matching: &'a mut [f64],
    figures: &'a mut Figures,
}

impl Step {
    /// A step with these settings.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            config,
            partials: Vec::new(),
            hardest_logits: Vec::new(),
            mixers: Vec::new(),
            spare: None,
        }
    }

    /// The settings.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Changes the settings, as at the end of warm-up.
    pub fn set_config(&mut self, config: Config) {
        self.config = config;
    }

    /// Loss, gradient and diagnostics of a batch against the queue as it is: enqueue the keys
    /// afterwards (method: Order within a training step).
    ///
    /// A row of queries or keys that is not finite, or whose logits could overflow f32
    /// (‖q‖·max(‖n‖, ‖k‖, 1)·max(1, 1/τ) above 1e37; a queue row whose squared norm is beyond f32 counts
    /// as infinitely long), has NaN for its loss and gradient, is a miss and sets the output's status;
    /// the other rows are what they would be without it.
    ///
    /// # Errors
    /// [`Error::Dimension`] for a queue of another dimension, [`Error::HardestBeyondQueue`] for
    /// N > K, [`Error::MissingLabels`] for an oracle without labels on both sides, and for given
    /// draws [`Error::Length`], [`Error::OutOfRange`] and [`Error::DrawOutOfRange`];
    /// [`Error::OutOfMemory`] with the size of the result that cannot be had.
    pub fn run(&mut self, batch: &Batch<'_>, queue: &Queue, draws: &Draws) -> Result<Output> {
        draws.check(batch.rows(), self.config.mixed(), self.config.query_mixed())?;
        self.run_over(batch, queue, Negatives::Drawn(draws))
    }

    /// Takes an output that is no longer needed: the next run writes its own into that memory. Asking the
    /// operating system for it anew in every step costs a few milliseconds where an output has megabytes
    /// (at B = 256 and 1024 synthetic negatives it has 5: docs/performance.md).
    pub fn recycle(&mut self, output: Output) {
        self.spare = Some(output);
    }

    pub(super) fn run_over(
        &mut self,
        batch: &Batch<'_>,
        queue: &Queue,
        negatives: Negatives<'_>,
    ) -> Result<Output> {
        let (config, rows, dim) = (&self.config, batch.rows(), batch.dim());
        check_dim(queue, dim)?;
        let drawn = matches!(negatives, Negatives::Drawn(_));
        let hardest = if drawn { config.hardest() } else { 0 };
        if hardest > queue.capacity() {
            return Err(Error::HardestBeyondQueue {
                hardest,
                capacity: queue.capacity(),
            });
        }
        if config.oracle() {
            let sides = [("queries", batch.labels()), ("queue", queue.labels())];
            if let Some((argument, _)) = sides.iter().find(|(_, labels)| labels.is_none()) {
                return Err(Error::MissingLabels { argument });
            }
        }

        let faults = faults(batch, queue, config);
        let usable: Vec<bool> = faults.iter().map(Option::is_none).collect();
        let oracle_labels = batch.labels().filter(|_| config.oracle());
        let mut blocks = Block::all(batch.queries(), dim, oracle_labels, &usable);
        if hardest > 0 {
            sample::set_thresholds(&mut blocks, queue, hardest, config.oracle());
        }

        let (mixed, query_mixed) = (config.mixed(), config.query_mixed());
        let of_queries = if drawn { (mixed, query_mixed) } else { (0, 0) };
        let spare = self.spare.take().unwrap_or_default();
        let mut output = Output {
            grad_queries: refilled(spare.grad_queries, "grad_queries", rows, dim, 0.0)?,
            grad_keys: if config.key_gradient() {
                let spare = spare.grad_keys.unwrap_or_default();
                Some(refilled(spare, "grad_keys", rows, dim, 0.0)?)
            } else {
                None
            },
            hardest: refilled(spare.hardest, "hardest", rows, hardest, NO_ROW)?,
            mixed_logits: refilled(spare.mixed_logits, "mixed", rows, mixed, f32::NEG_INFINITY)?,
            query_mixed_logits: refilled(
                spare.query_mixed_logits,
                "query_mixed",
                rows,
                query_mixed,
                f32::NEG_INFINITY,
            )?,
            draws: empty_draws(spare.draws, rows, of_queries.0, of_queries.1)?,
            ..Output::default()
        };
        let matching_width = if config.matching_probability() {
            hardest
        } else {
            0
        };
        let mut matching = filled("matching_probability", rows, matching_width, 0.0f64)?;
        let mut figures = vec![Figures::default(); rows];
        let mut outs = row_outs(&mut output, &mut matching, &mut figures, rows);

        let threads = rayon::current_num_threads();
        self.mixers
            .resize_with(threads.max(self.mixers.len()), Mutex::default);
        let mixers = &self.mixers;
        let pass = Pass {
            contrast: Some(config.temperature()),
            uniformity: config.uniformity(),
            candidates: hardest > 0,
            oracle: config.oracle(),
        };
        if self.hardest_logits.len() != rows * hardest {
            self.hardest_logits = filled("hardest", rows, hardest, 0.0)?;
        }
        let mut found: Vec<_> = rows_mut(&mut self.hardest_logits, rows)
            .into_iter()
            .map(Found::new)
            .collect();
        run_blocks(
            &blocks,
            queue,
            pass,
            &mut self.partials,
            |block, partials| {
                let candidates = Candidates::new(block, queue, config.oracle(), hardest, partials);
                let positives = block.positives(batch);
                outs[block.rows.clone()]
                    .par_iter_mut()
                    .zip(&mut found[block.rows.clone()])
                    .enumerate()
                    .filter(|(_, (out, _))| usable[out.row])
                    .for_each(|(lane, (out, found))| {
                        found.positive = positives[lane];
                        found.totals = merge(
                            partials,
                            lane,
                            block.width,
                            queue.capacity(),
                            config.temperature(),
                            out.grad_query,
                        );
                        found.listed =
                            select(&candidates.of(lane), out.hardest, found.hardest_logits);
                    });
            },
        );
        let done: Vec<_> = outs
            .par_iter_mut()
            .zip(&found)
            .map(|(out, found)| {
                if !usable[out.row] {
                    return out.poison(batch, negatives);
                }
                let thread = rayon::current_thread_index().unwrap_or(0);
                // A mixer is overwritten before it is read, whatever a panic left in it.
                let mut mixer = match mixers[thread].lock() {
                    Ok(mixer) => mixer,
                    Err(poisoned) => poisoned.into_inner(),
                };
                Row {
                    row: out.row,
                    batch,
                    queue,
                    config,
                    found,
                }
                .finish(out, negatives, &mut mixer)
            })
            .collect();
        drop(outs);
        // The first failing row, whatever the threads did.
        done.into_iter().collect::<Result<()>>()?;
        report(&mut output, config, &figures, &matching);
        output.status = status(&faults, &output);
        Ok(output)
    }
}

/// Why each row cannot be computed: the argument at fault.
fn faults(batch: &Batch<'_>, queue: &Queue, config: &Config) -> Vec<Option<&'static str>> {
    let largest = largest_norm(queue);
    let stretch = (1.0 / f64::from(config.temperature())).max(1.0);
    let finite = |row: &[f32]| row.iter().all(|x| x.is_finite());
    batch
        .queries()
        .chunks_exact(batch.dim())
        .zip(batch.keys().chunks_exact(batch.dim()))
        .map(|(query, key)| {
            if !finite(query) {
                Some("queries")
            } else if !finite(key) {
                Some("keys")
            } else if !bounded(query, largest.max(norm(key)), stretch) {
                Some("logits")
            } else {
                None
            }
        })
        .collect()
}

fn row_outs<'a>(
    output: &'a mut Output,
    matching: &'a mut [f64],
    figures: &'a mut [Figures],
    rows: usize,
) -> Vec<RowOut<'a>> {
    let grad_keys = output.grad_keys.as_deref_mut().unwrap_or_default();
    rows_mut(&mut output.grad_queries, rows)
        .into_iter()
        .zip(rows_mut(grad_keys, rows))
        .zip(rows_mut(&mut output.hardest, rows))
        .zip(rows_mut(&mut output.mixed_logits, rows))
        .zip(rows_mut(&mut output.query_mixed_logits, rows))
        .zip(DrawsMut::rows(&mut output.draws, rows))
        .zip(rows_mut(matching, rows))
        .zip(figures)
        .enumerate()
        .map(
            |(row, (((((((grad_query, grad_key), hardest), m), q), draws), matching), figures))| {
                RowOut {
                    row,
                    grad_query,
                    grad_key,
                    hardest,
                    mixed_logits: m,
                    query_mixed_logits: q,
                    draws,
                    matching,
                    figures,
                }
            },
        )
        .collect()
}

impl RowOut<'_> {
    /// A row that is no number: NaN everywhere, so that no one can take it for a result.
    fn poison(&mut self, batch: &Batch<'_>, negatives: Negatives<'_>) -> Result<()> {
        for place in [
            &mut *self.grad_query,
            &mut *self.grad_key,
            &mut *self.mixed_logits,
            &mut *self.query_mixed_logits,
        ] {
            place.fill(f32::NAN);
        }
        let nan = f64::NAN;
        *self.figures = Figures {
            loss: nan,
            log_sum_exp: nan,
            positive_probability: nan,
            ..Figures::default()
        };
        match negatives {
            Negatives::Drawn(draws) => resolve(draws, batch, self.row, 0, &mut self.draws),
            Negatives::Given(_) => Ok(()),
        }
    }
}

impl<'a> Found<'a> {
    fn new(hardest_logits: &'a mut [f32]) -> Self {
        Self {
            positive: 0.0,
            totals: Totals::default(),
            listed: 0,
            hardest_logits,
        }
    }
}

/// One row, after the pass over the queue.
struct Row<'a> {
    row: usize,
    batch: &'a Batch<'a>,
    queue: &'a Queue,
    config: &'a Config,
    found: &'a Found<'a>,
}

impl Row<'_> {
    fn finish(
        &self,
        out: &mut RowOut<'_>,
        negatives: Negatives<'_>,
        mixer: &mut Mixer,
    ) -> Result<()> {
        let (config, found, dim) = (self.config, self.found, self.batch.dim());
        let rows = self.row * dim..(self.row + 1) * dim;
        let query = &self.batch.queries()[rows.clone()];
        let key = &self.batch.keys()[rows];
        let hardest = (
            &out.hardest[..found.listed],
            &found.hardest_logits[..found.listed],
        );
        let direction = &mut *out.grad_query;
        let (mut sums, mut overflow) = (found.totals, false);
        let (mixed, query_mixed) = (&mut *out.mixed_logits, &mut *out.query_mixed_logits);
        match negatives {
            Negatives::Drawn(draws) => {
                resolve(draws, self.batch, self.row, found.listed, &mut out.draws)?;
                if found.listed > 0 && mixed.len() + query_mixed.len() > 0 {
                    mixer.logits(query, self.queue, hardest, &out.draws, mixed, query_mixed);
                    mixer.fold(config, mixed, query_mixed, &mut sums, direction);
                }
            }
            Negatives::Given(synthetic) if found.totals.unmasked > 0 => {
                for (features, logits) in [
                    (&synthetic.mixed, mixed),
                    (&synthetic.query_mixed, query_mixed),
                ] {
                    let len = logits.len() * dim;
                    let own = &features[self.row * len..(self.row + 1) * len];
                    fold_given(
                        config.temperature(),
                        query,
                        own,
                        logits,
                        &mut sums,
                        direction,
                    );
                    overflow |= !logits.iter().all(|logit| logit.is_finite());
                }
            }
            Negatives::Given(_) => {}
        }

        let total = sums.total;
        let loss = row_loss(found.positive, sums.shift, total, config.temperature());
        let per_row = match config.reduction() {
            Reduction::Mean => 1.0 / self.batch.rows() as f64,
            Reduction::Sum | Reduction::None => 1.0,
        };
        // dL/dq = (1−p⁺)/τ·(Σ p_j n_j/Z₋ − k), the sum over all negatives: method, Gradient.
        let outer = loss.negative / f64::from(config.temperature()) * per_row;
        let inner = if total == 0.0 { 0.0 } else { outer / total };
        for (grad, key) in out.grad_query.iter_mut().zip(key) {
            *grad = (inner * f64::from(*grad) - outer * f64::from(*key)) as f32;
        }
        for (grad, x) in out.grad_key.iter_mut().zip(query) {
            *grad = (-outer * f64::from(*x)) as f32;
        }
        let mut gradients = out.grad_query.iter().chain(&*out.grad_key);
        // As they are given back: f64 holds what f32 does not.
        let losses = [loss.loss as f32, loss.log_sum_exp as f32];
        let finite = gradients.all(|x| x.is_finite()) && losses.iter().all(|x| x.is_finite());
        if overflow || !finite {
            return out.poison(self.batch, negatives);
        }
        self.measure(out, loss);
        Ok(())
    }

    /// The row's part in the metrics (method: What to report).
    fn measure(&self, out: &mut RowOut<'_>, loss: RowLoss) {
        let (positive, listed) = (self.found.positive, self.found.listed);
        let Totals {
            shift,
            total,
            uniformity,
            max,
            unmasked,
        } = self.found.totals;
        let harder = |logits: &[f32]| logits.iter().filter(|&&logit| logit > max).count();
        let beaten = |logits: &[f32]| logits.iter().all(|&logit| positive > logit);
        let hit = positive > max;
        let temperature = f64::from(self.config.temperature());
        let (same_label, labelled) = self.same_label(&out.hardest[..listed]);
        *out.figures = Figures {
            loss: loss.loss,
            log_sum_exp: loss.log_sum_exp,
            positive_probability: loss.positive,
            positive_logit: positive,
            hit,
            hit_with_synthetic: hit && beaten(out.mixed_logits) && beaten(out.query_mixed_logits),
            listed,
            unmasked,
            mixed_harder: harder(out.mixed_logits),
            query_mixed_harder: harder(out.query_mixed_logits),
            same_label,
            labelled,
            log_uniformity: UNIFORMITY_FACTOR * f64::from(shift) + uniformity.ln(),
        };
        if !out.matching.is_empty() {
            let mut sorted = self.found.hardest_logits[..listed].to_vec();
            sorted.sort_unstable_by(|a, b| b.total_cmp(a));
            let real = row_loss(positive, shift, total, self.config.temperature());
            for (probability, logit) in out.matching.iter_mut().zip(sorted) {
                *probability = (f64::from(logit) / temperature - real.log_sum_exp).exp();
            }
        }
    }

    /// How many of these share the query's label, and how many have one at all; of a query without
    /// a label nothing is counted.
    fn same_label(&self, hardest: &[u32]) -> (usize, usize) {
        let (Some(own), Some(labels)) = (self.batch.labels(), self.queue.labels()) else {
            return (0, 0);
        };
        let own = own[self.row];
        if own == NO_LABEL {
            return (0, 0);
        }
        let of = |wanted: &dyn Fn(u32) -> bool| {
            let label = |&index: &u32| labels[index as usize];
            hardest.iter().map(label).filter(|&l| wanted(l)).count()
        };
        (of(&|label| label == own), of(&|label| label != NO_LABEL))
    }
}

/// The first row that is no number: for its own fault, or because finite inputs overflowed.
fn status(faults: &[Option<&'static str>], output: &Output) -> Status {
    let row = output.loss_rows.iter().position(|loss| loss.is_nan());
    row.map_or(Status::Finite, |row| Status::NonFinite {
        argument: faults[row].unwrap_or("logits"),
        row,
    })
}

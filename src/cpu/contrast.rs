//! One pass over the queue for a block of queries: logits, the candidates among them, exponentials
//! and their products with the queue, tile by tile, so that no logit outlives its tile.
//!
//! A queue is cut into splits, each a contiguous run of tiles with partial sums of its own, merged
//! in split order. Tiles and splits depend on K and d alone, so the bits depend on nothing else.

use std::ops::Range;

use rayon::prelude::*;

use super::aligned::Aligned;
use super::vector::Passed;
use super::{LANES, product, vector};
use crate::batch::Batch;
use crate::queue::{NO_LABEL, Queue};
use crate::report::UNIFORMITY_FACTOR;

/// Elements of a queue tile: 256 KB in f32, which with its logits fits a core's L2 of 512 KB to
/// 1 MB. See docs/performance.md for the measurement.
const TILE_ELEMENTS: usize = 16_384;

/// Queue rows a split, unless there would be more than [`MOST_SPLITS`].
const SPLIT_ROWS: usize = 8192;

/// Bounds the memory of the partial sums for very long queues.
const MOST_SPLITS: usize = 64;

/// Exponentials are taken relative to a shift that trails the largest logit by at most this many
/// temperatures: e^16 times the longest queue's worth of them is far from f32's end.
const SLACK_TEMPERATURES: f32 = 16.0;

/// And by at most this much in itself, for the uniformity's exponentials, e^{4 l}.
const SLACK: f32 = 4.0;

/// Queries `rows` of a batch, a lane each.
#[derive(Debug, Clone)]
pub(super) struct Block {
    /// The rows of the batch.
    pub rows: Range<usize>,
    /// Lanes, a multiple of the vector width; those behind the last row hold zeros.
    pub width: usize,
    /// [dim][width].
    pub queries: Aligned,
    /// Labels to mask by; [`NO_LABEL`] masks nothing.
    pub labels: [u32; LANES],
    /// Whose logits are candidates: those not below it.
    pub thresholds: [f32; LANES],
}

impl Block {
    /// The blocks of a batch. `usable` says which rows are numbers throughout; the others compute
    /// with zeros.
    pub fn all(queries: &[f32], dim: usize, labels: Option<&[u32]>, usable: &[bool]) -> Vec<Self> {
        let rows = queries.len() / dim;
        (0..rows)
            .step_by(LANES)
            .map(|start| {
                let rows = start..(start + LANES).min(rows);
                let width = rows.len().next_multiple_of(super::VECTOR);
                let mut transposed = Aligned::default();
                let own = &queries[rows.start * dim..rows.end * dim];
                transpose(own, dim, width, &mut transposed);
                let mut own = [NO_LABEL; LANES];
                for (lane, row) in rows.clone().enumerate() {
                    if let Some(labels) = labels {
                        own[lane] = labels[row];
                    }
                    if !usable[row] {
                        for row in transposed.chunks_exact_mut(width) {
                            row[lane] = 0.0;
                        }
                    }
                }
                Self {
                    rows,
                    width,
                    queries: transposed,
                    labels: own,
                    thresholds: [f32::NEG_INFINITY; LANES],
                }
            })
            .collect()
    }

    /// l⁺ of each lane, from the product that gives the queue's logits: bit-equal to the logit of a
    /// queue row with the key's bits. Of all lanes' logits with all keys it takes the diagonal.
    pub fn positives(&self, batch: &Batch<'_>) -> [f32; LANES] {
        let dim = batch.dim();
        let keys = &batch.keys()[self.rows.start * dim..self.rows.end * dim];
        let mut logits = vec![0.0; self.rows.len() * self.width];
        product::logits(&self.queries, keys, dim, self.width, &mut logits);
        let mut positives = [0.0; LANES];
        for (lane, row) in logits.chunks_exact(self.width).enumerate() {
            positives[lane] = row[lane];
        }
        positives
    }
}

/// Transposes `rows`, [count][dim], into `block`, [dim][width], with zeros in the lanes left over.
fn transpose(rows: &[f32], dim: usize, width: usize, block: &mut Aligned) {
    let block = block.zeros(dim * width);
    for (lane, row) in rows.chunks_exact(dim).enumerate() {
        for (k, x) in row.iter().enumerate() {
            block[k * width + lane] = *x;
        }
    }
}

/// What one pass is to find.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pass {
    /// Sums of exponentials and their products with the queue, at this temperature.
    pub contrast: Option<f32>,
    /// The uniformity's sums as well.
    pub uniformity: bool,
    /// The logits that pass the block's thresholds.
    pub candidates: bool,
    /// Whether rows of the lane's label are masked.
    pub oracle: bool,
}

/// The splits of a queue of `capacity` rows, in order.
fn splits(capacity: usize, dim: usize) -> Vec<Range<usize>> {
    let tile = tile_rows(dim);
    let count = capacity.div_ceil(SPLIT_ROWS).min(MOST_SPLITS);
    let rows = capacity.div_ceil(count).next_multiple_of(tile);
    (0..capacity)
        .step_by(rows)
        .map(|start| start..(start + rows).min(capacity))
        .collect()
}

/// Queue rows a tile: whole chunks of [`vector::CHUNK`].
fn tile_rows(dim: usize) -> usize {
    (TILE_ELEMENTS / dim)
        .clamp(64, 1024)
        .next_multiple_of(vector::CHUNK)
}

/// The partial result of one block over one split, and the memory that finding it takes.
#[derive(Debug)]
pub(super) struct Partial {
    /// Σ 2^{(l − shift)·log₂e/τ}·n, [dim][width].
    pub sums: Aligned,
    /// Σ 2^{(l − shift)·log₂e/τ}.
    pub total: [f64; LANES],
    /// Σ e^{4 (l − shift)}.
    pub uniformity: [f64; LANES],
    /// The shift of the sums, −∞ before the first unmasked logit.
    pub shift: [f32; LANES],
    /// The largest unmasked logit.
    pub max: [f32; LANES],
    /// How many rows were masked.
    pub masked: [u32; LANES],
    /// The candidates of each lane.
    pub candidates: Vec<Passed>,
    logits: Aligned,
    tile: Aligned,
    passing: Vec<u32>,
}

impl Default for Partial {
    fn default() -> Self {
        Self {
            sums: Aligned::default(),
            total: [0.0; LANES],
            uniformity: [0.0; LANES],
            shift: [f32::NEG_INFINITY; LANES],
            max: [f32::NEG_INFINITY; LANES],
            masked: [0; LANES],
            candidates: (0..LANES).map(|_| Passed::default()).collect(),
            logits: Aligned::default(),
            tile: Aligned::default(),
            passing: Vec::new(),
        }
    }
}

/// log₂e/τ: turns a difference of logits into the exponent of 2.
pub(super) fn exponent_scale(temperature: f32) -> f32 {
    (std::f64::consts::LOG2_E / f64::from(temperature)) as f32
}

/// Turns a difference of logits into the exponent of 2 of the uniformity's terms, e^{4 l}.
const UNIFORMITY_SCALE: f32 = (std::f64::consts::LOG2_E * UNIFORMITY_FACTOR) as f32;

/// A factor e^{(from − to)·factor}, 0 where `from` is −∞ (nothing was summed yet).
fn change_of_shift(from: f32, to: f32, scale: f32) -> f64 {
    if from == f32::NEG_INFINITY {
        0.0
    } else {
        (f64::from(from - to) * f64::from(scale)).exp2()
    }
}

impl Partial {
    /// Runs the pass; whatever was here before is gone.
    pub fn run(&mut self, block: &Block, queue: &Queue, rows: Range<usize>, pass: Pass) {
        let (dim, width) = (queue.dim(), block.width);
        self.sums.zeros(match pass.contrast {
            Some(_) => dim * width,
            None => 0,
        });
        self.total.fill(0.0);
        self.uniformity.fill(0.0);
        self.shift.fill(f32::NEG_INFINITY);
        self.max.fill(f32::NEG_INFINITY);
        self.masked.fill(0);
        self.candidates.iter_mut().for_each(Passed::clear);

        let step = tile_rows(dim);
        let mut maxima = [f32::NEG_INFINITY; LANES];
        for start in rows.clone().step_by(step) {
            let tile_range = start..(start + step).min(rows.end);
            let count = tile_range.len();
            let tile = match queue.stored(tile_range.clone()) {
                Some(tile) => tile,
                None => {
                    let tile = self.tile.resize(count * dim);
                    queue.read_rows(tile_range.clone(), tile);
                    tile
                }
            };
            let logits = self.logits.resize(count * width);
            product::logits(&block.queries, tile, dim, width, logits);
            if pass.oracle {
                mask(logits, block, queue, tile_range, &mut self.masked);
            }
            if pass.candidates {
                self.passing.resize(step.div_ceil(vector::CHUNK) * width, 0);
                let passing = &mut self.passing[..count.div_ceil(vector::CHUNK) * width];
                let thresholds = &block.thresholds[..width];
                vector::filter(logits, width, thresholds, &mut maxima[..width], passing);
                emit(logits, passing, block, start as u32, &mut self.candidates);
            } else {
                vector::maxima(logits, width, &mut maxima[..width]);
            }
            for (max, tile_max) in self.max.iter_mut().zip(maxima) {
                *max = max.max(tile_max);
            }
            if let Some(temperature) = pass.contrast {
                let scale = exponent_scale(temperature);
                follow(
                    &mut self.shift,
                    &self.max,
                    width,
                    temperature,
                    &mut self.sums,
                    &mut self.total,
                    &mut self.uniformity,
                );
                let shift = self
                    .shift
                    .map(|shift| if shift.is_finite() { shift } else { 0.0 });
                if pass.uniformity {
                    vector::sum_exponentials(
                        logits,
                        width,
                        &shift,
                        UNIFORMITY_SCALE,
                        &mut self.uniformity,
                    );
                }
                vector::exponentiate(logits, width, &shift, scale, &mut self.total);
                product::accumulate(logits, tile, dim, width, &mut self.sums);
            }
        }
    }
}

/// Runs the pass for every block and hands each block's partials to `finish`, in block order.
///
/// Blocks go in waves of just enough work for all threads, so that the memory of the partials does
/// not grow with the batch.
pub(super) fn run_blocks(
    blocks: &[Block],
    queue: &Queue,
    pass: Pass,
    partials: &mut Vec<Partial>,
    mut finish: impl FnMut(&Block, &[Partial]),
) {
    let cuts = splits(queue.capacity(), queue.dim());
    let wave_blocks = (4 * rayon::current_num_threads()).div_ceil(cuts.len());
    for wave in blocks.chunks(wave_blocks) {
        let units = wave.len() * cuts.len();
        if partials.len() < units {
            partials.resize_with(units, Partial::default);
        }
        let partials = &mut partials[..units];
        partials
            .par_iter_mut()
            .enumerate()
            .for_each(|(unit, partial)| {
                let (block, cut) = (&wave[unit / cuts.len()], &cuts[unit % cuts.len()]);
                partial.run(block, queue, cut.clone(), pass);
            });
        for (block, partials) in wave.iter().zip(partials.chunks(cuts.len())) {
            finish(block, partials);
        }
    }
}

fn mask(
    logits: &mut [f32],
    block: &Block,
    queue: &Queue,
    tile: Range<usize>,
    masked: &mut [u32; LANES],
) {
    let labels = queue.labels().map_or(&[][..], |labels| &labels[tile]);
    for (row, &label) in logits.chunks_exact_mut(block.width).zip(labels) {
        if label != NO_LABEL {
            vector::mask(
                row,
                label,
                &block.labels[..block.width],
                &mut masked[..block.width],
            );
        }
    }
}

/// Collects the passing logits of the real rows. A masked logit, −∞, passes only a threshold of −∞ and
/// is left out.
fn emit(logits: &[f32], passing: &[u32], block: &Block, first: u32, candidates: &mut [Passed]) {
    let candidates = &mut candidates[..block.rows.len()];
    let mut before = [0; LANES];
    for (lane, passed) in candidates.iter().enumerate() {
        before[lane] = passed.len();
    }
    vector::append(logits, passing, block.width, first, candidates);
    for (lane, passed) in candidates.iter_mut().enumerate() {
        if block.thresholds[lane] == f32::NEG_INFINITY {
            passed.drop_masked(before[lane]);
        }
    }
}

/// Lets each shift follow its lane's largest logit, where that has run ahead by the slack.
fn follow(
    shift: &mut [f32; LANES],
    max: &[f32; LANES],
    width: usize,
    temperature: f32,
    sums: &mut [f32],
    total: &mut [f64; LANES],
    uniformity: &mut [f64; LANES],
) {
    let slack = SLACK.min(SLACK_TEMPERATURES * temperature);
    let mut factors = [1.0f32; LANES];
    let mut moved = false;
    for lane in 0..width {
        if max[lane] > shift[lane] + slack {
            let factor = change_of_shift(shift[lane], max[lane], exponent_scale(temperature));
            total[lane] *= factor;
            uniformity[lane] *= change_of_shift(shift[lane], max[lane], UNIFORMITY_SCALE);
            factors[lane] = factor as f32;
            shift[lane] = max[lane];
            moved = true;
        }
    }
    if moved {
        vector::rescale(sums, width, &factors[..width]);
    }
}

/// The sums of one query over the whole queue, merged from its splits in order.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Totals {
    /// The shift that `total` and `uniformity` are relative to: the largest of the splits'.
    pub shift: f32,
    /// Σ e^{(l − shift)/τ}.
    pub total: f64,
    /// Σ e^{4 (l − shift)}.
    pub uniformity: f64,
    /// The largest unmasked logit, −∞ where there is none.
    pub max: f32,
    /// How many rows were not masked.
    pub unmasked: usize,
}

impl Totals {
    /// Raises the shift to the largest of these logits, where that is higher, and takes the sums
    /// along, so that their exponentials can join.
    pub fn raise(&mut self, logits: &[f32], temperature: f32, direction: &mut [f32]) {
        let shift = logits.iter().fold(self.shift, |a, &b| a.max(b));
        if shift > self.shift {
            let factor = change_of_shift(self.shift, shift, exponent_scale(temperature));
            self.total *= factor;
            self.uniformity *= change_of_shift(self.shift, shift, UNIFORMITY_SCALE);
            direction.iter_mut().for_each(|x| *x *= factor as f32);
            self.shift = shift;
        }
    }
}

/// Merges one lane; `direction`, [dim], becomes Σ e^{(l − shift)/τ}·n.
pub(super) fn merge(
    partials: &[Partial],
    lane: usize,
    width: usize,
    capacity: usize,
    temperature: f32,
    direction: &mut [f32],
) -> Totals {
    let shift = partials
        .iter()
        .map(|p| p.shift[lane])
        .fold(f32::NEG_INFINITY, f32::max);
    let mut totals = Totals {
        shift,
        max: partials
            .iter()
            .map(|p| p.max[lane])
            .fold(f32::NEG_INFINITY, f32::max),
        unmasked: capacity
            - partials
                .iter()
                .map(|p| p.masked[lane] as usize)
                .sum::<usize>(),
        ..Totals::default()
    };
    direction.fill(0.0);
    for partial in partials {
        let from = partial.shift[lane];
        totals.uniformity +=
            partial.uniformity[lane] * change_of_shift(from, shift, UNIFORMITY_SCALE);
        let factor = change_of_shift(from, shift, exponent_scale(temperature));
        if factor == 0.0 {
            continue;
        }
        totals.total += partial.total[lane] * factor;
        for (sum, row) in direction.iter_mut().zip(partial.sums.chunks_exact(width)) {
            *sum = (factor as f32).mul_add(row[lane], *sum);
        }
    }
    totals
}

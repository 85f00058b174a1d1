//! What features are worth: weighted nearest neighbours and a linear probe, on frozen features.
//!
//! Features are rows of floats, [N, F] with norm 1; raw pixels are features as well.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::augment::{self, Normalisation};
use crate::data::Images;
use crate::encoder::{Encoder, Mode};
use crate::error::Result;
use crate::matrix::{Matrix, product};

/// How many neighbours vote.
pub const NEIGHBOURS: usize = 20;
/// A neighbour's vote is e^(cosine / this), as in Wu et al., "Unsupervised Feature Learning via
/// Non-Parametric Instance Discrimination", 2018, who take 0.07. Held-out training images of the
/// embedded set (3,000 of 10,000) gave for 0.2, 0.07 and 0.02: trained 0.821, 0.828 and 0.835, raw
/// pixels 0.780, 0.784 and 0.804, untrained encoder 0.774, 0.775 and 0.787. The best for all, and the
/// one that flatters training least.
pub const VOTE_TEMPERATURE: f32 = 0.02;

/// Rows of equal length with a label each.
#[derive(Debug, Clone, PartialEq)]
pub struct Features<'a> {
    /// The rows, [N, F].
    pub rows: Vec<f32>,
    /// F.
    pub width: usize,
    /// A class a row, `[N]`.
    pub labels: &'a [u32],
}

fn normalise(rows: &mut [f32], width: usize) {
    rows.par_chunks_mut(width).for_each(|row| {
        let norm = row
            .iter()
            .map(|x| x * x)
            .sum::<f32>()
            .sqrt()
            .max(f32::MIN_POSITIVE);
        row.iter_mut().for_each(|x| *x /= norm);
    });
}

impl<'a> Features<'a> {
    /// An encoder's features of images without augmentation.
    ///
    /// # Errors
    /// Where the images have another shape than the encoder was made for.
    pub fn encoded(
        encoder: &Encoder,
        images: &'a Images,
        normalisation: &Normalisation,
    ) -> Result<Self> {
        let mut rows = Vec::new();
        let mut width = 1;
        for start in (0..images.len()).step_by(256) {
            let range = start..(start + 256).min(images.len());
            let batch = augment::plain(images, range, normalisation)?;
            let features = encoder.features(&batch, Mode::Inference)?;
            width = features.dim(1)?;
            rows.reserve_exact(if start == 0 { images.len() * width } else { 0 });
            rows.extend(features.flatten_all()?.to_vec1::<f32>()?);
        }
        normalise(&mut rows, width);
        Ok(Self {
            rows,
            width,
            labels: &images.labels,
        })
    }

    /// The pixels themselves.
    #[must_use]
    pub fn raw(images: &'a Images) -> Self {
        let mut rows: Vec<f32> = images
            .pixels
            .iter()
            .map(|&x| f32::from(x) / 255.0)
            .collect();
        normalise(&mut rows, images.shape.len());
        Self {
            rows,
            width: images.shape.len(),
            labels: &images.labels,
        }
    }

    fn row(&self, index: usize) -> &[f32] {
        &self.rows[index * self.width..][..self.width]
    }
}

/// A row of the bank near a test row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Neighbour {
    /// The row's number in the bank.
    pub index: usize,
    /// The cosine.
    pub similarity: f32,
}

/// The nearest rows of `bank` for each row of `test`, nearest first, ties to the lower number.
#[must_use]
pub fn nearest(bank: &Features<'_>, test: &Features<'_>) -> Vec<Vec<Neighbour>> {
    const TEST_ROWS: usize = 128;
    const BANK_ROWS: usize = 2048;
    let width = bank.width;
    test.rows
        .par_chunks(TEST_ROWS * width)
        .flat_map_iter(|test| {
            let rows = test.len() / width;
            let mut nearest = vec![Vec::with_capacity(NEIGHBOURS + 1); rows];
            let mut scores = Vec::new();
            for (tile, bank) in bank.rows.chunks(BANK_ROWS * width).enumerate() {
                let columns = bank.len() / width;
                scores.resize(rows * columns, 0.0);
                let (left, right) = (Matrix::new(test, width), Matrix::new(bank, width));
                product(
                    &mut scores,
                    (rows, columns, width),
                    left,
                    right.transposed(),
                    false,
                );
                for (nearest, scores) in nearest.iter_mut().zip(scores.chunks(columns)) {
                    for (column, &similarity) in scores.iter().enumerate() {
                        offer(
                            nearest,
                            Neighbour {
                                index: tile * BANK_ROWS + column,
                                similarity,
                            },
                        );
                    }
                }
            }
            nearest
        })
        .collect()
}

/// Inserts a neighbour behind all that are as near, if it is near enough.
fn offer(nearest: &mut Vec<Neighbour>, new: Neighbour) {
    let full = nearest.len() == NEIGHBOURS;
    if full && nearest[NEIGHBOURS - 1].similarity >= new.similarity {
        return;
    }
    let at = nearest.partition_point(|old| old.similarity >= new.similarity);
    nearest.insert(at, new);
    nearest.truncate(NEIGHBOURS);
}

/// The share of test rows whose label gets the most votes of their neighbours; ties to the lower
/// label.
#[must_use]
pub fn vote(nearest: &[Vec<Neighbour>], bank: &Features<'_>, test: &Features<'_>) -> f64 {
    let classes = bank
        .labels
        .iter()
        .max()
        .map_or(1, |&last| last as usize + 1);
    let hits = nearest.iter().zip(test.labels).filter(|(nearest, label)| {
        let mut votes = vec![0.0f64; classes];
        for neighbour in *nearest {
            let vote = f64::from(neighbour.similarity / VOTE_TEMPERATURE).exp();
            votes[bank.labels[neighbour.index] as usize] += vote;
        }
        let best = (0..classes)
            .rev()
            .max_by(|&a, &b| votes[a].total_cmp(&votes[b]));
        best == Some(**label as usize)
    });
    hits.count() as f64 / test.labels.len() as f64
}

/// Accuracy of the weighted nearest neighbours.
#[must_use]
pub fn knn(bank: &Features<'_>, test: &Features<'_>) -> f64 {
    vote(&nearest(bank, test), bank, test)
}

/// Settings of the linear probe, the same for every kind of features.
mod probe {
    pub const EPOCHS: u64 = 30;
    pub const BATCH: usize = 256;
    pub const RATE: f32 = 0.01;
}

/// Accuracy on `test` of softmax regression trained on `bank`: features standardised by the bank's
/// mean and deviation, Adam with a cosine, seeded order, no tuning.
#[must_use]
pub fn linear_probe(bank: &Features<'_>, test: &Features<'_>) -> f64 {
    let width = bank.width;
    let classes = bank
        .labels
        .iter()
        .max()
        .map_or(1, |&last| last as usize + 1);
    let (means, inverses) = moments(bank);
    let gather = |features: &Features<'_>, indices: &[usize], rows: &mut Vec<f32>| {
        rows.clear();
        for &index in indices {
            // One more column of ones carries the bias.
            let standard = features.row(index).iter().zip(&means).zip(&inverses);
            rows.extend(standard.map(|((x, mean), inverse)| (x - mean) * inverse));
            rows.push(1.0);
        }
    };
    let inputs = width + 1;
    let mut weights = vec![0.0f32; inputs * classes];
    let (mut first, mut second) = (weights.clone(), weights.clone());
    let (mut rows, mut logits, mut gradient) = (Vec::new(), Vec::new(), weights.clone());
    let count = bank.labels.len();
    let steps = probe::EPOCHS * count.div_ceil(probe::BATCH) as u64;
    let mut step = 0;
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut order: Vec<usize> = (0..count).collect();
    for _ in 0..probe::EPOCHS {
        for last in (1..count).rev() {
            order.swap(last, rng.random_range(0..=last));
        }
        for batch in order.chunks(probe::BATCH) {
            gather(bank, batch, &mut rows);
            logits.resize(batch.len() * classes, 0.0);
            let dims = (batch.len(), classes, inputs);
            product(
                &mut logits,
                dims,
                Matrix::new(&rows, inputs),
                Matrix::new(&weights, classes),
                false,
            );
            for (logits, &index) in logits.chunks_exact_mut(classes).zip(batch) {
                softmax(logits);
                logits[bank.labels[index] as usize] -= 1.0;
                logits.iter_mut().for_each(|x| *x /= batch.len() as f32);
            }
            let dims = (inputs, classes, batch.len());
            let left = Matrix::new(&rows, inputs).transposed();
            product(
                &mut gradient,
                dims,
                left,
                Matrix::new(&logits, classes),
                false,
            );
            let progress = step as f32 / steps as f32;
            let rate = probe::RATE * 0.5 * (1.0 + (std::f32::consts::PI * progress).cos());
            step += 1;
            let unbias = |beta: f32| 1.0 - beta.powi(step);
            let (unbias_1, unbias_2) = (unbias(0.9), unbias(0.999));
            let moments = first.iter_mut().zip(&mut second);
            for ((weight, &g), (first, second)) in weights.iter_mut().zip(&gradient).zip(moments) {
                *first = 0.9 * *first + 0.1 * g;
                *second = 0.999 * *second + 0.001 * g * g;
                *weight -= rate * (*first / unbias_1) / ((*second / unbias_2).sqrt() + 1e-8);
            }
        }
    }
    let indices: Vec<usize> = (0..test.labels.len()).collect();
    let mut hits = 0;
    for batch in indices.chunks(probe::BATCH) {
        gather(test, batch, &mut rows);
        logits.resize(batch.len() * classes, 0.0);
        let dims = (batch.len(), classes, inputs);
        product(
            &mut logits,
            dims,
            Matrix::new(&rows, inputs),
            Matrix::new(&weights, classes),
            false,
        );
        for (logits, &index) in logits.chunks_exact(classes).zip(batch) {
            let best = (0..classes)
                .rev()
                .max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
            hits += usize::from(best == Some(test.labels[index] as usize));
        }
    }
    hits as f64 / test.labels.len() as f64
}

/// Mean and 1/deviation of every column.
fn moments(features: &Features<'_>) -> (Vec<f32>, Vec<f32>) {
    let mut sums = vec![0.0f64; features.width];
    let mut squares = vec![0.0f64; features.width];
    for row in features.rows.chunks_exact(features.width) {
        for ((sum, square), &x) in sums.iter_mut().zip(&mut squares).zip(row) {
            *sum += f64::from(x);
            *square += f64::from(x) * f64::from(x);
        }
    }
    let count = features.labels.len() as f64;
    let means: Vec<f64> = sums.iter().map(|sum| sum / count).collect();
    // A column that never changes is worth nothing and must not be blown up.
    let inverse =
        |(square, mean): (&f64, &f64)| (square / count - mean * mean).max(1e-8).sqrt().recip();
    let inverses = squares
        .iter()
        .zip(&means)
        .map(|pair| inverse(pair) as f32)
        .collect();
    (
        means.into_iter().map(|mean| mean as f32).collect(),
        inverses,
    )
}

fn softmax(logits: &mut [f32]) {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    logits.iter_mut().for_each(|x| *x = (*x - largest).exp());
    let sum: f32 = logits.iter().sum();
    logits.iter_mut().for_each(|x| *x /= sum);
}

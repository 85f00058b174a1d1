//! A threshold for each query, from a sample of the queue, that about N and at least N logits pass.
//!
//! The threshold can cost time, never correctness: what passes is exactly the unmasked logits not
//! below it, so if at least N pass, the hardest are among them; otherwise the row is ranked again
//! without a threshold.

use rayon::prelude::*;

use super::contrast::Block;
use super::gather::gather;
use super::{LANES, product, vector};
use crate::draws::philox4x32_10;
use crate::queue::{NO_LABEL, Queue};

/// Queue rows in the sample. More sharpen the threshold, and cost a product of their own: see
/// docs/performance.md for the measurement.
const SAMPLE_ROWS: usize = 1024;

/// The rank within the sample whose logit is the threshold: the expected number of the N among the
/// sample, four and a half standard deviations, and 4 for the skew of small numbers: too few pass
/// for one query in a hundred thousand.
fn threshold_rank(hardest: usize, capacity: usize, sample: usize) -> usize {
    let share = sample as f64 / capacity as f64;
    let expected = hardest as f64 * share;
    (expected + 4.5 * (expected * (1.0 - share)).sqrt() + 4.0).ceil() as usize
}

/// One row at a hashed place in each of `sample` equal strides: neither a sorted nor a periodic
/// queue can mislead it.
fn sampled_row(stride: usize, capacity: usize, sample: usize) -> usize {
    let start = stride * capacity / sample;
    let end = (stride + 1) * capacity / sample;
    let word = philox4x32_10([stride as u32, 0, 0, 0], [0x5a4d_504c, 0])[0];
    start + ((u64::from(word) * (end - start) as u64) >> 32) as usize
}

/// Sets the thresholds of all blocks; leaves them at −∞ where a sample would not pay.
pub(super) fn set_thresholds(blocks: &mut [Block], queue: &Queue, hardest: usize, oracle: bool) {
    let (capacity, dim) = (queue.capacity(), queue.dim());
    let rank = threshold_rank(hardest, capacity, SAMPLE_ROWS);
    if capacity < 4 * SAMPLE_ROWS || rank > SAMPLE_ROWS / 2 {
        return;
    }
    let indices: Vec<u32> = (0..SAMPLE_ROWS)
        .map(|stride| sampled_row(stride, capacity, SAMPLE_ROWS) as u32)
        .collect();
    let mut sample = vec![0.0; SAMPLE_ROWS * dim];
    gather(queue, &indices, &mut sample);
    let labels: Option<Vec<u32>> = queue
        .labels()
        .filter(|_| oracle)
        .map(|own| indices.iter().map(|&row| own[row as usize]).collect());
    blocks
        .par_iter_mut()
        .for_each_init(Vec::new, |logits, block| {
            threshold(block, &sample, labels.as_deref(), dim, rank, logits);
        });
}

/// The thresholds of a block: of each lane the logit of that rank.
fn threshold(
    block: &mut Block,
    sample: &[f32],
    labels: Option<&[u32]>,
    dim: usize,
    rank: usize,
    logits: &mut Vec<f32>,
) {
    let width = block.width;
    logits.resize(SAMPLE_ROWS * width, 0.0);
    product::logits(&block.queries, sample, dim, width, logits);
    for (row, &label) in logits
        .chunks_exact_mut(width)
        .zip(labels.unwrap_or_default())
    {
        if label != NO_LABEL {
            let masked = &mut [0; LANES][..width];
            vector::mask(row, label, &block.labels[..width], masked);
        }
    }
    let mut keys = vec![0; logits.len()];
    vector::ordered_keys(logits, &mut keys);
    let mut bounds = [0; LANES];
    vector::nth_largest(&keys, width, rank as u32, &mut bounds[..width]);
    block.thresholds = bounds.map(vector::logit_of_key);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_takes_one_row_of_each_stride() {
        for capacity in [8192, 8193, 65_536, 1_000_003] {
            let rows: Vec<usize> = (0..SAMPLE_ROWS)
                .map(|stride| sampled_row(stride, capacity, SAMPLE_ROWS))
                .collect();
            assert!(rows.windows(2).all(|pair| pair[0] < pair[1]));
            assert!(*rows.last().unwrap() < capacity);
        }
    }

    #[test]
    fn rank_of_the_threshold() {
        // m = 1024·1024/65536 = 16: 16 + 4.5√(16·(1 − 1/64)) + 4 = 37.9.
        assert_eq!(threshold_rank(1024, 65_536, 1024), 38);
    }
}

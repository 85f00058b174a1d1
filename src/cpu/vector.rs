//! The loops that must be vectorised, compiled for each instruction set and chosen at run time.
//!
//! Every multiply-add is fused on every instruction set, so that all give the same bits.

use multiversion::multiversion;

use super::VECTOR;
use super::mix::SHORTEST;

/// Queue rows whose exponentials are summed in f32 before the sum joins an f64 total, and whose
/// passing bits share a word: a sum of 32 keeps 1e-7 of relative error, far below the logits' own.
pub(super) const CHUNK: usize = 32;

/// 2^x for x ≤ 127, within 2 units in the last place; 0 below 2^-126. NaN is not carried through.
#[inline(always)]
fn exp2(x: f32) -> f32 {
    // Adding and subtracting 1.5·2^23 rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    let x = x.max(-127.0);
    let shifted = x + ROUND;
    let fraction = x - (shifted - ROUND);
    // Least largest relative error on [−½, ½], 1.7e-8 (the polynomial of Cephes' exp2f).
    let mut p = 1.535_336_2e-4_f32;
    p = p.mul_add(fraction, 1.339_887_4e-3);
    p = p.mul_add(fraction, 9.618_437e-3);
    p = p.mul_add(fraction, 5.550_332_5e-2);
    p = p.mul_add(fraction, 2.402_264_7e-1);
    p = p.mul_add(fraction, 6.931_472e-1);
    p = p.mul_add(fraction, 1.0);
    // The integer sits in the low bits of `shifted`; its exponent field is 0 for −127, so that the
    // scale is +0 there.
    let scale = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    p * scale
}

/// The lanes of a block that belong to one vector.
#[inline(always)]
fn lanes<T>(block: &[T], vector: usize) -> &[T; VECTOR] {
    block[vector * VECTOR..]
        .first_chunk()
        .expect("blocks are whole vectors")
}

#[inline(always)]
fn lanes_mut<T>(block: &mut [T], vector: usize) -> &mut [T; VECTOR] {
    block[vector * VECTOR..]
        .first_chunk_mut()
        .expect("blocks are whole vectors")
}

/// Largest logit of each lane over `logits`, [rows][width].
#[multiversion(targets = "simd")]
pub(super) fn maxima(logits: &[f32], width: usize, max: &mut [f32]) {
    for vector in 0..width / VECTOR {
        let mut best = [f32::NEG_INFINITY; VECTOR];
        for row in logits.chunks_exact(width) {
            let l = lanes(row, vector);
            for i in 0..VECTOR {
                best[i] = if l[i] > best[i] { l[i] } else { best[i] };
            }
        }
        *lanes_mut(max, vector) = best;
    }
}

/// [`maxima`], and a bit for each logit that is not below its lane's threshold: word
/// `[chunk][lane]` has bit r set for row `CHUNK·chunk + r`.
#[multiversion(targets = "simd")]
pub(super) fn filter(
    logits: &[f32],
    width: usize,
    thresholds: &[f32],
    max: &mut [f32],
    passing: &mut [u32],
) {
    for vector in 0..width / VECTOR {
        let threshold = *lanes(thresholds, vector);
        let mut best = [f32::NEG_INFINITY; VECTOR];
        for (chunk, words) in logits
            .chunks(CHUNK * width)
            .zip(passing.chunks_exact_mut(width))
        {
            let mut bits = [0u32; VECTOR];
            let mut bit = 1u32;
            for row in chunk.chunks_exact(width) {
                let l = lanes(row, vector);
                for i in 0..VECTOR {
                    best[i] = if l[i] > best[i] { l[i] } else { best[i] };
                    bits[i] |= if l[i] >= threshold[i] { bit } else { 0 };
                }
                bit = bit.wrapping_shl(1);
            }
            *lanes_mut(words, vector) = bits;
        }
        *lanes_mut(max, vector) = best;
    }
}

/// Logits that passed a lane's threshold and their queue rows, ascending.
#[derive(Debug, Default)]
pub(super) struct Passed {
    /// What lies behind `len` is left over.
    indices: Vec<u32>,
    logits: Vec<f32>,
    len: usize,
}

impl Passed {
    pub fn clear(&mut self) {
        self.len = 0;
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn indices(&self) -> &[u32] {
        &self.indices[..self.len]
    }

    pub fn logits(&self) -> &[f32] {
        &self.logits[..self.len]
    }

    /// Leaves out the masked ones, −∞, from `start` on.
    pub fn drop_masked(&mut self, start: usize) {
        let mut end = start;
        for at in start..self.len {
            if self.logits[at] > f32::NEG_INFINITY {
                (self.indices[end], self.logits[end]) = (self.indices[at], self.logits[at]);
                end += 1;
            }
        }
        self.len = end;
    }

    /// Makes room for so many more.
    fn reserve(&mut self, more: usize) {
        let most = self.len + more;
        if self.indices.len() < most {
            self.indices.resize(most.max(2 * self.len), 0);
            self.logits.resize(self.indices.len(), 0.0);
        }
    }
}

/// Appends the logits whose bits are set in `passing` to their lanes', by ascending row; both are as
/// [`filter`] has them. `first` is the queue row of the first.
#[multiversion(targets = "simd")]
pub(super) fn append(
    logits: &[f32],
    passing: &[u32],
    width: usize,
    first: u32,
    passed: &mut [Passed],
) {
    // How many bits a word has is unpredictable. So many are written whether they are there or not,
    // and what is too much is overwritten by the next word; few words have more.
    const ALWAYS: usize = 4;
    let words = passing.len() / width;
    let last = (logits.len() / width).saturating_sub(1);
    for (lane, passed) in passed.iter_mut().enumerate() {
        passed.reserve(words * CHUNK + ALWAYS);
        for pair in 0..words.div_ceil(2) {
            let low = passing[2 * pair * width + lane];
            let high = passing
                .get((2 * pair + 1) * width + lane)
                .map_or(0, |&word| word);
            let mut word = u64::from(low) | u64::from(high) << CHUNK;
            let bits = word.count_ones() as usize;
            let mut write = |indices: &mut [u32], values: &mut [f32]| {
                for (index, value) in indices.iter_mut().zip(values) {
                    let row = (2 * pair * CHUNK + word.trailing_zeros() as usize).min(last);
                    (*index, *value) = (first + row as u32, logits[row * width + lane]);
                    word &= word.wrapping_sub(1);
                }
            };
            let (indices, values) = (
                &mut passed.indices[passed.len..],
                &mut passed.logits[passed.len..],
            );
            write(&mut indices[..ALWAYS], &mut values[..ALWAYS]);
            if bits > ALWAYS {
                write(&mut indices[ALWAYS..bits], &mut values[ALWAYS..bits]);
            }
            passed.len += bits;
        }
    }
}

/// A bit for each key above the boundary, and one for each that equals it; of at most 64 keys.
#[multiversion(targets = "simd")]
pub(super) fn compare(keys: &[u32], boundary: u32) -> (u64, u64) {
    let (mut above, mut equal) = (0, 0);
    for (bit, &key) in keys.iter().enumerate() {
        above |= u64::from(key > boundary) << bit;
        equal |= u64::from(key == boundary) << bit;
    }
    (above, equal)
}

/// A key that orders as the logit does, with −0 equal to +0.
#[inline(always)]
pub(super) fn ordered_key(logit: f32) -> u32 {
    let bits = (logit + 0.0).to_bits();
    if bits >> 31 == 1 {
        !bits
    } else {
        bits | 1 << 31
    }
}

/// The logit of a key, +0 for either zero.
pub(super) fn logit_of_key(key: u32) -> f32 {
    f32::from_bits(if key >> 31 == 1 {
        key & !(1 << 31)
    } else {
        !key
    })
}

/// [`ordered_key`] of each logit.
#[multiversion(targets = "simd")]
pub(super) fn ordered_keys(logits: &[f32], keys: &mut [u32]) {
    for (key, &logit) in keys.iter_mut().zip(logits) {
        *key = ordered_key(logit);
    }
}

/// How many of the keys, fewer than 2³², are above the boundary.
#[multiversion(targets = "simd")]
pub(super) fn count_above(keys: &[u32], boundary: u32) -> usize {
    let mut counts = [0u32; 4 * VECTOR];
    let (blocks, rest) = keys.as_chunks::<{ 4 * VECTOR }>();
    for keys in blocks {
        for i in 0..4 * VECTOR {
            counts[i] += u32::from(keys[i] > boundary);
        }
    }
    for (count, &key) in counts.iter_mut().zip(rest) {
        *count += u32::from(key > boundary);
    }
    counts.iter().map(|&count| count as usize).sum()
}

/// The n-th largest key of each lane of `keys`, [rows][width]: the largest bound that n keys reach, bit
/// by bit. That takes 32 passes in which nothing is mispredicted; a quickselect's few are dearer.
#[multiversion(targets = "simd")]
pub(super) fn nth_largest(keys: &[u32], width: usize, n: u32, bounds: &mut [u32]) {
    for vector in 0..width / VECTOR {
        let mut bound = [0u32; VECTOR];
        for bit in (0..u32::BITS).rev() {
            let higher = bound.map(|bound| bound | 1 << bit);
            let mut count = [0u32; VECTOR];
            for row in keys.chunks_exact(width) {
                let keys = lanes(row, vector);
                for i in 0..VECTOR {
                    count[i] += u32::from(keys[i] >= higher[i]);
                }
            }
            for i in 0..VECTOR {
                bound[i] = if count[i] >= n { higher[i] } else { bound[i] };
            }
        }
        *lanes_mut(bounds, vector) = bound;
    }
}

/// Masks the lanes of the given label: their logits of this queue row become −∞.
#[multiversion(targets = "simd")]
pub(super) fn mask(row: &mut [f32], label: u32, labels: &[u32], masked: &mut [u32]) {
    for ((logit, &own), count) in row.iter_mut().zip(labels).zip(masked) {
        let equal = own == label;
        *logit = if equal { f32::NEG_INFINITY } else { *logit };
        *count += u32::from(equal);
    }
}

/// Replaces each logit l by 2^((l − shift)·scale) and adds them up by lane.
#[multiversion(targets = "simd")]
pub(super) fn exponentiate(
    logits: &mut [f32],
    width: usize,
    shift: &[f32],
    scale: f32,
    sums: &mut [f64],
) {
    for vector in 0..width / VECTOR {
        let shift = *lanes(shift, vector);
        let sums = lanes_mut(sums, vector);
        for chunk in logits.chunks_mut(CHUNK * width) {
            let mut sum = [0.0f32; VECTOR];
            for row in chunk.chunks_exact_mut(width) {
                let l = lanes_mut(row, vector);
                for i in 0..VECTOR {
                    let e = exp2((l[i] - shift[i]) * scale);
                    l[i] = e;
                    sum[i] += e;
                }
            }
            for i in 0..VECTOR {
                sums[i] += f64::from(sum[i]);
            }
        }
    }
}

/// Adds up 2^((l − shift)·scale) by lane and leaves the logits.
#[multiversion(targets = "simd")]
pub(super) fn sum_exponentials(
    logits: &[f32],
    width: usize,
    shift: &[f32],
    scale: f32,
    sums: &mut [f64],
) {
    for vector in 0..width / VECTOR {
        let shift = *lanes(shift, vector);
        let sums = lanes_mut(sums, vector);
        for chunk in logits.chunks(CHUNK * width) {
            let mut sum = [0.0f32; VECTOR];
            for row in chunk.chunks_exact(width) {
                let l = lanes(row, vector);
                for i in 0..VECTOR {
                    sum[i] += exp2((l[i] - shift[i]) * scale);
                }
            }
            for i in 0..VECTOR {
                sums[i] += f64::from(sum[i]);
            }
        }
    }
}

/// 2^((x − shift)·scale) of each element.
#[multiversion(targets = "simd")]
pub(super) fn exponentials(values: &[f32], shift: f32, scale: f32, out: &mut [f32]) {
    for (x, out) in values.iter().zip(out) {
        *out = exp2((x - shift) * scale);
    }
}

/// Multiplies each lane of `sums`, [dim][width], by its factor.
#[multiversion(targets = "simd")]
pub(super) fn rescale(sums: &mut [f32], width: usize, factors: &[f32]) {
    for row in sums.chunks_exact_mut(width) {
        for (sum, factor) in row.iter_mut().zip(factors) {
            *sum *= factor;
        }
    }
}

/// a·b, summed in a fixed order.
#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    const WAYS: usize = 4;
    let mut sums = [[0.0f32; VECTOR]; WAYS];
    let (a_blocks, a_rest) = a.as_chunks::<{ WAYS * VECTOR }>();
    let (b_blocks, b_rest) = b.as_chunks::<{ WAYS * VECTOR }>();
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        for way in 0..WAYS {
            for i in 0..VECTOR {
                sums[way][i] = a[way * VECTOR + i].mul_add(b[way * VECTOR + i], sums[way][i]);
            }
        }
    }
    let mut sum = [0.0f32; VECTOR];
    for i in 0..VECTOR {
        sum[i] = (sums[0][i] + sums[1][i]) + (sums[2][i] + sums[3][i]);
    }
    for (chunk_a, chunk_b) in a_rest.chunks(VECTOR).zip(b_rest.chunks(VECTOR)) {
        for ((sum, a), b) in sum.iter_mut().zip(chunk_a).zip(chunk_b) {
            *sum = a.mul_add(*b, *sum);
        }
    }
    let mut width = VECTOR / 2;
    while width > 0 {
        for i in 0..width {
            sum[i] += sum[i + width];
        }
        width /= 2;
    }
    sum[0]
}

/// The dot product of each pair of `rows`, [n][dim].
#[multiversion(targets = "simd")]
pub(super) fn pair_dots(rows: &[f32], dim: usize, first: &[u32], second: &[u32], dots: &mut [f32]) {
    for ((dot_, &i), &j) in dots.iter_mut().zip(first).zip(second) {
        *dot_ = dot(
            &rows[i as usize * dim..][..dim],
            &rows[j as usize * dim..][..dim],
        );
    }
}

/// The first N of the values, zeros where there are fewer.
#[inline(always)]
fn padded<T: Copy + Default, const N: usize>(values: &[T]) -> [T; N] {
    values.first_chunk().copied().unwrap_or_else(|| {
        let mut padded = [T::default(); N];
        padded[..values.len()].copy_from_slice(values);
        padded
    })
}

/// q·h and 1/r of each mixture h = (w a + (1−w) b)/r from products of its two rows: the squares and
/// logits of all rows, which `first` and `second` point into, and the `dots` of the pairs.
///
/// NaN for 1/r where r² overflows, and where a and b all but cancel: with r² less than a sixteenth
/// of its parts the error of the f32 products, some 1e-7 of those, would show in the logit's sixth
/// digit.
#[multiversion(targets = "simd")]
pub(super) fn mixtures(
    weights: &[f32],
    (first, second): (&[u32], &[u32]),
    (squares, logits): (&[f32], &[f32]),
    dots: &[f32],
    mixed: &mut [f32],
    inverses: &mut [f64],
) {
    const LANES: usize = 8;
    const TOO_SHORT: f64 = SHORTEST * SHORTEST;
    for start in (0..weights.len()).step_by(LANES) {
        let count = LANES.min(weights.len() - start);
        let v: [f32; LANES] = padded(&weights[start..]);
        let dot: [f32; LANES] = padded(&dots[start..]);
        let rows: [[u32; LANES]; 2] = [padded(&first[start..]), padded(&second[start..])];
        let (mut square, mut logit) = ([[0.0f32; LANES]; 2], [[0.0f32; LANES]; 2]);
        for side in 0..2 {
            for lane in 0..LANES {
                square[side][lane] = squares[rows[side][lane] as usize];
                logit[side][lane] = logits[rows[side][lane] as usize];
            }
        }
        let (mut inverse, mut value) = ([0.0f64; LANES], [0.0f64; LANES]);
        for lane in 0..LANES {
            let (v, dot) = (f64::from(v[lane]), f64::from(dot[lane]));
            let square = [f64::from(square[0][lane]), f64::from(square[1][lane])];
            let logit = [f64::from(logit[0][lane]), f64::from(logit[1][lane])];
            let w = 1.0 - v;
            let parts = v * v * square[0] + w * w * square[1];
            let squared = parts + 2.0 * v * w * dot;
            // A square may overflow f32 where no logit does.
            let sound =
                squared >= parts * (1.0 / 16.0) && squared >= TOO_SHORT && squared.is_finite();
            inverse[lane] = if sound {
                1.0 / squared.sqrt()
            } else {
                f64::NAN
            };
            value[lane] = (v * logit[0] + w * logit[1]) * inverse[lane];
        }
        for lane in 0..count {
            mixed[start + lane] = value[lane] as f32;
            inverses[start + lane] = inverse[lane];
        }
    }
}

/// The dot product of each of `rows`, [n][dim], with one vector.
#[multiversion(targets = "simd")]
pub(super) fn row_dots(rows: &[f32], vector: &[f32], dots: &mut [f32]) {
    for (dot_, row) in dots.iter_mut().zip(rows.chunks_exact(vector.len())) {
        *dot_ = dot(row, vector);
    }
}

/// sum += Σ weight · row over `rows`, [n][dim], in their order.
#[multiversion(targets = "simd")]
pub(super) fn add_weighted(rows: &[f32], dim: usize, weights: &[f32], sum: &mut [f32]) {
    // A strip of the sum stays in registers while the rows go by.
    const STRIP: usize = 8 * VECTOR;
    let (strips, rest) = sum.as_chunks_mut::<STRIP>();
    let whole = strips.len() * STRIP;
    for (at, strip) in strips.iter_mut().enumerate() {
        let mut own = *strip;
        for (row, &weight) in rows.chunks_exact(dim).zip(weights) {
            let row: &[f32; STRIP] = row[at * STRIP..].first_chunk().expect("a strip of the row");
            for i in 0..STRIP {
                own[i] = weight.mul_add(row[i], own[i]);
            }
        }
        *strip = own;
    }
    for (row, &weight) in rows.chunks_exact(dim).zip(weights) {
        for (sum, x) in rest.iter_mut().zip(&row[whole..]) {
            *sum = weight.mul_add(*x, *sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp2_is_within_two_units() {
        let mut worst = 0.0f64;
        let mut x = -126.0f32;
        while x <= 20.0 {
            let exact = f64::from(x).exp2();
            worst = worst.max(((f64::from(exp2(x)) - exact) / exact).abs());
            x += 0.000_917;
        }
        // Half a unit from the last product, half from the polynomial's last step, and its 1.7e-8.
        assert!(
            worst <= 2.0 * f64::from(f32::EPSILON) * 0.5 + 2e-8,
            "{worst}"
        );
        assert_eq!(exp2(-127.0), 0.0);
        assert_eq!(exp2(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp2(0.0), 1.0);
    }

    #[test]
    fn dot_matches_f64_for_every_tail() {
        for len in 0..200 {
            let a: Vec<f32> = (0..len).map(|i| (i as f32 * 0.7).sin()).collect();
            let b: Vec<f32> = (0..len).map(|i| (i as f32 * 1.3).cos()).collect();
            let exact: f64 = a
                .iter()
                .zip(&b)
                .map(|(a, b)| f64::from(*a) * f64::from(*b))
                .sum();
            let bound: f64 = a
                .iter()
                .zip(&b)
                .map(|(a, b)| f64::from(*a * *b).abs())
                .sum::<f64>()
                * 6e-8
                * 20.0;
            assert!(
                (f64::from(dot(&a, &b)) - exact).abs() <= bound,
                "length {len}"
            );
        }
    }

    #[test]
    fn filter_marks_exactly_what_is_not_below() {
        let (rows, width) = (70, 32);
        let logits: Vec<f32> = (0..rows * width)
            .map(|i| ((i * 7919) % 101) as f32)
            .collect();
        let thresholds: Vec<f32> = (0..width).map(|lane| lane as f32 * 3.0).collect();
        let mut max = vec![0.0; width];
        let mut passing = vec![0; rows.div_ceil(CHUNK) * width];
        filter(&logits, width, &thresholds, &mut max, &mut passing);
        let mut plain = vec![0.0; width];
        maxima(&logits, width, &mut plain);
        assert_eq!(max, plain);
        for lane in 0..width {
            for row in 0..rows {
                let bit = passing[row / CHUNK * width + lane] >> (row % CHUNK) & 1;
                assert_eq!(bit == 1, logits[row * width + lane] >= thresholds[lane]);
            }
        }
    }

    #[test]
    fn append_takes_the_bits_of_a_lane() {
        let width = 16;
        for rows in [1, 32, 33, 64, 96, 250, 256] {
            let words = usize::div_ceil(rows, CHUNK);
            // From words with no bit to words with all of them.
            let mut passing: Vec<u32> = (0..words * width)
                .map(|at| match at % 5 {
                    0 => 0,
                    1 => u32::MAX,
                    2 => 1 << 31,
                    _ => (at as u32).wrapping_mul(0x9e37_79b9) & 0x1010_1111,
                })
                .collect();
            for (at, word) in passing.iter_mut().enumerate() {
                let inside = (rows - at / width * CHUNK).min(CHUNK);
                *word &= u32::MAX >> (CHUNK - inside);
            }
            let logits: Vec<f32> = (0..rows * width).map(|at| at as f32).collect();
            let mut passed: Vec<Passed> = (0..width).map(|_| Passed::default()).collect();
            for first in [0, 1000] {
                append(&logits, &passing, width, first, &mut passed);
            }
            for (lane, passed) in passed.iter().enumerate() {
                let set =
                    |row: &usize| passing[row / CHUNK * width + lane] >> (row % CHUNK) & 1 == 1;
                let own: Vec<usize> = (0..rows).filter(set).collect();
                let indices: Vec<u32> = [0, 1000]
                    .iter()
                    .flat_map(|first| own.iter().map(move |&row| first + row as u32))
                    .collect();
                let values: Vec<f32> = (0..2)
                    .flat_map(|_| own.iter().map(|row| (row * width + lane) as f32))
                    .collect();
                assert_eq!(passed.indices(), indices, "{rows} rows, lane {lane}");
                assert_eq!(passed.logits(), values, "{rows} rows, lane {lane}");
            }
        }
    }

    #[test]
    fn masked_logits_are_left_out() {
        let mut passed = Passed {
            indices: vec![1, 2, 3, 4, 5],
            logits: vec![f32::NEG_INFINITY, 0.5, f32::NEG_INFINITY, 0.25, 9.0],
            len: 4,
        };
        passed.drop_masked(1);
        assert_eq!(passed.indices(), [1, 2, 4]);
        assert_eq!(passed.logits(), [f32::NEG_INFINITY, 0.5, 0.25]);
    }

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
        assert!(
            values
                .iter()
                .all(|&logit| logit_of_key(ordered_key(logit)) == logit)
        );
    }
}

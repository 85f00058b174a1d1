//! The two matrix products of a step, on blocks of lanes.
//!
//! A strip of the result, some lanes by some columns, stays in registers while the depth goes by. The
//! lane is contiguous in the left operand and in the result, and the queue tile is read as it lies,
//! so that nothing is packed. What a lane adds up, and in which order, is the same whatever strip it
//! is in: a row's bits do not depend on its block.

use pulp::{Arch, Simd, WithSimd};

use super::prefetch;

/// Columns of a strip: with four vectors of lanes its sums take 24 of 32 registers, with two 12 of 16.
const COLUMNS: usize = 6;

/// Columns of the strips that a remainder is made of, so that none is left with few sums under way.
const FEWER_COLUMNS: usize = 4;

/// Depth of a chain of multiply-adds: as many rows of 64 lanes as the smallest first cache, of 32 KB,
/// holds. 64 and 256 were slower by 6 and 3 %.
const DEPTH: usize = 128;

/// Depth from one request for the next rows of a tile to the next: the floats of a cache line.
const STRIDE: usize = prefetch::LINE / size_of::<f32>();

/// `logits[row][lane]` = Σ_k `queries[k][lane]` · `tile[row][k]`, `width` lanes, a multiple of 16.
pub(super) fn logits(queries: &[f32], tile: &[f32], dim: usize, width: usize, logits: &mut [f32]) {
    let rows = tile.len() / dim;
    assert_eq!(queries.len(), dim * width);
    assert_eq!(logits.len(), rows * width);
    for start in (0..dim).step_by(DEPTH) {
        let end = (start + DEPTH).min(dim);
        Arch::new().dispatch(Product {
            left: &queries[start * width..end * width],
            width,
            right: &tile[start..],
            columns: rows,
            of_column: dim,
            of_depth: 1,
            add: start > 0,
            out: &mut *logits,
        });
    }
}

/// `sums[k][lane]` += Σ_row `weights[row][lane]` · `tile[row][k]`, as [`logits`].
pub(super) fn accumulate(
    weights: &[f32],
    tile: &[f32],
    dim: usize,
    width: usize,
    sums: &mut [f32],
) {
    assert_eq!(weights.len(), tile.len() / dim * width);
    assert_eq!(sums.len(), dim * width);
    for (weights, tile) in weights.chunks(DEPTH * width).zip(tile.chunks(DEPTH * dim)) {
        Arch::new().dispatch(Product {
            left: weights,
            width,
            right: tile,
            columns: dim,
            of_column: 1,
            of_depth: dim,
            add: true,
            out: &mut *sums,
        });
    }
}

/// `out[n][lane]` = or += Σ_k `left[k][lane]` · `right[n·of_column + k·of_depth]`, n < columns.
struct Product<'a> {
    left: &'a [f32],
    width: usize,
    right: &'a [f32],
    columns: usize,
    of_column: usize,
    of_depth: usize,
    add: bool,
    out: &'a mut [f32],
}

impl WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if S::REGISTER_COUNT >= 32 {
            self.strips::<S, 4>(simd);
        } else {
            self.strips::<S, 2>(simd);
        }
    }
}

impl Product<'_> {
    /// All strips, of V vectors where the lanes suffice.
    #[inline(always)]
    fn strips<S: Simd, const V: usize>(mut self, simd: S) {
        let mut column = 0;
        while self.columns - column >= COLUMNS && self.columns - column != 2 * FEWER_COLUMNS {
            self.across::<S, COLUMNS, V>(simd, column);
            column += COLUMNS;
        }
        while self.columns - column >= FEWER_COLUMNS {
            self.across::<S, FEWER_COLUMNS, V>(simd, column);
            column += FEWER_COLUMNS;
        }
        while column < self.columns {
            self.across::<S, 1, V>(simd, column);
            column += 1;
        }
    }

    /// The strips of N columns.
    #[inline(always)]
    fn across<S: Simd, const N: usize, const V: usize>(&mut self, simd: S, column: usize) {
        let mut lane = 0;
        while lane + V * S::F32_LANES <= self.width {
            self.strip::<S, N, V>(simd, column, lane);
            lane += V * S::F32_LANES;
        }
        while lane + 2 * S::F32_LANES <= self.width {
            self.strip::<S, N, 2>(simd, column, lane);
            lane += 2 * S::F32_LANES;
        }
        while lane < self.width {
            self.strip::<S, N, 1>(simd, column, lane);
            lane += S::F32_LANES;
        }
    }

    #[inline(always)]
    fn strip<S: Simd, const N: usize, const V: usize>(
        &mut self,
        simd: S,
        column: usize,
        lane: usize,
    ) {
        let depth = self.left.len() / self.width;
        let last = (column + N - 1) * self.of_column + (depth - 1) * self.of_depth;
        assert!(last < self.right.len());
        let right = self.right[column * self.of_column..].as_ptr();
        let behind = right.wrapping_add(N * self.of_column).addr();
        let mut sums = [[simd.splat_f32s(0.0); V]; N];
        let mut at = 0;
        for rows in self.left.chunks(STRIDE * self.width) {
            if self.of_depth == 1 {
                // The next strip's rows of the tile.
                for n in 0..N {
                    let row = behind.wrapping_add(n * self.of_column * size_of::<f32>());
                    prefetch::into_first(row.wrapping_add(at * size_of::<f32>()));
                }
            }
            for row in rows.chunks_exact(self.width) {
                let (row, _) = S::as_simd_f32s(&row[lane..]);
                let row: &[S::f32s; V] = row.first_chunk().expect("strips end with the lanes");
                for (n, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: `at` is k·of_depth of the row k < depth, and n < N: the element lies
                    // not behind `last`, which is inside the slice, as asserted.
                    let x = simd.splat_f32s(unsafe { *right.add(n * self.of_column + at) });
                    for v in 0..V {
                        sums[v] = simd.mul_add_e_f32s(row[v], x, sums[v]);
                    }
                }
                at += self.of_depth;
            }
        }
        for (n, sums) in sums.iter().enumerate() {
            let out = &mut self.out[(column + n) * self.width + lane..];
            let (out, _) = S::as_mut_simd_f32s(out);
            let out: &mut [S::f32s; V] = out.first_chunk_mut().expect("strips end with the lanes");
            for v in 0..V {
                out[v] = if self.add {
                    simd.add_f32s(out[v], sums[v])
                } else {
                    sums[v]
                };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, seed: u64) -> Vec<f32> {
        let mut random = fastrand::Rng::with_seed(seed);
        (0..count).map(|_| random.f32() - 0.5).collect()
    }

    /// Every remainder of columns, lanes and depth; each element within the rounding of its own chain.
    #[test]
    fn both_products_match_f64_for_every_remainder() {
        for dim in [1, 2, 5, 6, 7, 8, 9, 16, 17, 100, 127, 128, 129, 300] {
            for rows in [1, 3, 4, 6, 8, 13, 128, 140] {
                for width in [16, 48, 64, 80] {
                    let (queries, tile) = (numbers(dim * width, 1), numbers(rows * dim, 2));
                    let mut found = vec![f32::NAN; rows * width];
                    logits(&queries, &tile, dim, width, &mut found);
                    let weights = numbers(rows * width, 3);
                    let before = numbers(dim * width, 4);
                    let mut sums = before.clone();
                    accumulate(&weights, &tile, dim, width, &mut sums);
                    let close =
                        |found: f32, terms: &mut dyn Iterator<Item = (f32, f32)>, first: f32| {
                            let (mut exact, mut size, mut count) =
                                (f64::from(first), f64::from(first.abs()), 1);
                            for (a, b) in terms {
                                let product = f64::from(a) * f64::from(b);
                                (exact, size, count) =
                                    (exact + product, size + product.abs(), count + 1);
                            }
                            let bound = f64::from(count) * f64::from(f32::EPSILON) * size;
                            assert!(
                                (f64::from(found) - exact).abs() <= bound,
                                "{dim} {rows} {width}"
                            );
                        };
                    for lane in 0..width {
                        for row in 0..rows {
                            let terms = &mut (0..dim)
                                .map(|k| (queries[k * width + lane], tile[row * dim + k]));
                            close(found[row * width + lane], terms, 0.0);
                        }
                        for k in 0..dim {
                            let terms = &mut (0..rows)
                                .map(|row| (weights[row * width + lane], tile[row * dim + k]));
                            close(sums[k * width + lane], terms, before[k * width + lane]);
                        }
                    }
                }
            }
        }
    }

    /// A lane has the same bits in any block and beside any rows.
    #[test]
    fn bits_depend_neither_on_the_block_nor_on_the_tile() {
        for dim in [3, 100, 128, 700] {
            let (own, tile) = (numbers(dim, 5), numbers(140 * dim, 6));
            let lane_of = |width: usize, lane: usize, rows: usize| {
                let mut queries = numbers(dim * width, width as u64);
                for (row, x) in queries.chunks_exact_mut(width).zip(&own) {
                    row[lane] = *x;
                }
                let mut found = vec![0.0; rows * width];
                logits(&queries, &tile[..rows * dim], dim, width, &mut found);
                let mut sums = vec![0.0; dim * width];
                accumulate(&found, &tile[..rows * dim], dim, width, &mut sums);
                let column = |data: &[f32]| -> Vec<u32> {
                    data.chunks_exact(width)
                        .map(|row| row[lane].to_bits())
                        .collect()
                };
                (column(&found), column(&sums))
            };
            let (logits, sums) = lane_of(64, 0, 140);
            for (width, lane) in [(16, 0), (16, 15), (32, 17), (48, 40), (64, 63)] {
                assert_eq!(lane_of(width, lane, 140), (logits.clone(), sums.clone()));
                for rows in [1, 4, 6, 7, 11, 128] {
                    assert_eq!(lane_of(width, lane, rows).0, logits[..rows]);
                }
            }
        }
    }
}

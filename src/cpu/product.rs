//! The two matrix products of a step, on blocks of lanes.
//!
//! Both are laid out so that nothing must be packed: the lane is contiguous in the left operand
//! and in the result, and the queue tile is read as it lies.

use gemm::Parallelism;

use super::aligned::Aligned;

/// Depth of one call. A library may cut deeper sums at a place that depends on the number of lanes
/// and so change a row's bits with its block; up to this depth a sum is one chain.
const DEPTH: usize = 256;

/// `logits[row][lane]` = Σ_k `queries[k][lane]` · `tile[row][k]`.
pub(super) fn logits(queries: &[f32], tile: &[f32], dim: usize, width: usize, logits: &mut [f32]) {
    let rows = tile.len() / dim;
    assert_eq!(queries.len(), dim * width);
    assert_eq!(tile.len(), rows * dim);
    assert_eq!(logits.len(), rows * width);
    for start in (0..dim).step_by(DEPTH) {
        let depth = DEPTH.min(dim - start);
        // SAFETY: with the lengths asserted above, every index of an operand lies inside it:
        // result lane + row·width < rows·width; left lane + (start + k)·width < dim·width; right
        // (start + k) + row·dim < rows·dim. The result is a unique borrow, initialised.
        unsafe {
            gemm::gemm(
                width,
                rows,
                depth,
                logits.as_mut_ptr(),
                width as isize,
                1,
                start > 0,
                queries.as_ptr().add(start * width),
                width as isize,
                1,
                tile.as_ptr().add(start),
                dim as isize,
                1,
                1.0,
                1.0,
                false,
                false,
                false,
                Parallelism::None,
            );
        }
    }
}

/// `sums[k][lane]` += Σ_row `weights[row][lane]` · `tile[row][k]`.
pub(super) fn accumulate(
    weights: &[f32],
    tile: &[f32],
    dim: usize,
    width: usize,
    sums: &mut [f32],
) {
    let rows = tile.len() / dim;
    assert_eq!(weights.len(), rows * width);
    assert_eq!(tile.len(), rows * dim);
    assert_eq!(sums.len(), dim * width);
    for start in (0..rows).step_by(DEPTH) {
        let depth = DEPTH.min(rows - start);
        // SAFETY: with the lengths asserted above, every index of an operand lies inside it:
        // result lane + k·width < dim·width; left lane + (start + row)·width < rows·width; right
        // k + (start + row)·dim < rows·dim. The result is a unique borrow, initialised.
        unsafe {
            gemm::gemm(
                width,
                dim,
                depth,
                sums.as_mut_ptr(),
                width as isize,
                1,
                true,
                weights.as_ptr().add(start * width),
                width as isize,
                1,
                tile.as_ptr().add(start * dim),
                1,
                dim as isize,
                1.0,
                1.0,
                false,
                false,
                false,
                Parallelism::None,
            );
        }
    }
}

/// Transposes `rows`, [count][dim], into `block`, [dim][width], with zeros in the lanes left over.
pub(super) fn transpose(rows: &[f32], dim: usize, width: usize, block: &mut Aligned) {
    let block = block.zeros(dim * width);
    for (lane, row) in rows.chunks_exact(dim).enumerate() {
        for (k, x) in row.iter().enumerate() {
            block[k * width + lane] = *x;
        }
    }
}

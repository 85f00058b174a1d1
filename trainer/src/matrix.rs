//! The matrix product of a single thread; whoever calls it shares the work out.

use gemm::Parallelism;

/// A matrix that is read: its elements, and the distances between rows and between columns.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    data: &'a [f32],
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// A row-major matrix with so many columns.
    pub fn new(data: &'a [f32], columns: usize) -> Self {
        Self {
            data,
            row_stride: columns,
            column_stride: 1,
        }
    }

    /// Its transpose, without a copy.
    pub fn transposed(self) -> Self {
        Self {
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }
}

/// out [m, n] = (accumulate ? out : 0) + left [m, k] · right [k, n], on this thread alone.
pub fn product(
    out: &mut [f32],
    (m, n, k): (usize, usize, usize),
    left: Matrix<'_>,
    right: Matrix<'_>,
    accumulate: bool,
) {
    let last = |matrix: Matrix<'_>, rows: usize, columns: usize| {
        (rows - 1) * matrix.row_stride + (columns - 1) * matrix.column_stride
    };
    assert!(m > 0 && n > 0 && k > 0 && out.len() == m * n);
    assert!(last(left, m, k) < left.data.len() && last(right, k, n) < right.data.len());
    // SAFETY: by the assertions every element of the three matrices lies within its slice; `out` is
    // exclusive and the others are shared, so that they do not overlap.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n as isize,
            accumulate,
            left.data.as_ptr(),
            left.column_stride as isize,
            left.row_stride as isize,
            right.data.as_ptr(),
            right.column_stride as isize,
            right.row_stride as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

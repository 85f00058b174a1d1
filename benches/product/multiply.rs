//! The matrix products of a step, by each library that was considered.
//!
//! A step takes a block of m queries, transposed to [d][m], past tiles of the queue of T rows, [T][d]:
//! logits, [T][m], then the sums weighted by their exponentials, [d][m] or [m][d].

#[path = "../../src/cpu/prefetch.rs"]
mod prefetch;
#[path = "../../src/cpu/product.rs"]
mod product;

/// The libraries, and what the step uses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Library {
    Gemm,
    Faer,
    Matrixmultiply,
    /// Only transposed queries and sums.
    Hardmix,
}

impl Library {
    pub const ALL: [Self; 4] = [Self::Gemm, Self::Faer, Self::Matrixmultiply, Self::Hardmix];
}

/// A matrix in memory: element (i, j) lies at i·`row` + j·`column`.
#[derive(Clone, Copy, Debug)]
pub struct Strides {
    pub row: usize,
    pub column: usize,
}

impl Strides {
    fn last(self, rows: usize, columns: usize) -> usize {
        (rows - 1) * self.row + (columns - 1) * self.column
    }
}

/// c, m×n, = (or with `add` +=) a·b, with `depth` the inner dimension, on one thread.
///
/// # Panics
/// Where a size is zero or a matrix ends outside its slice, and for [`Library::Hardmix`].
pub fn multiply(
    library: Library,
    (m, n, depth): (usize, usize, usize),
    (a, a_strides): (&[f32], Strides),
    (b, b_strides): (&[f32], Strides),
    (c, c_strides): (&mut [f32], Strides),
    add: bool,
) {
    assert!(m > 0 && n > 0 && depth > 0);
    assert!(a_strides.last(m, depth) < a.len());
    assert!(b_strides.last(depth, n) < b.len());
    assert!(c_strides.last(m, n) < c.len());
    let signed = |strides: Strides| (strides.row as isize, strides.column as isize);
    let (a_rows, a_columns) = signed(a_strides);
    let (b_rows, b_columns) = signed(b_strides);
    let (c_rows, c_columns) = signed(c_strides);
    let (a, b, c) = (a.as_ptr(), b.as_ptr(), c.as_mut_ptr());
    // SAFETY, for all three: every index of every matrix lies inside its slice, as asserted, and
    // `c` comes from a unique borrow of initialised elements.
    match library {
        Library::Gemm => unsafe {
            gemm::gemm(
                m,
                n,
                depth,
                c,
                c_columns,
                c_rows,
                add,
                a,
                a_columns,
                a_rows,
                b,
                b_columns,
                b_rows,
                1.0,
                1.0,
                false,
                false,
                false,
                gemm::Parallelism::None,
            );
        },
        Library::Faer => {
            let (a, b, c) = unsafe {
                (
                    faer::MatRef::from_raw_parts(a, m, depth, a_rows, a_columns),
                    faer::MatRef::from_raw_parts(b, depth, n, b_rows, b_columns),
                    faer::MatMut::from_raw_parts_mut(c, m, n, c_rows, c_columns),
                )
            };
            let accumulate = if add {
                faer::Accum::Add
            } else {
                faer::Accum::Replace
            };
            faer::linalg::matmul::matmul(c, accumulate, a, b, 1.0f32, faer::Par::Seq);
        }
        Library::Matrixmultiply => unsafe {
            let beta = if add { 1.0 } else { 0.0 };
            matrixmultiply::sgemm(
                m, depth, n, 1.0, a, a_rows, a_columns, b, b_rows, b_columns, beta, c, c_rows,
                c_columns,
            );
        },
        Library::Hardmix => panic!("Hardmix multiplies in two layouts alone"),
    }
}

/// The sizes of one tile: m queries, T queue rows, d.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    pub queries: usize,
    pub tile: usize,
    pub dim: usize,
}

/// How the block of queries lies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Queries {
    /// [d][m], transposed beforehand.
    Transposed,
    /// [m][d], as they come.
    AsTheyCome,
}

/// How the weighted sums lie.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sums {
    /// [d][m]
    Transposed,
    /// [m][d]
    RowMajor,
}

/// `logits`, [T][m], = tile · queriesᵀ.
pub fn logits(
    library: Library,
    sizes: Sizes,
    layout: Queries,
    queries: &[f32],
    tile: &[f32],
    logits: &mut [f32],
) {
    let Sizes {
        queries: m,
        tile: rows,
        dim,
    } = sizes;
    if library == Library::Hardmix {
        assert_eq!(layout, Queries::Transposed);
        return product::logits(queries, tile, dim, m, logits);
    }
    let queries_strides = match layout {
        Queries::Transposed => Strides { row: 1, column: m },
        Queries::AsTheyCome => Strides {
            row: dim,
            column: 1,
        },
    };
    multiply(
        library,
        (m, rows, dim),
        (queries, queries_strides),
        (
            tile,
            Strides {
                row: 1,
                column: dim,
            },
        ),
        (logits, Strides { row: 1, column: m }),
        false,
    );
}

/// `sums` += weightsᵀ · tile, with `weights` [T][m].
pub fn accumulate(
    library: Library,
    sizes: Sizes,
    layout: Sums,
    weights: &[f32],
    tile: &[f32],
    sums: &mut [f32],
) {
    let Sizes {
        queries: m,
        tile: rows,
        dim,
    } = sizes;
    if library == Library::Hardmix {
        assert_eq!(layout, Sums::Transposed);
        return product::accumulate(weights, tile, dim, m, sums);
    }
    match layout {
        Sums::Transposed => multiply(
            library,
            (m, dim, rows),
            (weights, Strides { row: 1, column: m }),
            (
                tile,
                Strides {
                    row: dim,
                    column: 1,
                },
            ),
            (sums, Strides { row: 1, column: m }),
            true,
        ),
        Sums::RowMajor => multiply(
            library,
            (dim, m, rows),
            (
                tile,
                Strides {
                    row: 1,
                    column: dim,
                },
            ),
            (weights, Strides { row: m, column: 1 }),
            (
                sums,
                Strides {
                    row: 1,
                    column: dim,
                },
            ),
            true,
        ),
    }
}

/// `count` numbers in [−0.15, 0.15), always the same for a seed.
pub fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 40) as f32 / 2.0f32.powi(24) - 0.5) * 0.3
    };
    (0..count).map(|_| next()).collect()
}

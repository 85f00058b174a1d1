//! What can go wrong, by argument: what it was and what was expected.

use std::path::PathBuf;

use rayon::prelude::*;

/// The result of every fallible function of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that the crate refuses, with the argument's name, what it was and what was expected.
///
/// A call that refuses what it was given has changed nothing: no queue row written, no cursor moved. Only
/// an output that was to be written may be empty then. On a GPU that holds for what is refused at once, not
/// for what the driver fails with half-way.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A size that must be positive is zero.
    #[error("{argument} is 0; expected at least 1")]
    Zero {
        /// The argument's name.
        argument: &'static str,
    },
    /// An argument's length does not fit the shape that the other arguments give it.
    #[error("{argument} has {length} elements; expected {expected} ({shape})")]
    Length {
        /// The argument's name.
        argument: &'static str,
        /// How many elements it has.
        length: usize,
        /// How many it should have.
        expected: usize,
        /// The shape it should have, in words, such as `rows × dim`.
        shape: &'static str,
    },
    /// An argument is no whole number of rows.
    #[error("{argument} has {length} elements; expected a multiple of {width}, its row's length")]
    Ragged {
        /// The argument's name.
        argument: &'static str,
        /// How many elements it has.
        length: usize,
        /// The elements of a row.
        width: usize,
    },
    /// Memory for an argument or a result cannot be had.
    #[error("no memory for {argument}: {rows} × {width} elements were asked for")]
    OutOfMemory {
        /// What the memory is for.
        argument: &'static str,
        /// Its rows.
        rows: usize,
        /// The elements of a row.
        width: usize,
    },
    /// Two arguments disagree on the feature dimension d.
    #[error("{argument} has dimension {dim}; the queries have {expected}")]
    Dimension {
        /// The argument's name.
        argument: &'static str,
        /// Its dimension.
        dim: usize,
        /// The dimension of the queries.
        expected: usize,
    },
    /// A number lies outside its domain.
    #[error("{argument} is {value}; expected {expected}")]
    OutOfRange {
        /// The argument's name.
        argument: &'static str,
        /// The value, formatted.
        value: String,
        /// The domain, in words.
        expected: &'static str,
    },
    /// N > K: more hardest rows asked for than the queue holds.
    #[error("hardest is {hardest}, but the queue has {capacity} rows; expected at most that many")]
    HardestBeyondQueue {
        /// N.
        hardest: usize,
        /// K.
        capacity: usize,
    },
    /// Synthetic negatives asked for with N = 0: there is nothing to mix.
    #[error(
        "hardest is 0 with mixed = {mixed} and query_mixed = {query_mixed}; \
         expected at least 1, or no synthetic negatives"
    )]
    NothingToMix {
        /// s.
        mixed: usize,
        /// s′.
        query_mixed: usize,
    },
    /// A given draw points behind the end of the row's list of hardest.
    #[error(
        "draw {argument}[{row}, {index}] is position {position}; \
         expected less than {count}, the number of that row's hardest"
    )]
    DrawOutOfRange {
        /// `first`, `second` or `pick`.
        argument: &'static str,
        /// The row b.
        row: usize,
        /// The synthetic's index within its kind.
        index: usize,
        /// The position that was given.
        position: u32,
        /// N_b.
        count: usize,
    },
    /// A NaN or an infinity. As a step's status it means that this row's loss and gradient are NaN.
    #[error("row {row} of {argument} is not finite")]
    NonFinite {
        /// `queries`, `keys`, `logits` (finite inputs whose product overflows) or the argument.
        argument: &'static str,
        /// The first such row.
        row: usize,
    },
    /// Normalising was asked for and a row has norm zero.
    #[error("row {row} of {argument} has norm 0 and cannot be normalised")]
    ZeroNorm {
        /// The argument's name.
        argument: &'static str,
        /// The row.
        row: usize,
    },
    /// The oracle masks by label, and labels are missing on one side.
    #[error("the oracle masks by label, but {argument} has no labels")]
    MissingLabels {
        /// `queries` or `queue`.
        argument: &'static str,
    },
    /// A file that is not what it should be.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no CUDA driver to be loaded.
    #[cfg(feature = "cuda")]
    #[error("no CUDA driver was found: libcuda.so cannot be loaded")]
    NoDriver,
    /// The CUDA driver refused something; the context goes on.
    #[cfg(feature = "cuda")]
    #[error("CUDA failed at {operation}: {reason}")]
    Driver {
        /// What was asked of it: a phrase, or a kernel's name.
        operation: &'static str,
        /// What it said.
        reason: String,
    },
    /// A kernel failed in a way that no context survives: every later call on it will fail too, and
    /// what its memory holds is lost.
    #[cfg(feature = "cuda")]
    #[error("CUDA failed at {operation}, and the context is lost: {reason}")]
    ContextLost {
        /// What failed, or what it was noticed at.
        operation: &'static str,
        /// What the driver said.
        reason: String,
    },
    /// An argument's memory belongs to another context or device than the stream: to another
    /// `CudaContext`, which may well stand for the same context of the driver's.
    #[cfg(feature = "cuda")]
    #[error("{argument} belongs to another CUDA context; expected that of the device's stream")]
    OtherContext {
        /// The argument's name.
        argument: &'static str,
    },
    /// The stream is being captured, and no graph can hold what the call would have to do.
    #[cfg(feature = "cuda")]
    #[error(
        "{argument} cannot be {done} while the stream is being captured; \
         expected that before or after"
    )]
    Capturing {
        /// The argument's name.
        argument: &'static str,
        /// `allocated` or `copied to the host`.
        done: &'static str,
    },
    /// An output shares memory with another argument.
    #[cfg(feature = "cuda")]
    #[error("{argument} overlaps {other}; expected memory of its own")]
    Overlap {
        /// The output's name.
        argument: &'static str,
        /// The other argument's name.
        other: &'static str,
    },
    /// candle failed for a reason of its own.
    #[cfg(feature = "candle")]
    #[error(transparent)]
    Candle(candle_core::Error),
    /// A set of named tensors that is not what it should be.
    #[error("tensor `{name}`: {reason}")]
    Tensor {
        /// The tensor's name.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
}

pub(crate) fn expect_length(
    argument: &'static str,
    length: usize,
    expected: usize,
    shape: &'static str,
) -> Result<()> {
    if length == expected {
        Ok(())
    } else {
        Err(Error::Length {
            argument,
            length,
            expected,
            shape,
        })
    }
}

/// How many rows of `width` elements there are.
pub(crate) fn whole_rows(argument: &'static str, length: usize, width: usize) -> Result<usize> {
    if width == 0 {
        return Err(Error::Zero { argument: "dim" });
    }
    if length == 0 {
        return Err(Error::Zero { argument });
    }
    if length.is_multiple_of(width) {
        Ok(length / width)
    } else {
        Err(Error::Ragged {
            argument,
            length,
            width,
        })
    }
}

/// `rows · width`, refused where the product does not fit `usize`.
pub(crate) fn elements(argument: &'static str, rows: usize, width: usize) -> Result<usize> {
    rows.checked_mul(width).ok_or(Error::OutOfMemory {
        argument,
        rows,
        width,
    })
}

/// Elements that one thread writes rather than wake another.
const FILLED_ALONE: usize = 1 << 16;

/// `rows · width` copies of a value, or an error where there is no memory for them.
pub(crate) fn filled<T: Copy + Send + Sync>(
    argument: &'static str,
    rows: usize,
    width: usize,
    value: T,
) -> Result<Vec<T>> {
    refilled(Vec::new(), argument, rows, width, value)
}

/// [`filled`], in memory that is there already as far as it suffices.
pub(crate) fn refilled<T: Copy + Send + Sync>(
    mut data: Vec<T>,
    argument: &'static str,
    rows: usize,
    width: usize,
    value: T,
) -> Result<Vec<T>> {
    let len = elements(argument, rows, width)?;
    data.clear();
    data.try_reserve_exact(len)
        .map_err(|_| Error::OutOfMemory {
            argument,
            rows,
            width,
        })?;
    if len > FILLED_ALONE {
        // New memory comes from the operating system page by page as it is first written: all
        // threads ask for it.
        data.par_extend(rayon::iter::repeat_n(value, len).with_min_len(FILLED_ALONE));
    } else {
        data.resize(len, value);
    }
    Ok(data)
}

/// The first row (of `dim` elements) with a NaN or an infinity.
pub(crate) fn first_non_finite(rows: &[f32], dim: usize) -> Option<usize> {
    rows.chunks_exact(dim)
        .position(|row| !row.iter().all(|x| x.is_finite()))
}

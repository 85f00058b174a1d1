//! The input of a step, in device memory.

use std::fmt;

use cudarc::driver::{CudaView, DevicePtr};

use super::device::Device;
use crate::draws as host;
use crate::error::{Error, Result, expect_length, whole_rows};

/// The most rows of a batch: what a refused draw's place is written in has so many bits for its row.
const MOST_ROWS: usize = 1 << 29;

/// B queries with their keys, [B, d] each, row-major, in device memory.
#[derive(Clone, Copy)]
pub struct Batch<'a> {
    pub(super) queries: &'a dyn DevicePtr<f32>,
    pub(super) keys: &'a dyn DevicePtr<f32>,
    pub(super) labels: Option<&'a dyn DevicePtr<u32>>,
    dim: usize,
    row_offset: u32,
}

impl fmt::Debug for Batch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch")
            .field("rows", &self.rows())
            .field("dim", &self.dim)
            .field("row_offset", &self.row_offset)
            .finish_non_exhaustive()
    }
}

impl<'a> Batch<'a> {
    /// Queries and keys of dimension `dim`; row b of the keys is the positive of row b. Slices and
    /// views will do, aligned to their elements.
    ///
    /// # Errors
    /// As [`crate::Batch::new`]; [`Error::OutOfRange`] for more than 2²⁹ rows.
    pub fn new(
        queries: &'a dyn DevicePtr<f32>,
        keys: &'a dyn DevicePtr<f32>,
        dim: usize,
    ) -> Result<Self> {
        let rows = whole_rows("queries", queries.len(), dim)?;
        expect_length("keys", keys.len(), queries.len(), "rows × dim, as queries")?;
        if rows > MOST_ROWS {
            return Err(Error::OutOfRange {
                argument: "queries",
                value: format!("{rows} rows"),
                expected: "at most 2^29 rows",
            });
        }
        Ok(Self {
            queries,
            keys,
            labels: None,
            dim,
            row_offset: 0,
        })
    }

    /// With one label a query ([`crate::NO_LABEL`] where there is none).
    ///
    /// # Errors
    /// [`Error::Length`] unless there is one a row.
    pub fn with_labels(mut self, labels: &'a dyn DevicePtr<u32>) -> Result<Self> {
        expect_length("query labels", labels.len(), self.rows(), "rows")?;
        self.labels = Some(labels);
        Ok(self)
    }

    /// With the global index of the first row, for a batch that is one shard of a larger one.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] where a global row does not fit 32 bits.
    pub fn with_row_offset(mut self, row_offset: u32) -> Result<Self> {
        if self.rows() as u64 + u64::from(row_offset) > 1 << 32 {
            return Err(Error::OutOfRange {
                argument: "row_offset",
                value: row_offset.to_string(),
                expected: "at most 2^32 − rows",
            });
        }
        self.row_offset = row_offset;
        Ok(self)
    }

    /// B.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.queries.len() / self.dim
    }

    /// d.
    #[must_use]
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// The global index of row 0.
    #[must_use]
    pub fn row_offset(&self) -> u32 {
        self.row_offset
    }
}

/// Draws written out, row by row, in device memory: the shapes and ranges of [`crate::GivenDraws`].
#[derive(Clone, Copy)]
pub struct GivenDraws<'a> {
    /// Positions i of the mixed negatives, [B, s].
    pub first: &'a dyn DevicePtr<u32>,
    /// Positions j of the mixed negatives, [B, s].
    pub second: &'a dyn DevicePtr<u32>,
    /// Weights α of the first, [B, s], in [0, 1].
    pub alpha: &'a dyn DevicePtr<f32>,
    /// Positions of the query-mixed negatives, [B, s′].
    pub pick: &'a dyn DevicePtr<u32>,
    /// Weights β of the query, [B, s′], in [0, 1].
    pub beta: &'a dyn DevicePtr<f32>,
}

impl fmt::Debug for GivenDraws<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GivenDraws")
            .field("mixed", &self.first.len())
            .field("query_mixed", &self.pick.len())
            .finish_non_exhaustive()
    }
}

/// The draws that a step has used, its own or the caller's: as [`GivenDraws`].
#[derive(Debug)]
pub struct UsedDraws<'a> {
    /// Positions i of the mixed negatives, [B, s].
    pub first: CudaView<'a, u32>,
    /// Positions j of the mixed negatives, [B, s].
    pub second: CudaView<'a, u32>,
    /// Weights α of the first, [B, s].
    pub alpha: CudaView<'a, f32>,
    /// Positions of the query-mixed negatives, [B, s′].
    pub pick: CudaView<'a, u32>,
    /// Weights β of the query, [B, s′].
    pub beta: CudaView<'a, f32>,
}

/// Where a step's draws come from.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub enum Draws<'a> {
    /// From the counter-based generator, by the seed of the run and the training step, two words of
    /// device memory that kernels read: the caller advances the step, also between the replays of a
    /// captured graph. Bits of the step from 2⁶³ up are ignored.
    Seeded(&'a dyn DevicePtr<u64>),
    /// The caller's own. One that is out of range is what reading the step's output reports.
    Given(GivenDraws<'a>),
}

impl fmt::Debug for Draws<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Seeded(_) => f.write_str("Seeded"),
            Self::Given(given) => given.fmt(f),
        }
    }
}

impl Draws<'_> {
    /// Whether the lengths serve a batch of `rows` with s = `mixed`, s′ = `query_mixed`.
    pub(super) fn check(&self, rows: usize, mixed: usize, query_mixed: usize) -> Result<()> {
        let given = match self {
            Self::Seeded(words) => {
                return expect_length("seed and step", words.len(), 2, "seed, step");
            }
            Self::Given(given) => given,
        };
        let len = crate::error::elements("mixed", rows, mixed)?;
        expect_length("first", given.first.len(), len, "rows × mixed")?;
        expect_length("second", given.second.len(), len, "rows × mixed")?;
        expect_length("alpha", given.alpha.len(), len, "rows × mixed")?;
        let len = crate::error::elements("query_mixed", rows, query_mixed)?;
        expect_length("pick", given.pick.len(), len, "rows × query_mixed")?;
        expect_length("beta", given.beta.len(), len, "rows × query_mixed")
    }
}

impl host::Draws {
    /// Runs `with` on a copy of the draws in device memory.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Driver`], and those of `with`.
    pub fn upload<R>(
        &self,
        device: &Device,
        with: impl FnOnce(&Draws<'_>) -> Result<R>,
    ) -> Result<R> {
        let given = match self {
            Self::Seeded { seed, step } => {
                let words = device.upload("seed and step", &[*seed, *step])?;
                return with(&Draws::Seeded(&words));
            }
            Self::Given(given) => given,
        };
        let first = device.upload("first", &given.first)?;
        let second = device.upload("second", &given.second)?;
        let alpha = device.upload("alpha", &given.alpha)?;
        let pick = device.upload("pick", &given.pick)?;
        let beta = device.upload("beta", &given.beta)?;
        // An upload of nothing still has room for something.
        with(&Draws::Given(GivenDraws {
            first: &first.slice(..given.first.len()),
            second: &second.slice(..given.second.len()),
            alpha: &alpha.slice(..given.alpha.len()),
            pick: &pick.slice(..given.pick.len()),
            beta: &beta.slice(..given.beta.len()),
        }))
    }
}

//! The input of a step: queries and their keys.

use crate::error::{Error, Result, expect_length, whole_rows};

/// B queries with their keys, [B, d] each, row-major.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    queries: &'a [f32],
    keys: &'a [f32],
    labels: Option<&'a [u32]>,
    dim: usize,
    row_offset: u32,
}

impl<'a> Batch<'a> {
    /// Queries and keys of dimension `dim`; row b of the keys is the positive of row b.
    ///
    /// Rows are normally L2-normalised by the caller; nothing assumes it. A row that is not finite
    /// is legal here: the step reports it ([`crate::Status`]).
    ///
    /// # Errors
    /// [`Error::Zero`] for `dim` = 0 or no rows, [`Error::Ragged`] for queries that are no whole
    /// rows, [`Error::Length`] for keys of another length, [`Error::OutOfRange`] for more than 2³²
    /// rows.
    pub fn new(queries: &'a [f32], keys: &'a [f32], dim: usize) -> Result<Self> {
        let rows = whole_rows("queries", queries.len(), dim)?;
        expect_length("keys", keys.len(), queries.len(), "rows × dim, as queries")?;
        if rows as u64 > 1 << 32 {
            return Err(Error::OutOfRange {
                argument: "queries",
                value: format!("{rows} rows"),
                expected: "at most 2^32 rows",
            });
        }
        let batch = Self {
            queries,
            keys,
            labels: None,
            dim,
            row_offset: 0,
        };
        batch.with_row_offset(0)
    }

    /// With one label a query ([`crate::NO_LABEL`] where there is none).
    ///
    /// # Errors
    /// [`Error::Length`] unless there is one a row.
    pub fn with_labels(mut self, labels: &'a [u32]) -> Result<Self> {
        expect_length("query labels", labels.len(), self.rows(), "rows")?;
        self.labels = Some(labels);
        Ok(self)
    }

    /// With the global index of the first row, for a batch that is one shard of a larger one: the
    /// shards then draw what the whole batch would.
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

    /// The queries, [B, d].
    #[must_use]
    pub fn queries(&self) -> &'a [f32] {
        self.queries
    }

    /// The keys, [B, d].
    #[must_use]
    pub fn keys(&self) -> &'a [f32] {
        self.keys
    }

    /// The labels of the queries, `[B]`, if there are any.
    #[must_use]
    pub fn labels(&self) -> Option<&'a [u32]> {
        self.labels
    }

    /// The global index of row 0.
    #[must_use]
    pub fn row_offset(&self) -> u32 {
        self.row_offset
    }
}

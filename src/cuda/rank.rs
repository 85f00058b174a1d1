//! The hardest: for each query the N queue rows with the largest logits.

use cudarc::driver::{CudaView, DevicePtr};

use super::device::{Device, Launch, Memory, expect_disjoint, pointer_or_null};
use super::logits::{self, Precision};
use super::params::{RANK_CANDIDATES, RANK_THREADS, RankParams, StatusWords};
use super::queue::Queue;
use super::status::Status;
use super::workspace::{Buffer, Workspace};
use crate::error::{Error, Result, elements, expect_length, whole_rows};

/// The hardest of B queries, in device memory.
///
/// It is written again and again without being allocated again, as long as the lists fit.
#[derive(Debug)]
pub struct Ranked {
    rows: usize,
    hardest: usize,
    indices: Buffer<u32>,
    logits: Buffer<f32>,
    counts: Buffer<u32>,
    status: Status,
}

impl Ranked {
    /// Room for `rows` lists of `hardest` each, and for more once more are asked for.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Driver`].
    pub fn new(device: &Device, rows: usize, hardest: usize) -> Result<Self> {
        Ok(Self {
            rows: 0,
            hardest,
            indices: Buffer::new(device, "hardest", rows, hardest)?,
            logits: Buffer::new(device, "hardest", rows, hardest)?,
            counts: Buffer::new(device, "hardest", rows, 1)?,
            status: Status::new(device)?,
        })
    }

    /// Lists in host memory: queue rows, ascending, [B, N], their logits, [B, N], and how many each
    /// list really has, `[B]`.
    ///
    /// # Errors
    /// [`Error::Length`] for lists of other lengths, [`Error::OutOfRange`] for a count beyond N,
    /// [`Error::OutOfMemory`], [`Error::Driver`].
    pub fn from_host(
        device: &Device,
        hardest: usize,
        indices: &[u32],
        logits: &[f32],
        counts: &[u32],
    ) -> Result<Self> {
        let rows = counts.len();
        let len = elements("ranked", rows, hardest)?;
        expect_length("ranked.indices", indices.len(), len, "rows × hardest")?;
        expect_length("ranked.logits", logits.len(), len, "rows × hardest")?;
        if let Some(count) = counts.iter().find(|&&count| count as usize > hardest) {
            return Err(Error::OutOfRange {
                argument: "ranked.counts",
                value: count.to_string(),
                expected: "at most hardest",
            });
        }
        Ok(Self {
            rows,
            hardest,
            indices: Buffer::from_host(device, "hardest", indices)?,
            logits: Buffer::from_host(device, "hardest", logits)?,
            counts: Buffer::from_host(device, "hardest", counts)?,
            status: Status::new(device)?,
        })
    }

    /// B, as last written.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// N, as last written.
    #[must_use]
    pub fn hardest(&self) -> usize {
        self.hardest
    }

    /// Queue rows, ascending, [B, N], padded with [`crate::NO_ROW`].
    #[must_use]
    pub fn indices(&self) -> CudaView<'_, u32> {
        self.indices.first(self.rows * self.hardest)
    }

    /// Their logits q·n, before τ, [B, N], padded with −∞.
    #[must_use]
    pub fn logits(&self) -> CudaView<'_, f32> {
        self.logits.first(self.rows * self.hardest)
    }

    /// N_b, how many rows each list really has, `[B]`.
    #[must_use]
    pub fn counts(&self) -> CudaView<'_, u32> {
        self.counts.first(self.rows)
    }

    /// Whether all rows were numbers; the hardest of one that was not are undefined. Waits for the
    /// stream.
    ///
    /// # Errors
    /// [`Error::NonFinite`] with the argument and its first row, [`Error::Driver`].
    pub fn check(&self, device: &Device) -> Result<()> {
        self.status.check(device)
    }
}

/// Labels that mask: rows of the queue that have a query's label are left out of its list.
pub(super) struct Mask<'a> {
    /// One a query.
    pub queries: &'a Memory<'a, u32>,
    /// One a queue row.
    pub queue: &'a Memory<'a, u32>,
}

/// The N = `hardest` queue rows with the largest logits q·n for each of the queries, [B, d], ties
/// to the lower index (−0 equals +0), listed by ascending index (method: Loss, 1).
///
/// With `oracle_labels`, the label of each query, queue rows of the same label are left out; a list
/// is then shorter than N where fewer rows remain. A query that is not finite, or whose logits are
/// not, is what [`Ranked::check`] reports.
///
/// # Errors
/// [`Error::HardestBeyondQueue`] for N > K, [`Error::Zero`] for N = 0 or no queries,
/// [`Error::Ragged`] for queries that are no whole rows, [`Error::Length`] for labels that are not
/// one a query, [`Error::MissingLabels`] for an oracle without queue labels,
/// [`Error::OtherContext`], [`Error::Overlap`], [`Error::OutOfMemory`], [`Error::Capturing`],
/// [`Error::Driver`].
#[allow(clippy::too_many_arguments, reason = "each is another thing")]
pub fn rank(
    device: &Device,
    queries: &dyn DevicePtr<f32>,
    queue: &Queue,
    hardest: usize,
    oracle_labels: Option<&dyn DevicePtr<u32>>,
    precision: Precision,
    workspace: &mut Workspace,
    ranked: &mut Ranked,
) -> Result<()> {
    let (capacity, dim) = (queue.capacity(), queue.dim());
    let rows = whole_rows("queries", queries.len(), dim)?;
    check_hardest(hardest, capacity)?;
    let _turn = queue.turn();
    let labels = match (oracle_labels, queue.labels()) {
        (None, _) => None,
        (Some(_), None) => return Err(Error::MissingLabels { argument: "queue" }),
        (Some(queries), Some(queue)) => {
            expect_length("query labels", queries.len(), rows, "rows")?;
            Some([
                device.read("query labels", queries)?,
                device.read("queue labels", queue)?,
            ])
        }
    };
    let mask = labels
        .as_ref()
        .map(|[queries, queue]| Mask { queries, queue });
    let queries = device.read("queries", queries)?;
    let stored = queue.rows().read(device)?;
    let part = logits::rows_at_once(capacity).min(rows);
    let logits = workspace.logits.reserve(device, part, capacity)?;
    let mut out = Selection::new(device, rows, capacity, hardest, ranked)?;
    let mut inputs = vec![queries.bytes(), stored.bytes()];
    inputs.extend(labels.iter().flatten().map(Memory::bytes));
    out.expect_apart(&inputs)?;
    expect_disjoint(&[logits.bytes()], &inputs)?;

    // SAFETY: there are `rows · dim` queries, and the status is the selection's.
    unsafe { logits::check_rows(device, &queries, rows, dim, out.seen_in_queries())? };
    for start in (0..rows).step_by(part) {
        let rows = start..rows.min(start + part);
        let product = logits::Product {
            queries: queries.pointer().wrapping_add(start * dim),
            rows: rows.len(),
            queue: stored.pointer(),
            dtype: queue.rows().dtype(),
            capacity,
            dim,
            precision,
        };
        // SAFETY: the rows are the queries', the queue is whole, the workspace has room for this
        // part, and the stream runs a part's selection before the next part's product.
        unsafe {
            product.logits(device, logits.pointer())?;
            out.select(logits.pointer(), rows, mask.as_ref(), false)?;
        }
    }
    out.finish();
    Ok(())
}

/// The `hardest` largest of each row of logits, [B, K], row-major, K = `capacity`, ties to the lower
/// index (−0 equals +0), listed by ascending index.
///
/// With labels of the queries, `[B]`, and of the columns, `[K]`, columns of a row's own label are left
/// out. Infinities are ordered like any other value; a NaN is what [`Ranked::check`] reports.
///
/// # Errors
/// [`Error::Zero`] for no logits, N = 0 or K = 0, [`Error::Ragged`] for no whole rows,
/// [`Error::OutOfRange`] for 2³¹ columns or more, [`Error::HardestBeyondQueue`] for N > K,
/// [`Error::Length`] for labels that are not one a row and one a column, [`Error::MissingLabels`] for
/// labels on one side alone, [`Error::OtherContext`], [`Error::Overlap`], [`Error::OutOfMemory`],
/// [`Error::Capturing`], [`Error::Driver`].
pub fn rank_logits(
    device: &Device,
    logits: &dyn DevicePtr<f32>,
    capacity: usize,
    hardest: usize,
    labels: Option<[&dyn DevicePtr<u32>; 2]>,
    ranked: &mut Ranked,
) -> Result<()> {
    if capacity == 0 {
        return Err(Error::Zero {
            argument: "capacity",
        });
    }
    let rows = whole_rows("logits", logits.len(), capacity)?;
    check_hardest(hardest, capacity)?;
    let labels = labels
        .map(|[queries, queue]| {
            expect_length("query labels", queries.len(), rows, "rows")?;
            expect_length("queue labels", queue.len(), capacity, "capacity")?;
            Ok([
                device.read("query labels", queries)?,
                device.read("queue labels", queue)?,
            ])
        })
        .transpose()?;
    let logits = device.read("logits", logits)?;
    let mask = labels
        .as_ref()
        .map(|[queries, queue]| Mask { queries, queue });
    let mut out = Selection::new(device, rows, capacity, hardest, ranked)?;
    let mut inputs = vec![logits.bytes()];
    inputs.extend(labels.iter().flatten().map(Memory::bytes));
    out.expect_apart(&inputs)?;
    // SAFETY: there are `rows · capacity` logits, kept by the guard, apart from what is written.
    unsafe { out.select(logits.pointer(), 0..rows, mask.as_ref(), true)? };
    out.finish();
    Ok(())
}

/// Lists under way: the outputs of the kernel, for one part of the rows after the other.
pub(super) struct Selection<'a> {
    device: &'a Device,
    capacity: usize,
    hardest: usize,
    rows: usize,
    /// [`Ranked::rows`].
    written: &'a mut usize,
    indices: Memory<'a, u32>,
    logits: Memory<'a, f32>,
    counts: Memory<'a, u32>,
    status: Memory<'a, StatusWords>,
}

impl<'a> Selection<'a> {
    /// For `rows` rows of `capacity` logits; `ranked` grows where it must.
    pub fn new(
        device: &'a Device,
        rows: usize,
        capacity: usize,
        hardest: usize,
        ranked: &'a mut Ranked,
    ) -> Result<Self> {
        elements("hardest", rows, hardest)?;
        // A row of the batch is a block of the grid, whatever part of it is launched.
        if rows >= 1 << 31 {
            return Err(Error::OutOfRange {
                argument: "queries",
                value: format!("{rows} rows"),
                expected: "less than 2^31 rows",
            });
        }
        (ranked.rows, ranked.hardest) = (0, hardest);
        Ok(Self {
            device,
            capacity,
            hardest,
            rows,
            written: &mut ranked.rows,
            indices: ranked.indices.reserve(device, rows, hardest)?,
            logits: ranked.logits.reserve(device, rows, hardest)?,
            counts: ranked.counts.reserve(device, rows, 1)?,
            status: ranked.status.clear(device)?,
        })
    }

    /// The lists have their rows: all that writes them is on the stream.
    pub fn finish(self) {
        *self.written = self.rows;
    }

    /// Indices, [B, N], logits, [B, N], and counts, `[B]`, from this row on.
    pub fn at_row(&self, row: usize) -> (*mut u32, *mut f32, *mut u32) {
        (
            self.indices.pointer().wrapping_add(row * self.hardest),
            self.logits.pointer().wrapping_add(row * self.hardest),
            self.counts.pointer().wrapping_add(row),
        )
    }

    /// The status word of the queries.
    pub fn seen_in_queries(&self) -> *mut u32 {
        let offset = std::mem::offset_of!(StatusWords, queries);
        self.status
            .pointer()
            .cast::<u32>()
            .wrapping_byte_add(offset)
    }

    /// Refuses inputs that lie in the outputs.
    pub fn expect_apart(&self, inputs: &[(&'static str, std::ops::Range<u64>)]) -> Result<()> {
        let outputs = [
            self.indices.bytes(),
            self.logits.bytes(),
            self.counts.bytes(),
            self.status.bytes(),
        ];
        expect_disjoint(&outputs, inputs)
    }

    /// Selects from the logits of some of the rows.
    ///
    /// # Safety
    /// `logits` has `rows.len() · capacity` elements that are written before this kernel runs and
    /// not after; a mask has a label a row of the batch and one a column.
    pub unsafe fn select(
        &mut self,
        logits: *const f32,
        rows: std::ops::Range<usize>,
        mask: Option<&Mask<'_>>,
        infinities: bool,
    ) -> Result<()> {
        let params = RankParams {
            logits,
            infinities: u32::from(infinities),
            ..self.params(&rows, mask)
        };
        // SAFETY: the caller's contract for what is read; what is written has room for all rows of
        // the batch, and the guards in `self` keep it.
        unsafe {
            self.device
                .launch(rank_launch("rank_logits", rows.len()), &params)
        }
    }

    /// Where the lists of some of the rows go, and what masks them; without logits.
    pub fn params(&self, rows: &std::ops::Range<usize>, mask: Option<&Mask<'_>>) -> RankParams {
        debug_assert!(rows.end <= self.rows);
        let list = rows.start * self.hardest;
        let query_labels = pointer_or_null(mask.map(|mask| mask.queries));
        RankParams {
            logits: std::ptr::null(),
            query_labels: match mask {
                Some(_) => query_labels.wrapping_add(rows.start),
                None => query_labels,
            },
            queue_labels: pointer_or_null(mask.map(|mask| mask.queue)),
            indices: self.indices.pointer().wrapping_add(list),
            hardest_logits: self.logits.pointer().wrapping_add(list),
            counts: self.counts.pointer().wrapping_add(rows.start),
            status: self.status.pointer(),
            capacity: self.capacity as u32,
            hardest: self.hardest as u32,
            first_row: rows.start as u32,
            infinities: 0,
        }
    }
}

/// A launch of a kernel of `rank.cu`.
pub(super) fn rank_launch(kernel: &'static str, blocks: usize) -> Launch {
    Launch {
        file: "rank",
        kernel,
        grid: (blocks as u32, 1, 1),
        threads: RANK_THREADS,
        shared: RANK_CANDIDATES * 8,
    }
}

/// N from 1 to K, K less than 2³¹.
pub(super) fn check_hardest(hardest: usize, capacity: usize) -> Result<()> {
    if hardest == 0 {
        return Err(Error::Zero {
            argument: "hardest",
        });
    }
    if hardest > capacity {
        return Err(Error::HardestBeyondQueue { hardest, capacity });
    }
    if capacity >= 1 << 31 {
        return Err(Error::OutOfRange {
            argument: "capacity",
            value: capacity.to_string(),
            expected: "less than 2^31 rows",
        });
    }
    Ok(())
}

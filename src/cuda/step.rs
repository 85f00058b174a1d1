//! The step: loss, gradient and diagnostics of a batch.

use cudarc::driver::{CudaView, DevicePtr};

use super::batch::{Batch, Draws, UsedDraws};
use super::contrast::{self, FusedTuning, Path};
use super::device::{Device, Memory};
use super::direction;
use super::logits::{Precision, check_rows};
use super::mix::{HeldDraws, check_dim, check_synthetics};
use super::output::Results;
use super::params::INFO_NCE_SPLIT;
use super::part::{Part, Scratch, Shape, Source};
use super::queue::Queue;
use super::rank::{Mask, Selection, check_hardest};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::output::Output;
use crate::{self as host};

/// The MoCHi loss on an NVIDIA GPU: settings, outputs, and memory that is reused from step to step.
///
/// A row's results depend on its query, its key, the queue and its draws alone, bit by bit: not on
/// the rest of the batch, and not on the device, as long as it multiplies alike and, on the fused path,
/// takes as many dimensions in one pass.
#[derive(Debug)]
pub struct Step {
    device: Device,
    config: Config,
    precision: Precision,
    path: Path,
    rows_at_once: usize,
    tuning: FusedTuning,
    scratch: Scratch,
    results: Results,
}

/// Where the synthetic negatives come from.
#[derive(Clone, Copy)]
pub(super) enum Negatives<'a> {
    /// Mixed from the hardest.
    Drawn(&'a Draws<'a>),
    /// Written out: [B, s, d] and [B, s′, d].
    Given(&'a dyn DevicePtr<f32>, &'a dyn DevicePtr<f32>),
}

/// The memory of a [`Negatives`].
enum Held<'a> {
    Drawn(HeldDraws<'a>),
    Given(Memory<'a, f32>, Memory<'a, f32>),
}

impl Step {
    /// A step with these settings, on the device's stream, with [`Precision::Exact`].
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Driver`].
    pub fn new(device: &Device, config: Config) -> Result<Self> {
        Ok(Self {
            device: device.clone(),
            config,
            precision: Precision::default(),
            path: Path::default(),
            rows_at_once: usize::MAX,
            tuning: FusedTuning::default(),
            scratch: Scratch::new(device)?,
            results: Results::new(device)?,
        })
    }

    /// With another precision of the products.
    #[must_use]
    pub fn with_precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }

    /// With another path from queries and queue to loss and gradient.
    #[must_use]
    pub fn with_path(mut self, path: Path) -> Self {
        self.path = path;
        self
    }

    /// With at most this many queries at a time, and at least one: less memory, a few bytes for each
    /// of them and each queue row. A row's bits are the same. Otherwise some 256 MiB of logits are made
    /// at once.
    #[must_use]
    pub fn with_rows_at_once(mut self, rows: usize) -> Self {
        self.rows_at_once = rows;
        self
    }

    /// For tests of the branches that ordinary input hardly takes.
    #[doc(hidden)]
    #[must_use]
    pub fn with_fused_tuning(mut self, tuning: FusedTuning) -> Self {
        self.tuning = tuning;
        self
    }

    /// The device, with its stream.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The settings.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Changes the settings, as at the end of warm-up.
    pub fn set_config(&mut self, config: Config) {
        self.config = config;
    }

    /// Puts on the stream the loss, gradient and diagnostics of a batch against the queue as it is:
    /// enqueue the keys afterwards (method: Order within a training step). Memory is allocated where a
    /// batch, a queue or a setting is larger than any before, and never else.
    ///
    /// A row of queries or keys that is not finite, or whose logits could overflow f32
    /// (‖q‖·max(‖n‖, ‖k‖, 1)·max(1, 1/τ) above 1e37), has NaN for its loss and gradient, is a miss,
    /// and is what [`Step::read`] reports; the other rows are what they would be without it. Given
    /// draws that are out of range are what [`Step::read`] refuses.
    ///
    /// # Errors
    /// [`Error::Dimension`] for a queue of another dimension, [`Error::HardestBeyondQueue`] for
    /// N > K, [`Error::MissingLabels`] for an oracle without labels on both sides, [`Error::Length`]
    /// for draws of another shape, [`Error::OutOfRange`] for a queue of more than 2²⁸ rows, 2³¹
    /// synthetic negatives a row and, on the fused path, rows of more than 65535 · 128 bytes,
    /// [`Error::OtherContext`], [`Error::OutOfMemory`], [`Error::Capturing`], [`Error::Driver`].
    pub fn run(&mut self, batch: &Batch<'_>, queue: &Queue, draws: &Draws<'_>) -> Result<()> {
        draws.check(batch.rows(), self.config.mixed(), self.config.query_mixed())?;
        self.run_over(batch, queue, Negatives::Drawn(draws))
    }

    /// [`Step::run`] of a batch and draws in host memory, and what comes of it: two copies and a wait,
    /// for those whose tensors are not on the device.
    ///
    /// # Errors
    /// As [`Step::run`] and [`Step::read`]; for draws as [`crate::cpu::Step::run`].
    pub fn run_from_host(
        &mut self,
        batch: &host::Batch<'_>,
        queue: &Queue,
        draws: &host::Draws,
    ) -> Result<Output> {
        draws.check(batch.rows(), self.config.mixed(), self.config.query_mixed())?;
        let device = self.device.clone();
        let queries = device.upload("queries", batch.queries())?;
        let keys = device.upload("keys", batch.keys())?;
        let labels = batch
            .labels()
            .map(|labels| device.upload("query labels", labels))
            .transpose()?;
        let mut there =
            Batch::new(&queries, &keys, batch.dim())?.with_row_offset(batch.row_offset())?;
        if let Some(labels) = &labels {
            there = there.with_labels(labels)?;
        }
        draws.upload(&device, |draws| self.run(&there, queue, draws))?;
        self.read()
    }

    pub(super) fn run_over(
        &mut self,
        batch: &Batch<'_>,
        queue: &Queue,
        negatives: Negatives<'_>,
    ) -> Result<()> {
        let Self {
            device,
            config,
            precision,
            path,
            rows_at_once,
            tuning,
            scratch,
            results,
        } = self;
        let given = matches!(negatives, Negatives::Given(..));
        let mut shape = shape(config, batch, queue, *rows_at_once, given)?;
        shape.fused = path.is_fused();
        shape.tuning = *tuning;
        let most_shared = tuning.shared.unwrap_or_else(|| device.most_shared());
        shape.most_dim = contrast::most_dim(shape.dtype, *precision, most_shared);
        direction::check(shape)?;
        results.ran = None;

        let _turn = queue.turn();
        let queries = device.read("queries", batch.queries)?;
        let keys = device.read("keys", batch.keys)?;
        let query_labels = batch
            .labels
            .map(|labels| device.read("query labels", labels))
            .transpose()?;
        let queue_labels = queue
            .labels()
            .map(|labels| device.read("queue labels", labels))
            .transpose()?;
        let stored = queue.rows().read(device)?;
        let squared_norms = device.read("squared norms", queue.squared_norms())?;
        let held = match negatives {
            Negatives::Drawn(draws) => Held::Drawn(HeldDraws::read(device, draws)?),
            Negatives::Given(mixed, query_mixed) => Held::Given(
                device.read("synthetic.mixed", mixed)?,
                device.read("synthetic.query_mixed", query_mixed)?,
            ),
        };
        let scratch = scratch.reserve(device, shape, config, given)?;
        let (mut ranking, held_results) = results.reserve(device, shape, config, given)?;
        let mut selection = match &mut ranking {
            Some(ranked) => Some(Selection::new(
                device,
                shape.rows,
                shape.capacity,
                shape.hardest,
                ranked,
            )?),
            None => None,
        };
        let mask = match (&query_labels, &queue_labels) {
            (Some(queries), Some(queue)) if config.oracle() => Some(Mask { queries, queue }),
            _ => None,
        };

        let part = |start: usize| {
            let rows = start..shape.rows.min(start + shape.part());
            let labels = query_labels.as_ref();
            Part {
                device,
                config,
                precision: *precision,
                shape,
                queries: queries.pointer().wrapping_add(start * shape.dim),
                keys: keys.pointer().wrapping_add(start * shape.dim),
                query_labels: labels.map_or(std::ptr::null(), |labels| {
                    labels.pointer().wrapping_add(start).cast_const()
                }),
                row_offset: batch.row_offset(),
                queue: stored.pointer(),
                squared_norms: squared_norms.pointer(),
                queue_labels: queue_labels
                    .as_ref()
                    .map_or(std::ptr::null(), |labels| labels.pointer().cast_const()),
                source: source(&held, start, shape),
                scratch: scratch.places(),
                out: held_results.places(start, selection.as_ref(), shape),
                rows,
            }
        };
        let whole = part(0);
        let parts: Vec<_> = (0..shape.rows).step_by(shape.part()).map(part).collect();
        // SAFETY: every pointer is that of memory whose guard lives to the end of this function; inputs
        // have the shapes that were checked, scratch and results those that were reserved, and the
        // stream runs one part's kernels before the next one's, which use the same scratch.
        unsafe {
            whole.longest()?;
            if let Some(ranking) = shape.ranking() {
                whole.sample(ranking)?;
            }
            if let Held::Given(mixed, query_mixed) = &held {
                let widths = [(mixed, shape.mixed), (query_mixed, shape.query_mixed)];
                for (at, (features, width)) in widths.into_iter().enumerate() {
                    if width > 0 {
                        let seen = held_results.features.pointer().wrapping_add(at);
                        check_rows(device, features, shape.rows * width, shape.dim, seen)?;
                    }
                }
            }
            for part in &parts {
                part.run(selection.as_mut(), mask.as_ref())?;
            }
            whole.reduce(
                whole.out.figures,
                held_results.loss.pointer(),
                held_results.status.pointer(),
            )?;
        }
        selection.into_iter().for_each(Selection::finish);
        drop(held_results);
        results.ran = Some((config.clone(), shape, !given));
        Ok(())
    }

    /// Everything about the last batch, in host memory; waits for the stream.
    ///
    /// # Errors
    /// [`Error::DrawOutOfRange`] or [`Error::OutOfRange`] for given draws, [`Error::NonFinite`] for
    /// given features, [`Error::OutOfRange`] where no batch was run, [`Error::Driver`].
    pub fn read(&self) -> Result<Output> {
        self.results.read(&self.device)
    }

    /// The reduced loss, `[1]`: NaN where a row is no number. Empty, as all other results are, where no
    /// batch was run or the last one was refused.
    #[must_use]
    pub fn loss(&self) -> CudaView<'_, f32> {
        let ran = self.results.ran.is_some();
        self.results.loss.first(usize::from(ran))
    }

    /// Loss of each row, `[B]`.
    #[must_use]
    pub fn loss_rows(&self) -> CudaView<'_, f32> {
        self.results.loss_rows.first(self.results.rows())
    }

    /// Gradient of the reduced loss with respect to the queries, [B, d].
    #[must_use]
    pub fn grad_queries(&self) -> CudaView<'_, f32> {
        self.results.grad_queries.first(self.results.elements())
    }

    /// Gradient of the reduced loss with respect to the keys, [B, d]; on request.
    #[must_use]
    pub fn grad_keys(&self) -> Option<CudaView<'_, f32>> {
        let asked = self.results.config().is_some_and(Config::key_gradient);
        asked.then(|| self.results.grad_keys.first(self.results.elements()))
    }

    /// The queue rows of each query's hardest, ascending, [B, N], padded with [`crate::NO_ROW`].
    #[must_use]
    pub fn hardest(&self) -> CudaView<'_, u32> {
        self.results.hardest()
    }

    /// Logits of the synthetic negatives before τ: q·h, [B, s], and q·h′, [B, s′]; −∞ in rows
    /// without a negative.
    #[must_use]
    pub fn synthetic_logits(&self) -> [CudaView<'_, f32>; 2] {
        self.results.synthetic_logits()
    }

    /// The draws that were used.
    #[must_use]
    pub fn draws(&self) -> UsedDraws<'_> {
        self.results.draws()
    }

    /// What is wrong with the last batch, three words in device memory: 2³² − 1 minus the first row
    /// of the queries, of the keys and of the logits that is not finite, or 0.
    #[must_use]
    pub fn status(&self) -> CudaView<'_, u32> {
        self.results.status_words()
    }
}

/// Checks what a batch meets.
fn shape(
    config: &Config,
    batch: &Batch<'_>,
    queue: &Queue,
    rows_at_once: usize,
    given: bool,
) -> Result<Shape> {
    check_dim(queue, batch.dim())?;
    let shape = Shape {
        rows: batch.rows(),
        dim: batch.dim(),
        capacity: queue.capacity(),
        dtype: queue.rows().dtype(),
        hardest: if given { 0 } else { config.hardest() },
        mixed: config.mixed(),
        query_mixed: config.query_mixed(),
        rows_at_once,
        fused: false,
        most_dim: 0,
        tuning: FusedTuning::default(),
    };
    check_synthetics(shape.mixed, shape.query_mixed)?;
    if shape.hardest > 0 {
        check_hardest(shape.hardest, shape.capacity)?;
    }
    // A grid has at most 65535 blocks in its second direction.
    if shape.capacity > 65535 * INFO_NCE_SPLIT as usize {
        return Err(Error::OutOfRange {
            argument: "capacity",
            value: shape.capacity.to_string(),
            expected: "at most 65535 · 4096 rows",
        });
    }
    if config.oracle() {
        let missing = [
            ("queries", batch.labels.is_none()),
            ("queue", queue.labels().is_none()),
        ];
        if let Some(&(argument, _)) = missing.iter().find(|(_, missing)| *missing) {
            return Err(Error::MissingLabels { argument });
        }
    }
    Ok(shape)
}

/// The synthetic negatives of the rows from `start` on.
fn source(held: &Held<'_>, start: usize, shape: Shape) -> Source {
    match held {
        _ if shape.synthetics() == 0 => Source::Nothing,
        Held::Drawn(draws) => Source::Drawn(draws.places(start, shape.mixed, shape.query_mixed)),
        Held::Given(mixed, query_mixed) => Source::Given(
            mixed
                .pointer()
                .wrapping_add(start * shape.mixed * shape.dim),
            query_mixed
                .pointer()
                .wrapping_add(start * shape.query_mixed * shape.dim),
        ),
    }
}

impl Part<'_> {
    /// Everything but the reduction.
    ///
    /// # Safety
    /// The contract of [`Part`]; the mask has a label a row of the batch and one a queue row.
    unsafe fn run(
        &self,
        selection: Option<&mut Selection<'_>>,
        mask: Option<&Mask<'_>>,
    ) -> Result<()> {
        // SAFETY: the contract of `Part`; each kernel reads what those before it have written.
        unsafe {
            self.prepare()?;
            if self.shape.has_logits() {
                self.logits()?;
            }
            match (selection, self.shape.ranking()) {
                (Some(selection), Some(ranking)) => {
                    let out = selection.params(&self.rows, mask);
                    self.thresholds(ranking, &out)?;
                    self.contrast()?;
                    self.rank_passed(ranking, out)?;
                }
                (selection, _) => {
                    if let Some(selection) = selection {
                        selection.select(self.scratch.logits, self.rows.clone(), mask, false)?;
                    }
                    if self.shape.fused {
                        self.contrast()?;
                    } else {
                        self.maxima()?;
                    }
                }
            }
            match &self.source {
                Source::Nothing => self.shift()?,
                Source::Drawn(draws) => {
                    self.mix(draws)?;
                    self.shift()?;
                    self.fold()?;
                    if self.shape.fused {
                        self.direction()?;
                    }
                }
                &Source::Given(mixed, query_mixed) => {
                    self.given_logits(mixed, query_mixed)?;
                    self.shift()?;
                    self.given_sums(mixed, query_mixed)?;
                }
            }
            if !self.shape.fused {
                self.exponentials()?;
                self.weigh()?;
            }
            self.finish()
        }
    }
}

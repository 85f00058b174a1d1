//! Synthetic negatives: mixed from two of a query's hardest, or from the query and one of them.

use cudarc::driver::CudaView;

use super::batch::{Batch, Draws, UsedDraws};
use super::device::{Device, Launch, Memory, expect_disjoint};
use super::info_nce::exponent_scale;
use super::logits::check_rows;
use super::params::{
    DRAW_ALPHA, DRAW_BETA, DRAW_FIRST, DRAW_LISTED, DRAW_PICK, DRAW_SECOND, FoldParams,
    MIX_PER_BLOCK, MIX_THREADS, MixParams, NO_DRAW,
};
use super::part::{DrawPlaces, Part};
use super::queue::Queue;
use super::rank::Ranked;
use super::status::Status;
use super::workspace::Buffer;
use crate::config::{Config, QueryGradient};
use crate::draws::GivenDraws;
use crate::error::{Error, Result, elements, expect_length};
use crate::queue::DType;

/// Synthetic negatives written out in device memory, for those who want them; the step never does.
///
/// It is written again and again without being allocated again, as long as they fit.
#[derive(Debug)]
pub struct Synthetic {
    rows: usize,
    dim: usize,
    counts: [usize; 2],
    mixed: Buffer<f32>,
    query_mixed: Buffer<f32>,
    status: Status,
    refused: Refused,
    draws: DrawBuffers,
}

impl Synthetic {
    /// Nothing yet.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Driver`].
    pub fn new(device: &Device) -> Result<Self> {
        Ok(Self {
            rows: 0,
            dim: 0,
            counts: [0, 0],
            mixed: Buffer::new(device, "mixed", 0, 0)?,
            query_mixed: Buffer::new(device, "query_mixed", 0, 0)?,
            status: Status::new(device)?,
            refused: Refused::new(device)?,
            draws: DrawBuffers::new(device)?,
        })
    }

    /// h, mixed from two of the hardest, [B, s, d], of unit norm.
    #[must_use]
    pub fn mixed(&self) -> CudaView<'_, f32> {
        self.mixed.first(self.rows * self.counts[0] * self.dim)
    }

    /// h′, mixed from the query and one of the hardest, [B, s′, d], of unit norm.
    #[must_use]
    pub fn query_mixed(&self) -> CudaView<'_, f32> {
        self.query_mixed
            .first(self.rows * self.counts[1] * self.dim)
    }

    /// Whether all queries were numbers and all draws in range, of the lists that were mixed from;
    /// waits for the stream. Where there are none, nothing was wrong with them.
    ///
    /// # Errors
    /// [`Error::Length`] for lists of another batch, [`Error::NonFinite`] with the row of the queries,
    /// [`Error::DrawOutOfRange`] and [`Error::OutOfRange`] for given draws, [`Error::OutOfRange`] for
    /// lists over a longer queue, [`Error::Driver`].
    pub fn check(&self, device: &Device, ranked: &Ranked) -> Result<()> {
        // What was refused may then be of a batch before.
        if self.rows == 0 {
            return Ok(());
        }
        expect_length("ranked", ranked.rows(), self.rows, "rows")?;
        self.status.check(device)?;
        let Some(refusal) = self.refused.read(device)? else {
            return Ok(());
        };
        let [mixed, query_mixed] = self.counts;
        let draws = self.draws.read(device, self.rows, mixed, query_mixed)?;
        let counts = device.download_view("ranked.counts", &ranked.counts())?;
        Err(refusal.explain(&draws, mixed, query_mixed, &counts))
    }
}

/// The first draw of a batch that was refused, in device memory.
#[derive(Debug)]
pub(super) struct Refused {
    word: cudarc::driver::CudaSlice<u64>,
}

impl Refused {
    pub fn new(device: &Device) -> Result<Self> {
        let word = device.upload("status", &[0])?;
        Ok(Self { word })
    }

    /// Puts on the stream that none is, and gives the word to kernels.
    pub fn clear<'a>(&'a mut self, device: &'a Device) -> Result<Memory<'a, u64>> {
        device.clear(&mut self.word)?;
        device.write("status", &mut self.word)
    }

    /// Waits for the stream.
    pub fn read(&self, device: &Device) -> Result<Option<Refusal>> {
        let word = device.download("status", &self.word, 1)?[0];
        if word == 0 {
            return Ok(None);
        }
        let place = NO_DRAW - word;
        Ok(Some(Refusal {
            row: (place >> 35) as usize,
            kind: (place >> 32) as u32 & 7,
            index: place as u32 as usize,
        }))
    }
}

/// Which draw was refused, and for what.
#[derive(Debug, Clone, Copy)]
pub(super) struct Refusal {
    pub row: usize,
    pub kind: u32,
    pub index: usize,
}

impl Refusal {
    /// The argument at fault.
    pub fn argument(&self) -> &'static str {
        match self.kind {
            DRAW_FIRST => "first",
            DRAW_PICK => "pick",
            DRAW_ALPHA => "alpha",
            DRAW_BETA => "beta",
            DRAW_LISTED => "ranked.indices",
            _ => "second",
        }
    }

    /// The error, from the draws, with s and s′ a row, and each row's N_b.
    pub fn explain(
        &self,
        draws: &GivenDraws,
        mixed: usize,
        query_mixed: usize,
        counts: &[u32],
    ) -> Error {
        let (argument, row, index) = (self.argument(), self.row, self.index);
        let at = |width: usize| row * width + index;
        let position = match self.kind {
            DRAW_FIRST => draws.first[at(mixed)],
            DRAW_SECOND => draws.second[at(mixed)],
            DRAW_PICK => draws.pick[at(query_mixed)],
            _ => {
                let (value, expected) = match self.kind {
                    DRAW_ALPHA => (draws.alpha[at(mixed)].to_string(), "a weight from 0 to 1"),
                    DRAW_BETA => (
                        draws.beta[at(query_mixed)].to_string(),
                        "a weight from 0 to 1",
                    ),
                    _ => (
                        format!("too large in row {row}"),
                        "less than the queue's capacity",
                    ),
                };
                return Error::OutOfRange {
                    argument,
                    value,
                    expected,
                };
            }
        };
        Error::DrawOutOfRange {
            argument,
            row,
            index,
            position,
            count: counts[row] as usize,
        }
    }
}

/// The draws that kernels have used, in device memory.
#[derive(Debug)]
pub(super) struct DrawBuffers {
    first: Buffer<u32>,
    second: Buffer<u32>,
    alpha: Buffer<f32>,
    pick: Buffer<u32>,
    beta: Buffer<f32>,
}

/// The same, held for launches.
pub(super) struct HeldUsed<'a> {
    pub first: Memory<'a, u32>,
    pub second: Memory<'a, u32>,
    pub alpha: Memory<'a, f32>,
    pub pick: Memory<'a, u32>,
    pub beta: Memory<'a, f32>,
}

impl DrawBuffers {
    pub fn new(device: &Device) -> Result<Self> {
        Ok(Self {
            first: Buffer::new(device, "mixed", 0, 0)?,
            second: Buffer::new(device, "mixed", 0, 0)?,
            alpha: Buffer::new(device, "mixed", 0, 0)?,
            pick: Buffer::new(device, "query_mixed", 0, 0)?,
            beta: Buffer::new(device, "query_mixed", 0, 0)?,
        })
    }

    pub fn reserve<'a>(
        &'a mut self,
        device: &'a Device,
        rows: usize,
        mixed: usize,
        query_mixed: usize,
    ) -> Result<HeldUsed<'a>> {
        Ok(HeldUsed {
            first: self.first.reserve(device, rows, mixed)?,
            second: self.second.reserve(device, rows, mixed)?,
            alpha: self.alpha.reserve(device, rows, mixed)?,
            pick: self.pick.reserve(device, rows, query_mixed)?,
            beta: self.beta.reserve(device, rows, query_mixed)?,
        })
    }

    /// In device memory.
    pub fn views(&self, rows: usize, mixed: usize, query_mixed: usize) -> UsedDraws<'_> {
        UsedDraws {
            first: self.first.first(rows * mixed),
            second: self.second.first(rows * mixed),
            alpha: self.alpha.first(rows * mixed),
            pick: self.pick.first(rows * query_mixed),
            beta: self.beta.first(rows * query_mixed),
        }
    }

    /// In host memory; waits for the stream.
    pub fn read(
        &self,
        device: &Device,
        rows: usize,
        mixed: usize,
        query_mixed: usize,
    ) -> Result<GivenDraws> {
        Ok(GivenDraws {
            first: self.first.read(device, rows * mixed)?,
            second: self.second.read(device, rows * mixed)?,
            alpha: self.alpha.read(device, rows * mixed)?,
            pick: self.pick.read(device, rows * query_mixed)?,
            beta: self.beta.read(device, rows * query_mixed)?,
        })
    }
}

/// The memory of draws, held until the launches that read it are queued.
#[expect(
    clippy::large_enum_variant,
    reason = "there is one a step, on the stack"
)]
pub(super) enum HeldDraws<'a> {
    Seeded(Memory<'a, u64>),
    Given([Memory<'a, u32>; 3], [Memory<'a, f32>; 2]),
}

impl<'a> HeldDraws<'a> {
    pub fn read(device: &'a Device, draws: &Draws<'a>) -> Result<Self> {
        Ok(match *draws {
            Draws::Seeded(words) => Self::Seeded(device.read("seed and step", words)?),
            Draws::Given(given) => Self::Given(
                [
                    device.read("first", given.first)?,
                    device.read("second", given.second)?,
                    device.read("pick", given.pick)?,
                ],
                [
                    device.read("alpha", given.alpha)?,
                    device.read("beta", given.beta)?,
                ],
            ),
        })
    }

    /// Those of the rows from `start` on, with s and s′ a row.
    pub fn places(&self, start: usize, mixed: usize, query_mixed: usize) -> DrawPlaces {
        let none = DrawPlaces {
            seed_and_step: std::ptr::null(),
            first: std::ptr::null(),
            second: std::ptr::null(),
            alpha: std::ptr::null(),
            pick: std::ptr::null(),
            beta: std::ptr::null(),
        };
        match self {
            Self::Seeded(words) => DrawPlaces {
                seed_and_step: words.pointer(),
                ..none
            },
            Self::Given([first, second, pick], [alpha, beta]) => DrawPlaces {
                first: first.pointer().wrapping_add(start * mixed),
                second: second.pointer().wrapping_add(start * mixed),
                alpha: alpha.pointer().wrapping_add(start * mixed),
                pick: pick.pointer().wrapping_add(start * query_mixed),
                beta: beta.pointer().wrapping_add(start * query_mixed),
                ..none
            },
        }
    }
}

/// Puts on the stream that `config.mixed()` and `config.query_mixed()` negatives are mixed for every
/// query of the batch from its hardest, `ranked` (method: Loss, 2 and 3). A row without any hardest
/// gets zeros.
///
/// # Errors
/// [`Error::Dimension`] and [`Error::Length`] for shapes that disagree, [`Error::OtherContext`],
/// [`Error::Overlap`], [`Error::OutOfMemory`], [`Error::Capturing`], [`Error::Driver`]. What only the
/// device can see is what [`Synthetic::check`] reports.
pub fn mix(
    device: &Device,
    batch: &Batch<'_>,
    queue: &Queue,
    ranked: &Ranked,
    config: &Config,
    draws: &Draws<'_>,
    synthetic: &mut Synthetic,
) -> Result<()> {
    let (rows, dim) = (batch.rows(), batch.dim());
    let (mixed, query_mixed) = (config.mixed(), config.query_mixed());
    check_dim(queue, dim)?;
    check_synthetics(mixed, query_mixed)?;
    draws.check(rows, mixed, query_mixed)?;
    expect_length("ranked", ranked.rows(), rows, "rows")?;
    let lens = [(mixed, "mixed"), (query_mixed, "query_mixed")]
        .map(|(count, argument)| elements(argument, rows, count));
    let [mixed_rows, query_mixed_rows] = lens;
    let (mixed_rows, query_mixed_rows) = (mixed_rows?, query_mixed_rows?);
    (synthetic.rows, synthetic.dim) = (0, dim);
    synthetic.counts = [mixed, query_mixed];

    let _turn = queue.turn();
    let queries = device.read("queries", batch.queries)?;
    let stored = queue.rows().read(device)?;
    let lists = [ranked.indices(), ranked.counts()];
    let [indices, counts] = &lists;
    let (indices, counts) = (
        device.read("ranked.indices", indices)?,
        device.read("ranked.counts", counts)?,
    );
    let held = HeldDraws::read(device, draws)?;
    let draws = held.places(0, mixed, query_mixed);
    let status = synthetic.status.clear(device)?;
    let refused = synthetic.refused.clear(device)?;
    let mixed_features = synthetic.mixed.reserve(device, mixed_rows, dim)?;
    let query_mixed_features = synthetic
        .query_mixed
        .reserve(device, query_mixed_rows, dim)?;
    expect_disjoint(
        &[mixed_features.bytes(), query_mixed_features.bytes()],
        &[queries.bytes(), stored.bytes()],
    )?;
    let used = synthetic.draws.reserve(device, rows, mixed, query_mixed)?;
    let params = MixParams {
        queries: queries.pointer(),
        queue: stored.pointer().cast(),
        squared_norms: std::ptr::null(),
        hardest: indices.pointer(),
        hardest_logits: std::ptr::null(),
        counts: counts.pointer(),
        faults: std::ptr::null(),
        query_squares: std::ptr::null(),
        seed_and_step: draws.seed_and_step,
        given_first: draws.first,
        given_second: draws.second,
        given_alpha: draws.alpha,
        given_pick: draws.pick,
        given_beta: draws.beta,
        first: used.first.pointer(),
        second: used.second.pointer(),
        alpha: used.alpha.pointer(),
        pick: used.pick.pointer(),
        beta: used.beta.pointer(),
        mixed_logits: std::ptr::null_mut(),
        query_mixed_logits: std::ptr::null_mut(),
        inverses: std::ptr::null_mut(),
        mixed_features: mixed_features.pointer(),
        query_mixed_features: query_mixed_features.pointer(),
        refused_draw: refused.pointer(),
        dim: dim as u32,
        capacity: queue.capacity() as u32,
        hardest_width: ranked.hardest() as u32,
        mixed: mixed as u32,
        query_mixed: query_mixed as u32,
        first_row: 0,
        row_offset: batch.row_offset(),
    };
    // SAFETY: the guards keep memory of these shapes, checked above, until the launches are queued;
    // positions and indices are checked by the kernel.
    unsafe {
        check_rows(device, &queries, rows, dim, status.pointer().cast())?;
        if mixed + query_mixed > 0 {
            let kernel = match queue.rows().dtype() {
                DType::F32 => "mix_features_f32",
                DType::F16 => "mix_features_f16",
                DType::Bf16 => "mix_features_bf16",
            };
            device.launch(launch(kernel, rows, mixed + query_mixed), &params)?;
        }
    }
    synthetic.rows = rows;
    Ok(())
}

pub(super) fn check_dim(queue: &Queue, dim: usize) -> Result<()> {
    if queue.dim() == dim {
        Ok(())
    } else {
        Err(Error::Dimension {
            argument: "queue",
            dim: queue.dim(),
            expected: dim,
        })
    }
}

/// Kernels count a row's synthetic negatives, of both kinds, in 31 bits.
pub(super) fn check_synthetics(mixed: usize, query_mixed: usize) -> Result<()> {
    if mixed + query_mixed < 1 << 31 {
        Ok(())
    } else {
        Err(Error::OutOfRange {
            argument: "mixed + query_mixed",
            value: (mixed + query_mixed).to_string(),
            expected: "less than 2^31",
        })
    }
}

fn launch(kernel: &'static str, rows: usize, synthetics: usize) -> Launch {
    let blocks = synthetics.div_ceil(MIX_PER_BLOCK as usize).min(65535);
    Launch {
        file: "mix",
        kernel,
        grid: (rows as u32, blocks as u32, 1),
        threads: MIX_THREADS,
        shared: 0,
    }
}

impl Part<'_> {
    /// The logits of the mixed and query-mixed negatives.
    ///
    /// # Safety
    /// The contract of [`Part`].
    pub unsafe fn mix(&self, draws: &DrawPlaces) -> Result<()> {
        let (shape, scratch, out) = (self.shape, self.scratch, self.out);
        let params = MixParams {
            queries: scratch.usable,
            queue: self.queue.cast(),
            squared_norms: self.squared_norms,
            hardest: out.hardest,
            hardest_logits: out.hardest_logits,
            counts: out.counts,
            faults: scratch.faults,
            query_squares: scratch.query_squares,
            seed_and_step: draws.seed_and_step,
            given_first: draws.first,
            given_second: draws.second,
            given_alpha: draws.alpha,
            given_pick: draws.pick,
            given_beta: draws.beta,
            first: out.first,
            second: out.second,
            alpha: out.alpha,
            pick: out.pick,
            beta: out.beta,
            mixed_logits: out.mixed_logits,
            query_mixed_logits: out.query_mixed_logits,
            inverses: scratch.inverses,
            mixed_features: std::ptr::null_mut(),
            query_mixed_features: std::ptr::null_mut(),
            refused_draw: out.refused_draw,
            dim: shape.dim as u32,
            capacity: shape.capacity as u32,
            hardest_width: shape.hardest as u32,
            mixed: shape.mixed as u32,
            query_mixed: shape.query_mixed as u32,
            first_row: self.rows.start as u32,
            // The last row of all shards is 2^32 − 1 at most.
            row_offset: self.row_offset.wrapping_add(self.rows.start as u32),
        };
        let whole_chunks = (shape.dim * shape.dtype.bytes()).is_multiple_of(16)
            && (self.queue as usize).is_multiple_of(16);
        let kernel = match (shape.dtype, whole_chunks) {
            (DType::F32, true) => "mix_f32",
            (DType::F32, false) => "mix_ragged_f32",
            (DType::F16, true) => "mix_f16",
            (DType::F16, false) => "mix_ragged_f16",
            (DType::Bf16, true) => "mix_bf16",
            (DType::Bf16, false) => "mix_ragged_bf16",
        };
        let launch = launch(kernel, self.rows.len(), shape.synthetics());
        // SAFETY: the contract of `Part`; positions are checked by the kernel.
        unsafe { self.device.launch(launch, &params) }
    }

    /// Their exponentials, and the weights of the hardest.
    ///
    /// # Safety
    /// The contract of [`Part`].
    pub unsafe fn fold(&self) -> Result<()> {
        let (shape, scratch, out) = (self.shape, self.scratch, self.out);
        let params = FoldParams {
            counts: out.counts,
            faults: scratch.faults,
            first: out.first,
            second: out.second,
            alpha: out.alpha,
            pick: out.pick,
            beta: out.beta,
            mixed_logits: out.mixed_logits,
            query_mixed_logits: out.query_mixed_logits,
            inverses: scratch.inverses,
            shifts: self.synthetic_shifts(),
            weights: scratch.weights.cast(),
            weight_exponents: scratch.weight_exponents,
            query_weights: scratch.query_weights,
            synthetic_totals: scratch.synthetic_totals,
            exponent_scale: exponent_scale(self.config),
            hardest_width: shape.hardest as u32,
            mixed: shape.mixed as u32,
            query_mixed: shape.query_mixed as u32,
            attached: u32::from(self.config.query_gradient() == QueryGradient::Attached),
        };
        let launch = Launch {
            grid: (self.rows.len() as u32, 1, 1),
            ..launch("fold", 1, 1)
        };
        // SAFETY: the contract of `Part`.
        unsafe { self.device.launch(launch, &params) }
    }
}

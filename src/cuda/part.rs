//! One part of a batch on its way through a step: where everything lies.

use std::ops::Range;

use super::contrast::{self, FusedTuning};
use super::device::{Device, Memory};
use super::logits::{self, Precision, Product};
use super::params::{
    CONTRAST_DEPTH, INFO_NCE_SPLIT, KEY_PARTS, LONGEST_SPLIT, PRODUCT_GROUP, PRODUCT_ROWS,
    REPAIR_BLOCKS, RowFigures, SCORE_LENGTH, SCORE_QUERIES,
};
use super::sample::Ranking;
use super::weigh::Splits;
use super::workspace::Buffer;
use crate::config::Config;
use crate::error::Result;
use crate::queue::DType;

/// The most queries of a part: with short queues it is not the logits that take the memory. Where the
/// hardest are found in the pass, candidates and the sample's logits do.
const MOST_ROWS: usize = 4096;
const MOST_RANKED_ROWS: usize = 1024;

/// The sizes of a batch and of what it meets.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    /// B.
    pub rows: usize,
    pub dim: usize,
    /// K.
    pub capacity: usize,
    /// Of the queue's rows.
    pub dtype: DType,
    /// N, or 0 where nothing is ranked.
    pub hardest: usize,
    pub mixed: usize,
    pub query_mixed: usize,
    /// What the caller allows.
    pub rows_at_once: usize,
    /// Whether loss and gradient are made in one pass over the queue.
    pub fused: bool,
    /// Of that pass.
    pub most_dim: usize,
    pub tuning: FusedTuning,
}

impl Shape {
    pub fn synthetics(&self) -> usize {
        self.mixed + self.query_mixed
    }

    /// Dimensions of queries and keys in their product: for a queue of f16 they are reordered by groups.
    pub fn product_dim(&self) -> usize {
        match self.dtype {
            DType::F16 => self.dim.next_multiple_of(PRODUCT_GROUP as usize),
            DType::F32 | DType::Bf16 => self.dim,
        }
    }

    /// Of how many parts, of the queue's type, a key is made in its product with the query.
    pub fn key_parts(&self) -> usize {
        match self.dtype {
            DType::F32 | DType::F16 => 1,
            DType::Bf16 => KEY_PARTS as usize,
        }
    }

    /// Into how many splits the logits of a row are cut.
    pub fn logit_splits(&self) -> usize {
        if self.fused {
            contrast::splits(self.capacity)
        } else {
            self.capacity.div_ceil(INFO_NCE_SPLIT as usize)
        }
    }

    /// How many queue rows' logits lie in memory at a time, on the fused path where a pass takes fewer
    /// dimensions: by K, d and what the pass takes alone.
    pub fn slice(&self) -> Option<usize> {
        let length = self.tuning.slice.unwrap_or(SCORE_LENGTH as usize);
        // Of whole tiles.
        let length = length.max(1).next_multiple_of(CONTRAST_DEPTH as usize);
        (self.fused && self.dim > self.most_dim).then_some(length.min(self.capacity))
    }

    pub fn row_bytes(&self) -> usize {
        self.dim * self.dtype.bytes()
    }

    /// Into how many splits the squared norms are cut.
    pub fn longest_splits(&self) -> usize {
        self.capacity.div_ceil(LONGEST_SPLIT as usize)
    }

    /// Into how many splits the weighted sums are cut.
    pub fn sum_splits(&self) -> usize {
        match self.slice() {
            Some(length) => Splits::of(length, self.dim).count,
            None if self.fused => contrast::splits(self.capacity),
            None => Splits::of(self.capacity, self.dim).count,
        }
    }

    /// How the hardest are found in the pass, where they are.
    pub fn ranking(&self) -> Option<Ranking> {
        (self.fused && self.hardest > 0)
            .then(|| Ranking::of(self.capacity, self.hardest, self.tuning))
            .flatten()
    }

    /// Whether the logits are made in memory.
    pub fn has_logits(&self) -> bool {
        !self.fused || (self.hardest > 0 && self.ranking().is_none())
    }

    /// Queries of a part.
    pub fn part(&self) -> usize {
        let most = if self.has_logits() {
            logits::rows_at_once(self.capacity)
        } else if self.ranking().is_some() {
            MOST_RANKED_ROWS
        } else {
            MOST_ROWS
        };
        let of_slice = self.slice().map_or(MOST_ROWS, |_| SCORE_QUERIES as usize);
        most.min(of_slice)
            .min(MOST_ROWS)
            .min(self.rows_at_once.max(1))
            .min(self.rows)
    }
}

macro_rules! scratch {
    ($($(#[$doc:meta])* $name:ident: $type:ty,)*) => {
        /// Memory that a part's kernels hand each other; every part uses it again.
        #[derive(Debug)]
        pub(super) struct Scratch {
            $($(#[$doc])* $name: Buffer<$type>,)*
        }

        /// The same, held for the launches of a step.
        pub(super) struct Held<'a> {
            $($name: Memory<'a, $type>,)*
        }

        /// The same, as kernels take it.
        #[derive(Debug, Clone, Copy)]
        pub(super) struct Places {
            $(pub $name: *mut $type,)*
        }

        impl Scratch {
            pub fn new(device: &Device) -> Result<Self> {
                Ok(Self { $($name: Buffer::new(device, "workspace", 0, 0)?,)* })
            }

            fn hold<'a>(&'a mut self, device: &'a Device, sizes: Sizes) -> Result<Held<'a>> {
                Ok(Held { $($name: self.$name.reserve(device, sizes.$name.0, sizes.$name.1)?,)* })
            }
        }

        impl Held<'_> {
            pub fn places(&self) -> Places {
                Places { $($name: self.$name.pointer(),)* }
            }
        }

        /// Rows and width of each.
        struct Sizes {
            $($name: (usize, usize),)*
        }
    };
}

scratch! {
    /// Queries, zeros in the rows with a fault, [rows, dim].
    usable: f32,
    /// Why each row cannot be computed, `[rows]`.
    faults: u32,
    /// ‖q‖², `[rows]`.
    query_squares: f64,
    /// The largest ‖n‖² of each split of the queue.
    longest: f32,
    /// Queries and keys as their product takes them, for queues of f16, and the keys' parts, for queues
    /// of bf16.
    product_queries: f32,
    product_keys: f32,
    key_parts: u16,
    /// Queries by keys, in groups of `PRODUCT_ROWS`.
    products: f32,
    /// [rows, capacity]; then the weights.
    logits: f32,
    /// Those of a slice, [rows, slice]; then the weights.
    slice_logits: f32,
    /// [rows, splits], of hot rows before that [rows, parts].
    maxima: f32,
    /// [rows, splits].
    unmasked: u32,
    /// Rows of the queue, [sample, dim] of its type, their labels, and the logits of all queries with
    /// them, [rows, sample]; the largest of these, [rows, rank], and how many there are.
    sample: f32,
    sample_labels: u32,
    sampled_logits: f32,
    sampled_hardest: u32,
    sampled_hardest_logits: f32,
    sampled_counts: u32,
    /// Which logits pass, `[rows]`; a bit for each, [rows, tiles]; those that do, [rows, splits, room],
    /// and how many, [rows, splits]; whose hardest may not be among them, `[rows]`, and these rows'
    /// logits, as many as `repair` has blocks.
    thresholds: f32,
    passing: u32,
    passed_logits: f32,
    passed: u32,
    marked: u32,
    repaired_logits: f32,
    /// Whether a row's shift is its largest logit, `[rows]`, on the fused path.
    hot: u32,
    /// `[rows]`.
    shifts: f32,
    /// [rows, splits].
    totals: f64,
    /// [rows, splits], where the matching probability is asked for.
    real_totals: f64,
    /// [rows, splits], where it is asked for.
    uniformity: f64,
    /// 1/r, [rows, synthetics].
    inverses: f64,
    /// [rows, hardest].
    weights: u64,
    /// `[rows]`.
    weight_exponents: i32,
    /// `[rows]`.
    query_weights: f64,
    /// `[rows]`.
    synthetic_totals: f64,
    /// The weighted sums, [splits, rows, dim].
    sums: f32,
    /// The largest synthetic logit, `[rows]`, on the fused path.
    synthetic_shifts: f32,
    /// The weighted sum of given features, or of the hardest on the fused path, [rows, dim].
    direction: f32,
}

impl Scratch {
    /// Room for a part of this batch; `given` says whether features are.
    pub fn reserve<'a>(
        &'a mut self,
        device: &'a Device,
        shape: Shape,
        config: &Config,
        given: bool,
    ) -> Result<Held<'a>> {
        let Shape { dim, capacity, .. } = shape;
        let rows = shape.part();
        let splits = shape.logit_splits();
        let ranking = shape.ranking();
        let (sample, rank) = ranking.map_or((0, 0), |r| (r.sample, r.rank));
        let (tiles, room) = ranking.map_or((0, 0), |r| (r.tiles, r.room));
        let ranked = usize::from(ranking.is_some());
        let parts = shape.slice().map_or(0, |_| Product::maxima_parts(capacity));
        let drawn = usize::from(!given && shape.synthetics() > 0);
        let reordered = usize::from(shape.dtype == DType::F16);
        let split = usize::from(shape.dtype == DType::Bf16);
        let sizes = Sizes {
            usable: (rows, dim),
            faults: (rows, 1),
            query_squares: (rows, 1),
            longest: (shape.longest_splits(), 1),
            product_queries: (rows, shape.product_dim() * reordered),
            product_keys: (rows, shape.product_dim() * reordered),
            key_parts: (rows * split, shape.key_parts() * dim),
            products: (rows, rows.min(PRODUCT_ROWS as usize) * shape.key_parts()),
            logits: (rows, capacity * usize::from(shape.has_logits())),
            slice_logits: (rows, shape.slice().unwrap_or(0)),
            maxima: (rows, splits.max(parts)),
            unmasked: (rows, splits),
            sample: (sample, dim),
            sample_labels: (sample, 1),
            sampled_logits: (rows, sample),
            sampled_hardest: (rows, rank),
            sampled_hardest_logits: (rows, rank),
            sampled_counts: (rows, usize::from(sample > 0)),
            thresholds: (rows, ranked),
            passing: (rows, tiles),
            passed_logits: (rows * splits, room),
            passed: (rows, splits * ranked),
            marked: (rows, ranked),
            repaired_logits: (REPAIR_BLOCKS as usize * ranked, capacity),
            hot: (rows, usize::from(shape.fused)),
            shifts: (rows, 1),
            totals: (rows, splits),
            real_totals: (rows, splits * usize::from(config.matching_probability())),
            uniformity: (rows, splits * usize::from(config.uniformity())),
            inverses: (rows, shape.synthetics() * drawn),
            weights: (rows, shape.hardest * drawn),
            weight_exponents: (rows, drawn),
            query_weights: (rows, drawn),
            synthetic_totals: (rows, usize::from(shape.synthetics() > 0)),
            sums: (rows * shape.sum_splits(), dim),
            synthetic_shifts: (rows, usize::from(shape.fused)),
            direction: (rows, dim * usize::from(given || shape.fused)),
        };
        self.hold(device, sizes)
    }
}

/// Where the synthetic negatives come from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Source {
    /// There are none.
    Nothing,
    /// Mixed by these draws, of this part.
    Drawn(DrawPlaces),
    /// Features, of this part: [rows, mixed, dim] and [rows, query_mixed, dim].
    Given(*const f32, *const f32),
}

/// Draws: the seed and the step, or the given ones.
#[derive(Debug, Clone, Copy)]
pub(super) struct DrawPlaces {
    /// Null where they are given.
    pub seed_and_step: *const u64,
    pub first: *const u32,
    pub second: *const u32,
    pub alpha: *const f32,
    pub pick: *const u32,
    pub beta: *const f32,
}

/// What a step writes, of this part.
#[derive(Debug, Clone, Copy)]
pub(super) struct OutPlaces {
    pub loss_rows: *mut f32,
    pub grad_queries: *mut f32,
    /// Null where it is not asked for.
    pub grad_keys: *mut f32,
    pub hardest: *mut u32,
    pub hardest_logits: *mut f32,
    pub counts: *mut u32,
    pub mixed_logits: *mut f32,
    pub query_mixed_logits: *mut f32,
    pub first: *mut u32,
    pub second: *mut u32,
    pub alpha: *mut f32,
    pub pick: *mut u32,
    pub beta: *mut f32,
    pub figures: *mut RowFigures,
    /// Of the whole batch.
    pub refused_draw: *mut u64,
}

/// Some queries of a batch, with everything that their kernels read and write.
///
/// Its methods launch kernels and are unsafe: the pointers are those of memory with the elements of
/// their shapes, which is there until the kernels have run, and outputs overlap nothing.
#[derive(Debug, Clone)]
pub(super) struct Part<'a> {
    pub device: &'a Device,
    pub config: &'a Config,
    pub precision: Precision,
    pub shape: Shape,
    /// Of the batch.
    pub rows: Range<usize>,
    /// Of row 0 of the batch among all shards.
    pub row_offset: u32,
    pub queries: *const f32,
    pub keys: *const f32,
    /// Null where there are none.
    pub query_labels: *const u32,
    pub queue: *const u8,
    pub squared_norms: *const f32,
    /// Null where there are none.
    pub queue_labels: *const u32,
    pub source: Source,
    pub scratch: Places,
    pub out: OutPlaces,
}

impl Part<'_> {
    /// The labels of the queries where they mask, else null.
    pub fn masking_labels(&self) -> *const u32 {
        if self.config.oracle() {
            self.query_labels
        } else {
            std::ptr::null()
        }
    }

    /// What the exponentials of the synthetic negatives are relative to.
    pub fn synthetic_shifts(&self) -> *mut f32 {
        if self.shape.fused {
            self.scratch.synthetic_shifts
        } else {
            self.scratch.shifts
        }
    }

    /// Whether negatives are mixed from the hardest.
    pub fn mixes(&self) -> bool {
        matches!(self.source, Source::Drawn(_)) && self.shape.synthetics() > 0
    }
}

//! What a step leaves in device memory, and its way to the host.

use cudarc::driver::{CudaSlice, CudaView};

use super::batch::UsedDraws;
use super::device::{Device, Memory};
use super::mix::{DrawBuffers, HeldUsed, Refused};
use super::params::{NO_ROW_INDEX, RowFigures, StatusWords};
use super::part::{OutPlaces, Shape};
use super::rank::{Ranked, Selection};
use super::workspace::Buffer;
use crate::config::Config;
use crate::draws::GivenDraws;
use crate::error::{Error, Result};
use crate::output::{Metrics, Output, Status};
use crate::report::{Figures, report};

/// Everything that a step computes.
#[derive(Debug)]
pub(super) struct Results {
    /// The settings and the shape of the last batch, and whether its draws are the step's own.
    pub ran: Option<(Config, Shape, bool)>,
    pub loss: Buffer<f32>,
    pub loss_rows: Buffer<f32>,
    pub grad_queries: Buffer<f32>,
    pub grad_keys: Buffer<f32>,
    ranked: Ranked,
    mixed_logits: Buffer<f32>,
    query_mixed_logits: Buffer<f32>,
    draws: DrawBuffers,
    figures: Buffer<RowFigures>,
    status: CudaSlice<StatusWords>,
    refused: Refused,
    /// The first given feature of each kind that is not finite, as in [`StatusWords`].
    features: CudaSlice<u32>,
}

/// The same, held for the launches of a step; the lists of hardest are held apart.
pub(super) struct HeldResults<'a> {
    pub loss: Memory<'a, f32>,
    pub status: Memory<'a, StatusWords>,
    pub features: Memory<'a, u32>,
    loss_rows: Memory<'a, f32>,
    grad_queries: Memory<'a, f32>,
    grad_keys: Option<Memory<'a, f32>>,
    mixed_logits: Memory<'a, f32>,
    query_mixed_logits: Memory<'a, f32>,
    draws: HeldUsed<'a>,
    figures: Memory<'a, RowFigures>,
    refused: Memory<'a, u64>,
}

impl Results {
    pub fn new(device: &Device) -> Result<Self> {
        let none = StatusWords {
            queries: 0,
            keys: 0,
            logits: 0,
        };
        Ok(Self {
            ran: None,
            loss: Buffer::new(device, "loss", 1, 1)?,
            loss_rows: Buffer::new(device, "loss_rows", 0, 0)?,
            grad_queries: Buffer::new(device, "grad_queries", 0, 0)?,
            grad_keys: Buffer::new(device, "grad_keys", 0, 0)?,
            ranked: Ranked::new(device, 0, 0)?,
            mixed_logits: Buffer::new(device, "mixed", 0, 0)?,
            query_mixed_logits: Buffer::new(device, "query_mixed", 0, 0)?,
            draws: DrawBuffers::new(device)?,
            figures: Buffer::new(device, "figures", 0, 0)?,
            status: device.upload("status", &[none])?,
            refused: Refused::new(device)?,
            features: device.upload("status", &[0, 0])?,
        })
    }

    /// Room for this batch, and the lists of hardest where there are any.
    pub fn reserve<'a>(
        &'a mut self,
        device: &'a Device,
        shape: Shape,
        config: &Config,
        given: bool,
    ) -> Result<(Option<&'a mut Ranked>, HeldResults<'a>)> {
        let rows = shape.rows;
        let drawn = if given { 0 } else { rows };
        device.clear(&mut self.features)?;
        let held = HeldResults {
            loss: self.loss.reserve(device, 1, 1)?,
            status: device.write("status", &mut self.status)?,
            features: device.write("status", &mut self.features)?,
            loss_rows: self.loss_rows.reserve(device, rows, 1)?,
            grad_queries: self.grad_queries.reserve(device, rows, shape.dim)?,
            grad_keys: if config.key_gradient() {
                Some(self.grad_keys.reserve(device, rows, shape.dim)?)
            } else {
                None
            },
            mixed_logits: self.mixed_logits.reserve(device, rows, shape.mixed)?,
            query_mixed_logits: self
                .query_mixed_logits
                .reserve(device, rows, shape.query_mixed)?,
            draws: self
                .draws
                .reserve(device, drawn, shape.mixed, shape.query_mixed)?,
            figures: self.figures.reserve(device, rows, 1)?,
            refused: self.refused.clear(device)?,
        };
        Ok(((shape.hardest > 0).then_some(&mut self.ranked), held))
    }

    pub fn config(&self) -> Option<&Config> {
        self.ran.as_ref().map(|(config, ..)| config)
    }

    /// B.
    pub fn rows(&self) -> usize {
        self.ran.as_ref().map_or(0, |(_, shape, _)| shape.rows)
    }

    /// B·d.
    pub fn elements(&self) -> usize {
        let of = |shape: &Shape| shape.rows * shape.dim;
        self.ran.as_ref().map_or(0, |(_, shape, _)| of(shape))
    }

    /// [B, N].
    pub fn hardest(&self) -> CudaView<'_, u32> {
        let of = |shape: &Shape| shape.rows * shape.hardest;
        let len = self.ran.as_ref().map_or(0, |(_, shape, _)| of(shape));
        self.ranked.indices().slice(..len)
    }

    /// [B, s] and [B, s′].
    pub fn synthetic_logits(&self) -> [CudaView<'_, f32>; 2] {
        let of = |shape: &Shape| [shape.mixed, shape.query_mixed].map(|width| shape.rows * width);
        let lens = self.ran.as_ref().map_or([0; 2], |(_, shape, _)| of(shape));
        [
            self.mixed_logits.first(lens[0]),
            self.query_mixed_logits.first(lens[1]),
        ]
    }

    pub fn draws(&self) -> UsedDraws<'_> {
        match &self.ran {
            Some((_, shape, true)) => self.draws.views(shape.rows, shape.mixed, shape.query_mixed),
            _ => self.draws.views(0, 0, 0),
        }
    }

    pub fn status_words(&self) -> CudaView<'_, u32> {
        let words = size_of::<StatusWords>() / size_of::<u32>();
        // SAFETY: the struct is nothing but these words, whatever their values.
        let words = unsafe { self.status.transmute(words) };
        words.expect("as many words as the struct has")
    }

    /// All of it in host memory; waits for the stream.
    pub fn read(&self, device: &Device) -> Result<Output> {
        let (config, shape, drawn) = self.ran.as_ref().ok_or_else(|| Error::OutOfRange {
            argument: "step",
            value: "without a batch".into(),
            expected: "one batch run before its output is read",
        })?;
        let (rows, drawn_rows) = (shape.rows, if *drawn { shape.rows } else { 0 });
        let (s, t) = (shape.mixed, shape.query_mixed);
        let draws = self.draws.read(device, drawn_rows, s, t)?;
        self.check(device, *shape, &draws)?;
        let figures = self.figures.read(device, rows)?;
        let matching = if config.matching_probability() && shape.hardest > 0 {
            let logits = device.download_view("hardest", &self.ranked.logits())?;
            matching(&logits, &figures, shape.hardest, config.temperature())
        } else {
            Vec::new()
        };
        let mut output = Output {
            reduced_loss: 0.0,
            status: self.status(device)?,
            loss_rows: Vec::new(),
            grad_queries: self.grad_queries.read(device, rows * shape.dim)?,
            grad_keys: if config.key_gradient() {
                Some(self.grad_keys.read(device, rows * shape.dim)?)
            } else {
                None
            },
            log_sum_exp: Vec::new(),
            positive_probability: Vec::new(),
            hits: Vec::new(),
            hits_with_synthetic: Vec::new(),
            hardest: if shape.hardest > 0 {
                device.download_view("hardest", &self.ranked.indices())?
            } else {
                Vec::new()
            },
            mixed_logits: self.mixed_logits.read(device, rows * s)?,
            query_mixed_logits: self.query_mixed_logits.read(device, rows * t)?,
            draws,
            metrics: Metrics::default(),
        };
        let figures: Vec<Figures> = figures.iter().map(of_row).collect();
        report(&mut output, config, &figures, &matching);
        // The one that is in device memory, to the bit.
        output.reduced_loss = self.loss.read(device, 1)?[0];
        Ok(output)
    }

    /// Given draws and features that the device has refused.
    fn check(&self, device: &Device, shape: Shape, draws: &GivenDraws) -> Result<()> {
        if let Some(refusal) = self.refused.read(device)? {
            let counts = device.download_view("hardest", &self.ranked.counts())?;
            return Err(refusal.explain(draws, shape.mixed, shape.query_mixed, &counts));
        }
        let seen = device.download("status", &self.features, 2)?;
        for (argument, word) in ["synthetic.mixed", "synthetic.query_mixed"]
            .into_iter()
            .zip(seen)
        {
            if word != 0 {
                let row = (NO_ROW_INDEX - word) as usize;
                return Err(Error::NonFinite { argument, row });
            }
        }
        Ok(())
    }

    /// The first row that is no number, whatever its fault.
    fn status(&self, device: &Device) -> Result<Status> {
        let words = device.download("status", &self.status, 1)?[0];
        let seen = [
            ("queries", words.queries),
            ("keys", words.keys),
            ("logits", words.logits),
        ];
        let first = seen.into_iter().max_by_key(|&(_, word)| word);
        Ok(match first {
            Some((argument, word)) if word != 0 => Status::NonFinite {
                argument,
                row: (NO_ROW_INDEX - word) as usize,
            },
            _ => Status::Finite,
        })
    }
}

impl HeldResults<'_> {
    /// Those of the rows from `start` on.
    pub fn places(&self, start: usize, hardest: Option<&Selection<'_>>, shape: Shape) -> OutPlaces {
        let null = std::ptr::null_mut();
        let (hardest, hardest_logits, counts) = hardest
            .map_or((null, std::ptr::null_mut(), null), |lists| {
                lists.at_row(start)
            });
        let (mixed, query_mixed) = (start * shape.mixed, start * shape.query_mixed);
        let gradient = start * shape.dim;
        OutPlaces {
            loss_rows: self.loss_rows.pointer().wrapping_add(start),
            grad_queries: self.grad_queries.pointer().wrapping_add(gradient),
            grad_keys: self
                .grad_keys
                .as_ref()
                .map_or(std::ptr::null_mut(), |keys| {
                    keys.pointer().wrapping_add(gradient)
                }),
            hardest,
            hardest_logits,
            counts,
            mixed_logits: self.mixed_logits.pointer().wrapping_add(mixed),
            query_mixed_logits: self.query_mixed_logits.pointer().wrapping_add(query_mixed),
            first: self.draws.first.pointer().wrapping_add(mixed),
            second: self.draws.second.pointer().wrapping_add(mixed),
            alpha: self.draws.alpha.pointer().wrapping_add(mixed),
            pick: self.draws.pick.pointer().wrapping_add(query_mixed),
            beta: self.draws.beta.pointer().wrapping_add(query_mixed),
            figures: self.figures.pointer().wrapping_add(start),
            refused_draw: self.refused.pointer(),
        }
    }
}

fn of_row(row: &RowFigures) -> Figures {
    Figures {
        loss: row.loss,
        log_sum_exp: row.log_sum_exp,
        positive_probability: row.positive_probability,
        positive_logit: row.positive,
        hit: row.hit != 0,
        hit_with_synthetic: row.hit_with_synthetic != 0,
        listed: row.listed as usize,
        unmasked: row.unmasked as usize,
        mixed_harder: row.mixed_harder as usize,
        query_mixed_harder: row.query_mixed_harder as usize,
        same_label: row.same_label as usize,
        labelled: row.labelled as usize,
        log_uniformity: row.log_uniformity,
    }
}

/// Probabilities of the hardest by rank under the softmax without synthetics, [B, N].
fn matching(logits: &[f32], figures: &[RowFigures], hardest: usize, temperature: f32) -> Vec<f64> {
    let mut probabilities = vec![0.0; figures.len() * hardest];
    for (b, row) in figures.iter().enumerate() {
        let own = b * hardest..b * hardest + row.listed as usize;
        let mut sorted = logits[own.clone()].to_vec();
        sorted.sort_unstable_by(|a, b| b.total_cmp(a));
        for (probability, logit) in probabilities[own].iter_mut().zip(sorted) {
            let exponent = f64::from(logit) / f64::from(temperature);
            *probability = (exponent - row.real_log_sum_exp).exp();
        }
    }
    probabilities
}

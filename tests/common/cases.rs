//! Inputs of a step: the golden files, and random ones from a recipe that proptest can shrink.

use std::path::Path;

use hardmix::{
    Batch, Config, DType, Draws, GivenDraws, NO_LABEL, QueryGradient, Queue, Reduction, Rows,
};
use proptest::prelude::*;
use proptest::sample::select;
use safetensors::tensor::{Dtype, SafeTensors};

/// Everything that a step is given.
#[derive(Debug, Clone)]
pub struct Case {
    pub queries: Vec<f32>,
    pub keys: Vec<f32>,
    pub query_labels: Option<Vec<u32>>,
    pub row_offset: u32,
    pub queue: Queue,
    pub config: Config,
    pub draws: Draws,
}

impl Case {
    pub fn batch(&self) -> Batch<'_> {
        let batch = Batch::new(&self.queries, &self.keys, self.queue.dim())
            .and_then(|batch| batch.with_row_offset(self.row_offset))
            .expect("a valid batch");
        match &self.query_labels {
            Some(labels) => batch.with_labels(labels).expect("one label a row"),
            None => batch,
        }
    }

    pub fn rows(&self) -> usize {
        self.queries.len() / self.queue.dim()
    }

    /// The labels by which queue rows are masked.
    pub fn oracle_labels(&self) -> Option<&[u32]> {
        self.query_labels
            .as_deref()
            .filter(|_| self.config.oracle())
    }

    /// The rows from `from` to `to` alone, as one shard of the batch.
    pub fn shard(&self, from: usize, to: usize) -> Case {
        let dim = self.queue.dim();
        let draws = match &self.draws {
            Draws::Given(given) => {
                let (s, t) = (self.config.mixed(), self.config.query_mixed());
                Draws::given(GivenDraws {
                    first: given.first[from * s..to * s].to_vec(),
                    second: given.second[from * s..to * s].to_vec(),
                    alpha: given.alpha[from * s..to * s].to_vec(),
                    pick: given.pick[from * t..to * t].to_vec(),
                    beta: given.beta[from * t..to * t].to_vec(),
                })
            }
            seeded => seeded.clone(),
        };
        Case {
            queries: self.queries[from * dim..to * dim].to_vec(),
            keys: self.keys[from * dim..to * dim].to_vec(),
            query_labels: self.query_labels.as_ref().map(|l| l[from..to].to_vec()),
            row_offset: self.row_offset + from as u32,
            draws,
            ..self.clone()
        }
    }
}

/// A golden file: the case, and what an independent implementation in f64 made of it.
#[derive(Debug)]
pub struct Golden {
    pub case: Case,
    /// τ as it was in f64.
    pub temperature: f64,
    pub given: GivenDraws,
    pub loss: f64,
    pub loss_rows: Vec<f64>,
    pub grad_queries: Vec<f64>,
    pub mixed_logits: Vec<f64>,
    pub query_mixed_logits: Vec<f64>,
    pub hardest: Vec<u32>,
    pub hits: Vec<bool>,
    pub hits_with_synthetic: Vec<bool>,
}

/// The names of all golden files.
pub const GOLDEN: [&str; 14] = [
    "moco",
    "mixed",
    "query_mixed",
    "both",
    "attached",
    "cold",
    "confident",
    "oracle",
    "oracle_few",
    "oracle_none",
    "not_unit",
    "not_unit_attached",
    "large_norms",
    "bf16",
];

/// Tests run in the folder of the crate; a path relative to it also holds on another machine.
pub const GOLDEN_FOLDER: &str = "tests/golden";

fn little_endian<T, const N: usize>(
    file: &SafeTensors,
    name: &str,
    dtype: Dtype,
    of: fn([u8; N]) -> T,
) -> Option<Vec<T>> {
    let tensor = file.tensor(name).ok()?;
    assert_eq!(tensor.dtype(), dtype, "type of {name}");
    let (elements, _) = tensor.data().as_chunks::<N>();
    Some(elements.iter().map(|&bytes| of(bytes)).collect())
}

impl Golden {
    pub fn load(name: &str) -> Self {
        let path = Path::new(GOLDEN_FOLDER)
            .join(name)
            .with_extension("safetensors");
        let bytes = std::fs::read(&path).expect("the golden file");
        let file = SafeTensors::deserialize(&bytes).expect("safetensors");
        let (_, header) = SafeTensors::read_metadata(&bytes).expect("safetensors");
        let metadata = header.metadata().clone().expect("metadata");
        let number = |key: &str| metadata[key].parse::<usize>().expect("a number");
        let f32s = |name: &str| little_endian(&file, name, Dtype::F32, f32::from_le_bytes);
        let f64s = |name: &str| little_endian(&file, name, Dtype::F64, f64::from_le_bytes);
        let u32s = |name: &str| little_endian(&file, name, Dtype::U32, u32::from_le_bytes);
        let bools = |name: &str| {
            let bytes = file.tensor(name).expect("hits").data();
            bytes.iter().map(|&x| x == 1).collect()
        };

        let dim = file.tensor("queue").expect("queue").shape()[1];
        let mut queue =
            Queue::from_rows(Rows::F32(f32s("queue").expect("queue")), dim).expect("a queue");
        if let Some(labels) = u32s("queue_labels") {
            queue = queue.with_labels(labels).expect("labels");
        }
        let gradient = match metadata["query_gradient"].as_str() {
            "detached" => QueryGradient::Detached,
            "attached" => QueryGradient::Attached,
            other => panic!("query_gradient {other}"),
        };
        let config = Config::mochi(number("hardest"), number("mixed"), number("query_mixed"))
            .and_then(|c| c.with_temperature(metadata["temperature"].parse().expect("τ")))
            .expect("a config")
            .with_query_gradient(gradient)
            .with_oracle(metadata["oracle"] == "true");
        let given = GivenDraws {
            first: u32s("first").unwrap_or_default(),
            second: u32s("second").unwrap_or_default(),
            alpha: f32s("alpha").unwrap_or_default(),
            pick: u32s("pick").unwrap_or_default(),
            beta: f32s("beta").unwrap_or_default(),
        };
        Golden {
            case: Case {
                queries: f32s("queries").expect("queries"),
                keys: f32s("keys").expect("keys"),
                query_labels: u32s("query_labels"),
                row_offset: 0,
                queue,
                config,
                draws: Draws::given(given.clone()),
            },
            temperature: metadata["temperature"].parse().expect("τ"),
            given,
            loss: f64s("expected.loss").expect("loss")[0],
            loss_rows: f64s("expected.loss_rows").expect("loss_rows"),
            grad_queries: f64s("expected.grad_queries").expect("grad_queries"),
            mixed_logits: f64s("expected.mixed_logits").unwrap_or_default(),
            query_mixed_logits: f64s("expected.query_mixed_logits").unwrap_or_default(),
            hardest: u32s("expected.hardest").unwrap_or_default(),
            hits: bools("expected.hits"),
            hits_with_synthetic: bools("expected.hits_with_synthetic"),
        }
    }
}

/// How long the rows are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Norms {
    Unit,
    /// Log-uniform from 0.1 to 10, each row its own.
    Ragged,
    /// Unit rows, about every fourth one zero.
    WithZeros,
}

/// How alike the queue rows are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Ties {
    Distinct,
    /// About half of the rows are copies of an earlier one.
    Duplicated,
    /// No more than this many different rows.
    Few(usize),
    /// All elements are small integers over 16.
    SmallIntegers,
}

/// Which labels there are, and what they do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Labels {
    None,
    /// This many classes, some rows without a label; they only measure.
    Measure(u32),
    /// The same, and they mask.
    Oracle(u32),
    /// They mask nearly all rows, or all.
    OracleNearlyAll,
}

/// Where the draws come from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum DrawKind {
    Seeded { seed: u64, step: u64 },
    Given,
}

/// What a random case is made from.
#[derive(Debug, Clone)]
pub struct Recipe {
    pub rows: usize,
    pub capacity: usize,
    pub dim: usize,
    pub hardest: usize,
    pub mixed: usize,
    pub query_mixed: usize,
    pub dtype: DType,
    pub norms: Norms,
    pub ties: Ties,
    pub labels: Labels,
    pub draws: DrawKind,
    pub temperature: f32,
    pub reduction: Reduction,
    pub gradient: QueryGradient,
    pub key_gradient: bool,
    pub row_offset: u32,
    pub seed: u64,
}

impl Default for Recipe {
    fn default() -> Self {
        Recipe {
            rows: 7,
            capacity: 150,
            dim: 24,
            hardest: 20,
            mixed: 30,
            query_mixed: 11,
            dtype: DType::F32,
            norms: Norms::Unit,
            ties: Ties::Distinct,
            labels: Labels::None,
            draws: DrawKind::Seeded { seed: 1, step: 2 },
            temperature: 0.2,
            reduction: Reduction::Mean,
            gradient: QueryGradient::Detached,
            key_gradient: false,
            row_offset: 0,
            seed: 3,
        }
    }
}

/// One of `corners` half of the time, else anything up to `most`: sizes that fit no tile.
fn ragged(corners: &'static [usize], most: usize) -> impl Strategy<Value = usize> {
    prop_oneof![select(corners), 1..=most]
}

/// Every recipe within small sizes.
pub fn recipes() -> impl Strategy<Value = Recipe> {
    let sizes = (
        ragged(&[1, 2, 3, 4, 5, 7, 8, 9], 17),
        ragged(
            &[
                1, 2, 3, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 509,
            ],
            300,
        ),
        ragged(
            &[
                1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129,
            ],
            80,
        ),
        prop_oneof![Just(0.0), Just(1.0), 0.0..1.0f64],
        prop_oneof![Just(0), Just(1), 0..70usize],
        prop_oneof![Just(0), Just(1), 0..70usize],
    );
    let kinds = (
        select(&[DType::F32, DType::F32, DType::F16, DType::Bf16][..]),
        select(&[Norms::Unit, Norms::Ragged, Norms::WithZeros][..]),
        prop_oneof![
            2 => Just(Ties::Distinct),
            1 => Just(Ties::Duplicated),
            1 => (1..9usize).prop_map(Ties::Few),
            1 => Just(Ties::SmallIntegers),
        ],
        prop_oneof![
            2 => Just(Labels::None),
            1 => (1..6u32).prop_map(Labels::Measure),
            1 => (2..6u32).prop_map(Labels::Oracle),
            1 => Just(Labels::OracleNearlyAll),
        ],
        prop_oneof![
            (any::<u64>(), 0..1u64 << 63).prop_map(|(seed, step)| DrawKind::Seeded { seed, step }),
            Just(DrawKind::Given),
        ],
    );
    let settings = (
        (0.01f64.ln()..0.0).prop_map(|x| x.exp() as f32),
        select(&[Reduction::Mean, Reduction::Sum, Reduction::None][..]),
        select(&[QueryGradient::Detached, QueryGradient::Attached][..]),
        any::<bool>(),
        prop_oneof![Just(0), Just(u32::MAX - 40), 0..u32::MAX - 40],
        any::<u64>(),
    );
    (sizes, kinds, settings).prop_map(
        |(
            (rows, capacity, dim, share, mixed, query_mixed),
            (dtype, norms, ties, labels, draws),
            (temperature, reduction, gradient, key_gradient, row_offset, seed),
        )| {
            let hardest = (share * capacity as f64).round() as usize;
            Recipe {
                rows,
                capacity,
                dim,
                hardest,
                mixed: if hardest > 0 { mixed } else { 0 },
                query_mixed: if hardest > 0 { query_mixed } else { 0 },
                dtype,
                norms,
                ties,
                labels,
                draws,
                temperature,
                reduction,
                gradient,
                key_gradient,
                row_offset,
                seed,
            }
        },
    )
}

/// `dim` standard normal numbers.
pub fn gaussian(rng: &mut fastrand::Rng, dim: usize) -> Vec<f64> {
    (0..dim)
        .map(|_| {
            let radius = (-2.0 * (1.0 - rng.f64()).ln()).sqrt();
            radius * (std::f64::consts::TAU * rng.f64()).cos()
        })
        .collect()
}

/// Random unit rows, [rows, dim].
pub fn unit_rows(rng: &mut fastrand::Rng, rows: usize, dim: usize) -> Vec<f32> {
    (0..rows)
        .flat_map(|_| {
            let row = gaussian(rng, dim);
            let norm = super::reference::norm(&row);
            row.into_iter().map(move |x| (x / norm) as f32)
        })
        .collect()
}

/// Elements from {−2, …, 2}/16, so that every dot product is exact in f32.
pub fn small_integers(rng: &mut fastrand::Rng, len: usize) -> Vec<f32> {
    (0..len).map(|_| rng.i32(-2..=2) as f32 / 16.0).collect()
}

impl Recipe {
    pub fn config(&self) -> Config {
        Config::mochi(self.hardest, self.mixed, self.query_mixed)
            .and_then(|config| config.with_temperature(self.temperature))
            .expect("a valid recipe")
            .with_query_gradient(self.gradient)
            .with_oracle(matches!(
                self.labels,
                Labels::Oracle(_) | Labels::OracleNearlyAll
            ))
            .with_reduction(self.reduction)
            .with_key_gradient(self.key_gradient)
            .with_uniformity(true)
            .with_matching_probability(true)
    }

    pub fn build(&self) -> Case {
        let rng = &mut fastrand::Rng::with_seed(self.seed);
        let queries = self.rows_of(rng, self.rows);
        // A positive is the query, turned by a random amount.
        let turn = rng.f32();
        let noise = self.rows_of(rng, self.rows);
        let keys = queries
            .iter()
            .zip(&noise)
            .map(|(q, n)| (1.0 - turn) * q + turn * n)
            .collect();
        let mut stored = self.rows_of(rng, self.capacity);
        let kept = match self.ties {
            Ties::Few(kept) => kept.min(self.capacity),
            _ => self.capacity,
        };
        for j in 1..self.capacity {
            let from = match self.ties {
                Ties::Few(_) => rng.usize(..kept),
                Ties::Duplicated if rng.bool() => rng.usize(..j),
                _ => continue,
            };
            stored.copy_within(from * self.dim..(from + 1) * self.dim, j * self.dim);
        }
        let mut queue = Queue::from_rows(Rows::from_f32(self.dtype, &stored), self.dim)
            .expect("a valid recipe");
        let (query_labels, queue_labels) = self.labels(rng);
        if let Some(labels) = queue_labels {
            queue = queue.with_labels(labels).expect("one label a row");
        }
        let mut case = Case {
            queries,
            keys,
            query_labels,
            row_offset: self.row_offset,
            queue,
            config: self.config(),
            draws: Draws::seeded(0, 0).expect("a small step"),
        };
        case.draws = match self.draws {
            DrawKind::Seeded { seed, step } => Draws::seeded(seed, step).expect("step < 2^63"),
            DrawKind::Given => Draws::given(random_draws(rng, &case)),
        };
        case
    }

    fn rows_of(&self, rng: &mut fastrand::Rng, rows: usize) -> Vec<f32> {
        if self.ties == Ties::SmallIntegers {
            return small_integers(rng, rows * self.dim);
        }
        let mut data = unit_rows(rng, rows, self.dim);
        for row in data.chunks_exact_mut(self.dim) {
            let norm = match self.norms {
                Norms::Unit => continue,
                Norms::Ragged => 10f32.powf(2.0 * rng.f32() - 1.0),
                Norms::WithZeros => f32::from(u8::from(rng.u32(..4) > 0)),
            };
            row.iter_mut().for_each(|x| *x *= norm);
        }
        data
    }

    fn labels(&self, rng: &mut fastrand::Rng) -> (Option<Vec<u32>>, Option<Vec<u32>>) {
        let mut pick = |classes: u32, missing: u32| {
            if rng.u32(..100) < missing {
                NO_LABEL
            } else {
                rng.u32(..classes)
            }
        };
        let (classes, missing) = match self.labels {
            Labels::None => return (None, None),
            Labels::Measure(classes) | Labels::Oracle(classes) => (classes, 10),
            // One class, and a few rows of another or of none.
            Labels::OracleNearlyAll => (1, 4),
        };
        let queries = (0..self.rows).map(|_| pick(classes, missing)).collect();
        let queue = (0..self.capacity).map(|_| pick(classes, missing)).collect();
        (Some(queries), Some(queue))
    }
}

/// Valid draws for a case, with coefficients 0 and 1 among them.
fn random_draws(rng: &mut fastrand::Rng, case: &Case) -> GivenDraws {
    let problem = super::reference::Problem::new(case);
    let mut given = GivenDraws::default();
    for b in 0..case.rows() {
        let negatives = (0..case.queue.capacity())
            .filter(|&j| !problem.masked(b, j))
            .count();
        let count = negatives.min(case.config.hardest()) as u32;
        let mut position = || if count > 0 { rng.u32(..count) } else { 0 };
        for _ in 0..case.config.mixed() {
            given.first.push(position());
            given.second.push(position());
        }
        given
            .pick
            .extend((0..case.config.query_mixed()).map(|_| position()));
    }
    let mut weight = |_| match rng.u32(..10) {
        0 => 0.0,
        1 => 1.0,
        _ => rng.f32(),
    };
    given.alpha = (0..given.first.len()).map(&mut weight).collect();
    given.beta = (0..given.pick.len()).map(&mut weight).collect();
    given
}

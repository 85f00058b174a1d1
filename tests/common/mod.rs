//! What the tests share: the reference, the cases, the tolerances, and the backends they run on.

#![allow(
    dead_code,
    missing_docs,
    missing_debug_implementations,
    reason = "each test binary uses its own part"
)]

pub mod cases;
pub mod compare;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod oracle;
pub mod reference;
pub mod tolerance;

use hardmix::cpu::{Ranked, Synthetic};
use hardmix::{Batch, Config, Draws, Output, Queue, Result};
use proptest::strategy::Strategy;
use proptest::test_runner::{Config as Runs, RngSeed, TestCaseResult, TestRunner};

use cases::Case;
use tolerance::Arithmetic;

/// A step that owns its workspace and keeps it from batch to batch.
pub trait Step {
    fn run(&mut self, batch: &Batch, queue: &Queue, draws: &Draws) -> Result<Output>;
    fn set_config(&mut self, config: Config);
}

/// Something that computes the method. Every test body runs on each that is at hand.
pub trait Backend: Sync {
    fn name(&self) -> &'static str;
    fn arithmetic(&self) -> Arithmetic;
    /// Whether shapes have to be small, as on an interpreter of kernels.
    fn is_slow(&self) -> bool {
        false
    }
    /// How many random cases to try where the CPU would try so many.
    fn cases(&self, many: u32) -> u32 {
        if self.is_slow() { many / 10 } else { many }
    }
    fn new_step(&self, config: Config) -> Box<dyn Step>;
    fn rank(
        &self,
        queries: &[f32],
        queue: &Queue,
        hardest: usize,
        oracle_labels: Option<&[u32]>,
    ) -> Result<Ranked>;
    fn rank_logits(&self, logits: &[f32], capacity: usize, hardest: usize) -> Result<Ranked>;
    fn mix(
        &self,
        batch: &Batch,
        queue: &Queue,
        ranked: &Ranked,
        config: &Config,
        draws: &Draws,
    ) -> Result<Synthetic>;
    fn info_nce(
        &self,
        batch: &Batch,
        queue: &Queue,
        synthetic: &Synthetic,
        config: &Config,
    ) -> Result<Output>;

    /// One step with a fresh workspace.
    fn step(&self, case: &Case) -> Result<Output> {
        self.new_step(case.config.clone())
            .run(&case.batch(), &case.queue, &case.draws)
    }
}

/// The CPU path of the library.
struct Cpu;

impl Step for hardmix::cpu::Step {
    fn run(&mut self, batch: &Batch, queue: &Queue, draws: &Draws) -> Result<Output> {
        hardmix::cpu::Step::run(self, batch, queue, draws)
    }

    fn set_config(&mut self, config: Config) {
        hardmix::cpu::Step::set_config(self, config);
    }
}

impl Backend for Cpu {
    fn name(&self) -> &'static str {
        "cpu"
    }

    fn arithmetic(&self) -> Arithmetic {
        Arithmetic::F32
    }

    fn new_step(&self, config: Config) -> Box<dyn Step> {
        Box::new(hardmix::cpu::Step::new(config))
    }

    fn rank(
        &self,
        queries: &[f32],
        queue: &Queue,
        hardest: usize,
        oracle_labels: Option<&[u32]>,
    ) -> Result<Ranked> {
        hardmix::cpu::rank(queries, queue, hardest, oracle_labels)
    }

    fn rank_logits(&self, logits: &[f32], capacity: usize, hardest: usize) -> Result<Ranked> {
        hardmix::cpu::rank_logits(logits, capacity, hardest)
    }

    fn mix(
        &self,
        batch: &Batch,
        queue: &Queue,
        ranked: &Ranked,
        config: &Config,
        draws: &Draws,
    ) -> Result<Synthetic> {
        hardmix::cpu::mix(batch, queue, ranked, config, draws)
    }

    fn info_nce(
        &self,
        batch: &Batch,
        queue: &Queue,
        synthetic: &Synthetic,
        config: &Config,
    ) -> Result<Output> {
        hardmix::cpu::info_nce(batch, queue, synthetic, config)
    }
}

/// The backends of this machine and build, for what a step's path has no part in: the operators apart
/// from `info_nce`, and what is refused.
pub fn devices() -> Vec<Box<dyn Backend>> {
    vec![
        Box::new(Cpu),
        #[cfg(feature = "cuda")]
        Box::new(cuda::CUDA),
    ]
}

/// The same, with both paths of a step on the GPU; prints which.
pub fn backends() -> Vec<Box<dyn Backend>> {
    #[allow(unused_mut, reason = "there may be no other path")]
    let mut found = devices();
    #[cfg(feature = "cuda")]
    found.push(Box::new(cuda::Cuda { fused: true }));
    let names: Vec<_> = found.iter().map(|backend| backend.name()).collect();
    println!("backends: {}", names.join(", "));
    found
}

/// Runs `check` on `cases` values of `strategy`. The same ones every time, unless
/// PROPTEST_RNG_SEED says otherwise; PROPTEST_CASES asks for more.
pub fn properties<S: Strategy>(
    cases: u32,
    strategy: S,
    check: impl Fn(S::Value) -> TestCaseResult,
) {
    let mut runs = Runs {
        failure_persistence: None,
        ..Runs::default()
    };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        runs.cases = cases;
    }
    if std::env::var_os("PROPTEST_RNG_SEED").is_none() {
        runs.rng_seed = RngSeed::Fixed(20_20);
    }
    if let Err(failure) = TestRunner::new(runs).run(&strategy, check) {
        panic!("{failure}");
    }
}

/// The bits of a row of floats: NaN equals itself, −0 differs from +0.
pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// Everything of row `b` that a step computes, as bits.
#[derive(Debug, Clone, PartialEq)]
pub struct RowBits {
    pub loss: u32,
    pub log_sum_exp: u32,
    pub positive_probability: u32,
    pub hits: (bool, bool),
    pub grad_query: Vec<u32>,
    pub grad_key: Option<Vec<u32>>,
    pub hardest: Vec<u32>,
    pub mixed_logits: Vec<u32>,
    pub query_mixed_logits: Vec<u32>,
    pub draws: [Vec<u32>; 5],
}

/// The rows of an output, as bits.
pub fn row_bits(output: &Output) -> Vec<RowBits> {
    let rows = output.loss_rows.len();
    let part = |values: &[f32], b: usize| {
        let width = values.len() / rows;
        bits(&values[b * width..(b + 1) * width])
    };
    let whole = |values: &[u32], b: usize| {
        let width = values.len() / rows;
        values[b * width..(b + 1) * width].to_vec()
    };
    (0..rows)
        .map(|b| RowBits {
            loss: output.loss_rows[b].to_bits(),
            log_sum_exp: output.log_sum_exp[b].to_bits(),
            positive_probability: output.positive_probability[b].to_bits(),
            hits: (output.hits[b], output.hits_with_synthetic[b]),
            grad_query: part(&output.grad_queries, b),
            grad_key: output.grad_keys.as_ref().map(|keys| part(keys, b)),
            hardest: whole(&output.hardest, b),
            mixed_logits: part(&output.mixed_logits, b),
            query_mixed_logits: part(&output.query_mixed_logits, b),
            draws: [
                whole(&output.draws.first, b),
                whole(&output.draws.second, b),
                part(&output.draws.alpha, b),
                whole(&output.draws.pick, b),
                part(&output.draws.beta, b),
            ],
        })
        .collect()
}

/// Asserts that two outputs are the same, bit by bit, metrics and all.
pub fn assert_same_bits(a: &Output, b: &Output, what: &str) {
    assert_eq!(a.status, b.status, "{what}: status");
    assert_eq!(row_bits(a), row_bits(b), "{what}: rows");
    if let (Ok(x), Ok(y)) = (a.loss(), b.loss()) {
        assert_eq!(x.to_bits(), y.to_bits(), "{what}: loss");
    }
    assert_eq!(
        format!("{:?}", a.metrics),
        format!("{:?}", b.metrics),
        "{what}: metrics"
    );
}

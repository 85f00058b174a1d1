//! The GPU path of the library: on softgpu, or with `REQUIRE_GPU=1` on the machine's own GPU.

use std::process::Command;
use std::sync::OnceLock;

use cudarc::driver::{CudaSlice, CudaView};
use hardmix::cpu::{self, Synthetic};
use hardmix::cuda::{self, Device, Path};
use hardmix::{Batch, Config, Draws, Output, Queue, Result};
use softgpu::launch::{Blocks, Copies, Schedule};

/// The device of this process, with softgpu installed first unless a GPU is asked for.
pub fn device() -> &'static Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    DEVICE.get_or_init(|| {
        let found = softgpu::install().expect("softgpu is installed");
        let device = Device::new(0).expect("a device");
        let name = device.stream().context().name().expect("a name");
        println!("cuda on {found}: {name}");
        device
    })
}

/// Set in a process that a test has to itself.
const ALONE: &str = "HARDMIX_TEST_ALONE";

/// Whether a test has this process to itself. If not, it has just run, and passed, in another.
pub fn alone(test: &str) -> bool {
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let program = std::env::current_exe().expect("this program");
    let output = Command::new(program)
        .args(["--exact", test, "--nocapture"])
        .env(ALONE, "1")
        .output()
        .expect("it runs");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}"
    );
    false
}

/// The lists of a device in host memory.
pub fn to_host(ranked: &cuda::Ranked) -> Result<cpu::Ranked> {
    to_host_of(device(), ranked)
}

/// The same, copied on a device of the caller's.
pub fn to_host_of(device: &Device, ranked: &cuda::Ranked) -> Result<cpu::Ranked> {
    ranked.check(device)?;
    let stream = device.stream();
    Ok(cpu::Ranked {
        hardest: ranked.hardest(),
        indices: stream.clone_dtoh(&ranked.indices()).expect("indices"),
        logits: stream.clone_dtoh(&ranked.logits()).expect("logits"),
        counts: stream.clone_dtoh(&ranked.counts()).expect("counts"),
    })
}

/// The GPU path as a backend of the shared test bodies.
pub struct Cuda {
    /// Whether steps take the fused path.
    pub fused: bool,
}

/// The unfused path.
pub const CUDA: Cuda = Cuda { fused: false };

impl Cuda {
    fn path(&self) -> Path {
        // Neither is left to `Path::Auto`, which may come to take either.
        if self.fused {
            Path::Fused
        } else {
            Path::Unfused
        }
    }
}

impl super::Backend for Cuda {
    fn name(&self) -> &'static str {
        if self.fused { "cuda, fused" } else { "cuda" }
    }

    fn arithmetic(&self) -> super::Arithmetic {
        super::Arithmetic::TENSOR
    }

    fn is_slow(&self) -> bool {
        is_softgpu()
    }

    fn new_step(&self, config: Config) -> Box<dyn super::Step> {
        let step = cuda::Step::new(device(), config).expect("a step");
        Box::new(step.with_path(self.path()))
    }

    fn rank(
        &self,
        queries: &[f32],
        queue: &Queue,
        hardest: usize,
        oracle_labels: Option<&[u32]>,
    ) -> Result<cpu::Ranked> {
        let device = device();
        let queue = cuda::Queue::from_host(device, queue)?;
        let there = device.upload("queries", queries)?;
        let labels = oracle_labels
            .map(|labels| device.upload("labels", labels))
            .transpose()?;
        let mut ranked = cuda::Ranked::new(device, 0, 0)?;
        cuda::rank(
            device,
            &there.slice(..queries.len()),
            &queue,
            hardest,
            labels.as_ref().map(|labels| labels as _),
            cuda::Precision::Exact,
            &mut cuda::Workspace::new(device)?,
            &mut ranked,
        )?;
        to_host(&ranked)
    }

    fn rank_logits(&self, logits: &[f32], capacity: usize, hardest: usize) -> Result<cpu::Ranked> {
        let device = device();
        let len = logits.len();
        let logits = device.upload("logits", logits)?;
        let mut ranked = cuda::Ranked::new(device, 0, 0)?;
        // An upload of nothing still has room for something.
        cuda::rank_logits(
            device,
            &logits.slice(..len),
            capacity,
            hardest,
            None,
            &mut ranked,
        )?;
        to_host(&ranked)
    }

    fn mix(
        &self,
        batch: &Batch,
        queue: &Queue,
        ranked: &cpu::Ranked,
        config: &Config,
        draws: &Draws,
    ) -> Result<Synthetic> {
        let device = device();
        let queue = cuda::Queue::from_host(device, queue)?;
        let there = There::new(batch, draws)?;
        let ranked = cuda::Ranked::from_host(
            device,
            ranked.hardest,
            &ranked.indices,
            &ranked.logits,
            &ranked.counts,
        )?;
        let mut synthetic = cuda::Synthetic::new(device)?;
        there.with(|batch, draws| {
            cuda::mix(
                device,
                batch,
                &queue,
                &ranked,
                config,
                draws,
                &mut synthetic,
            )
        })?;
        synthetic.check(device, &ranked)?;
        let stream = device.stream();
        let host = |view: CudaView<'_, f32>| match view.len() {
            0 => Vec::new(),
            _ => stream.clone_dtoh(&view).expect("features"),
        };
        Ok(Synthetic {
            mixed: host(synthetic.mixed()),
            query_mixed: host(synthetic.query_mixed()),
        })
    }

    fn info_nce(
        &self,
        batch: &Batch,
        queue: &Queue,
        synthetic: &Synthetic,
        config: &Config,
    ) -> Result<Output> {
        let device = device();
        let queue = cuda::Queue::from_host(device, queue)?;
        let there = There::new(batch, &Draws::seeded(0, 0)?)?;
        let mixed = device.upload("mixed", &synthetic.mixed)?;
        let query_mixed = device.upload("query_mixed", &synthetic.query_mixed)?;
        let (mixed, query_mixed) = (
            mixed.slice(..synthetic.mixed.len()),
            query_mixed.slice(..synthetic.query_mixed.len()),
        );
        let mut step = cuda::Step::new(device, config.clone())?.with_path(self.path());
        there.with(|batch, _| cuda::info_nce(&mut step, batch, &queue, &mixed, &query_mixed))?;
        step.read()
    }
}

impl super::Step for cuda::Step {
    fn run(&mut self, batch: &Batch, queue: &Queue, draws: &Draws) -> Result<Output> {
        let queue = cuda::Queue::from_host(device(), queue)?;
        There::new(batch, draws)?.with(|batch, draws| self.run(batch, &queue, draws))?;
        self.read()
    }

    fn set_config(&mut self, config: Config) {
        cuda::Step::set_config(self, config);
    }
}

/// A batch and its draws in device memory, unaligned to anything but their elements.
struct There {
    queries: CudaSlice<f32>,
    keys: CudaSlice<f32>,
    labels: Option<CudaSlice<u32>>,
    len: usize,
    rows: usize,
    dim: usize,
    row_offset: u32,
    draws: DrawsThere,
}

#[expect(clippy::large_enum_variant, reason = "there is one a step")]
enum DrawsThere {
    Seeded(CudaSlice<u64>),
    Given([CudaSlice<u32>; 3], [CudaSlice<f32>; 2], [usize; 5]),
}

impl There {
    fn new(batch: &Batch, draws: &Draws) -> Result<Self> {
        let device = device();
        let shifted = |values: &[f32]| {
            let values: Vec<f32> = std::iter::once(f32::NAN)
                .chain(values.iter().copied())
                .collect();
            device.upload("batch", &values)
        };
        let draws = match draws {
            Draws::Seeded { seed, step } => {
                DrawsThere::Seeded(device.upload("seed and step", &[*seed, *step])?)
            }
            Draws::Given(given) => DrawsThere::Given(
                [
                    device.upload("first", &given.first)?,
                    device.upload("second", &given.second)?,
                    device.upload("pick", &given.pick)?,
                ],
                [
                    device.upload("alpha", &given.alpha)?,
                    device.upload("beta", &given.beta)?,
                ],
                [
                    given.first.len(),
                    given.second.len(),
                    given.pick.len(),
                    given.alpha.len(),
                    given.beta.len(),
                ],
            ),
            other => unreachable!("{other:?} is no draw that the tests make"),
        };
        Ok(Self {
            queries: shifted(batch.queries())?,
            keys: shifted(batch.keys())?,
            labels: batch
                .labels()
                .map(|labels| device.upload("labels", labels))
                .transpose()?,
            len: batch.queries().len(),
            rows: batch.rows(),
            dim: batch.dim(),
            row_offset: batch.row_offset(),
            draws,
        })
    }

    fn with<T>(
        &self,
        run: impl FnOnce(&cuda::Batch<'_>, &cuda::Draws<'_>) -> Result<T>,
    ) -> Result<T> {
        let queries = self.queries.slice(1..=self.len);
        let keys = self.keys.slice(1..=self.len);
        let labels = self.labels.as_ref().map(|labels| labels.slice(..self.rows));
        let mut batch =
            cuda::Batch::new(&queries, &keys, self.dim)?.with_row_offset(self.row_offset)?;
        if let Some(labels) = &labels {
            batch = batch.with_labels(labels)?;
        }
        match &self.draws {
            DrawsThere::Seeded(words) => run(&batch, &cuda::Draws::Seeded(words)),
            DrawsThere::Given([first, second, pick], [alpha, beta], lens) => {
                let (first, second, pick) = (
                    first.slice(..lens[0]),
                    second.slice(..lens[1]),
                    pick.slice(..lens[2]),
                );
                let (alpha, beta) = (alpha.slice(..lens[3]), beta.slice(..lens[4]));
                let given = cuda::GivenDraws {
                    first: &first,
                    second: &second,
                    alpha: &alpha,
                    pick: &pick,
                    beta: &beta,
                };
                run(&batch, &cuda::Draws::Given(given))
            }
        }
    }
}

/// Whether kernels run on softgpu, where shapes have to be small.
pub fn is_softgpu() -> bool {
    device();
    softgpu::install().is_ok_and(|found| found == softgpu::Device::Softgpu)
}

/// Runs `launch` under six schedules of softgpu, every order of blocks with copies as early and as
/// late as can be, and returns its result, which must be the same to the bit under all of them. On a
/// GPU it runs as often, and no schedule is set.
pub fn under_all_schedules<T: PartialEq>(mut launch: impl FnMut() -> T) -> T {
    let mut first = None;
    for at in 0..6 {
        let schedule = Schedule {
            blocks: [Blocks::InOrder, Blocks::Reversed, Blocks::Random][at / 2],
            copies: [Copies::Early, Copies::Late][at % 2],
            seed: at as u64,
        };
        if is_softgpu() {
            softgpu::set_schedule(schedule);
        }
        let result = launch();
        match &first {
            None => first = Some(result),
            Some(first) => assert!(*first == result, "{schedule:?} gives another result"),
        }
    }
    first.expect("six schedules")
}

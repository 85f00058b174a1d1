//! The GPU path of the library: on softgpu, or with `REQUIRE_GPU=1` on the machine's own GPU.

use std::process::Command;
use std::sync::OnceLock;

use hardmix::cpu::{self, Synthetic};
use hardmix::cuda::{self, Device};
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
pub struct Cuda;

impl super::Backend for Cuda {
    fn name(&self) -> &'static str {
        "cuda"
    }

    fn arithmetic(&self) -> super::Arithmetic {
        super::Arithmetic::TENSOR
    }

    fn is_slow(&self) -> bool {
        is_softgpu()
    }

    fn new_step(&self, _config: Config) -> Box<dyn super::Step> {
        unimplemented!()
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
        _batch: &Batch,
        _queue: &Queue,
        _ranked: &cpu::Ranked,
        _config: &Config,
        _draws: &Draws,
    ) -> Result<Synthetic> {
        unimplemented!()
    }

    fn info_nce(
        &self,
        _batch: &Batch,
        _queue: &Queue,
        _synthetic: &Synthetic,
        _config: &Config,
    ) -> Result<Output> {
        unimplemented!()
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

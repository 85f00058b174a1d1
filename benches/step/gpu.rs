//! On the GPU: each contestant is captured as a graph once and replayed, as a trainer would.

use cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT;
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaGraph, CudaSlice};
use hardmix::cuda::{self, Batch, Device, Draws, Path, Precision, Step};
use hardmix::{DType, Queue, Rows};
use serde_json::{Map, Value, json};

use crate::USAGE;
use crate::common::{DIM, Features, Input, settings};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// (K, B, d): the paper's ImageNet-1K, then one size at a time.
const SHAPES: [(usize, usize, usize); 10] = [
    (65_536, 256, 128),
    (65_536, 32, 128),
    (65_536, 1024, 128),
    (65_536, 4096, 128),
    (16_384, 256, 128),
    (262_144, 256, 128),
    (1_048_576, 256, 128),
    (65_536, 256, 256),
    (65_536, 256, 512),
    (65_536, 256, 2048),
];

/// What is written between two steps that shall find nothing of the queue in a cache: 256 MiB, several
/// times the L2 of any GPU of today.
const EVICTING: usize = 256 << 20;

struct Arguments {
    shapes: Vec<(usize, usize, usize)>,
    dtypes: Vec<DType>,
    only: Vec<String>,
    rounds: usize,
}

impl Arguments {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Self {
        let (mut shapes, mut dtypes, mut only) = (Vec::new(), Vec::new(), Vec::new());
        let (mut rounds, mut full) = (30, false);
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                // Cargo's own, behind ours.
                "--bench" => {}
                "--full" => full = true,
                "--shape" => {
                    let value = arguments.next().expect(USAGE);
                    let sizes: Vec<_> = value.split(',').map(|x| x.parse().expect(USAGE)).collect();
                    let [capacity, rows, dim] = sizes[..] else {
                        panic!("{USAGE}");
                    };
                    shapes.push((capacity, rows, dim));
                }
                "--dtype" => dtypes.push(match arguments.next().as_deref() {
                    Some("f32") => DType::F32,
                    Some("f16") => DType::F16,
                    Some("bf16") => DType::Bf16,
                    _ => panic!("{USAGE}"),
                }),
                "--only" => only.push(arguments.next().expect(USAGE)),
                "--rounds" => rounds = arguments.next().expect(USAGE).parse().expect(USAGE),
                _ => panic!("{USAGE}"),
            }
        }
        if dtypes.is_empty() {
            dtypes = vec![DType::F32, DType::Bf16];
        }
        if full {
            for dim in [128, 256, 512, 2048] {
                for capacity in [16_384, 65_536, 262_144, 1_048_576] {
                    shapes.extend([32, 256, 1024, 4096].map(|rows| (capacity, rows, dim)));
                }
            }
        } else if shapes.is_empty() {
            shapes = SHAPES.to_vec();
        }
        Self {
            shapes,
            dtypes,
            only,
            rounds,
        }
    }
}

/// A step as a graph, and its times in microseconds.
struct Contestant<'a> {
    setting: &'a str,
    path: Path,
    precision: Precision,
    step: Step,
    graph: CudaGraph,
    /// With the queue in the caches as far as it fits, and with nothing of it there.
    warm: Vec<f32>,
    cold: Vec<f32>,
}

pub fn json_lines(arguments: impl Iterator<Item = String>) -> Result<()> {
    let arguments = Arguments::parse(arguments);
    let device = match Device::new(0) {
        Ok(device) => device,
        Err(error) => {
            println!("no GPU, nothing is measured: {error}");
            return Ok(());
        }
    };
    // SAFETY: everything here is on one stream.
    unsafe { device.stream().context().disable_event_tracking() };
    let stream = device.stream().context().new_stream()?;
    let device = device.with_stream(stream)?;
    let mut evicting = device.stream().alloc_zeros::<u8>(EVICTING)?;
    for &(capacity, rows, dim) in &arguments.shapes {
        for features in Features::ALL {
            if features == Features::Real && dim != DIM {
                continue;
            }
            let input = Input::with_dim(features, capacity, rows, dim);
            for &dtype in &arguments.dtypes {
                let line = measure(&device, &input, dtype, &arguments, &mut evicting)?;
                println!("{line}");
            }
        }
    }
    Ok(())
}

fn measure(
    device: &Device,
    input: &Input,
    dtype: DType,
    arguments: &Arguments,
    evicting: &mut CudaSlice<u8>,
) -> Result<Value> {
    let stored = Rows::from_f32(dtype, &input.queue.rows().to_f32());
    let queue = cuda::Queue::from_host(device, &Queue::from_rows(stored, input.dim)?)?;
    let queries = device.upload("queries", &input.queries)?;
    let keys = device.upload("keys", &input.keys)?;
    let words = device.upload("seed and step", &[7u64, 0])?;
    let batch = Batch::new(&queries, &keys, input.dim)?;
    let settings = settings();
    let mut contestants = Vec::new();
    for (setting, config) in &settings {
        let wanted = &arguments.only;
        if config.hardest() > input.queue.capacity() {
            continue;
        }
        if !wanted.is_empty()
            && !wanted
                .iter()
                .any(|wanted| setting.contains(wanted.as_str()))
        {
            continue;
        }
        for path in [Path::Fused, Path::Unfused] {
            for precision in [Precision::Exact, Precision::Tensor] {
                let mut step = Step::new(device, config.clone())?
                    .with_precision(precision)
                    .with_path(path);
                let mut run = || step.run(&batch, &queue, &Draws::Seeded(&words));
                // The first plans all memory; one that is captured must not.
                run()?;
                let graph = capture(device, &mut run)?;
                contestants.push(Contestant {
                    setting,
                    path,
                    precision,
                    step,
                    graph,
                    warm: Vec::new(),
                    cold: Vec::new(),
                });
            }
        }
    }

    let stream = device.stream();
    let timed = |graph: &CudaGraph| -> Result<f32> {
        let start = stream.record_event(Some(CU_EVENT_DEFAULT))?;
        graph.launch()?;
        let end = stream.record_event(Some(CU_EVENT_DEFAULT))?;
        Ok(start.elapsed_ms(&end)? * 1e3)
    };
    // The first round only warms up.
    for round in 0..=arguments.rounds {
        for contestant in &mut contestants {
            stream.memset_zeros(evicting)?;
            let cold = timed(&contestant.graph)?;
            let warm = timed(&contestant.graph)?;
            if round > 0 {
                contestant.cold.push(cold);
                contestant.warm.push(warm);
            }
        }
    }

    let name = stream.context().name()?;
    let mut times = Vec::new();
    let mut losses = Map::new();
    for contestant in contestants {
        let loss = contestant.step.read()?.loss()?;
        losses.insert(contestant.setting.to_owned(), json!(loss));
        let mut time = json!({
            "setting": contestant.setting,
            "path": format!("{:?}", contestant.path),
            "precision": format!("{:?}", contestant.precision),
        });
        // An interpreter's times say nothing of a GPU's.
        if name != "softgpu" {
            time["warm"] = json!(contestant.warm);
            time["cold"] = json!(contestant.cold);
        }
        times.push(time);
    }
    Ok(json!({
        "device": name,
        "features": input.features.name(),
        "capacity": input.queue.capacity(),
        "rows": input.queries.len() / input.dim,
        "dim": input.dim,
        "dtype": format!("{dtype:?}").to_lowercase(),
        "times": times,
        "losses": losses,
    }))
}

fn capture(device: &Device, run: &mut impl FnMut() -> hardmix::Result<()>) -> Result<CudaGraph> {
    let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL;
    device.stream().begin_capture(mode)?;
    run()?;
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = device.stream().end_capture(flags)?;
    Ok(graph.expect("a stream that was captured"))
}

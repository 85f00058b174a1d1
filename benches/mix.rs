//! Synthetic negatives written out on a GPU, timed by its own events.
//!
//! `cargo bench -p hardmix --features cuda --bench mix`. Without a GPU it says so and stops.

mod common;
#[path = "common/gpu.rs"]
mod gpu;

use common::{DIM, Features, Input};
use criterion::Criterion;
use gpu::by_events;
use hardmix::cuda::{self, Batch, Device, Draws, Precision, Ranked, Synthetic, Workspace};
use hardmix::{Config, DType, Queue, Result, Rows};

/// (B, N, s, s′) over K = 65536: the paper's largest on ImageNet-100, and on ImageNet-1K.
const SETTINGS: [(usize, usize, usize, usize); 2] = [(128, 1024, 1024, 128), (256, 1024, 512, 256)];

fn main() {
    let Some(device) = gpu::device() else { return };
    let mut criterion = Criterion::default().configure_from_args();
    for (rows, hardest, mixed, query_mixed) in SETTINGS {
        let config = Config::mochi(hardest, mixed, query_mixed).expect("a valid setting");
        measure(&mut criterion, &device, rows, &config).expect("a valid input");
    }
    criterion.final_summary();
}

fn measure(criterion: &mut Criterion, device: &Device, rows: usize, config: &Config) -> Result<()> {
    let input = Input::new(Features::Random, 65_536, rows);
    let queries = device.upload("queries", &input.queries)?;
    let keys = device.upload("keys", &input.keys)?;
    let words = device.upload("seed and step", &[1u64, 2])?;
    let batch = Batch::new(&queries, &keys, DIM)?;
    let mut workspace = Workspace::new(device)?;
    let mut synthetic = Synthetic::new(device)?;
    let mut group = criterion.benchmark_group(format!(
        "mix, K=65536, B={rows}, d={DIM}, N={}, s={}, s'={}",
        config.hardest(),
        config.mixed(),
        config.query_mixed()
    ));
    for dtype in [DType::F32, DType::F16, DType::Bf16] {
        let stored = Rows::from_f32(dtype, &input.queue.rows().to_f32());
        let queue = cuda::Queue::from_host(device, &Queue::from_rows(stored, DIM)?)?;
        let mut ranked = Ranked::new(device, rows, config.hardest())?;
        let (exact, work) = (Precision::Exact, &mut workspace);
        let (n, out) = (config.hardest(), &mut ranked);
        cuda::rank(device, &queries, &queue, n, None, exact, work, out)?;
        let draws = Draws::Seeded(&words);
        group.bench_function(format!("features, {dtype:?}"), |bencher| {
            by_events(bencher, device, || {
                cuda::mix(
                    device,
                    &batch,
                    &queue,
                    &ranked,
                    config,
                    &draws,
                    &mut synthetic,
                )
            });
        });
    }
    Ok(())
}

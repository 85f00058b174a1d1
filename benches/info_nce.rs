//! Loss and gradient on a GPU, of MoCo and of the whole step of MoCHi, timed by its own events.
//!
//! `cargo bench -p hardmix --features cuda --bench info_nce`. Without a GPU it says so and stops.

mod common;
#[path = "common/gpu.rs"]
mod gpu;

use common::{DIM, Features, Input};
use criterion::Criterion;
use gpu::by_events;
use hardmix::cuda::{self, Batch, Device, Draws, Precision, Step};
use hardmix::{Config, DType, Queue, Result, Rows};

/// (K, B): the paper's ImageNet-1K, its ImageNet-100 queue, and a batch of one of many GPUs.
const SHAPES: [(usize, usize); 3] = [(65_536, 256), (16_384, 256), (65_536, 32)];

fn main() {
    let Some(device) = gpu::device() else { return };
    let mut criterion = Criterion::default().configure_from_args();
    for (capacity, rows) in SHAPES {
        measure(&mut criterion, &device, capacity, rows).expect("a valid input");
    }
    criterion.final_summary();
}

fn measure(criterion: &mut Criterion, device: &Device, capacity: usize, rows: usize) -> Result<()> {
    let input = Input::new(Features::Random, capacity, rows);
    let queries = device.upload("queries", &input.queries)?;
    let keys = device.upload("keys", &input.keys)?;
    let words = device.upload("seed and step", &[1u64, 2])?;
    let batch = Batch::new(&queries, &keys, DIM)?;
    let draws = Draws::Seeded(&words);
    let mut group = criterion.benchmark_group(format!("info_nce, K={capacity}, B={rows}, d={DIM}"));
    for dtype in [DType::F32, DType::F16, DType::Bf16] {
        let stored = Rows::from_f32(dtype, &input.queue.rows().to_f32());
        let queue = cuda::Queue::from_host(device, &Queue::from_rows(stored, DIM)?)?;
        for (what, config) in [
            ("MoCo", Config::moco()),
            (
                "MoCHi (1024, 1024, 128)",
                Config::imagenet100_1024_1024_128(),
            ),
        ] {
            for precision in [Precision::Exact, Precision::Tensor] {
                let mut step = Step::new(device, config.clone())?.with_precision(precision);
                group.bench_function(format!("{what}, {dtype:?}, {precision:?}"), |bencher| {
                    by_events(bencher, device, || step.run(&batch, &queue, &draws));
                });
            }
        }
    }
    Ok(())
}

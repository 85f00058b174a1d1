//! Finding the hardest on a GPU, timed by its own events: from logits that are there, and from
//! queries and queue in every type and precision.
//!
//! `cargo bench -p hardmix --features cuda --bench rank`. Without a GPU it says so and stops.

mod common;
#[path = "common/gpu.rs"]
mod gpu;

use common::{DIM, Features, Input};
use criterion::Criterion;
use gpu::by_events;
use hardmix::cuda::{self, Device, Precision, Ranked, Workspace};
use hardmix::{DType, Queue, Result, Rows};

/// (K, B): the paper's ImageNet-1K, its ImageNet-100 queue, and a batch of one of many GPUs.
const SHAPES: [(usize, usize); 3] = [(65_536, 256), (16_384, 256), (65_536, 32)];

/// N.
const HARDEST: usize = 1024;

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
    let mut ranked = Ranked::new(device, rows, HARDEST)?;
    let mut workspace = Workspace::new(device)?;
    let mut group = criterion.benchmark_group(format!(
        "rank, K={capacity}, B={rows}, d={DIM}, N={HARDEST}"
    ));
    for dtype in [DType::F32, DType::F16, DType::Bf16] {
        let stored = Rows::from_f32(dtype, &input.queue.rows().to_f32());
        let queue = cuda::Queue::from_host(device, &Queue::from_rows(stored, DIM)?)?;
        for precision in [Precision::Exact, Precision::Tensor] {
            group.bench_function(format!("{dtype:?}, {precision:?}"), |bencher| {
                let (work, out) = (&mut workspace, &mut ranked);
                by_events(bencher, device, || {
                    cuda::rank(
                        device, &queries, &queue, HARDEST, None, precision, work, out,
                    )
                });
            });
        }
    }
    let queue = cuda::Queue::from_host(device, &input.queue)?;
    let mut all = Ranked::new(device, rows, capacity)?;
    let (exact, work) = (Precision::Exact, &mut workspace);
    // With N = K the lists are the logits.
    cuda::rank(
        device, &queries, &queue, capacity, None, exact, work, &mut all,
    )?;
    group.bench_function("of logits", |bencher| {
        by_events(bencher, device, || {
            cuda::rank_logits(device, &all.logits(), capacity, HARDEST, None, &mut ranked)
        });
    });
    Ok(())
}

//! A step on a GPU with slices and a stream of one's own.
//!
//! Every call puts its work on the stream and returns; the one wait is where the loss is read.
//!
//! ```sh
//! eval "$(tools/cuda-toolkit)"
//! cargo run --release -p hardmix --features cuda --example cudarc
//! tools/softgpu cargo run -p hardmix --features cuda --example cudarc    # without a GPU
//! ```

use std::error::Error;

use cudarc::driver::{CudaContext, CudaSlice};
use hardmix::cuda::{self, Batch, Device, Draws, Step};
use hardmix::{Config, DType, Queue};

const BATCH: usize = 16;
const DIM: usize = 32;

fn main() -> Result<(), Box<dyn Error>> {
    // Without a driver this is an error; cudarc's own constructor would panic.
    let probe = Device::new(0)?;
    // The caller's: a context, a stream, and what the encoders left in device memory.
    let context: &std::sync::Arc<CudaContext> = probe.stream().context();
    let stream = context.new_stream()?;
    let unit = Queue::random(2 * BATCH, DIM, DType::F32, 1)?
        .rows()
        .to_f32();
    let (queries, keys) = unit.split_at(BATCH * DIM);
    let on_device: [CudaSlice<f32>; 2] = [stream.clone_htod(queries)?, stream.clone_htod(keys)?];
    let mut weights: CudaSlice<f32> = stream.alloc_zeros(BATCH * DIM)?;

    // hardmix on that stream. The kernels are loaded once a context.
    let device = probe.with_stream(stream.clone())?;
    let host_queue = Queue::random(512, DIM, DType::Bf16, 0)?;
    let mut queue = cuda::Queue::from_host(&device, &host_queue)?;
    let mut step = Step::new(&device, Config::mochi(64, 32, 16)?)?;
    let seed_and_step = stream.clone_htod(&[42u64, 0])?;

    let batch = Batch::new(&on_device[0], &on_device[1], DIM)?;
    step.run(&batch, &queue, &Draws::Seeded(&seed_and_step))?;
    // The gradient, for whatever comes next on the stream: here a copy, in a trainer the backward pass.
    stream.memcpy_dtod(&step.grad_queries(), &mut weights)?;
    queue.enqueue(&device, &on_device[1], None)?; // after the loss, never before

    // This waits, and is an error where a row was not a number.
    let output = step.read()?;
    queue.check(&device)?;
    println!(
        "loss {}, proxy accuracy {}",
        output.loss()?,
        output.metrics.proxy_accuracy
    );

    // The CPU says the same, to the method's tolerance of 1e-5 at τ = 0.2 for unit rows.
    let mut reference = hardmix::cpu::Step::new(step.config().clone());
    let batch = hardmix::Batch::new(queries, keys, DIM)?;
    let draws = hardmix::Draws::seeded(42, 0)?;
    let expected = reference.run(&batch, &host_queue, &draws)?;
    assert!((output.loss()? - expected.loss()?).abs() < 1e-5);
    assert_eq!(output.hardest, expected.hardest);
    assert_eq!(stream.clone_dtoh(&weights)?, output.grad_queries);
    assert_eq!(queue.cursor(&device)?, BATCH);
    Ok(())
}

//! MoCo in candle, and the five lines that make it MoCHi: each is marked with its number.
//!
//! What is not marked is a plain contrastive trainer: an encoder, its slow copy for the keys, two
//! views of a picture, an optimiser. The pictures are random points in eight clusters, so that it runs
//! in a second.
//!
//! ```sh
//! cargo run --release -p hardmix --features candle --example candle_moco
//! ```

use candle_core::{Device, Result, Tensor, Var};
use hardmix::candle::{Loss, Queue}; // 1
use hardmix::{Config, DType, Draws}; // 1

const BATCH: usize = 32;
const PIXELS: usize = 24;
const DIM: usize = 16;
const STEPS: u64 = 120;
/// From here on the queue holds keys alone; before, random rows, which are easy negatives.
const FILLED: u64 = 512 / BATCH as u64;
const KEPT: f64 = 0.95; // of the key encoder, at each step

fn unit(rows: &Tensor) -> Result<Tensor> {
    rows.broadcast_div(&rows.sqr()?.sum_keepdim(1)?.sqrt()?)
}

fn encode(images: &Tensor, weights: &Tensor) -> Result<Tensor> {
    unit(&images.matmul(weights)?.tanh()?)
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let device = &Device::cuda_if_available(0)?; // with the feature `candle-cuda`, else the CPU
    // candle's own generator has no seed on the CPU; the library's unit rows have.
    let random = |rows, dim, seed| -> std::result::Result<Tensor, Box<dyn std::error::Error>> {
        let unit_rows = hardmix::Queue::random(rows, dim, DType::F32, seed)?;
        Ok(Tensor::from_vec(
            unit_rows.rows().to_f32(),
            (rows, dim),
            device,
        )?)
    };
    let centres = random(8, PIXELS, 1)?;
    let weights = Var::from_tensor(&random(PIXELS, DIM, 2)?)?;
    let mut key_weights = weights.as_tensor().copy()?;

    let mut queue = Queue::random(512, DIM, DType::F32, 0, device)?; // 2
    let mut mochi = Loss::new(Config::mochi(64, 32, 16)?); // 3

    let (mut first, mut last) = (0.0, 0.0);
    for step in 0..STEPS {
        let seed = 10 + 3 * step;
        let cluster = Tensor::from_iter((0..BATCH as u32).map(|i| i % 8), device)?;
        let images = (centres.index_select(&cluster, 0)? + (random(BATCH, PIXELS, seed)? * 0.8)?)?;
        let view = |seed| {
            Ok::<_, Box<dyn std::error::Error>>((&images + (random(BATCH, PIXELS, seed)? * 0.3)?)?)
        };
        let queries = encode(&view(seed + 1)?, &weights)?;
        let keys = encode(&view(seed + 2)?, &key_weights)?.detach();

        let loss = mochi.forward(&queries, &keys, &queue, &Draws::seeded(0, step)?)?; // 4

        let gradients = loss.backward()?;
        let gradient = gradients.get(&weights).expect("the encoder's");
        weights.set(&(weights.as_tensor() - (gradient * 0.3)?)?)?;
        key_weights = ((key_weights * KEPT)? + (weights.as_detached_tensor() * (1.0 - KEPT))?)?;

        queue.enqueue(&keys, None)?; // 5: after the loss

        let loss = loss.to_scalar::<f32>()?;
        if step == FILLED {
            first = loss;
        }
        last = loss;
        if step % 20 == 0 {
            println!(
                "step {step:3}: loss {loss:.4}, proxy accuracy {:.2}",
                mochi.output()?.metrics.proxy_accuracy
            );
        }
    }
    println!("loss {first:.4} once the queue was full, {last:.4} at last");
    assert!(last < first, "it learns");
    Ok(())
}

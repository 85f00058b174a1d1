//! Contrastive learning with hard negative mixing (MoCHi, Kalantidis et al., NeurIPS 2020): the
//! loss, its gradient and its diagnostics.
//!
//! A query q is to find its key k among K negatives, the rows n of a queue: InfoNCE over the logits
//! q·k and q·n at a temperature τ. MoCHi makes the task harder where it has become easy. Of each
//! query's N hardest negatives, those with the largest logits, it mixes s pairs,
//! h = (αnᵢ + (1−α)nⱼ)/r, and s′ times the query itself with one of them,
//! h′ = (βq + (1−β)nⱼ)/r with β < ½, and adds these synthetic negatives to the queue's. None of
//! them is stored: q·h and q·h′ are functions of logits that are there already and, for a pair, of
//! one dot product more.
//!
//! ```text
//! queries q ─┬─ q·k ─────────────────────────────────────────────┐
//! keys k ────┘                                                   │
//!            ┌─ q·n, all K ──────────────────────────────────────┼─ log-sum-exp: loss,
//! queue n ───┴─ the N hardest ─┬─ s pairs mixed: q·h ────────────┤  gradient, diagnostics
//!                              └─ s′ mixed with the query: q·h′ ─┘
//! ```
//!
//! On the CPU:
//!
//! ```
//! use hardmix::{Batch, Config, DType, Draws, Queue, cpu};
//!
//! let dim = 32;
//! let mut queue = Queue::random(1024, dim, DType::F32, 0)?;
//! let mut step = cpu::Step::new(Config::mochi(128, 64, 32)?);
//!
//! // From your encoders: [batch, dim], one key a query, L2-normalised.
//! # let unit = Queue::random(16, dim, DType::F32, 1)?.rows().to_f32();
//! # let (queries, keys) = unit.split_at(8 * dim);
//! let batch = Batch::new(queries, keys, dim)?;
//! let output = step.run(&batch, &queue, &Draws::seeded(42, 0)?)?;
//! println!("loss {}, proxy accuracy {}", output.loss()?, output.metrics.proxy_accuracy);
//! let gradient = &output.grad_queries; // [batch, dim], for your optimiser
//! # assert_eq!(gradient.len(), 8 * dim);
//!
//! queue.enqueue(keys, None)?; // after the loss, never before
//! # Ok::<(), hardmix::Error>(())
//! ```
#![cfg_attr(
    feature = "cuda",
    doc = r#"
On an NVIDIA GPU, with tensors in device memory (feature `cuda`; [`cuda`]):

```no_run
use hardmix::cuda::{Batch, Device, Draws, Queue, Step};
use hardmix::{Config, DType};

let device = Device::new(0)?; // or with_stream, for a stream of your own
let rows = hardmix::Queue::random(65_536, 128, DType::Bf16, 0)?;
let mut queue = Queue::from_host(&device, &rows)?;
let mut step = Step::new(&device, Config::imagenet1k_1024_512_256())?;
# let queries = device.upload("queries", &[0.0f32; 256 * 128])?;
# let keys = device.upload("keys", &[0.0f32; 256 * 128])?;
let seed_and_step = device.upload("draws", &[42_u64, 0])?; // the caller advances the step

// queries, keys: cudarc's slices or views, [batch, 128], from your encoders
let batch = Batch::new(&queries, &keys, 128)?;
step.run(&batch, &queue, &Draws::Seeded(&seed_and_step))?; // puts it on the stream and returns
let gradient = step.grad_queries(); // [batch, 128], in device memory, for what comes next
# drop(gradient);
queue.enqueue(&device, &keys, None)?;
println!("loss {}", step.read()?.loss()?); // waits
# Ok::<(), hardmix::Error>(())
```
"#
)]
#![cfg_attr(
    feature = "candle",
    doc = r#"
With candle (feature `candle`; [`candle`]), the loss is a tensor whose `backward` hands over the
gradient that was computed with it:

```
# use candle_core::{Device, Tensor, Var};
use hardmix::candle::{Loss, Queue};
use hardmix::{Config, DType, Draws};

let device = Device::Cpu; // or CUDA, with the feature `candle-cuda`
# let queries = Var::randn(0f32, 1.0, (4, 16), &device)?;
# let keys = Tensor::randn(0f32, 1.0, (4, 16), &device)?;
# let (seed, step_number) = (0, 0);
let mut queue = Queue::random(4096, 16, DType::F32, 0, &device)?;
let mut mochi = Loss::new(Config::mochi(128, 64, 32)?);
let draws = Draws::seeded(seed, step_number)?;
let loss = mochi.forward(&queries, &keys, &queue, &draws)?;
let gradients = loss.backward()?;
queue.enqueue(&keys, None)?;
# assert!(gradients.get(&queries).is_some() && mochi.output()?.loss().is_ok());
# Ok::<(), Box<dyn std::error::Error>>(())
```
"#
)]
//!
//! # Where things are
//!
//! - [`Config`]: temperature, N, s, s′, how the query's gradient flows; the paper's settings by name.
//! - [`Queue`]: the ring of negatives in f32, f16 or bf16, with labels; saved and loaded.
//! - [`Draws`]: which rows are mixed with which weights, by a counter-based generator, the same on
//!   every device and in any sharding of the batch; or the caller's own.
//! - [`cpu::Step`]: loss, gradient and diagnostics in one pass over the queue.
//! - [`cpu::rank`], [`cpu::mix`], [`cpu::info_nce`]: the three operators, each usable alone.
//! - [`Output`] and [`Metrics`]: what comes back.
#![cfg_attr(
    feature = "candle",
    doc = "- [`candle`]: the loss as an operation on candle tensors, and the queue beside them."
)]
#![cfg_attr(
    feature = "cuda",
    doc = "- [`cuda`]: the same operators on an NVIDIA GPU, on cudarc's slices and streams."
)]
//!
//! # Guarantees
//!
//! - The same inputs, seed and step give the same bits, whatever the number of threads; and a row's
//!   bits do not depend on the batch it is in.
//! - The hardest are exact: the N largest logits of the stored queue, ties to the lower row.
//! - Bad input is an [`Error`] that names the argument, what it was and what was expected. A row
//!   that is not finite never passes for a loss: [`Output::loss`] names it.

mod batch;
#[cfg(feature = "candle")]
pub mod candle;
mod config;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod draws;
mod error;
mod output;
mod queue;
mod report;

pub use batch::Batch;
pub use config::{Config, PaperSetting, QueryGradient, Reduction};
pub use draws::{Draws, GivenDraws};
pub use error::{Error, Result};
pub use output::{Metrics, Output, Status};
pub use queue::{DType, NO_LABEL, NO_ROW, Queue, Rows};

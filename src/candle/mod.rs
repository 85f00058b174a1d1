//! The drop-in for candle trainers: the loss as a tensor, with the fused gradient behind it.
//!
//! [`Loss`] computes loss and gradient together, where the tensors are, and returns the loss as a
//! scalar of candle's graph; `backward` then costs one multiplication. Queries carry the gradient,
//! through whatever made them. Keys carry none unless [`Config::with_key_gradient`] asks for it, and
//! the [`Queue`], which lives beside the variables on their device, never does.
//!
//! On the CPU with the feature `candle`. With `candle-cuda` also on CUDA: work goes to the stream of
//! candle's device, tensors are read where they lie in its memory, and nothing of a step waits for it
//! or comes to the host until [`Loss::output`] is called.
//!
//! ```
//! use candle_core::{Device, Tensor, Var};
//! use hardmix::candle::{Loss, Queue};
//! use hardmix::{Config, DType, Draws};
//!
//! let device = Device::Cpu;
//! let unit = |rows: Tensor| rows.broadcast_div(&rows.sqr()?.sum_keepdim(1)?.sqrt()?);
//! let weights = Var::randn(0f32, 1.0, (8, 16), &device)?; // an encoder
//! let images = Tensor::randn(0f32, 1.0, (4, 8), &device)?;
//! let queries = unit(images.matmul(&weights)?)?;
//! let keys = unit(Tensor::randn(0f32, 1.0, (4, 16), &device)?)?;
//! let mut queue = Queue::random(64, 16, DType::F32, 0, &device)?;
//!
//! let mut mochi = Loss::new(Config::mochi(16, 8, 8)?);
//! let loss = mochi.forward(&queries, &keys, &queue, &Draws::seeded(0, 0)?)?;
//! let gradients = loss.backward()?;
//! assert_eq!(gradients.get(&weights).expect("the encoder's").dims(), [8, 16]);
//! queue.enqueue(&keys, None)?; // after the loss, never before
//! println!("{loss}, proxy accuracy {}", mochi.output()?.metrics.proxy_accuracy);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod fused;
mod queue;
mod tensor;

use candle_core::{Device, Tensor};

use crate::cpu::Step;
use crate::{Batch, Config, Draws, Error, Output, Reduction, Result};
use fused::Fused;
use tensor::{expect_one_axis, expect_same_device, host_slice, matrix_dims, unfit};

pub use queue::Queue;

/// MoCHi's loss over candle tensors. It owns its workspace: make one and call it every step.
#[derive(Debug)]
pub struct Loss {
    step: Step,
    #[cfg(feature = "candle-cuda")]
    cuda: Option<crate::cuda::Step>,
    last: Last,
}

/// Where the last batch was computed.
#[derive(Debug)]
enum Last {
    Nowhere,
    Cpu(Box<Output>),
    #[cfg(feature = "candle-cuda")]
    Cuda,
}

/// What a batch is made of.
#[derive(Debug, Clone, Copy)]
struct Inputs<'a> {
    queries: &'a Tensor,
    keys: &'a Tensor,
    labels: Option<&'a Tensor>,
    draws: &'a Draws,
    /// B and d.
    shape: (usize, usize),
}

impl Loss {
    /// A loss with these settings.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            step: Step::new(config),
            #[cfg(feature = "candle-cuda")]
            cuda: None,
            last: Last::Nowhere,
        }
    }

    /// The settings.
    #[must_use]
    pub fn config(&self) -> &Config {
        self.step.config()
    }

    /// Changes the settings, as at the end of warm-up.
    pub fn set_config(&mut self, config: Config) {
        #[cfg(feature = "candle-cuda")]
        if let Some(step) = &mut self.cuda {
            step.set_config(config.clone());
        }
        self.step.set_config(config);
    }

    /// The loss of `queries` [B, d] with their positives `keys` [B, d] against the queue as it is:
    /// a scalar, or `[B]` for [`Reduction::None`]. Enqueue the keys afterwards.
    ///
    /// A row that is not finite is an error on the CPU. On CUDA it makes its own loss, and the reduced
    /// one, NaN, and its gradient; [`Output::loss`] of [`Loss::output`] names it. On either
    /// [`Loss::output`] has all rows then. For draws that are given it waits on CUDA, since one out
    /// of range is an error on either.
    ///
    /// # Errors
    /// [`Error::Tensor`] for queries or keys that are not contiguous f32 matrices on the queue's
    /// device or whose shapes differ, [`Error::NonFinite`] on the CPU, and all errors of
    /// [`Batch::new`] and [`Step::run`], on CUDA those of `cuda::Step::run`.
    pub fn forward(
        &mut self,
        queries: &Tensor,
        keys: &Tensor,
        queue: &Queue,
        draws: &Draws,
    ) -> Result<Tensor> {
        self.run(queries, keys, None, queue, draws)
    }

    /// [`Loss::forward`] with the queries' labels, u32 `[B]`, which measure and, with the oracle,
    /// mask.
    ///
    /// # Errors
    /// As for [`Loss::forward`], [`Error::Tensor`] for labels of another type or shape or that are
    /// not contiguous, and [`Error::Length`] for another number of them.
    pub fn forward_with_labels(
        &mut self,
        queries: &Tensor,
        keys: &Tensor,
        labels: &Tensor,
        queue: &Queue,
        draws: &Draws,
    ) -> Result<Tensor> {
        self.run(queries, keys, Some(labels), queue, draws)
    }

    /// Everything about the last batch, metrics and what was drawn included, in host memory; waits
    /// for the device.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] where no batch was run; on CUDA those of `cuda::Step::read`.
    pub fn output(&self) -> Result<Output> {
        match &self.last {
            Last::Cpu(output) => Ok((**output).clone()),
            #[cfg(feature = "candle-cuda")]
            Last::Cuda => self.cuda.as_ref().ok_or_else(nothing)?.read(),
            Last::Nowhere => Err(nothing()),
        }
    }

    fn run(
        &mut self,
        queries: &Tensor,
        keys: &Tensor,
        labels: Option<&Tensor>,
        queue: &Queue,
        draws: &Draws,
    ) -> Result<Tensor> {
        let shape = matrix_dims("queries", queries)?;
        if matrix_dims("keys", keys)? != shape {
            let (rows, dim) = shape;
            let reason = format!("has shape {:?}; queries {rows}×{dim}", keys.dims());
            return Err(unfit("keys", reason));
        }
        let tensors = [("queries", Some(queries)), ("keys", Some(keys))];
        for (name, tensor) in tensors.into_iter().chain([("labels", labels)]) {
            if let Some(tensor) = tensor {
                expect_same_device(name, tensor, queue.device())?;
            }
        }
        if let Some(labels) = labels {
            expect_one_axis("labels", labels)?;
        }
        let inputs = Inputs {
            queries,
            keys,
            labels,
            draws,
            shape,
        };
        if let Last::Cpu(output) = std::mem::replace(&mut self.last, Last::Nowhere) {
            self.step.recycle(*output);
        }
        let fused = match queue.place() {
            queue::Place::Cpu(queue) => self.run_cpu(inputs, queue)?,
            #[cfg(feature = "candle-cuda")]
            queue::Place::Cuda(queue) => self.run_cuda(inputs, queue)?,
        };
        // candle's backward wants a gradient for whatever is tracked and is no variable.
        let loss = match &fused.grad_keys {
            Some(_) => queries.apply_op2(keys, fused),
            None => queries.apply_op2(&keys.detach(), fused),
        };
        loss.map_err(Error::Candle)
    }

    fn run_cpu(&mut self, inputs: Inputs<'_>, queue: &crate::Queue) -> Result<Fused> {
        let (_, dim) = inputs.shape;
        let step = &mut self.step;
        let output = host_slice("queries", inputs.queries, |queries| {
            host_slice("keys", inputs.keys, |keys| {
                let batch = Batch::new(queries, keys, dim)?;
                match inputs.labels {
                    Some(labels) => host_slice("labels", labels, |labels| {
                        step.run(&batch.with_labels(labels)?, queue, inputs.draws)
                    }),
                    None => step.run(&batch, queue, inputs.draws),
                }
            })
        })?;
        let fused = fused_on_cpu(&output, self.step.config().reduction(), inputs.shape);
        self.last = Last::Cpu(Box::new(output));
        fused
    }

    #[cfg(feature = "candle-cuda")]
    fn run_cuda(&mut self, inputs: Inputs<'_>, queue: &queue::OnCuda) -> Result<Fused> {
        use crate::cuda::{self, Batch};
        use std::sync::Arc;
        use tensor::{device_slice, device_tensor};

        let step = match &mut self.cuda {
            // Work goes to the stream of the tensors, so that another device wants another step.
            Some(step) if Arc::ptr_eq(step.device().stream(), queue.device.stream()) => step,
            other => other.insert(cuda::Step::new(&queue.device, self.step.config().clone())?),
        };
        let (rows, dim) = inputs.shape;
        device_slice("queries", inputs.queries, |queries| {
            device_slice("keys", inputs.keys, |keys| {
                let batch = Batch::new(queries, keys, dim)?;
                inputs
                    .draws
                    .upload(&queue.device, |draws| match inputs.labels {
                        Some(labels) => device_slice("labels", labels, |labels| {
                            step.run(&batch.with_labels(labels)?, &queue.queue, draws)
                        }),
                        None => step.run(&batch, &queue.queue, draws),
                    })
            })
        })?;
        self.last = Last::Cuda;
        if matches!(inputs.draws, Draws::Given(_)) {
            // Only the device knows whether they are in range, and it computes with others if not.
            step.read()?;
        }
        let there = &queue.candle;
        Ok(Fused {
            loss: match step.config().reduction() {
                Reduction::None => device_tensor(&step.loss_rows(), &[rows], there)?,
                Reduction::Mean | Reduction::Sum => device_tensor(&step.loss(), &[], there)?,
            },
            grad_queries: device_tensor(&step.grad_queries(), &[rows, dim], there)?,
            grad_keys: match step.grad_keys() {
                Some(gradient) => Some(device_tensor(&gradient, &[rows, dim], there)?),
                None => None,
            },
        })
    }
}

/// The node for a result of B rows of dimension d in host memory.
fn fused_on_cpu(
    output: &Output,
    reduction: Reduction,
    (rows, dim): (usize, usize),
) -> Result<Fused> {
    let reduced = output.loss()?;
    let tensor = |data: &[f32], dims: &[usize]| {
        Tensor::from_slice(data, dims, &Device::Cpu).map_err(Error::Candle)
    };
    Ok(Fused {
        loss: match reduction {
            Reduction::None => tensor(&output.loss_rows, &[rows])?,
            Reduction::Mean | Reduction::Sum => tensor(&[reduced], &[])?,
        },
        grad_queries: tensor(&output.grad_queries, &[rows, dim])?,
        grad_keys: match &output.grad_keys {
            Some(gradient) => Some(tensor(gradient, &[rows, dim])?),
            None => None,
        },
    })
}

fn nothing() -> Error {
    Error::OutOfRange {
        argument: "loss",
        value: "without a batch".into(),
        expected: "one batch run before its output is read",
    }
}

//! The drop-in for candle trainers: the loss as a tensor, with the fused gradient behind it.
//!
//! [`Loss`] computes loss and gradient together, on the CPU, and returns the loss as a scalar of
//! candle's graph; `backward` then costs one multiplication. Queries carry the gradient, through
//! whatever made them. Keys carry none unless [`Config::with_key_gradient`] asks for it, and the
//! queue never does.
//!
//! ```
//! use candle_core::{Device, Tensor, Var};
//! use hardmix::{Config, DType, Draws, Queue, candle::Loss};
//!
//! let unit = |rows: Tensor| rows.broadcast_div(&rows.sqr()?.sum_keepdim(1)?.sqrt()?);
//! let weights = Var::randn(0f32, 1.0, (8, 16), &Device::Cpu)?; // an encoder
//! let images = Tensor::randn(0f32, 1.0, (4, 8), &Device::Cpu)?;
//! let queries = unit(images.matmul(&weights)?)?;
//! let keys = unit(Tensor::randn(0f32, 1.0, (4, 16), &Device::Cpu)?)?;
//! let queue = Queue::random(64, 16, DType::F32, 0)?;
//!
//! let mut loss = Loss::new(Config::mochi(16, 8, 8)?);
//! let (loss, output) = loss.forward(&queries, &keys, &queue, &Draws::seeded(0, 0)?)?;
//! let gradients = loss.backward()?;
//! assert_eq!(gradients.get(&weights).expect("the encoder's").dims(), [8, 16]);
//! println!("{loss}, proxy accuracy {}", output.metrics.proxy_accuracy);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use candle_core::{CpuStorage, CustomOp2, Layout, Shape, Storage, Tensor};

use crate::cpu::Step;
use crate::{Batch, Config, Draws, Error, Output, Queue, Reduction, Result};

/// MoCHi's loss over candle tensors. It owns its workspace: make one and call it every step.
#[derive(Debug)]
pub struct Loss {
    step: Step,
}

impl Loss {
    /// A loss with these settings.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            step: Step::new(config),
        }
    }

    /// The settings.
    #[must_use]
    pub fn config(&self) -> &Config {
        self.step.config()
    }

    /// Changes the settings, as at the end of warm-up.
    pub fn set_config(&mut self, config: Config) {
        self.step.set_config(config);
    }

    /// The loss of `queries` [B, d] with their positives `keys` [B, d] against the queue as it is:
    /// a scalar, or `[B]` for [`Reduction::None`]. Enqueue the keys afterwards.
    ///
    /// # Errors
    /// [`Error::Tensor`] for queries or keys that are not contiguous f32 matrices on the CPU or
    /// whose shapes differ, [`Error::NonFinite`] for a row that is not finite, and all errors of
    /// [`Batch::new`] and [`Step::run`].
    pub fn forward(
        &mut self,
        queries: &Tensor,
        keys: &Tensor,
        queue: &Queue,
        draws: &Draws,
    ) -> Result<(Tensor, Output)> {
        self.run(queries, keys, None, queue, draws)
    }

    /// [`Loss::forward`] with the queries' labels `[B]`, which measure and, with the oracle, mask.
    ///
    /// # Errors
    /// As for [`Loss::forward`], and [`Error::Length`] for another number of labels.
    pub fn forward_with_labels(
        &mut self,
        queries: &Tensor,
        keys: &Tensor,
        labels: &[u32],
        queue: &Queue,
        draws: &Draws,
    ) -> Result<(Tensor, Output)> {
        self.run(queries, keys, Some(labels), queue, draws)
    }

    fn run(
        &mut self,
        queries: &Tensor,
        keys: &Tensor,
        labels: Option<&[u32]>,
        queue: &Queue,
        draws: &Draws,
    ) -> Result<(Tensor, Output)> {
        let (rows, dim) = dims("queries", queries)?;
        if dims("keys", keys)? != (rows, dim) {
            return Err(unfit(
                "keys",
                format!("has shape {:?}; queries {rows}×{dim}", keys.dims()),
            ));
        }
        let output = with_slice("queries", queries, |queries| {
            with_slice("keys", keys, |keys| {
                let mut batch = Batch::new(queries, keys, dim)?;
                if let Some(labels) = labels {
                    batch = batch.with_labels(labels)?;
                }
                self.step.run(&batch, queue, draws)
            })
        })?;
        let reduced = output.loss()?;
        let matrix = |data: &[f32]| {
            Tensor::from_slice(data, (rows, dim), queries.device()).map_err(Error::Candle)
        };
        let fused = match self.step.config().reduction() {
            Reduction::None => (output.loss_rows.clone(), Shape::from(rows)),
            Reduction::Mean | Reduction::Sum => (vec![reduced], Shape::from(())),
        };
        let fused = Fused {
            loss: fused.0,
            shape: fused.1,
            grad_queries: matrix(&output.grad_queries)?,
            grad_keys: output.grad_keys.as_deref().map(matrix).transpose()?,
        };
        let loss = queries.apply_op2(keys, fused).map_err(Error::Candle)?;
        Ok((loss, output))
    }
}

fn unfit(name: &str, reason: String) -> Error {
    Error::Tensor {
        name: name.to_owned(),
        reason,
    }
}

fn dims(name: &str, tensor: &Tensor) -> Result<(usize, usize)> {
    tensor.dims2().map_err(|_| {
        unfit(
            name,
            format!(
                "has shape {:?}; expected a matrix, rows × dim",
                tensor.dims()
            ),
        )
    })
}

fn with_slice<R>(name: &str, tensor: &Tensor, with: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    let Some((start, end)) = layout.contiguous_offsets() else {
        return Err(unfit(
            name,
            "is not contiguous; call contiguous() first".to_owned(),
        ));
    };
    match &*storage {
        Storage::Cpu(CpuStorage::F32(data)) => with(&data[start..end]),
        Storage::Cpu(_) => Err(unfit(
            name,
            format!("is {:?}; expected F32", tensor.dtype()),
        )),
        _ => Err(unfit(
            name,
            "lies on another device; expected the CPU".to_owned(),
        )),
    }
}

/// A loss whose gradient is known when it is made: the node of candle's graph.
struct Fused {
    loss: Vec<f32>,
    shape: Shape,
    grad_queries: Tensor,
    grad_keys: Option<Tensor>,
}

impl CustomOp2 for Fused {
    fn name(&self) -> &'static str {
        "hardmix-loss"
    }

    fn cpu_fwd(
        &self,
        _queries: &CpuStorage,
        _queries_layout: &Layout,
        _keys: &CpuStorage,
        _keys_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(self.loss.clone()), self.shape.clone()))
    }

    fn bwd(
        &self,
        _queries: &Tensor,
        _keys: &Tensor,
        _loss: &Tensor,
        upstream: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        // A scalar becomes [1, 1], one value a row [B, 1].
        let upstream = upstream.reshape(((), 1))?;
        let scaled = |gradient: &Tensor| gradient.broadcast_mul(&upstream);
        let grad_keys = self.grad_keys.as_ref().map(scaled).transpose()?;
        Ok((Some(scaled(&self.grad_queries)?), grad_keys))
    }
}

//! The node of candle's graph.

use candle_core::{CpuStorage, CustomOp2, Layout, Shape, Storage, Tensor, bail};

/// A loss whose gradient is known when it is made.
pub(super) struct Fused {
    /// A scalar, or `[B]`.
    pub loss: Tensor,
    pub grad_queries: Tensor,
    pub grad_keys: Option<Tensor>,
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
        match &*self.loss.storage_and_layout().0 {
            Storage::Cpu(loss) => Ok((loss.clone(), self.loss.shape().clone())),
            _ => bail!("hardmix-loss: the loss was not computed on the CPU"),
        }
    }

    #[cfg(feature = "candle-cuda")]
    fn cuda_fwd(
        &self,
        _queries: &candle_core::CudaStorage,
        _queries_layout: &Layout,
        _keys: &candle_core::CudaStorage,
        _keys_layout: &Layout,
    ) -> candle_core::Result<(candle_core::CudaStorage, Shape)> {
        use candle_core::backend::BackendStorage as _;
        match &*self.loss.storage_and_layout().0 {
            Storage::Cuda(loss) => Ok((
                loss.try_clone(self.loss.layout())?,
                self.loss.shape().clone(),
            )),
            _ => bail!("hardmix-loss: the loss was not computed on CUDA"),
        }
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

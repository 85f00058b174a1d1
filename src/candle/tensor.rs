//! What lies behind a candle tensor.

use candle_core::{Device, Storage, Tensor, WithDType};

use crate::{Error, Result};

pub(super) fn unfit(name: &str, reason: impl Into<String>) -> Error {
    Error::Tensor {
        name: name.to_owned(),
        reason: reason.into(),
    }
}

/// Rows and columns.
pub(super) fn matrix_dims(name: &str, tensor: &Tensor) -> Result<(usize, usize)> {
    tensor.dims2().map_err(|_| {
        let shape = tensor.dims();
        unfit(
            name,
            format!("has shape {shape:?}; expected a matrix, rows × dim"),
        )
    })
}

/// Labels of one axis: of more, it would be chance that they are as many as the rows.
pub(super) fn expect_one_axis(name: &str, tensor: &Tensor) -> Result<()> {
    match tensor.dims() {
        [_] => Ok(()),
        shape => {
            let reason = format!("has shape {shape:?}; expected one axis, a label a row");
            Err(unfit(name, reason))
        }
    }
}

pub(super) fn expect_same_device(name: &str, tensor: &Tensor, device: &Device) -> Result<()> {
    if tensor.device().same_device(device) {
        return Ok(());
    }
    let (own, other) = (tensor.device().location(), device.location());
    Err(unfit(
        name,
        format!("lies on another device, {own:?}; expected that of the queue, {other:?}"),
    ))
}

/// The elements that a contiguous tensor of this type has in its storage.
fn span<T: WithDType>(name: &str, tensor: &Tensor) -> Result<std::ops::Range<usize>> {
    if tensor.dtype() != T::DTYPE {
        let reason = format!("is {:?}; expected {:?}", tensor.dtype(), T::DTYPE);
        return Err(unfit(name, reason));
    }
    let Some((start, end)) = tensor.layout().contiguous_offsets() else {
        return Err(unfit(name, "is not contiguous; call contiguous() first"));
    };
    Ok(start..end)
}

/// Runs `with` on the elements of a tensor in host memory.
pub(super) fn host_slice<T: WithDType, R>(
    name: &str,
    tensor: &Tensor,
    with: impl FnOnce(&[T]) -> Result<R>,
) -> Result<R> {
    let span = span::<T>(name, tensor)?;
    match &*tensor.storage_and_layout().0 {
        Storage::Cpu(data) => with(&data.as_slice::<T>().map_err(Error::Candle)?[span]),
        _ => Err(unfit(name, "lies on another device; expected the CPU")),
    }
}

/// Runs `with` on the elements of a tensor in device memory.
#[cfg(feature = "candle-cuda")]
pub(super) fn device_slice<T, R>(
    name: &str,
    tensor: &Tensor,
    with: impl FnOnce(&dyn cudarc::driver::DevicePtr<T>) -> Result<R>,
) -> Result<R>
where
    T: WithDType + candle_core::cuda_backend::CudaDType,
{
    let span = span::<T>(name, tensor)?;
    match &*tensor.storage_and_layout().0 {
        Storage::Cuda(data) => {
            let data = data.as_cuda_slice::<T>().map_err(Error::Candle)?;
            with(&data.slice(span))
        }
        _ => Err(unfit(name, "lies on another device; expected CUDA")),
    }
}

/// A copy of a step's result as a tensor of its own, on the device's stream.
#[cfg(feature = "candle-cuda")]
pub(super) fn device_tensor(
    result: &cudarc::driver::CudaView<'_, f32>,
    shape: &[usize],
    device: &candle_core::CudaDevice,
) -> Result<Tensor> {
    use candle_core::CudaStorage;
    let copied = device
        .cuda_stream()
        .clone_dtod(result)
        .map_err(|error| Error::Driver {
            operation: "copying a result",
            reason: error.to_string(),
        })?;
    let storage = CudaStorage::wrap_cuda_slice(copied, device.clone());
    let op = candle_core::op::BackpropOp::none();
    Ok(Tensor::from_storage(
        Storage::Cuda(storage),
        shape,
        op,
        false,
    ))
}

//! The queue beside candle's variables.

use std::borrow::Cow;
use std::path::Path;

use candle_core::{Device, Tensor};

use super::tensor::{expect_one_axis, expect_same_device, host_slice, matrix_dims, unfit};
use crate::{DType, Error, Result};

/// The queue of negatives on the device of a model's variables, filled from tensors.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use hardmix::{DType, candle::Queue};
///
/// let mut queue = Queue::random(5, 2, DType::F32, 7, &Device::Cpu)?;
/// let keys = Tensor::new(&[[1f32, 0.0], [0.0, 1.0]], &Device::Cpu)?;
/// let labels = Tensor::new(&[3u32, 4], &Device::Cpu)?;
/// queue.enqueue(&keys, Some(&labels))?;
/// assert_eq!(queue.to_host()?.row(1), Some(vec![0.0, 1.0]));
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("queue.safetensors");
/// queue.save(&path)?; // beside the model's own file
/// assert_eq!(Queue::load(&path, &Device::Cpu)?.to_host()?, queue.to_host()?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Queue {
    device: Device,
    place: Place,
}

#[derive(Debug)]
pub(super) enum Place {
    Cpu(crate::Queue),
    #[cfg(feature = "candle-cuda")]
    Cuda(Box<OnCuda>),
}

/// A queue in device memory, with the kernels and the stream for it.
#[cfg(feature = "candle-cuda")]
#[derive(Debug)]
pub(super) struct OnCuda {
    pub queue: crate::cuda::Queue,
    pub device: crate::cuda::Device,
    pub candle: candle_core::CudaDevice,
}

impl Queue {
    /// A queue of the library's, such as one of given rows, on a device of candle's: the CPU, or
    /// CUDA in a build with the feature `candle-cuda`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for another device; on CUDA those of `cuda::Device::on` and
    /// `cuda::Queue::from_host`.
    pub fn new(queue: crate::Queue, device: &Device) -> Result<Self> {
        let place = match device {
            Device::Cpu => Place::Cpu(queue),
            #[cfg(feature = "candle-cuda")]
            Device::Cuda(candle) => {
                let device = crate::cuda::Device::on(candle.cuda_stream())?;
                Place::Cuda(Box::new(OnCuda {
                    queue: crate::cuda::Queue::from_host(&device, &queue)?,
                    device,
                    candle: candle.clone(),
                }))
            }
            other => {
                return Err(Error::OutOfRange {
                    argument: "device",
                    value: format!("{:?}", other.location()),
                    expected: "the CPU, or CUDA in a build with the feature `candle-cuda`",
                });
            }
        };
        let device = device.clone();
        Ok(Self { device, place })
    }

    /// A full queue of seeded random unit rows without labels, as MoCo starts.
    ///
    /// # Errors
    /// As [`Queue::new`] and [`crate::Queue::random`].
    pub fn random(
        capacity: usize,
        dim: usize,
        dtype: DType,
        seed: u64,
        device: &Device,
    ) -> Result<Self> {
        Self::new(crate::Queue::random(capacity, dim, dtype, seed)?, device)
    }

    /// Writes keys [rows, d], f32 and contiguous, over the oldest rows, with their labels, u32
    /// `[rows]`. Of the keys' graph nothing is kept. Returns how many of them the queue now holds.
    ///
    /// On CUDA this is put on the stream, and a key that is not finite is seen by the device alone:
    /// nothing of its batch is written then, and [`Queue::check`] says so.
    ///
    /// # Errors
    /// [`Error::Tensor`] for keys or labels of another shape, type or device or that are not
    /// contiguous, and those of [`crate::Queue::enqueue`] or `cuda::Queue::enqueue`.
    pub fn enqueue(&mut self, keys: &Tensor, labels: Option<&Tensor>) -> Result<usize> {
        self.put(keys, labels, false)
    }

    /// [`Queue::enqueue`] of the keys' directions: each row is divided by its norm first.
    ///
    /// # Errors
    /// As [`Queue::enqueue`], and [`Error::ZeroNorm`]; on CUDA [`Queue::check`] tells of the latter.
    pub fn enqueue_normalised(&mut self, keys: &Tensor, labels: Option<&Tensor>) -> Result<usize> {
        self.put(keys, labels, true)
    }

    fn put(&mut self, keys: &Tensor, labels: Option<&Tensor>, normalise: bool) -> Result<usize> {
        let (_, dim) = matrix_dims("keys", keys)?;
        if dim != self.dim() {
            let reason = format!("has dimension {dim}; the queue has {}", self.dim());
            return Err(unfit("keys", reason));
        }
        for (name, tensor) in [("keys", Some(keys)), ("labels", labels)] {
            if let Some(tensor) = tensor {
                expect_same_device(name, tensor, &self.device)?;
            }
        }
        if let Some(labels) = labels {
            expect_one_axis("labels", labels)?;
        }
        match &mut self.place {
            Place::Cpu(queue) => host_slice("keys", keys, |keys| {
                let mut put = |labels: Option<&[u32]>| match normalise {
                    true => queue.enqueue_normalised(keys, labels),
                    false => queue.enqueue(keys, labels),
                };
                match labels {
                    Some(labels) => host_slice("labels", labels, |labels| put(Some(labels))),
                    None => put(None),
                }
            }),
            #[cfg(feature = "candle-cuda")]
            Place::Cuda(on) => {
                use super::tensor::device_slice;
                use cudarc::driver::DevicePtr;
                let OnCuda { queue, device, .. } = &mut **on;
                device_slice("keys", keys, |keys| {
                    let mut put = |labels: Option<&dyn DevicePtr<u32>>| match normalise {
                        true => queue.enqueue_normalised(device, keys, labels),
                        false => queue.enqueue(device, keys, labels),
                    };
                    match labels {
                        Some(labels) => device_slice("labels", labels, |labels| put(Some(labels))),
                        None => put(None),
                    }
                })
            }
        }
    }

    /// Whether all keys since the last call were enqueued: always on the CPU, where they are refused
    /// at once. Waits for the device.
    ///
    /// # Errors
    /// Those of `cuda::Queue::check`.
    pub fn check(&mut self) -> Result<()> {
        match &mut self.place {
            Place::Cpu(_) => Ok(()),
            #[cfg(feature = "candle-cuda")]
            Place::Cuda(on) => on.queue.check(&on.device),
        }
    }

    /// The queue in host memory: itself on the CPU, else a copy, for which it waits.
    ///
    /// # Errors
    /// Those of `cuda::Queue::to_host`.
    pub fn to_host(&self) -> Result<Cow<'_, crate::Queue>> {
        match &self.place {
            Place::Cpu(queue) => Ok(Cow::Borrowed(queue)),
            #[cfg(feature = "candle-cuda")]
            Place::Cuda(on) => Ok(Cow::Owned(on.queue.to_host(&on.device)?)),
        }
    }

    /// [`crate::Queue::save`] of [`Queue::to_host`]: a safetensors file, whole or not at all.
    ///
    /// # Errors
    /// As for those two.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        self.to_host()?.save(path)
    }

    /// Reads what [`Queue::save`] wrote, on whichever device.
    ///
    /// # Errors
    /// As [`crate::Queue::load`] and [`Queue::new`].
    pub fn load(path: impl AsRef<Path>, device: &Device) -> Result<Self> {
        Self::new(crate::Queue::load(path)?, device)
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// K, the number of rows.
    #[must_use]
    pub fn capacity(&self) -> usize {
        match &self.place {
            Place::Cpu(queue) => queue.capacity(),
            #[cfg(feature = "candle-cuda")]
            Place::Cuda(on) => on.queue.capacity(),
        }
    }

    /// d, the dimension of a row.
    #[must_use]
    pub fn dim(&self) -> usize {
        match &self.place {
            Place::Cpu(queue) => queue.dim(),
            #[cfg(feature = "candle-cuda")]
            Place::Cuda(on) => on.queue.dim(),
        }
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }
}

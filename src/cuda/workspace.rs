//! Memory that is planned once and reused.

use cudarc::driver::{CudaSlice, CudaView, DeviceRepr};

use super::device::{Device, Memory};
use crate::error::{Result, elements};

/// A buffer that grows where it must and never shrinks.
#[derive(Debug)]
pub(super) struct Buffer<T> {
    argument: &'static str,
    slice: CudaSlice<T>,
}

impl<T: DeviceRepr> Buffer<T> {
    /// `rows · width` elements that nobody has written; `argument` is what errors call them.
    pub fn new(device: &Device, argument: &'static str, rows: usize, width: usize) -> Result<Self> {
        let slice = device.allocate(argument, rows, width)?;
        Ok(Self { argument, slice })
    }

    /// A copy of what is in host memory.
    pub fn from_host(device: &Device, argument: &'static str, values: &[T]) -> Result<Self> {
        let slice = device.upload(argument, values)?;
        Ok(Self { argument, slice })
    }

    /// At least `rows · width` elements to write. They keep their values unless the buffer grows.
    pub fn reserve<'a>(
        &'a mut self,
        device: &'a Device,
        rows: usize,
        width: usize,
    ) -> Result<Memory<'a, T>> {
        let needed = elements(self.argument, rows, width)?;
        if self.slice.len() < needed || !device.shares_context(self.slice.stream()) {
            self.slice = device.allocate(self.argument, rows, width)?;
        }
        device.write(self.argument, &mut self.slice)
    }

    /// The first `len` elements, or all where there are fewer.
    pub fn first(&self, len: usize) -> CudaView<'_, T> {
        self.slice.slice(..len.min(self.slice.len()))
    }

    /// The first `len` elements in host memory; waits for the stream.
    pub fn read(&self, device: &Device, len: usize) -> Result<Vec<T>> {
        device.download(self.argument, &self.slice, len)
    }
}

/// Memory for what lies between two kernels. It grows to the largest shape it has served; one is
/// enough for everything that is put on one stream.
#[derive(Debug)]
pub struct Workspace {
    /// Logits of some of the queries, over the whole queue.
    pub(super) logits: Buffer<f32>,
}

impl Workspace {
    /// Nothing yet.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`], [`crate::Error::Driver`].
    pub fn new(device: &Device) -> Result<Self> {
        Ok(Self {
            logits: Buffer::new(device, "logits", 0, 0)?,
        })
    }
}

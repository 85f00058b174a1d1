//! Memory that is planned once and reused.

use cudarc::driver::{CudaSlice, DeviceRepr};

use super::device::Device;
use crate::error::{Result, elements};

/// A buffer that grows where it must and never shrinks.
#[derive(Debug)]
pub(super) struct Buffer<T> {
    argument: &'static str,
    slice: Option<CudaSlice<T>>,
}

impl<T: DeviceRepr> Buffer<T> {
    /// No memory yet; `argument` is what errors call it.
    pub const fn new(argument: &'static str) -> Self {
        Self {
            argument,
            slice: None,
        }
    }

    /// At least `rows · width` elements. They keep their values unless the buffer has to grow; then
    /// nobody has written them.
    pub fn reserve(
        &mut self,
        device: &Device,
        rows: usize,
        width: usize,
    ) -> Result<&mut CudaSlice<T>> {
        let needed = elements(self.argument, rows, width)?;
        let fits = self.slice.as_ref().is_some_and(|slice| {
            slice.len() >= needed && slice.context() == device.stream().context()
        });
        if !fits {
            // Freed first, so that both need not fit.
            self.slice = None;
            self.slice = Some(device.allocate(self.argument, rows, width)?);
        }
        Ok(self.slice.as_mut().expect("allocated above"))
    }

    /// The memory, if there is any yet.
    pub fn slice(&self) -> Option<&CudaSlice<T>> {
        self.slice.as_ref()
    }
}

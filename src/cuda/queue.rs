//! The queue of negatives in device memory.

use std::sync::{Mutex, MutexGuard, PoisonError};

use cudarc::driver::{CudaSlice, DevicePtr};
use half::{bf16, f16};

use super::device::{Device, Launch, Memory, expect_disjoint, pointer_or_null};
use super::params::{ENQUEUE_THREADS, EnqueueParams, NO_ROW_INDEX, REFUSED_NON_FINITE, RingState};
use crate::error::{Error, Result, expect_length, whole_rows};
use crate::queue::{self as host, DType, NO_LABEL};

/// K×d elements in device memory, row-major, in one of the storage types.
#[derive(Debug)]
pub enum Rows {
    /// 32-bit floats.
    F32(CudaSlice<f32>),
    /// IEEE half precision.
    F16(CudaSlice<f16>),
    /// bfloat16.
    Bf16(CudaSlice<bf16>),
}

/// Runs `$body` with `$data` bound to the elements, whatever their type.
macro_rules! for_rows {
    ($rows:expr, $data:ident => $body:expr) => {
        match $rows {
            Rows::F32($data) => $body,
            Rows::F16($data) => $body,
            Rows::Bf16($data) => $body,
        }
    };
}

impl Rows {
    /// The element type.
    #[must_use]
    pub fn dtype(&self) -> DType {
        match self {
            Self::F32(_) => DType::F32,
            Self::F16(_) => DType::F16,
            Self::Bf16(_) => DType::Bf16,
        }
    }

    /// The memory, as bytes, for reading.
    pub(super) fn read<'a>(&'a self, device: &'a Device) -> Result<Memory<'a, u8>> {
        Ok(for_rows!(self, data => device.read("queue", data)?.untyped()))
    }

    fn write<'a>(&'a mut self, device: &'a Device) -> Result<Memory<'a, u8>> {
        Ok(for_rows!(self, data => device.write("queue", data)?.untyped()))
    }
}

/// The queue of negatives in device memory: a ring of K rows with the squared norms of their stored
/// bits, like [`crate::Queue`], from which it is made and to which it returns.
///
/// The cursor is in device memory too, so that a captured graph that enqueues goes on where its last
/// replay stopped. Rows are finite always: a batch with a row that may not enter is refused by the
/// device, all of it, and [`Queue::check`] tells.
///
/// Calls of this crate's that read it, on whatever streams and threads, come one after the other on the
/// device, and the next enqueue after all of them.
#[derive(Debug)]
pub struct Queue {
    rows: Rows,
    squared_norms: CudaSlice<f32>,
    labels: Option<CudaSlice<u32>>,
    state: CudaSlice<RingState>,
    refusal: CudaSlice<u32>,
    /// Apart from the state, which a replay may move while the host asks.
    refused: CudaSlice<u32>,
    capacity: usize,
    dim: usize,
    readers: Mutex<()>,
}

impl Queue {
    /// A copy of a queue in host memory.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for 2³¹ rows or dimensions or more, [`Error::OutOfMemory`],
    /// [`Error::Driver`].
    pub fn from_host(device: &Device, queue: &host::Queue) -> Result<Self> {
        for (argument, value) in [("capacity", queue.capacity()), ("dim", queue.dim())] {
            if value >= 1 << 31 {
                return Err(Error::OutOfRange {
                    argument,
                    value: value.to_string(),
                    expected: "less than 2^31",
                });
            }
        }
        let rows = match queue.rows() {
            host::Rows::F32(data) => Rows::F32(device.upload("queue", data)?),
            host::Rows::F16(data) => Rows::F16(device.upload("queue", data)?),
            host::Rows::Bf16(data) => Rows::Bf16(device.upload("queue", data)?),
        };
        let state = RingState {
            next: queue.cursor() as u32,
            start: queue.cursor() as u32,
        };
        let labels = queue.labels();
        Ok(Self {
            rows,
            squared_norms: device.upload("squared norms", queue.squared_norms())?,
            labels: labels
                .map(|labels| device.upload("queue labels", labels))
                .transpose()?,
            state: device.upload("cursor", &[state])?,
            refusal: device.upload("status", &[0])?,
            refused: device.upload("status", &[0])?,
            capacity: queue.capacity(),
            dim: queue.dim(),
            readers: Mutex::default(),
        })
    }

    /// Held by who reads the queue until all that reads it is on the stream: the next reader, of another
    /// thread and stream, comes after what is there then.
    pub(super) fn turn(&self) -> MutexGuard<'_, ()> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy in host memory, to save for instance; waits for the stream.
    ///
    /// # Errors
    /// [`Error::Driver`].
    pub fn to_host(&self, device: &Device) -> Result<host::Queue> {
        let _turn = self.turn();
        let len = self.capacity * self.dim;
        let rows = match &self.rows {
            Rows::F32(data) => host::Rows::F32(device.download("queue", data, len)?),
            Rows::F16(data) => host::Rows::F16(device.download("queue", data, len)?),
            Rows::Bf16(data) => host::Rows::Bf16(device.download("queue", data, len)?),
        };
        let queue = host::Queue::from_rows(rows, self.dim)?.with_cursor(self.cursor(device)?)?;
        match &self.labels {
            Some(labels) => {
                queue.with_labels(device.download("queue labels", labels, self.capacity)?)
            }
            None => Ok(queue),
        }
    }

    /// Puts on the stream that keys, [rows, dim], replace the oldest rows, as
    /// [`crate::Queue::enqueue`] does. Keys without labels get [`NO_LABEL`]. Returns how many of them
    /// the queue will hold.
    ///
    /// A key that is not finite, or overflows f16, is seen by the device alone: nothing of its batch
    /// is written then, and [`Queue::check`] says so.
    ///
    /// # Errors
    /// [`Error::Zero`] for no keys, [`Error::Ragged`] for keys that are no whole rows,
    /// [`Error::OutOfRange`] for 2³¹ rows or more, [`Error::Length`] for labels that are not one a
    /// row, [`Error::OtherContext`] for memory of another context, [`Error::Overlap`] for keys or
    /// labels that lie in the queue, [`Error::Capturing`] for the first labels of a queue,
    /// [`Error::Driver`].
    pub fn enqueue(
        &mut self,
        device: &Device,
        keys: &dyn DevicePtr<f32>,
        labels: Option<&dyn DevicePtr<u32>>,
    ) -> Result<usize> {
        self.put(device, keys, labels, false)
    }

    /// [`Queue::enqueue`] of the keys' directions: each row is divided by its norm first. A row of
    /// norm 0 is refused as one that is not finite is.
    ///
    /// # Errors
    /// As [`Queue::enqueue`].
    pub fn enqueue_normalised(
        &mut self,
        device: &Device,
        keys: &dyn DevicePtr<f32>,
        labels: Option<&dyn DevicePtr<u32>>,
    ) -> Result<usize> {
        self.put(device, keys, labels, true)
    }

    fn put(
        &mut self,
        device: &Device,
        keys: &dyn DevicePtr<f32>,
        labels: Option<&dyn DevicePtr<u32>>,
        normalise: bool,
    ) -> Result<usize> {
        let count = whole_rows("keys", keys.len(), self.dim)?;
        // The kernel packs the row of a refusal with its kind.
        let rows = u32::try_from(count).ok().filter(|&rows| rows < 1 << 31);
        let rows = rows.ok_or_else(|| Error::OutOfRange {
            argument: "keys",
            value: format!("{count} rows"),
            expected: "less than 2^31 rows",
        })?;
        if let Some(labels) = labels {
            expect_length("labels", labels.len(), count, "rows")?;
        }
        // The first labels of a queue that had none.
        let mut first_labels = match (labels, &self.labels) {
            (Some(_), None) => Some(device.upload("queue labels", &vec![NO_LABEL; self.capacity])?),
            _ => None,
        };
        let dtype = self.rows.dtype();
        let queue = self.rows.write(device)?;
        let keys = device.read("keys", keys)?;
        let labels = labels
            .map(|labels| device.read("labels", labels))
            .transpose()?;
        let squared_norms = device.write("squared norms", &mut self.squared_norms)?;
        let queue_labels = match self.labels.as_mut().or(first_labels.as_mut()) {
            Some(labels) => Some(device.write("queue labels", labels)?),
            None => None,
        };
        let state = device.write("cursor", &mut self.state)?;
        device.clear(&mut self.refusal)?;
        let refusal = device.write("status", &mut self.refusal)?;
        let refused = device.write("status", &mut self.refused)?;

        let mut outputs = vec![queue.bytes(), squared_norms.bytes()];
        outputs.extend(queue_labels.as_ref().map(Memory::bytes));
        let mut inputs = vec![keys.bytes()];
        inputs.extend(labels.as_ref().map(Memory::bytes));
        expect_disjoint(&outputs, &inputs)?;

        let params = EnqueueParams {
            keys: keys.pointer(),
            labels: pointer_or_null(labels.as_ref()),
            queue: queue.pointer().cast(),
            squared_norms: squared_norms.pointer(),
            queue_labels: pointer_or_null(queue_labels.as_ref()),
            state: state.pointer(),
            refusal: refusal.pointer(),
            refused: refused.pointer(),
            rows,
            capacity: self.capacity as u32,
            dim: self.dim as u32,
            normalise: u32::from(normalise),
        };
        let [check, write] = kernels(dtype);
        let launch = |kernel, rows: u32| Launch {
            file: "enqueue",
            kernel,
            grid: (rows.div_ceil(ENQUEUE_THREADS / 32), 1, 1),
            threads: ENQUEUE_THREADS,
            shared: 0,
        };
        let kept = rows.min(params.capacity);
        // SAFETY: the pointers are those of memory that the guards above keep until both launches are
        // queued; there are `rows · dim` keys, `rows` labels or none, `capacity · dim` elements,
        // norms and labels in the queue, of the type in the kernels' names, and nothing overlaps.
        unsafe {
            device.launch(launch(check, rows), &params)?;
            device.launch(launch(write, kept), &params)?;
        }
        drop(queue_labels);
        if first_labels.is_some() {
            self.labels = first_labels;
        }
        Ok(kept as usize)
    }

    /// Whether all batches since the last call were enqueued; waits for the stream.
    ///
    /// # Errors
    /// [`Error::NonFinite`] or [`Error::ZeroNorm`] with the row of the first batch that was refused,
    /// [`Error::Driver`].
    pub fn check(&mut self, device: &Device) -> Result<()> {
        let refused = device.download("status", &self.refused, 1)?[0];
        if refused == 0 {
            return Ok(());
        }
        device.clear(&mut self.refused)?;
        let refused = NO_ROW_INDEX - refused;
        let (argument, row) = ("keys", (refused / 2) as usize);
        Err(if refused % 2 == REFUSED_NON_FINITE {
            Error::NonFinite { argument, row }
        } else {
            Error::ZeroNorm { argument, row }
        })
    }

    /// The row that the next key replaces; waits for the stream.
    ///
    /// # Errors
    /// [`Error::Driver`].
    pub fn cursor(&self, device: &Device) -> Result<usize> {
        Ok(device.download("cursor", &self.state, 1)?[0].next as usize)
    }

    /// K, the number of rows.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// d, the dimension of a row.
    #[must_use]
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// All rows as stored, [K, dim]. Of readers that are not this crate's, as of any slice of cudarc's,
    /// an enqueue waits for the last alone: let those on several streams wait for each other.
    #[must_use]
    pub fn rows(&self) -> &Rows {
        &self.rows
    }

    /// ‖n‖² of each row's stored bits, `[K]`, summed in f64 and rounded once.
    #[must_use]
    pub fn squared_norms(&self) -> &CudaSlice<f32> {
        &self.squared_norms
    }

    /// The labels, `[K]`, if the queue has any.
    #[must_use]
    pub fn labels(&self) -> Option<&CudaSlice<u32>> {
        self.labels.as_ref()
    }
}

/// The two kernels for a queue of this type.
fn kernels(dtype: DType) -> [&'static str; 2] {
    match dtype {
        DType::F32 => ["enqueue_check_f32", "enqueue_write_f32"],
        DType::F16 => ["enqueue_check_f16", "enqueue_write_f16"],
        DType::Bf16 => ["enqueue_check_bf16", "enqueue_write_bf16"],
    }
}

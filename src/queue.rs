//! The queue of negatives: a ring of K feature rows with their true squared norms.

use std::fs;
use std::io::Write as _;
use std::ops::Range;
use std::path::Path;

use half::{bf16, f16};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::draws::philox4x32_10;
use crate::error::{Error, Result, elements, expect_length, filled, first_non_finite, whole_rows};

/// The label of a row that has none. It equals nothing, not even itself.
pub const NO_LABEL: u32 = u32::MAX;

/// What pads a list of queue rows that is shorter than N.
pub const NO_ROW: u32 = u32::MAX;

/// The element type in which queue rows are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit floats: nothing is lost.
    F32,
    /// IEEE half precision: 11 bits of significand, largest value 65504.
    F16,
    /// bfloat16: 8 bits of significand, the range of f32.
    Bf16,
}

impl DType {
    /// Bytes of an element.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// K×d elements, row-major, in one of the storage types.
#[derive(Debug, Clone, PartialEq)]
pub enum Rows {
    /// 32-bit floats.
    F32(Vec<f32>),
    /// IEEE half precision.
    F16(Vec<f16>),
    /// bfloat16.
    Bf16(Vec<bf16>),
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
    /// Rounds f32 elements to nearest, ties to even.
    #[must_use]
    pub fn from_f32(dtype: DType, data: &[f32]) -> Self {
        match dtype {
            DType::F32 => Self::F32(data.to_vec()),
            DType::F16 => Self::F16(data.iter().map(|&x| f16::from_f32(x)).collect()),
            DType::Bf16 => Self::Bf16(data.iter().map(|&x| bf16::from_f32(x)).collect()),
        }
    }

    /// The same of `rows · width` elements, in their own memory where their type stays.
    pub(crate) fn converted(dtype: DType, data: Vec<f32>, width: usize) -> Result<Self> {
        fn each<T>(data: &[f32], width: usize, convert: fn(f32) -> T) -> Result<Vec<T>> {
            let mut converted = room("queue", data.len() / width, width)?;
            converted.extend(data.iter().map(|&x| convert(x)));
            Ok(converted)
        }
        Ok(match dtype {
            DType::F32 => Self::F32(data),
            DType::F16 => Self::F16(each(&data, width, f16::from_f32)?),
            DType::Bf16 => Self::Bf16(each(&data, width, bf16::from_f32)?),
        })
    }

    /// The element type.
    #[must_use]
    pub fn dtype(&self) -> DType {
        match self {
            Self::F32(_) => DType::F32,
            Self::F16(_) => DType::F16,
            Self::Bf16(_) => DType::Bf16,
        }
    }

    /// The number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        for_rows!(self, data => data.len())
    }

    /// Whether there is no element.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements as f32, exactly.
    #[must_use]
    pub fn to_f32(&self) -> Vec<f32> {
        let mut all = vec![0.0; self.len()];
        self.read(0..self.len(), &mut all);
        all
    }

    fn read(&self, range: Range<usize>, out: &mut [f32]) {
        use half::slice::HalfFloatSliceExt as _;
        match self {
            Self::F32(data) => out.copy_from_slice(&data[range]),
            Self::F16(data) => data[range].convert_to_f32_slice(out),
            Self::Bf16(data) => data[range].convert_to_f32_slice(out),
        }
    }

    fn write(&mut self, at: usize, values: &Rows, range: Range<usize>) {
        let to = at..at + range.len();
        match (self, values) {
            (Self::F32(data), Self::F32(values)) => data[to].copy_from_slice(&values[range]),
            (Self::F16(data), Self::F16(values)) => data[to].copy_from_slice(&values[range]),
            (Self::Bf16(data), Self::Bf16(values)) => data[to].copy_from_slice(&values[range]),
            _ => unreachable!("rows are converted to the queue's type before they are written"),
        }
    }
}

/// Where in a ring of K rows the next batch goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ring {
    pub capacity: usize,
    pub cursor: usize,
}

impl Ring {
    /// Advances past `rows` rows; returns the copies to make as (first ring row, batch rows).
    /// Of more than K rows the last K are kept, each where it would have ended up one by one.
    pub fn advance(&mut self, rows: usize) -> [(usize, Range<usize>); 2] {
        let skipped = rows.saturating_sub(self.capacity);
        let start = (self.cursor + skipped) % self.capacity;
        let until_end = (rows - skipped).min(self.capacity - start);
        self.cursor = (self.cursor + rows % self.capacity) % self.capacity;
        [
            (start, skipped..skipped + until_end),
            (0, skipped + until_end..rows),
        ]
    }
}

/// The queue of negatives, in host memory.
///
/// Rows are finite always: a row with a NaN or an infinity is refused where it would enter. Each
/// row's squared norm is that of the *stored* bits, so that synthetic negatives of a rounded row
/// are exact (method: a bf16 row taken for a unit row is off by 4e-4 in a synthetic logit).
///
/// ```
/// use hardmix::{DType, Queue};
/// let mut queue = Queue::random(5, 2, DType::F32, 7)?;
/// queue.enqueue(&[1.0, 0.0, 0.0, 1.0], Some(&[3, 4]))?;
/// assert_eq!(queue.cursor(), 2);
/// assert_eq!(queue.row(1), Some(vec![0.0, 1.0]));
/// assert_eq!(queue.labels().unwrap()[..3], [3, 4, hardmix::NO_LABEL]);
/// # Ok::<(), hardmix::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Queue {
    rows: Rows,
    squared_norms: Vec<f32>,
    labels: Option<Vec<u32>>,
    dim: usize,
    ring: Ring,
}

fn squared_norm(row: &[f32]) -> f32 {
    row.iter()
        .map(|&x| f64::from(x) * f64::from(x))
        .sum::<f64>() as f32
}

/// An empty list with room for `rows · width` elements, or an error where there is none.
fn room<T>(argument: &'static str, rows: usize, width: usize) -> Result<Vec<T>> {
    let mut list = Vec::new();
    list.try_reserve_exact(elements(argument, rows, width)?)
        .map_err(|_| Error::OutOfMemory {
            argument,
            rows,
            width,
        })?;
    Ok(list)
}

fn check_capacity(capacity: usize) -> Result<()> {
    if capacity >= NO_ROW as usize {
        return Err(Error::OutOfRange {
            argument: "capacity",
            value: capacity.to_string(),
            expected: "less than 4294967295 rows",
        });
    }
    Ok(())
}

impl Queue {
    /// A queue of given rows, [K, dim] row-major, with the cursor at row 0 and without labels.
    ///
    /// # Errors
    /// [`Error::Zero`] for no rows or `dim` = 0, [`Error::Ragged`] for a length that is no multiple
    /// of `dim`, [`Error::NonFinite`] with the row, [`Error::OutOfRange`] for 2³²−1 rows or more,
    /// [`Error::OutOfMemory`] where there is none for their norms.
    pub fn from_rows(rows: Rows, dim: usize) -> Result<Self> {
        let capacity = whole_rows("queue", rows.len(), dim)?;
        check_capacity(capacity)?;
        let mut row = filled("queue", 1, dim, 0.0)?;
        let mut squared_norms = room("squared norms", capacity, 1)?;
        for index in 0..capacity {
            rows.read(index * dim..(index + 1) * dim, &mut row);
            if first_non_finite(&row, dim).is_some() {
                return Err(Error::NonFinite {
                    argument: "queue",
                    row: index,
                });
            }
            squared_norms.push(squared_norm(&row));
        }
        Ok(Self {
            rows,
            squared_norms,
            labels: None,
            dim,
            ring: Ring {
                capacity,
                cursor: 0,
            },
        })
    }

    /// A full queue of seeded random unit rows without labels, as MoCo starts.
    ///
    /// # Errors
    /// [`Error::Zero`] for a zero `capacity` or `dim`, [`Error::OutOfRange`] for 2³²−1 rows or
    /// more, [`Error::OutOfMemory`] with the size.
    pub fn random(capacity: usize, dim: usize, dtype: DType, seed: u64) -> Result<Self> {
        for (argument, value) in [("capacity", capacity), ("dim", dim)] {
            if value == 0 {
                return Err(Error::Zero { argument });
            }
        }
        check_capacity(capacity)?;
        let mut data = filled("queue", capacity, dim, 0.0f32)?;
        let mut gaussians = filled("queue", 1, dim, 0.0f64)?;
        for (index, row) in data.chunks_exact_mut(dim).enumerate() {
            random_direction(row, index as u32, seed, &mut gaussians);
        }
        drop(gaussians);
        Self::from_rows(Rows::converted(dtype, data, dim)?, dim)
    }

    /// With one label a row ([`NO_LABEL`] where there is none).
    ///
    /// # Errors
    /// [`Error::Length`] unless there are K labels.
    pub fn with_labels(mut self, labels: Vec<u32>) -> Result<Self> {
        expect_length("queue labels", labels.len(), self.ring.capacity, "capacity")?;
        self.labels = Some(labels);
        Ok(self)
    }

    /// With the cursor, the row that the next key replaces, set.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless it is less than K.
    pub fn with_cursor(mut self, cursor: usize) -> Result<Self> {
        if cursor >= self.ring.capacity {
            return Err(Error::OutOfRange {
                argument: "cursor",
                value: cursor.to_string(),
                expected: "less than the queue's capacity",
            });
        }
        self.ring.cursor = cursor;
        Ok(self)
    }

    /// Writes keys, [rows, dim], over the oldest rows, wrapping truly; of more than K keys the last
    /// K stay. Keys without labels get [`NO_LABEL`]. Returns how many of them the queue now holds.
    ///
    /// # Errors
    /// [`Error::Zero`] for no keys, [`Error::Ragged`] for keys that are no whole rows,
    /// [`Error::Length`] for labels that are not one a row, [`Error::NonFinite`] with the row, also
    /// where f16 overflows. Nothing is written then.
    pub fn enqueue(&mut self, keys: &[f32], labels: Option<&[u32]>) -> Result<usize> {
        let count = whole_rows("keys", keys.len(), self.dim)?;
        if let Some(labels) = labels {
            expect_length("labels", labels.len(), count, "rows")?;
        }
        let stored = Rows::from_f32(self.rows.dtype(), keys);
        let mut squared_norms = Vec::with_capacity(count);
        let mut row = vec![0.0; self.dim];
        for index in 0..count {
            stored.read(index * self.dim..(index + 1) * self.dim, &mut row);
            if first_non_finite(&row, self.dim).is_some() {
                return Err(Error::NonFinite {
                    argument: "keys",
                    row: index,
                });
            }
            squared_norms.push(squared_norm(&row));
        }
        if labels.is_some() && self.labels.is_none() {
            self.labels = Some(vec![NO_LABEL; self.ring.capacity]);
        }
        for (at, batch) in self.ring.advance(count) {
            let to = at..at + batch.len();
            self.rows.write(
                at * self.dim,
                &stored,
                batch.start * self.dim..batch.end * self.dim,
            );
            self.squared_norms[to.clone()].copy_from_slice(&squared_norms[batch.clone()]);
            if let Some(own) = &mut self.labels {
                match labels {
                    Some(labels) => own[to].copy_from_slice(&labels[batch]),
                    None => own[to].fill(NO_LABEL),
                }
            }
        }
        Ok(count.min(self.ring.capacity))
    }

    /// [`Queue::enqueue`] of the keys' directions: each row is divided by its norm first.
    ///
    /// # Errors
    /// As [`Queue::enqueue`], and [`Error::ZeroNorm`] with the row. Nothing is written then.
    pub fn enqueue_normalised(&mut self, keys: &[f32], labels: Option<&[u32]>) -> Result<usize> {
        let mut unit = keys.to_vec();
        for (index, row) in unit.chunks_exact_mut(self.dim).enumerate() {
            let norm = row
                .iter()
                .map(|&x| f64::from(x) * f64::from(x))
                .sum::<f64>()
                .sqrt();
            if norm == 0.0 {
                return Err(Error::ZeroNorm {
                    argument: "keys",
                    row: index,
                });
            }
            if !norm.is_finite() {
                return Err(Error::NonFinite {
                    argument: "keys",
                    row: index,
                });
            }
            for x in row {
                *x = (f64::from(*x) / norm) as f32;
            }
        }
        self.enqueue(&unit, labels)
    }

    /// K, the number of rows.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.ring.capacity
    }

    /// d, the dimension of a row.
    #[must_use]
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// The row that the next key replaces.
    #[must_use]
    pub fn cursor(&self) -> usize {
        self.ring.cursor
    }

    /// All rows as stored, [K, dim].
    #[must_use]
    pub fn rows(&self) -> &Rows {
        &self.rows
    }

    /// One row as f32, exactly; `None` behind the end.
    #[must_use]
    pub fn row(&self, index: usize) -> Option<Vec<f32>> {
        (index < self.ring.capacity).then(|| {
            let mut row = vec![0.0; self.dim];
            self.read_row(index, &mut row);
            row
        })
    }

    /// ‖n‖² of each row's stored bits, `[K]`, rounded once from f64.
    #[must_use]
    pub fn squared_norms(&self) -> &[f32] {
        &self.squared_norms
    }

    /// The labels, `[K]`, if the queue has any.
    #[must_use]
    pub fn labels(&self) -> Option<&[u32]> {
        self.labels.as_deref()
    }

    pub(crate) fn read_row(&self, index: usize, out: &mut [f32]) {
        self.read_rows(index..index + 1, out);
    }

    /// Where the bytes of a row lie.
    pub(crate) fn addresses(&self, index: usize) -> Range<usize> {
        for_rows!(&self.rows, data => {
            let row = data[index * self.dim..(index + 1) * self.dim].as_ptr_range();
            row.start.addr()..row.end.addr()
        })
    }

    /// The rows themselves, where they are stored as f32.
    pub(crate) fn stored(&self, rows: Range<usize>) -> Option<&[f32]> {
        match &self.rows {
            Rows::F32(data) => Some(&data[rows.start * self.dim..rows.end * self.dim]),
            _ => None,
        }
    }

    /// Reads rows as f32, [n, dim].
    pub(crate) fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        self.rows
            .read(rows.start * self.dim..rows.end * self.dim, out);
    }

    /// The queue as a safetensors file: `queue` [K, d] in its own type, `queue_labels` `[K]` where
    /// there are labels, and the cursor as metadata.
    ///
    /// # Errors
    /// [`Error::Tensor`] if the format refuses the shapes.
    pub fn to_safetensors(&self) -> Result<Vec<u8>> {
        let refused = |error: safetensors::SafeTensorError| Error::Tensor {
            name: "queue".into(),
            reason: error.to_string(),
        };
        let (dtype, bytes) = match &self.rows {
            Rows::F32(data) => (Dtype::F32, bytes_of(data, |x| x.to_le_bytes())),
            Rows::F16(data) => (Dtype::F16, bytes_of(data, |x| x.to_le_bytes())),
            Rows::Bf16(data) => (Dtype::BF16, bytes_of(data, |x| x.to_le_bytes())),
        };
        let labels = self
            .labels
            .as_ref()
            .map(|labels| bytes_of(labels, |x| x.to_le_bytes()));
        let shape = vec![self.ring.capacity, self.dim];
        let mut tensors = vec![(
            "queue",
            TensorView::new(dtype, shape, &bytes).map_err(refused)?,
        )];
        if let Some(labels) = &labels {
            let view = TensorView::new(Dtype::U32, vec![self.ring.capacity], labels);
            tensors.push(("queue_labels", view.map_err(refused)?));
        }
        let metadata = [("cursor".to_owned(), self.ring.cursor.to_string())].into();
        safetensors::serialize(tensors, Some(metadata)).map_err(refused)
    }

    /// The queue that [`Queue::to_safetensors`] wrote, bit by bit.
    ///
    /// # Errors
    /// [`Error::Tensor`] for anything that is not such a file, and those of [`Queue::from_rows`].
    pub fn from_safetensors(bytes: &[u8]) -> Result<Self> {
        let wrong = |name: &str, reason: String| Error::Tensor {
            name: name.into(),
            reason,
        };
        let file = SafeTensors::deserialize(bytes).map_err(|e| wrong("queue", e.to_string()))?;
        let (_, header) =
            SafeTensors::read_metadata(bytes).map_err(|e| wrong("queue", e.to_string()))?;
        let queue = file
            .tensor("queue")
            .map_err(|e| wrong("queue", e.to_string()))?;
        let rows = rows_of(&queue)?;
        let [capacity, dim] = queue.shape() else {
            return Err(wrong(
                "queue",
                format!("has shape {:?}; expected [K, d]", queue.shape()),
            ));
        };
        let (capacity, dim) = (*capacity, *dim);
        if capacity == 0 {
            return Err(Error::Zero { argument: "queue" });
        }
        let cursor = header
            .metadata()
            .as_ref()
            .and_then(|metadata| metadata.get("cursor"))
            .and_then(|cursor| cursor.parse::<usize>().ok())
            .ok_or_else(|| wrong("queue", "has no cursor in its metadata".into()))?;
        let restored = Self::from_rows(rows, dim)?.with_cursor(cursor)?;
        match file.tensor("queue_labels") {
            Ok(labels) => restored.with_labels(labels_of("queue_labels", &labels)?),
            Err(safetensors::SafeTensorError::TensorNotFound(_)) => Ok(restored),
            Err(error) => Err(wrong("queue_labels", error.to_string())),
        }
    }

    /// Writes [`Queue::to_safetensors`] beside `path` and renames it, so that `path` is never half
    /// a file.
    ///
    /// # Errors
    /// [`Error::File`] with the reason; `path` is then as it was.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let bytes = self.to_safetensors()?;
        let mut beside = path.as_os_str().to_owned();
        beside.push(".partial");
        let written = fs::File::create(&beside)
            .and_then(|mut file| file.write_all(&bytes).and_then(|()| file.sync_all()))
            .and_then(|()| fs::rename(&beside, path));
        written.map_err(|error| {
            // The first error is the one to report; a leftover is only untidy.
            let _ = fs::remove_file(&beside);
            Error::File {
                path: path.into(),
                reason: error.to_string(),
            }
        })
    }

    /// Reads what [`Queue::save`] wrote.
    ///
    /// # Errors
    /// [`Error::File`] with the reason, for a file that cannot be read or is not a queue.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let failed = |reason: String| Error::File {
            path: path.into(),
            reason,
        };
        let bytes = fs::read(path).map_err(|error| failed(error.to_string()))?;
        Self::from_safetensors(&bytes).map_err(|error| failed(error.to_string()))
    }
}

fn bytes_of<T: Copy, const N: usize>(data: &[T], bytes: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    data.iter().flat_map(|&x| bytes(x)).collect()
}

fn elements_of<T, const N: usize>(data: &[u8], element: impl Fn([u8; N]) -> T) -> Vec<T> {
    data.as_chunks::<N>()
        .0
        .iter()
        .map(|&bytes| element(bytes))
        .collect()
}

fn rows_of(tensor: &TensorView<'_>) -> Result<Rows> {
    Ok(match tensor.dtype() {
        Dtype::F32 => Rows::F32(elements_of(tensor.data(), f32::from_le_bytes)),
        Dtype::F16 => Rows::F16(elements_of(tensor.data(), f16::from_le_bytes)),
        Dtype::BF16 => Rows::Bf16(elements_of(tensor.data(), bf16::from_le_bytes)),
        other => {
            return Err(Error::Tensor {
                name: "queue".into(),
                reason: format!("has type {other:?}; expected F32, F16 or BF16"),
            });
        }
    })
}

fn labels_of(name: &str, tensor: &TensorView<'_>) -> Result<Vec<u32>> {
    if tensor.dtype() != Dtype::U32 || tensor.shape().len() != 1 {
        return Err(Error::Tensor {
            name: name.into(),
            reason: format!(
                "has type {:?} and shape {:?}; expected U32 [K]",
                tensor.dtype(),
                tensor.shape()
            ),
        });
    }
    Ok(elements_of(tensor.data(), u32::from_le_bytes))
}

/// A direction uniform on the sphere: Gaussians by Box and Muller, two from each Philox block. They
/// are put where there is room for as many as the row has elements.
fn random_direction(row: &mut [f32], index: u32, seed: u64, gaussians: &mut [f64]) {
    let key = [seed as u32, (seed >> 32) as u32];
    let unit = |hi: u32, lo: u32| {
        // 53 bits, shifted into (0, 1] so that the logarithm is finite.
        ((u64::from(hi) << 21 | u64::from(lo) >> 11) + 1) as f64 / (1u64 << 53) as f64
    };
    for attempt in 0u32.. {
        for (block, pair) in gaussians.chunks_mut(2).enumerate() {
            // Apart from the draws' counters for every step below 2^63 − 2^32.
            let w = philox4x32_10([block as u32, index, attempt, 0x7fff_ffff], key);
            let radius = (-2.0 * unit(w[0], w[1]).ln()).sqrt();
            let (sin, cos) = (std::f64::consts::TAU * unit(w[2], w[3])).sin_cos();
            pair[0] = radius * cos;
            if let Some(second) = pair.get_mut(1) {
                *second = radius * sin;
            }
        }
        let norm = gaussians.iter().map(|x| x * x).sum::<f64>().sqrt();
        if norm > 1e-100 {
            for (x, g) in row.iter_mut().zip(&*gaussians) {
                *x = (g / norm) as f32;
            }
            return;
        }
    }
}

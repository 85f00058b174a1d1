//! The queue of negatives.

use std::ffi::c_char;
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use hardmix::{DType, Error, NO_LABEL, Queue, Rows};

use crate::memory::{
    elements, expect_optional_place, hand_over, optional_slice, path, put, reference, slice,
    take_back,
};
use crate::status::{Failure, Result, Status, call};

/// `hardmix_queue` of the header.
#[allow(non_camel_case_types, reason = "the header's name")]
#[derive(Debug)]
pub struct hardmix_queue(RwLock<Queue>);

impl hardmix_queue {
    pub(crate) fn new(queue: Queue) -> Self {
        Self(RwLock::new(queue))
    }

    pub(crate) fn read(&self) -> Result<RwLockReadGuard<'_, Queue>> {
        self.0.read().map_err(|_| Failure::Poisoned("queue"))
    }

    fn write(&self) -> Result<RwLockWriteGuard<'_, Queue>> {
        self.0.write().map_err(|_| Failure::Poisoned("queue"))
    }
}

fn dtype(value: i32) -> Result<DType> {
    match value {
        0 => Ok(DType::F32),
        1 => Ok(DType::F16),
        2 => Ok(DType::Bf16),
        _ => Err(Failure::Invalid(format!(
            "dtype is {value}; expected HARDMIX_F32, HARDMIX_F16 or HARDMIX_BF16"
        ))),
    }
}

/// `hardmix_queue_random` of the header.
///
/// # Safety
/// What the header says of its arguments.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hardmix_queue_random(
    capacity: usize,
    dim: usize,
    dtype: i32,
    seed: u64,
    out: *mut *mut hardmix_queue,
) -> Status {
    call(|| {
        elements::<f32>("queue", capacity, dim)?;
        let queue = Queue::random(capacity, dim, self::dtype(dtype)?, seed)?;
        // SAFETY: the header's contract.
        unsafe { hand_over(out, hardmix_queue::new(queue)) }
    })
}

/// `hardmix_queue_create` of the header.
///
/// # Safety
/// What the header says of its arguments.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hardmix_queue_create(
    rows: *const f32,
    labels: *const u32,
    capacity: usize,
    dim: usize,
    dtype: i32,
    cursor: usize,
    out: *mut *mut hardmix_queue,
) -> Status {
    call(|| {
        let dtype = self::dtype(dtype)?;
        // The library would find no rows, and call them the queue's.
        if capacity == 0 {
            return Err(Error::Zero {
                argument: "capacity",
            }
            .into());
        }
        let len = elements::<f32>("rows", capacity, dim)?;
        // SAFETY: the header's contract: [capacity, dim] and [capacity].
        let (rows, labels) = unsafe {
            (
                slice("rows", rows, len)?,
                optional_slice("labels", labels, capacity)?,
            )
        };
        let named = |error| match error {
            Error::NonFinite { row, .. } => Error::NonFinite {
                argument: "rows",
                row,
            },
            other => other,
        };
        let queue = Queue::from_rows(Rows::from_f32(dtype, rows), dim).map_err(named)?;
        let mut queue = queue.with_cursor(cursor)?;
        if let Some(labels) = labels {
            queue = queue.with_labels(labels.to_vec())?;
        }
        // SAFETY: the header's contract.
        unsafe { hand_over(out, hardmix_queue::new(queue)) }
    })
}

/// `hardmix_queue_load` of the header.
///
/// # Safety
/// What the header says of its arguments.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hardmix_queue_load(
    path: *const c_char,
    out: *mut *mut hardmix_queue,
) -> Status {
    call(|| {
        // SAFETY: the header's contract.
        let queue = Queue::load(unsafe { self::path(path) }?)?;
        // SAFETY: the header's contract.
        unsafe { hand_over(out, hardmix_queue::new(queue)) }
    })
}

/// `hardmix_queue_save` of the header.
///
/// # Safety
/// What the header says of its arguments.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hardmix_queue_save(
    queue: *const hardmix_queue,
    path: *const c_char,
) -> Status {
    call(|| {
        // SAFETY: the header's contract.
        let (queue, path) = unsafe { (reference("queue", queue)?, self::path(path)?) };
        Ok(queue.read()?.save(path)?)
    })
}

/// `hardmix_queue_enqueue` of the header.
///
/// # Safety
/// What the header says of its arguments.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hardmix_queue_enqueue(
    queue: *mut hardmix_queue,
    keys: *const f32,
    labels: *const u32,
    rows: usize,
    normalise: i32,
) -> Status {
    call(|| {
        // SAFETY: the header's contract.
        let mut queue = unsafe { reference("queue", queue) }?.write()?;
        let len = elements::<f32>("keys", rows, queue.dim())?;
        // SAFETY: the header's contract: [rows, dim] and [rows].
        let (keys, labels) = unsafe {
            (
                slice("keys", keys, len)?,
                optional_slice("labels", labels, rows)?,
            )
        };
        if normalise == 0 {
            queue.enqueue(keys, labels)?;
        } else {
            queue.enqueue_normalised(keys, labels)?;
        }
        Ok(())
    })
}

/// `hardmix_queue_shape` of the header.
///
/// # Safety
/// What the header says of its arguments.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hardmix_queue_shape(
    queue: *const hardmix_queue,
    capacity: *mut usize,
    dim: *mut usize,
    cursor: *mut usize,
) -> Status {
    call(|| {
        // SAFETY: the header's contract.
        let queue = unsafe { reference("queue", queue) }?.read()?;
        for (argument, place) in [("capacity", capacity), ("dim", dim), ("cursor", cursor)] {
            expect_optional_place(argument, place)?;
        }
        // SAFETY: checked, and the header's contract.
        unsafe {
            put(capacity, &[queue.capacity()]);
            put(dim, &[queue.dim()]);
            put(cursor, &[queue.cursor()]);
        }
        Ok(())
    })
}

/// `hardmix_queue_read` of the header.
///
/// # Safety
/// What the header says of its arguments.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hardmix_queue_read(
    queue: *const hardmix_queue,
    rows: *mut f32,
    labels: *mut u32,
) -> Status {
    call(|| {
        // SAFETY: the header's contract.
        let queue = unsafe { reference("queue", queue) }?.read()?;
        expect_optional_place("rows", rows)?;
        expect_optional_place("labels", labels)?;
        if !rows.is_null() {
            // SAFETY: checked, and the header's contract: [capacity, dim].
            unsafe { put(rows, &queue.rows().to_f32()) };
        }
        if !labels.is_null() {
            let none = || vec![NO_LABEL; queue.capacity()];
            // SAFETY: checked, and the header's contract: [capacity].
            unsafe { put(labels, &queue.labels().map_or_else(none, <[u32]>::to_vec)) };
        }
        Ok(())
    })
}

/// `hardmix_queue_free` of the header.
///
/// # Safety
/// What the header says of its arguments.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hardmix_queue_free(queue: *mut hardmix_queue) {
    // SAFETY: the header's contract.
    call(|| unsafe { take_back(queue) });
}

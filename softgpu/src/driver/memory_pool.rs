//! Chapter "Stream Ordered Memory Allocator", as far as pools go: they all draw on the one device.

use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::sync::{LazyLock, Mutex};

use super::abi::{In, Out, entry};
use super::clock::lock;
use super::device::valid_device;
use super::error::{CuError, CuResult};
use super::memory::allocate_async;
use super::{Handle, context, driver};

/// A pool: attributes that are remembered.
#[derive(Debug)]
pub struct Pool {
    attributes: Mutex<HashMap<c_int, u64>>,
}

/// Attributes 1 to 3 (reuse) are ints and on at first; 4 to 8 are 64-bit counts.
const REUSE: std::ops::RangeInclusive<c_int> = 1..=3;
const COUNTS: std::ops::RangeInclusive<c_int> = 4..=8;

impl Pool {
    fn new() -> Pool {
        Pool {
            attributes: Mutex::new(REUSE.map(|reuse| (reuse, 1)).collect()),
        }
    }
}

static DEFAULT: LazyLock<Handle> = LazyLock::new(|| driver().pools.add(Pool::new()));
static CURRENT: Mutex<Option<Handle>> = Mutex::new(None);

fn for_device(device: c_int) -> CuResult {
    context::initialised()?;
    valid_device(device)
}

entry! {
    /// The pool the device begins with.
    fn cuDeviceGetDefaultMemPool(out: Out<Handle>, device: c_int) {
        for_device(device)?;
        out.put(*DEFAULT)
    }

    /// The pool that is used where none is named.
    fn cuDeviceGetMemPool(out: Out<Handle>, device: c_int) {
        for_device(device)?;
        out.put(lock(&CURRENT).unwrap_or(*DEFAULT))
    }

    /// Chooses it.
    fn cuDeviceSetMemPool(device: c_int, pool: Handle) {
        for_device(device)?;
        driver().pools.get(pool)?;
        *lock(&CURRENT) = Some(pool);
        Ok(())
    }

    /// A pool. Its properties concern sharing and placement, of which there is none.
    fn cuMemPoolCreate(out: Out<Handle>, properties: In<c_void>) {
        context::initialised()?;
        if properties.is_null() {
            return Err(CuError::INVALID_VALUE);
        }
        out.put(driver().pools.add(Pool::new()))
    }

    /// Forgets a pool.
    fn cuMemPoolDestroy(pool: Handle) {
        context::initialised()?;
        if pool == *DEFAULT {
            return Err(CuError::INVALID_VALUE);
        }
        lock(&CURRENT).take_if(|current| *current == pool);
        driver().pools.remove(pool).map(drop)
    }

    /// Freed memory is never kept back.
    fn cuMemPoolTrimTo(pool: Handle, _keep: usize) {
        context::initialised()?;
        driver().pools.get(pool).map(drop)
    }

    /// An attribute of a pool.
    fn cuMemPoolGetAttribute(pool: Handle, attribute: c_int, out: Out<u64>) {
        context::initialised()?;
        let pool = driver().pools.get(pool)?;
        let value = lock(&pool.attributes).get(&attribute).copied().unwrap_or(0);
        if REUSE.contains(&attribute) {
            out.cast().put(value as c_int)
        } else if COUNTS.contains(&attribute) {
            out.put(value)
        } else {
            Err(CuError::INVALID_VALUE)
        }
    }

    /// Sets an attribute of a pool, which is remembered.
    fn cuMemPoolSetAttribute(pool: Handle, attribute: c_int, value: In<u64>) {
        context::initialised()?;
        let pool = driver().pools.get(pool)?;
        let value = if REUSE.contains(&attribute) {
            u64::from(value.cast::<u32>().read()?)
        } else if COUNTS.contains(&attribute) {
            value.read()?
        } else {
            return Err(CuError::INVALID_VALUE);
        };
        lock(&pool.attributes).insert(attribute, value);
        Ok(())
    }

    /// Device memory, in a stream's order.
    fn cuMemAllocFromPoolAsync(out: Out<u64>, size: usize, pool: Handle, stream: Handle) {
        driver().pools.get(pool)?;
        allocate_async(&out, size, stream)
    }
}

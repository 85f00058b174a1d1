//! Chapters "Primary Context Management" and "Context Management".

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{c_int, c_uint, c_void};
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::thread::ThreadId;

use super::abi::{In, Out, entry};
use super::clock::lock;
use super::device::valid_device;
use super::error::{CuError, CuResult};
use super::stream::Stream;
use super::{Handle, driver, fresh_handle};

const KNOWN_FLAGS: c_uint = 0xFF;
const API_VERSION: c_uint = 13_000;
const CACHE_PREFERENCES: c_int = 4;

/// The limits that can be read and set, with their first values (an H100's).
const LIMITS: [(c_int, usize); 4] = [
    (0, 1024),    // stack of a thread
    (1, 1 << 20), // printf buffer
    (2, 8 << 20), // malloc heap
    (5, 64),      // L2 fetch granularity
];

/// A context: its default streams and settings. All contexts share the one device.
#[derive(Debug)]
pub struct Context {
    /// Its name in the API.
    pub handle: Handle,
    /// The default stream.
    pub legacy: Arc<Stream>,
    primary: bool,
    /// Retained so many times; 0 when it was destroyed or let go by all.
    retained: AtomicUsize,
    per_thread: Mutex<HashMap<ThreadId, Arc<Stream>>>,
    limits: Mutex<HashMap<c_int, usize>>,
    flags: AtomicU32,
    cache_preference: AtomicI32,
}

impl Context {
    fn new(primary: bool, flags: c_uint) -> Arc<Context> {
        let context = Arc::new(Context {
            handle: fresh_handle(),
            legacy: Stream::new(0, 0, true),
            primary,
            retained: AtomicUsize::new(0),
            per_thread: Mutex::default(),
            limits: Mutex::new(LIMITS.into()),
            flags: AtomicU32::new(flags),
            cache_preference: AtomicI32::new(0),
        });
        driver()
            .contexts
            .insert(context.handle, Arc::clone(&context));
        context
    }

    /// The calling thread's own default stream.
    pub fn per_thread_stream(&self) -> Arc<Stream> {
        let mut streams = lock(&self.per_thread);
        let own = streams
            .entry(std::thread::current().id())
            .or_insert_with(|| {
                let stream = Stream::new(0, 0, false);
                driver().streams.add(Arc::clone(&stream));
                stream
            });
        Arc::clone(own)
    }

    fn alive(&self) -> bool {
        self.retained.load(Ordering::Relaxed) > 0
    }
}

static PRIMARY: LazyLock<Arc<Context>> = LazyLock::new(|| Context::new(true, 0));

thread_local! {
    static STACK: RefCell<Vec<Handle>> = const { RefCell::new(Vec::new()) };
}

fn top() -> Option<Handle> {
    STACK.with_borrow(|stack| stack.last().copied())
}

fn set_top(handle: Option<Handle>) {
    STACK.with_borrow_mut(|stack| {
        stack.pop();
        stack.extend(handle);
    });
}

/// The error before `cuInit`.
pub fn initialised() -> CuResult {
    let initialised = driver().initialised.load(Ordering::Relaxed);
    if initialised {
        Ok(())
    } else {
        Err(CuError::NOT_INITIALIZED)
    }
}

/// The calling thread's context, if the device is still sound: what most entry points begin with.
pub fn current() -> CuResult<Arc<Context>> {
    initialised()?;
    let handle = top().ok_or(CuError::INVALID_CONTEXT)?;
    let context = driver()
        .contexts
        .get(handle)
        .map_err(|_| CuError::CONTEXT_IS_DESTROYED)?;
    if !context.alive() {
        return Err(CuError::CONTEXT_IS_DESTROYED);
    }
    driver().check_sound()?;
    Ok(context)
}

fn create(out: &Out<Handle>, flags: c_uint, device: c_int) -> CuResult {
    initialised()?;
    valid_device(device)?;
    if flags & !KNOWN_FLAGS != 0 {
        return Err(CuError::INVALID_VALUE);
    }
    let context = Context::new(false, flags);
    context.retained.store(1, Ordering::Relaxed);
    STACK.with_borrow_mut(|stack| stack.push(context.handle));
    out.put(context.handle)
}

fn known_limit(limit: c_int) -> CuResult {
    let known = LIMITS.iter().any(|(known, _)| *known == limit);
    if known {
        Ok(())
    } else {
        Err(CuError::UNSUPPORTED_LIMIT)
    }
}

entry! {
    /// Takes hold of the device's primary context.
    fn cuDevicePrimaryCtxRetain(out: Out<Handle>, device: c_int) {
        initialised()?;
        valid_device(device)?;
        out.put(PRIMARY.handle)?;
        PRIMARY.retained.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Lets go of it.
    fn cuDevicePrimaryCtxRelease_v2(device: c_int) {
        initialised()?;
        valid_device(device)?;
        PRIMARY
            .retained
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| held.checked_sub(1))
            .map(drop)
            .map_err(|_| CuError::INVALID_CONTEXT)
    }

    /// Settings of the primary context.
    fn cuDevicePrimaryCtxSetFlags_v2(device: c_int, flags: c_uint) {
        initialised()?;
        valid_device(device)?;
        if flags & !KNOWN_FLAGS != 0 {
            return Err(CuError::INVALID_VALUE);
        }
        PRIMARY.flags.store(flags, Ordering::Relaxed);
        Ok(())
    }

    /// Settings of the primary context, and whether anybody holds it.
    fn cuDevicePrimaryCtxGetState(device: c_int, flags: Out<c_uint>, active: Out<c_int>) {
        initialised()?;
        valid_device(device)?;
        flags.put(PRIMARY.flags.load(Ordering::Relaxed))?;
        active.put(c_int::from(PRIMARY.alive()))
    }

    /// A context of its own, made current.
    fn cuCtxCreate_v2(out: Out<Handle>, flags: c_uint, device: c_int) {
        create(&out, flags, device)
    }

    /// The same; execution affinities are not supported.
    fn cuCtxCreate_v3(
        out: Out<Handle>,
        affinities: In<c_void>,
        count: c_int,
        flags: c_uint,
        device: c_int,
    ) {
        if !affinities.is_null() || count != 0 {
            return Err(CuError::NOT_SUPPORTED);
        }
        create(&out, flags, device)
    }

    /// The same; sharing with graphics is not supported.
    fn cuCtxCreate_v4(out: Out<Handle>, parameters: In<c_void>, flags: c_uint, device: c_int) {
        if !parameters.is_null() {
            return Err(CuError::NOT_SUPPORTED);
        }
        create(&out, flags, device)
    }

    /// Destroys a context that [`cuCtxCreate_v4`] made.
    fn cuCtxDestroy_v2(handle: Handle) {
        initialised()?;
        let context = driver().contexts.get(handle).map_err(|_| CuError::INVALID_CONTEXT)?;
        if context.primary {
            return Err(CuError::INVALID_CONTEXT);
        }
        context.retained.store(0, Ordering::Relaxed);
        if top() == Some(handle) {
            set_top(None);
        }
        driver().contexts.remove(handle).map(drop)
    }

    /// The calling thread's context, or null.
    fn cuCtxGetCurrent(out: Out<Handle>) {
        initialised()?;
        out.put(top().unwrap_or(0))
    }

    /// Makes a context the calling thread's; null for none.
    fn cuCtxSetCurrent(handle: Handle) {
        initialised()?;
        if handle == 0 {
            set_top(None);
            return Ok(());
        }
        driver().contexts.get(handle).map_err(|_| CuError::INVALID_CONTEXT)?;
        set_top(Some(handle));
        Ok(())
    }

    /// The same, keeping the present one underneath.
    fn cuCtxPushCurrent_v2(handle: Handle) {
        initialised()?;
        driver().contexts.get(handle).map_err(|_| CuError::INVALID_CONTEXT)?;
        STACK.with_borrow_mut(|stack| stack.push(handle));
        Ok(())
    }

    /// Back to the one underneath.
    fn cuCtxPopCurrent_v2(out: Out<Handle>) {
        initialised()?;
        let handle = STACK.with_borrow_mut(Vec::pop).ok_or(CuError::INVALID_CONTEXT)?;
        out.put_if_wanted(handle);
        Ok(())
    }

    /// The device of the context.
    fn cuCtxGetDevice(out: Out<c_int>) {
        current()?;
        out.put(0)
    }

    /// The version of the API the context was made with.
    fn cuCtxGetApiVersion(handle: Handle, out: Out<c_uint>) {
        initialised()?;
        if handle != 0 {
            driver().contexts.get(handle).map_err(|_| CuError::INVALID_CONTEXT)?;
        }
        out.put(API_VERSION)
    }

    /// Waits for all work.
    fn cuCtxSynchronize() {
        let context = current()?;
        crate::control::count_wait();
        context.legacy.synchronize()?;
        driver().streams.all().iter().for_each(|stream| stream.synchronize_unless_capturing());
        driver().check_sound()
    }

    /// The context's settings.
    fn cuCtxGetFlags(out: Out<c_uint>) {
        out.put(current()?.flags.load(Ordering::Relaxed))
    }

    /// Changes the context's settings.
    fn cuCtxSetFlags(flags: c_uint) {
        let context = current()?;
        if flags & !KNOWN_FLAGS != 0 {
            return Err(CuError::INVALID_VALUE);
        }
        context.flags.store(flags, Ordering::Relaxed);
        Ok(())
    }

    /// A limit's value.
    fn cuCtxGetLimit(out: Out<usize>, limit: c_int) {
        let context = current()?;
        known_limit(limit)?;
        out.put(lock(&context.limits)[&limit])
    }

    /// Sets a limit, which is remembered and bounds nothing here.
    fn cuCtxSetLimit(limit: c_int, value: usize) {
        let context = current()?;
        known_limit(limit)?;
        lock(&context.limits).insert(limit, value);
        Ok(())
    }

    /// The preference between cache and shared memory.
    fn cuCtxGetCacheConfig(out: Out<c_int>) {
        out.put(current()?.cache_preference.load(Ordering::Relaxed))
    }

    /// Sets it, which changes nothing here.
    fn cuCtxSetCacheConfig(preference: c_int) {
        let context = current()?;
        if !(0..CACHE_PREFERENCES).contains(&preference) {
            return Err(CuError::INVALID_VALUE);
        }
        context.cache_preference.store(preference, Ordering::Relaxed);
        Ok(())
    }
}

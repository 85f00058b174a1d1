//! Chapter "Stream Management": order of work, and its capture.
//!
//! Work runs in the call that submits it, which keeps runs reproducible. Only where a stream has
//! to wait for the host (a host function) does a thread of its own take over, until the stream is
//! empty again. Either way the caller cannot tell: an error of a kernel shows in a later call.

use std::collections::VecDeque;
use std::ffi::{c_int, c_uint, c_void};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::abi::{Out, entry};
use super::clock::{Line, Moment, lock};
use super::context::{self, Context};
use super::error::{CuError, CuResult};
use super::event::{Event, Record};
use super::graph::Capturing;
use super::work::Work;
use super::{Handle, driver};
use crate::control;

const NON_BLOCKING: c_uint = 1;
/// Priorities run from 0 (least) to this, as on an H100.
const GREATEST_PRIORITY: c_int = -5;

/// The handle of the default stream, which other blocking streams wait for.
const LEGACY: Handle = 1;
/// The handle of the calling thread's own default stream.
const PER_THREAD: Handle = 2;

/// An order of work.
#[derive(Debug)]
pub struct Stream {
    flags: c_uint,
    priority: c_int,
    legacy: bool,
    line: Line,
    queue: Mutex<Queue>,
    emptied: Condvar,
    reached: Mutex<Moment>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Work>,
    /// Whether a thread works through what waits.
    draining: bool,
    capturing: Option<Capturing>,
}

impl Stream {
    /// A stream; `legacy` for a context's default one.
    pub fn new(flags: c_uint, priority: c_int, legacy: bool) -> Arc<Stream> {
        Arc::new(Stream {
            flags,
            priority,
            legacy,
            line: Line::new(),
            queue: Mutex::default(),
            emptied: Condvar::new(),
            reached: Mutex::default(),
        })
    }

    fn blocking(&self) -> bool {
        self.flags & NON_BLOCKING == 0
    }

    /// Puts work behind all that was submitted before; in a capture, into the graph.
    pub fn submit(self: &Arc<Self>, context: &Context, work: Work) -> CuResult {
        if let Some(capturing) = &mut lock(&self.queue).capturing {
            return capturing.add(work);
        }
        self.wait_for_default_streams(context);
        self.enqueue(work);
        Ok(())
    }

    /// The default stream waits for every blocking stream and each of those for it.
    fn wait_for_default_streams(self: &Arc<Self>, context: &Context) {
        if self.legacy {
            for other in driver().streams.all() {
                if other.blocking() && !other.is_capturing() {
                    self.enqueue(Work::Wait(other.record_now()));
                }
            }
        } else if self.blocking() {
            self.enqueue(Work::Wait(context.legacy.record_now()));
        }
    }

    fn enqueue(self: &Arc<Self>, work: Work) {
        lock(&self.reached).learn_from_host();
        let mut queue = lock(&self.queue);
        if queue.draining {
            queue.waiting.push_back(work);
        } else if work.may_block() {
            queue.waiting.push_back(work);
            queue.draining = true;
            let stream = Arc::clone(self);
            let options = control::options();
            let drainer = std::thread::Builder::new().spawn(move || {
                control::adopt(options);
                stream.drain();
            });
            drop(queue);
            if drainer.is_err() {
                // No thread to be had: the caller waits instead.
                self.drain();
            }
        } else {
            // The queue stays locked: what other threads submit here comes after.
            work.run(&self.line, &self.reached);
        }
    }

    fn drain(&self) {
        loop {
            let next = {
                let mut queue = lock(&self.queue);
                let next = queue.waiting.pop_front();
                queue.draining = next.is_some();
                next
            };
            match next {
                Some(work) => work.run(&self.line, &self.reached),
                None => break,
            }
        }
        self.emptied.notify_all();
    }

    /// An event's record at this point of the stream.
    pub fn record_now(self: &Arc<Self>) -> Arc<Record> {
        let record = Arc::new(Record::default());
        self.enqueue(Work::Record(Arc::clone(&record)));
        record
    }

    /// Returns when all work is done; the host is then ordered after it.
    pub fn synchronize(&self) -> CuResult {
        let mut queue = lock(&self.queue);
        if let Some(capturing) = &mut queue.capturing {
            capturing.invalidate();
            return Err(CuError::STREAM_CAPTURE_UNSUPPORTED);
        }
        self.wait(queue);
        Ok(())
    }

    /// The same for whoever waits for all streams: a capture has no work to wait for.
    pub fn synchronize_unless_capturing(&self) {
        let queue = lock(&self.queue);
        if queue.capturing.is_none() {
            self.wait(queue);
        }
    }

    fn wait(&self, mut queue: MutexGuard<'_, Queue>) {
        while queue.draining {
            queue = self
                .emptied
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        }
        drop(queue);
        lock(&self.reached).teach_host();
    }

    fn is_idle(&self) -> bool {
        self.queue.try_lock().is_ok_and(|queue| !queue.draining)
    }

    /// Whether work goes into a graph instead of being done.
    pub fn is_capturing(&self) -> bool {
        lock(&self.queue).capturing.is_some()
    }

    /// Lets `act` see and change the capture this stream is part of.
    pub fn with_capture<T>(&self, act: impl FnOnce(&mut Option<Capturing>) -> T) -> T {
        act(&mut lock(&self.queue).capturing)
    }
}

/// The stream a handle names in the current context.
pub fn stream(context: &Arc<Context>, handle: Handle) -> CuResult<Arc<Stream>> {
    match handle {
        0 | LEGACY => Ok(Arc::clone(&context.legacy)),
        PER_THREAD => Ok(context.per_thread_stream()),
        handle => driver().streams.get(handle),
    }
}

/// As [`stream`], for work: the context must be sound.
pub fn working_stream(handle: Handle) -> CuResult<(Arc<Context>, Arc<Stream>)> {
    let context = context::current()?;
    let stream = stream(&context, handle)?;
    Ok((context, stream))
}

fn create(out: Out<Handle>, flags: c_uint, priority: c_int) -> CuResult {
    context::current()?;
    if flags & !NON_BLOCKING != 0 {
        return Err(CuError::INVALID_VALUE);
    }
    let stream = Stream::new(flags, priority.clamp(GREATEST_PRIORITY, 0), false);
    out.put(driver().streams.add(stream))
}

entry! {
    /// A stream of the current context.
    fn cuStreamCreate(out: Out<Handle>, flags: c_uint) {
        create(out, flags, 0)
    }

    /// The same with a priority, which changes nothing here.
    fn cuStreamCreateWithPriority(out: Out<Handle>, flags: c_uint, priority: c_int) {
        create(out, flags, priority)
    }

    /// Forgets the stream; its work is finished first.
    fn cuStreamDestroy_v2(handle: Handle) {
        context::current()?;
        let stream = driver().streams.get(handle)?;
        if let Some(mut part) = stream.with_capture(Option::take) {
            part.invalidate();
        }
        driver().streams.remove(handle).map(drop)
    }

    /// Waits for all work of the stream.
    fn cuStreamSynchronize(handle: Handle) {
        let (_, stream) = working_stream(handle)?;
        crate::control::count_wait();
        stream.synchronize()?;
        driver().check_sound()
    }

    /// Whether all work of the stream is done.
    fn cuStreamQuery(handle: Handle) {
        let (_, stream) = working_stream(handle)?;
        if stream.is_idle() { Ok(()) } else { Err(CuError::NOT_READY) }
    }

    /// Holds later work of the stream back until the event has come.
    fn cuStreamWaitEvent(handle: Handle, event: Handle, flags: c_uint) {
        let (context, stream) = working_stream(handle)?;
        if flags & !1 != 0 {
            return Err(CuError::INVALID_VALUE);
        }
        let event: Arc<Event> = driver().events.get(event)?;
        event.wait_in(&context, &stream)
    }

    /// The flags the stream was made with.
    fn cuStreamGetFlags(handle: Handle, out: Out<c_uint>) {
        let (_, stream) = working_stream(handle)?;
        out.put(stream.flags)
    }

    /// The priority the stream was made with.
    fn cuStreamGetPriority(handle: Handle, out: Out<c_int>) {
        let (_, stream) = working_stream(handle)?;
        out.put(stream.priority)
    }

    /// The context of the stream.
    fn cuStreamGetCtx(handle: Handle, out: Out<Handle>) {
        let (context, _) = working_stream(handle)?;
        out.put(context.handle)
    }

    /// Calls a host function when the stream gets there.
    fn cuLaunchHostFunc(handle: Handle, function: Option<HostFunction>, data: super::abi::HostPtr) {
        let (context, stream) = working_stream(handle)?;
        let function = function.ok_or(CuError::INVALID_VALUE)?;
        stream.submit(&context, Work::Host(function, data))
    }

    /// The range of priorities.
    fn cuCtxGetStreamPriorityRange(least: Out<c_int>, greatest: Out<c_int>) {
        context::current()?;
        least.put_if_wanted(0);
        greatest.put_if_wanted(GREATEST_PRIORITY);
        Ok(())
    }
}

/// What `cuLaunchHostFunc` calls.
pub type HostFunction = unsafe extern "C" fn(*mut c_void);

//! Chapter "Event Management".

use std::ffi::c_uint;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use super::abi::{Out, entry};
use super::clock::{Moment, lock};
use super::context::{self, Context};
use super::error::{CuError, CuResult};
use super::graph::Branch;
use super::stream::{Stream, working_stream};
use super::work::Work;
use super::{Handle, driver};

const DISABLE_TIMING: c_uint = 2;
const INTERPROCESS: c_uint = 4;
const KNOWN_FLAGS: c_uint = 7;

/// A marker that streams record and wait for.
#[derive(Debug)]
pub struct Event {
    flags: c_uint,
    last: Mutex<Last>,
}

/// What the event was last recorded in.
#[derive(Clone, Debug, Default)]
enum Last {
    #[default]
    Nothing,
    Stream(Arc<Record>),
    Capture(Branch),
}

/// One recording of an event: a point of a stream, once the stream has come to it.
#[derive(Debug, Default)]
pub struct Record {
    moment: Mutex<Option<Moment>>,
    done: Condvar,
}

impl Record {
    /// The stream has come to it.
    pub fn complete(&self, moment: Moment) {
        *lock(&self.moment) = Some(moment);
        self.done.notify_all();
    }

    /// The point, if the stream has come to it.
    pub fn moment(&self) -> Option<Moment> {
        lock(&self.moment).clone()
    }

    /// Waits until the stream has come to it.
    pub fn wait(&self) -> Moment {
        let mut moment = lock(&self.moment);
        loop {
            if let Some(moment) = &*moment {
                return moment.clone();
            }
            moment = self
                .done
                .wait(moment)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Event {
    fn record(&self, context: &Context, stream: &Arc<Stream>) -> CuResult {
        let last = match stream.with_capture(|capture| capture.as_ref().map(|part| part.branch())) {
            Some(branch) => Last::Capture(branch),
            None => {
                let record = Arc::new(Record::default());
                stream.submit(context, Work::Record(Arc::clone(&record)))?;
                Last::Stream(record)
            }
        };
        *lock(&self.last) = last;
        Ok(())
    }

    /// Makes a stream wait for the last recording: in a capture a dependency of what follows.
    pub fn wait_in(&self, context: &Context, stream: &Arc<Stream>) -> CuResult {
        match lock(&self.last).clone() {
            Last::Nothing => Ok(()),
            Last::Capture(branch) => branch.join(stream, Arc::ptr_eq(stream, &context.legacy)),
            Last::Stream(record) => {
                let isolated = stream.with_capture(|capture| {
                    capture.as_mut().map(|part| part.invalidate()).is_some()
                });
                if isolated {
                    return Err(CuError::STREAM_CAPTURE_ISOLATION);
                }
                stream.submit(context, Work::Wait(record))
            }
        }
    }

    /// The last recording; an event of a capture has no state, and asking for it ends the capture.
    fn recording(&self) -> CuResult<Option<Arc<Record>>> {
        match lock(&self.last).clone() {
            Last::Nothing => Ok(None),
            Last::Stream(record) => Ok(Some(record)),
            Last::Capture(branch) => {
                branch.invalidate();
                Err(CuError::CAPTURED_EVENT)
            }
        }
    }
}

/// Milliseconds between two events, in modelled time (see `clock.rs`).
fn elapsed(out: &Out<f32>, start: Handle, end: Handle) -> CuResult {
    context::current()?;
    let moment = |handle| {
        let event = driver().events.get(handle)?;
        if event.flags & DISABLE_TIMING != 0 {
            return Err(CuError::INVALID_HANDLE);
        }
        let record = event.recording()?.ok_or(CuError::INVALID_HANDLE)?;
        record.moment().ok_or(CuError::NOT_READY)
    };
    let (start, end) = (moment(start)?, moment(end)?);
    out.put((end.nanos as f64 / 1e6 - start.nanos as f64 / 1e6) as f32)
}

entry! {
    /// An event of the current context.
    fn cuEventCreate(out: Out<Handle>, flags: c_uint) {
        context::current()?;
        let untimed_if_shared = flags & INTERPROCESS == 0 || flags & DISABLE_TIMING != 0;
        if flags & !KNOWN_FLAGS != 0 || !untimed_if_shared {
            return Err(CuError::INVALID_VALUE);
        }
        out.put(driver().events.add(Event { flags, last: Mutex::default() }))
    }

    /// Forgets the event; streams that wait for it still do.
    fn cuEventDestroy_v2(handle: Handle) {
        driver().events.remove(handle).map(drop)
    }

    /// Marks the present end of the stream's work.
    fn cuEventRecord(handle: Handle, stream: Handle) {
        let (context, stream) = working_stream(stream)?;
        driver().events.get(handle)?.record(&context, &stream)
    }

    /// The same; the flag concerns captures only.
    fn cuEventRecordWithFlags(handle: Handle, stream: Handle, flags: c_uint) {
        if flags & !1 != 0 {
            return Err(CuError::INVALID_VALUE);
        }
        let (context, stream) = working_stream(stream)?;
        driver().events.get(handle)?.record(&context, &stream)
    }

    /// Whether the marked work is done.
    fn cuEventQuery(handle: Handle) {
        context::current()?;
        let record = driver().events.get(handle)?.recording()?;
        match record.map(|record| record.moment()) {
            None => Ok(()),
            Some(None) => Err(CuError::NOT_READY),
            Some(Some(moment)) => {
                moment.teach_host();
                Ok(())
            }
        }
    }

    /// Waits for the marked work.
    fn cuEventSynchronize(handle: Handle) {
        context::current()?;
        crate::control::count_wait();
        if let Some(record) = driver().events.get(handle)?.recording()? {
            record.wait().teach_host();
        }
        driver().check_sound()
    }

    /// Milliseconds between two events.
    fn cuEventElapsedTime(out: Out<f32>, start: Handle, end: Handle) {
        elapsed(&out, start, end)
    }

    /// The same, as of CUDA 12.8.
    fn cuEventElapsedTime_v2(out: Out<f32>, start: Handle, end: Handle) {
        elapsed(&out, start, end)
    }
}

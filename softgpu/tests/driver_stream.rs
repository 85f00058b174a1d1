//! Chapters "Stream Management", "Event Management" and "Graph Management".

mod driver_common;

use std::ffi::c_void;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use cudarc::driver::sys::{CUevent_flags, CUgraphInstantiate_flags, CUresult, CUstreamCaptureMode};
use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError, result, sys};
use driver_common::context;
use std::sync::Arc;

const MODE: CUstreamCaptureMode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
const NO_FLAGS: CUgraphInstantiate_flags = CUgraphInstantiate_flags(0);

fn error<T: std::fmt::Debug>(answer: Result<T, DriverError>) -> CUresult {
    answer.expect_err("an error").0
}

/// A context that leaves the order of streams to the test.
fn untracked() -> Arc<CudaContext> {
    let context = context();
    // SAFETY: the tests order their streams themselves.
    unsafe { context.disable_event_tracking() };
    context
}

fn timed(context: &Arc<CudaContext>) -> CudaEvent {
    context
        .new_event(Some(CUevent_flags::CU_EVENT_DEFAULT))
        .unwrap()
}

unsafe extern "C" fn wait_for_release(data: *mut c_void) {
    // SAFETY: made by `hold` below, and passed to this one call.
    let receiver = unsafe { Box::from_raw(data.cast::<Receiver<()>>()) };
    let _ = receiver.recv_timeout(Duration::from_secs(30));
}

/// Keeps the stream busy until the sender speaks or goes.
fn hold(stream: &CudaStream) -> std::sync::mpsc::Sender<()> {
    let (sender, receiver) = channel::<()>();
    let data = Box::into_raw(Box::new(receiver)).cast();
    // SAFETY: the function takes the box that it is given, once.
    unsafe { sys::cuLaunchHostFunc(stream.cu_stream(), Some(wait_for_release), data) }
        .result()
        .unwrap();
    sender
}

#[test]
fn a_busy_stream_keeps_its_order() {
    let context = untracked();
    let stream = context.new_stream().unwrap();
    let mut data = stream.clone_htod(&[1u8; 4]).unwrap();
    let event = context.new_event(None).unwrap();
    let release = hold(&stream);
    stream.memset_zeros(&mut data).unwrap();
    event.record(&stream).unwrap();
    assert_eq!(event.try_is_complete(), Ok(false));
    // SAFETY: a live stream.
    let query = unsafe { sys::cuStreamQuery(stream.cu_stream()) }.result();
    assert_eq!(error(query), CUresult::CUDA_ERROR_NOT_READY);
    let other = context.new_stream().unwrap();
    other.wait(&event).unwrap();
    let after = other.record_event(None).unwrap();
    assert_eq!(after.try_is_complete(), Ok(false));
    release.send(()).unwrap();
    after.synchronize().unwrap();
    assert_eq!(event.try_is_complete(), Ok(true));
    assert_eq!(stream.clone_dtoh(&data).unwrap(), [0; 4]);
}

#[test]
fn event_times_follow_the_work_between_them() {
    let context = untracked();
    let (one, two) = (context.new_stream().unwrap(), context.new_stream().unwrap());
    let (mut a, mut b) = (
        one.alloc_zeros::<u8>(1 << 20).unwrap(),
        two.alloc_zeros::<u8>(1 << 20).unwrap(),
    );
    context.synchronize().unwrap();
    let start = timed(&context);
    start.record(&one).unwrap();
    one.memset_zeros(&mut a).unwrap();
    let once = timed(&context);
    once.record(&one).unwrap();
    one.memset_zeros(&mut a).unwrap();
    two.memset_zeros(&mut b).unwrap();
    let aside = timed(&context);
    aside.record(&two).unwrap();
    let twice = timed(&context);
    twice.record(&one).unwrap();
    let ms = start.elapsed_ms(&once).unwrap();
    assert!(ms > 0.0);
    assert_eq!(start.elapsed_ms(&twice).unwrap(), 2.0 * ms);
    // The other stream ran beside it.
    assert_eq!(start.elapsed_ms(&aside).unwrap(), ms);
    let untimed = one.record_event(None).unwrap();
    assert_eq!(
        error(start.elapsed_ms(&untimed)),
        CUresult::CUDA_ERROR_INVALID_HANDLE
    );
    let unrecorded = timed(&context);
    assert_eq!(
        error(start.elapsed_ms(&unrecorded)),
        CUresult::CUDA_ERROR_INVALID_HANDLE
    );
}

#[test]
fn handles_that_name_nothing_are_refused() {
    let context = context();
    context.bind_to_thread().unwrap();
    let stream = result::stream::create(result::stream::StreamKind::NonBlocking).unwrap();
    // SAFETY: handles are never followed by softgpu; that is what this test is about.
    unsafe {
        result::stream::destroy(stream).unwrap();
        for stale in [
            stream,
            std::ptr::dangling_mut(),
            0xDEAD_BEEF_usize as sys::CUstream,
        ] {
            if stale.addr() < 3 {
                continue;
            }
            let refused = [
                sys::cuStreamSynchronize(stale),
                sys::cuStreamDestroy_v2(stale),
                sys::cuEventSynchronize(stale.cast()),
                sys::cuEventRecord(stale.cast(), std::ptr::null_mut()),
                sys::cuMemsetD8Async(0, 0, 1, stale),
                sys::cuGraphLaunch(stale.cast(), std::ptr::null_mut()),
                sys::cuModuleUnload(stale.cast()),
            ];
            assert_eq!(refused[0], CUresult::CUDA_ERROR_INVALID_HANDLE);
            assert!(
                refused
                    .iter()
                    .all(|answer| *answer != CUresult::CUDA_SUCCESS),
                "{refused:?}"
            );
        }
        let nowhere = std::ptr::null_mut();
        assert_eq!(
            sys::cuStreamCreate(nowhere, 0),
            CUresult::CUDA_ERROR_INVALID_VALUE
        );
        let mut out = std::ptr::null_mut();
        assert_eq!(
            sys::cuStreamCreate(&mut out, 77),
            CUresult::CUDA_ERROR_INVALID_VALUE
        );
    }
}

#[test]
fn a_graph_replays_what_was_captured() {
    let context = untracked();
    let stream = context.new_stream().unwrap();
    let mut a = stream.clone_htod(&[1u32, 2, 3, 4]).unwrap();
    let mut b = stream.alloc_zeros::<u32>(4).unwrap();
    stream.begin_capture(MODE).unwrap();
    stream.memcpy_dtod(&a, &mut b).unwrap();
    stream.memset_zeros(&mut a).unwrap();
    assert_eq!(
        stream.capture_status().unwrap(),
        sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_ACTIVE
    );
    let graph = stream.end_capture(NO_FLAGS).unwrap().unwrap();
    // Nothing ran yet.
    assert_eq!(stream.clone_dtoh(&b).unwrap(), [0; 4]);
    graph.upload().unwrap();
    for round in 1..4 {
        stream.memcpy_htod(&[round; 4], &mut a).unwrap();
        graph.launch().unwrap();
        assert_eq!(stream.clone_dtoh(&b).unwrap(), [round; 4]);
        assert_eq!(stream.clone_dtoh(&a).unwrap(), [0; 4]);
    }
}

#[test]
fn a_capture_forks_and_joins() {
    let context = untracked();
    let (one, two) = (context.new_stream().unwrap(), context.new_stream().unwrap());
    let mut a = one.clone_htod(&[5u32; 4]).unwrap();
    let mut b = one.alloc_zeros::<u32>(4).unwrap();
    let mut c = one.alloc_zeros::<u32>(4).unwrap();
    context.synchronize().unwrap();
    let (fork, join) = (
        context.new_event(None).unwrap(),
        context.new_event(None).unwrap(),
    );
    one.begin_capture(MODE).unwrap();
    one.memcpy_dtod(&a, &mut b).unwrap();
    fork.record(&one).unwrap();
    two.wait(&fork).unwrap();
    two.memcpy_dtod(&b, &mut c).unwrap();
    one.memset_zeros(&mut a).unwrap();
    join.record(&two).unwrap();
    one.wait(&join).unwrap();
    one.memset_zeros(&mut b).unwrap();
    let graph = one.end_capture(NO_FLAGS).unwrap().unwrap();
    graph.launch().unwrap();
    one.synchronize().unwrap();
    assert_eq!(one.clone_dtoh(&a).unwrap(), [0; 4]);
    assert_eq!(one.clone_dtoh(&b).unwrap(), [0; 4]);
    assert_eq!(one.clone_dtoh(&c).unwrap(), [5; 4]);
    // The second stream is an ordinary one again.
    two.memset_zeros(&mut c).unwrap();
    assert_eq!(two.clone_dtoh(&c).unwrap(), [0; 4]);
}

#[test]
fn captures_that_go_wrong_say_so() {
    let context = untracked();
    let (one, two) = (context.new_stream().unwrap(), context.new_stream().unwrap());
    let mut data = one.alloc_zeros::<u32>(4).unwrap();
    let event = context.new_event(None).unwrap();

    // Work on the second stream that the first never waits for.
    one.begin_capture(MODE).unwrap();
    event.record(&one).unwrap();
    two.wait(&event).unwrap();
    two.memset_zeros(&mut data).unwrap();
    assert_eq!(
        error(two.end_capture(NO_FLAGS).map(drop)),
        CUresult::CUDA_ERROR_STREAM_CAPTURE_UNMATCHED
    );
    assert_eq!(
        error(one.end_capture(NO_FLAGS).map(drop)),
        CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
    );
    one.begin_capture(MODE).unwrap();
    event.record(&one).unwrap();
    two.wait(&event).unwrap();
    two.memset_zeros(&mut data).unwrap();
    assert_eq!(
        error(one.end_capture(NO_FLAGS).map(drop)),
        CUresult::CUDA_ERROR_STREAM_CAPTURE_UNJOINED
    );

    // Waiting for what is only being captured.
    one.begin_capture(MODE).unwrap();
    assert_eq!(
        error(one.synchronize()),
        CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
    );
    assert_eq!(
        error(one.memset_zeros(&mut data)),
        CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
    );
    assert_eq!(
        error(one.end_capture(NO_FLAGS).map(drop)),
        CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
    );

    // An event of ordinary work inside a capture.
    let outside = two.record_event(None).unwrap();
    one.begin_capture(MODE).unwrap();
    assert_eq!(
        error(one.wait(&outside)),
        CUresult::CUDA_ERROR_STREAM_CAPTURE_ISOLATION
    );
    assert!(one.end_capture(NO_FLAGS).is_err());

    assert_eq!(
        error(one.end_capture(NO_FLAGS).map(drop)),
        CUresult::CUDA_ERROR_ILLEGAL_STATE
    );
    assert_eq!(
        error(context.default_stream().begin_capture(MODE)),
        CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
    );
    one.memset_zeros(&mut data).unwrap();
    one.synchronize().unwrap();
}

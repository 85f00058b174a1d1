//! The GPU path on streams of the caller's, and captured in a graph.
//!
//! Each test has a process of its own: what is a stream's or a graph's way of waiting belongs to the
//! context.
#![cfg(feature = "cuda")]

mod common;

use common::assert_same_bits;
use common::cases::unit_rows;
use common::cuda::{alone, device, is_softgpu, to_host_of};
use cudarc::driver::CudaSlice;
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use hardmix::cuda::{self, Path, Precision, Ranked, Workspace};
use hardmix::{Config, DType, Error, QueryGradient, Queue};

const DIM: usize = 24;

/// Three streams: inputs are made on one, ranked on another and read on a third, with no wait of the
/// host between.
#[test]
fn what_another_stream_made_is_waited_for() {
    if !alone("what_another_stream_made_is_waited_for") {
        return;
    }
    let first = device();
    let context = first.stream().context();
    let other = || {
        let stream = context.new_stream().expect("a stream");
        first.with_stream(stream).expect("of the same context")
    };
    let (second, third) = (other(), other());
    let rng = &mut fastrand::Rng::with_seed(1);
    let queries = unit_rows(rng, 5, DIM);
    let mut host = Queue::random(150, DIM, DType::Bf16, 1).expect("a queue");
    let mut queue = cuda::Queue::from_host(first, &host).expect("a copy");
    let mut workspace = Workspace::new(&third).expect("a workspace");
    let mut ranked = Ranked::new(first, 5, 20).expect("lists");
    for round in 0..4 {
        let keys = unit_rows(rng, 20, DIM);
        host.enqueue(&keys, None).expect("keys");
        let keys = third.upload("keys", &keys).expect("keys");
        queue.enqueue(first, &keys, None).expect("keys");
        let there = first.upload("queries", &queries).expect("queries");
        let (exact, work) = (Precision::Exact, &mut workspace);
        cuda::rank(&second, &there, &queue, 20, None, exact, work, &mut ranked).expect("ranked");
        let own = to_host_of(&third, &ranked).expect("finite");
        let expected = hardmix::cpu::rank(&queries, &host, 20, None).expect("ranked");
        assert_eq!(own.indices, expected.indices, "round {round}");
    }
    queue.check(&second).expect("finite keys");
    assert_eq!(queue.to_host(&third).expect("a copy"), host);
}

/// Two streams read a queue before a third writes to it, which waits for both; and memory that two have
/// read is freed after both. On softgpu an access that nothing orders is an error.
#[test]
fn an_enqueue_waits_for_all_readers() {
    if !alone("an_enqueue_waits_for_all_readers") {
        return;
    }
    let context = device().stream().context();
    let [first, second, third] = std::array::from_fn(|_| {
        let stream = context.new_stream().expect("a stream");
        device().with_stream(stream).expect("of the same context")
    });
    let rng = &mut fastrand::Rng::with_seed(5);
    let (rows, keys) = (unit_rows(rng, 5, DIM), unit_rows(rng, 60, DIM));
    let host = Queue::random(60, DIM, DType::F32, 5).expect("a queue");
    let mut queue = cuda::Queue::from_host(&third, &host).expect("a copy");
    let mut replaced = host.clone();
    replaced.enqueue(&keys, None).expect("keys");
    let keys = third.upload("keys", &keys).expect("keys");
    let mut ranked = [&first, &second].map(|device| Ranked::new(device, 5, 7).expect("lists"));
    let mut works = [&first, &second].map(|device| Workspace::new(device).expect("a workspace"));
    let queries = third.upload("queries", &rows).expect("queries");
    for at in 0..2 {
        let (device, work, out) = ([&first, &second][at], &mut works[at], &mut ranked[at]);
        cuda::rank(
            device,
            &queries,
            &queue,
            7,
            None,
            Precision::Exact,
            work,
            out,
        )
        .expect("queued");
    }
    queue.enqueue(&third, &keys, None).expect("queued");
    drop(queries);
    third.synchronize().expect("nothing was written too early");
    let expected = hardmix::cpu::rank(&rows, &host, 7, None).expect("ranked");
    for (device, ranked) in [&first, &second].into_iter().zip(&ranked) {
        let own = to_host_of(device, ranked).expect("finite");
        assert_eq!(own.indices, expected.indices);
    }
    assert_eq!(queue.to_host(&third).expect("a copy"), replaced);
}

/// A step of a queue, captured once and replayed, goes on where the last replay stopped.
#[test]
fn a_captured_graph_goes_on_where_it_stopped() {
    if !alone("a_captured_graph_goes_on_where_it_stopped") {
        return;
    }
    // SAFETY: everything here is on one stream.
    unsafe { device().stream().context().disable_event_tracking() };
    let stream = device().stream().context().new_stream().expect("a stream");
    let device = device().with_stream(stream).expect("of the same context");
    let rng = &mut fastrand::Rng::with_seed(2);
    let (queries, keys) = (unit_rows(rng, 3, DIM), unit_rows(rng, 40, DIM));
    let mut host = Queue::random(100, DIM, DType::F32, 2).expect("a queue");
    let mut queue = cuda::Queue::from_host(&device, &host).expect("a copy");
    let there = device.upload("queries", &queries).expect("queries");
    let new = device.upload("keys", &keys).expect("keys");
    let mut workspace = Workspace::new(&device).expect("a workspace");
    let mut ranked = Ranked::new(&device, 3, 7).expect("lists");
    let mut step = || {
        let (exact, work) = (Precision::Exact, &mut workspace);
        cuda::rank(&device, &there, &queue, 7, None, exact, work, &mut ranked).expect("ranked");
        queue.enqueue(&device, &new, None).expect("keys");
    };
    // The first plans all memory; one that is captured must not.
    step();
    host.enqueue(&keys, None).expect("keys");
    let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL;
    device.stream().begin_capture(mode).expect("a capture");
    step();
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = device.stream().end_capture(flags).expect("captured");
    let graph = graph.expect("a graph");
    for replay in 0..5 {
        let expected = hardmix::cpu::rank(&queries, &host, 7, None).expect("ranked");
        graph.launch().expect("a launch");
        host.enqueue(&keys, None).expect("keys");
        let own = to_host_of(&device, &ranked).expect("finite");
        assert_eq!(own.indices, expected.indices, "replay {replay}");
        assert_eq!(
            queue.to_host(&device).expect("a copy"),
            host,
            "replay {replay}"
        );
    }
}

/// Whether a batch was refused is asked while a replay, which nothing orders with the question, may move
/// the cursor: the question touches no word that the replay does.
#[test]
fn asking_for_refusals_leaves_an_enqueue_under_way_alone() {
    if !alone("asking_for_refusals_leaves_an_enqueue_under_way_alone") {
        return;
    }
    // SAFETY: the streams are ordered by the host, but for the two calls that are to bear the lack of it.
    unsafe { device().stream().context().disable_event_tracking() };
    let stream = device().stream().context().new_stream().expect("a stream");
    let enqueueing = device().with_stream(stream).expect("of the same context");
    let stream = device().stream().context().new_stream().expect("a stream");
    let asking = device().with_stream(stream).expect("of the same context");
    let mut host = Queue::random(10, DIM, DType::F32, 2).expect("a queue");
    let mut queue = cuda::Queue::from_host(&enqueueing, &host).expect("a copy");
    let keys = unit_rows(&mut fastrand::Rng::with_seed(2), 3, DIM);
    let fine = enqueueing.upload("keys", &keys).expect("keys");
    let bad = enqueueing.upload("keys", &[f32::NAN; DIM]).expect("keys");
    queue.enqueue(&enqueueing, &bad, None).expect("queued");
    enqueueing.synchronize().expect("refused");
    queue.enqueue(&enqueueing, &fine, None).expect("queued");
    let error = queue.check(&asking).expect_err("refused");
    assert_eq!(error.to_string(), "row 0 of keys is not finite");
    asking.synchronize().expect("asked");
    enqueueing.synchronize().expect("enqueued");
    queue.check(&asking).expect("told once");
    host.enqueue(&keys, None).expect("keys");
    assert_eq!(queue.to_host(&enqueueing).expect("a copy"), host);
}

/// A whole training step, captured once: the caller advances the step in device memory and writes new
/// queries and keys where the old ones were, and every replay is, to the bit, that step run afresh.
fn draws_afresh(path: Path, dim: usize) {
    // SAFETY: everything here is on one stream.
    unsafe { device().stream().context().disable_event_tracking() };
    let stream = device().stream().context().new_stream().expect("a stream");
    let device = device().with_stream(stream).expect("of the same context");
    let (stream, seed) = (device.stream(), 0x0123_4567_89ab_cdef);
    let rng = &mut fastrand::Rng::with_seed(4);
    let mut host = Queue::random(60, dim, DType::Bf16, 4).expect("a queue");
    let mut queue = cuda::Queue::from_host(&device, &host).expect("a copy");
    let mut queries = unit_rows(rng, 5, dim);
    let mut keys = unit_rows(rng, 5, dim);
    let mut queries_there = device.upload("queries", &queries).expect("queries");
    let mut keys_there = device.upload("keys", &keys).expect("keys");
    let mut words = device.upload("seed and step", &[seed, 6]).expect("words");
    let config = Config::mochi(9, 12, 5)
        .expect("settings")
        .with_query_gradient(QueryGradient::Attached)
        .with_key_gradient(true);
    let mut step = cuda::Step::new(&device, config.clone())
        .expect("a step")
        .with_path(path);

    let mut train = |queries: &CudaSlice<f32>, keys: &CudaSlice<f32>, words: &CudaSlice<u64>| {
        let batch = cuda::Batch::new(queries, keys, dim).expect("a batch");
        step.run(&batch, &queue, &cuda::Draws::Seeded(words))
            .expect("a step");
        queue.enqueue(&device, keys, None).expect("keys");
    };
    // The first plans all memory; one that is captured must not.
    train(&queries_there, &keys_there, &words);
    host.enqueue(&keys, None).expect("keys");
    let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL;
    stream.begin_capture(mode).expect("a capture");
    train(&queries_there, &keys_there, &words);
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags).expect("captured");
    let graph = graph.expect("a graph");

    let mut coefficients = Vec::new();
    for at in 7..12 {
        queries = unit_rows(rng, 5, dim);
        keys = unit_rows(rng, 5, dim);
        // Bits from 2⁶³ up are the caller's.
        let advanced = [seed, at | (at & 1) << 63];
        stream
            .memcpy_htod(&queries, &mut queries_there)
            .expect("new queries");
        stream
            .memcpy_htod(&keys, &mut keys_there)
            .expect("new keys");
        stream
            .memcpy_htod(&advanced, &mut words)
            .expect("a new step");
        graph.launch().expect("a launch");

        let own = step.read().expect("an output");
        let batch = hardmix::Batch::new(&queries, &keys, dim).expect("a batch");
        let before = cuda::Queue::from_host(&device, &host).expect("a copy");
        let fresh = cuda::Step::new(&device, config.clone())
            .and_then(|step| {
                step.with_path(path).run_from_host(
                    &batch,
                    &before,
                    &hardmix::Draws::seeded(seed, at)?,
                )
            })
            .expect("an output");
        assert_same_bits(&own, &fresh, &format!("step {at}"));
        host.enqueue(&keys, None).expect("keys");
        assert_eq!(queue.to_host(&device).expect("a copy"), host, "step {at}");
        coefficients.push(own.draws.alpha);
    }
    coefficients.dedup();
    assert_eq!(coefficients.len(), 5, "two steps had the same draws");
}

#[test]
fn a_captured_training_step_draws_afresh() {
    if alone("a_captured_training_step_draws_afresh") {
        draws_afresh(Path::Unfused, DIM);
    }
}

#[test]
fn so_does_one_on_the_fused_path() {
    if alone("so_does_one_on_the_fused_path") {
        draws_afresh(Path::Fused, DIM);
        // In slices.
        draws_afresh(Path::Fused, 260);
    }
}

/// What no graph can hold is refused, and the capture goes on: memory of a larger batch, labels of a
/// queue that has none, and what is copied to the host.
#[test]
fn a_capture_neither_allocates_nor_copies_to_the_host() {
    if !alone("a_capture_neither_allocates_nor_copies_to_the_host") {
        return;
    }
    // SAFETY: everything here is on one stream.
    unsafe { device().stream().context().disable_event_tracking() };
    let stream = device().stream().context().new_stream().expect("a stream");
    let device = device().with_stream(stream).expect("of the same context");
    let rng = &mut fastrand::Rng::with_seed(6);
    let mut host = Queue::random(50, DIM, DType::F32, 6).expect("a queue");
    let mut queue = cuda::Queue::from_host(&device, &host).expect("a copy");
    let rows = unit_rows(rng, 4, DIM);
    let there = device.upload("rows", &rows).expect("rows");
    let labels = device.upload("labels", &[1u32; 4]).expect("labels");
    let words = device.upload("seed and step", &[1u64, 2]).expect("words");
    let config = Config::mochi(9, 12, 5).expect("settings");
    let mut step = cuda::Step::new(&device, config).expect("a step");
    let mut run = |rows: usize| {
        let part = there.slice(..rows * DIM);
        let batch = cuda::Batch::new(&part, &part, DIM).expect("a batch");
        step.run(&batch, &queue, &cuda::Draws::Seeded(&words))
    };
    run(2).expect("a step");
    let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL;
    device.stream().begin_capture(mode).expect("a capture");
    let larger = run(4);
    let new = device.upload("new", &[0.0f32]).map(|_| ());
    let labelled = queue.enqueue(&device, &there, Some(&labels)).map(|_| ());
    let seen = queue.check(&device);
    queue.enqueue(&device, &there, None).expect("keys");
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = device.stream().end_capture(flags).expect("captured");
    for (result, expected) in [
        (larger, "workspace cannot be allocated"),
        (new, "new cannot be allocated"),
        (labelled, "queue labels cannot be allocated"),
        (seen, "status cannot be copied to the host"),
    ] {
        let error = result.expect_err(expected);
        assert!(matches!(error, Error::Capturing { .. }), "{error:?}");
        assert!(error.to_string().starts_with(expected), "{error}");
    }
    graph.expect("a graph").launch().expect("a launch");
    host.enqueue(&rows, None).expect("keys");
    assert_eq!(queue.to_host(&device).expect("a copy"), host);
}

/// The same bits a thousand times on a GPU, while another stream keeps it busy.
#[test]
fn repeats_give_the_same_bits() {
    if !alone("repeats_give_the_same_bits") {
        return;
    }
    let (repeats, capacity, rows) = if is_softgpu() {
        (3, 300, 5)
    } else {
        (1000, 20_000, 100)
    };
    let first = device();
    let stream = first.stream().context().new_stream().expect("a stream");
    let second = first.with_stream(stream).expect("of the same context");
    let rng = &mut fastrand::Rng::with_seed(3);
    let queries = unit_rows(rng, rows, DIM);
    let host = Queue::random(capacity, DIM, DType::F16, 3).expect("a queue");
    let mut results = Vec::new();
    let mut on = [first, &second].map(|device| {
        let queue = cuda::Queue::from_host(device, &host).expect("a copy");
        let queries = device.upload("queries", &queries).expect("queries");
        let workspace = Workspace::new(device).expect("a workspace");
        let ranked = Ranked::new(device, rows, 100).expect("lists");
        (device, queue, queries, workspace, ranked)
    });
    for _ in 0..repeats {
        for (device, queue, queries, work, out) in &mut on {
            let exact = Precision::Exact;
            cuda::rank(device, queries, queue, 100, None, exact, work, out).expect("ranked");
        }
        for (device, .., ranked) in &on {
            let own = to_host_of(device, ranked).expect("finite");
            let bits: Vec<u32> = own.logits.iter().map(|x| x.to_bits()).collect();
            results.push((own.indices, bits));
        }
        results.dedup();
        assert_eq!(results.len(), 1, "the bits differ");
    }
}

//! The operators and the step on an NVIDIA GPU, by kernels of our own.
//!
//! | module | what it does |
//! |---|---|
//! | `rank` | the hardest queue rows of each query |
//! | `mix` | synthetic negatives from the hardest |
//! | `info_nce` | loss and gradient over real and synthetic negatives |
//! | `step` | all of it |
//! | `queue` | the queue of negatives in device memory |
//! | `device` | the context, the kernels loaded into it, and the stream that work is put on |
//! | `batch`, `output` | what goes into a step and what comes back |
//!
//! Below them: `logits` and `weigh` are the two products on the tensor cores, queries with queue and
//! weights with queue; `contrast` is one pass in place of both, for more dimensions `score` with both on
//! slices of the queue, and `sample` finds the hardest in the pass; `part` runs a step over some of the
//! rows, `status` holds what only the device can see, `workspace` memory that is planned once and reused.
//!
//! Every function puts its work on the [`Device`]'s stream and returns; none waits for the device
//! unless its documentation says so or it copies from host memory, and on slices none allocates once its
//! outputs and workspace have their size and the queue its labels. Inputs are slices and views of
//! cudarc's alike, and what is wrong with them is an error before anything is launched. What only the
//! device can see, a NaN, is a status that the caller reads when it suits.
//!
//! ```no_run
//! use hardmix::cuda::{self, Device, Precision, Ranked, Workspace};
//! use hardmix::{DType, Queue};
//!
//! let device = Device::new(0)?;
//! let mut queue = cuda::Queue::from_host(&device, &Queue::random(65_536, 128, DType::Bf16, 0)?)?;
//! let mut workspace = Workspace::new(&device)?;
//! let mut ranked = Ranked::new(&device, 256, 1024)?;
//!
//! // From your encoders: [batch, dim], in device memory.
//! # let queries = device.upload("queries", &[0.0f32; 256 * 128])?;
//! # let keys = device.upload("keys", &[0.0f32; 256 * 128])?;
//! let (exact, work) = (Precision::Exact, &mut workspace);
//! cuda::rank(&device, &queries, &queue, 1024, None, exact, work, &mut ranked)?;
//! let hardest = ranked.indices(); // [256, 1024], for whatever comes next on the stream
//! queue.enqueue_normalised(&device, &keys, None)?;
//! ranked.check(&device)?; // waits, and tells of a query that was not a number
//! # drop(hardest);
//! # Ok::<(), hardmix::Error>(())
//! ```
//!
//! # Graphs
//!
//! What is put on a stream can be captured as a CUDA graph and replayed; a replay draws by the step that
//! it finds in device memory, and enqueues where the last one stopped. There are four conditions:
//!
//! - cudarc's event tracking is off for the context, by `disable_event_tracking`: with it, what is
//!   captured would wait for events outside of the graph. It is then up to the caller to order streams.
//! - The same has run once before with the same shapes and settings, a batch with labels enqueued if
//!   such a one will be: a call that has to allocate, or to copy to the host, is [`Error::Capturing`]
//!   while the stream is captured.
//! - Nothing grows afterwards. A larger batch, queue or setting would give the step, the workspace or
//!   the lists other memory, while the graph goes on with what they had.
//! - Everything that a captured call was given, and the device, outlives the graph.
//!
//! [`Error::Capturing`]: crate::Error::Capturing

mod batch;
mod contrast;
mod device;
mod direction;
mod info_nce;
mod logits;
mod mix;
mod output;
mod part;
mod queue;
mod rank;
mod sample;
mod score;
mod status;
mod step;
mod weigh;
mod workspace;

pub use batch::{Batch, Draws, GivenDraws, UsedDraws};
#[doc(hidden)]
pub use contrast::FusedTuning;
pub use contrast::Path;
pub use device::Device;
pub use info_nce::info_nce;
pub use logits::Precision;
pub use mix::{Synthetic, mix};
pub use queue::{Queue, Rows};
pub use rank::{Ranked, rank, rank_logits};
pub use step::Step;
pub use workspace::Workspace;

use params::{
    BoundParams, CheckParams, ContrastParams, DirectionParams, EnqueueParams, ExponentialsParams,
    FinishParams, FoldParams, GivenParams, LogitsParams, LongestParams, MaximaParams, MixParams,
    PassedParams, PrepareParams, RankParams, ReduceParams, RepairParams, RingState, RowFigures,
    SampleParams, ScoreParams, ShiftParams, StatusWords, ThresholdParams, WeighParams,
};

/// The structs and constants of `kernels/params.h`, as bindgen reads them.
#[allow(
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unreachable_pub,
    dead_code,
    reason = "generated"
)]
mod params {
    include!(concat!(env!("OUT_DIR"), "/params.rs"));
}

/// The fat binaries of `kernels/*.cu`, by the file's name.
const IMAGES: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/images.rs"));

/// Implements `DeviceRepr` for structs of `kernels/params.h`.
macro_rules! passed_to_kernels {
    ($($name:ty),* $(,)?) => {$(
        // SAFETY: the kernels include the very header that this `repr(C)` struct was made from, and
        // bindgen asserts that size and offsets are what the header says.
        unsafe impl cudarc::driver::DeviceRepr for $name {}
    )*};
}
passed_to_kernels!(
    BoundParams,
    CheckParams,
    ContrastParams,
    DirectionParams,
    EnqueueParams,
    ExponentialsParams,
    FinishParams,
    FoldParams,
    GivenParams,
    LogitsParams,
    LongestParams,
    MaximaParams,
    MixParams,
    PassedParams,
    PrepareParams,
    RankParams,
    ReduceParams,
    RepairParams,
    RingState,
    RowFigures,
    SampleParams,
    ScoreParams,
    ShiftParams,
    StatusWords,
    ThresholdParams,
    WeighParams,
);

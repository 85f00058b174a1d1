//! The operators and the fused step on the CPU.
//!
//! | module | what it does |
//! |---|---|
//! | `rank` | the hardest queue rows of each query |
//! | `mix` | synthetic negatives from the hardest |
//! | `info_nce` | loss and gradient over real and synthetic negatives |
//! | `step` | all of it in one pass over the queue |
//!
//! Below them: `contrast` is that pass (logits, exponentials and gradient tile by tile), `sample`
//! finds each query's threshold before it, `product` has the matrix products, `vector` the other
//! loops that must be vectorised, `aligned` the buffers that they run over, and `gather` and
//! `prefetch` fetch what lies apart.
//!
//! Queries are taken in blocks of up to 64, transposed so that a query is a lane: logits lie
//! as `[queue row][lane]`, every reduction over the queue is vertical, and a query's arithmetic is
//! the same whatever its neighbours are. So a row's bits depend neither on the batch it is in nor
//! on the number of threads.

mod aligned;
mod contrast;
mod gather;
mod info_nce;
mod mix;
mod prefetch;
mod product;
mod rank;
mod sample;
mod step;
mod vector;

pub use info_nce::info_nce;
pub use mix::{Synthetic, mix};
pub use rank::{Ranked, rank, rank_logits};
pub use step::Step;

/// The most queries in a block.
const LANES: usize = 64;

/// Lanes come in whole vectors of this many.
const VECTOR: usize = 16;

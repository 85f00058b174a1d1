//! The C interface of hardmix, as `include/hardmix.h` describes it to those who call it.
//!
//! | module | what it does |
//! |---|---|
//! | `status` | what every function returns, and the text of the last error |
//! | `memory` | the caller's pointers, checked as far as they can be |
//! | `plan` | settings, and a step on the caller's memory |
//! | `queue` | the queue of negatives |
//!
//! Every function goes through the checked entry points of the crate `hardmix`; what is unsafe here
//! is the reading and writing of foreign memory, and no panic crosses into C.
#![cfg_attr(
    feature = "cuda",
    doc = "\nWith the feature `cuda`, `cuda` is the same on device memory and the caller's stream."
)]

#[cfg(feature = "cuda")]
mod cuda;
mod memory;
mod plan;
mod queue;
mod status;

//! The CUDA driver API over a PTX interpreter, for tests.

pub mod barrier;
mod block;
pub mod check;
mod clock;
pub mod conformance;
pub mod control;
pub mod copy;
pub mod counters;
mod driver;
mod execute;
pub mod fault;
pub mod image;
mod install;
pub mod ir;
pub mod launch;
mod lower;
pub mod memory;
pub mod number;
mod parse;
mod random;
mod registers;
mod shadow;
mod space;
pub mod tensor;
pub mod tensor_map;
mod warp;

pub use control::{
    counters, last_report, set_check, set_schedule, set_step_limit, set_unchecked, take_launches,
    waits,
};
pub use install::{Device, InstallError, install};

//! The CUDA driver API over a PTX interpreter, for tests.

pub mod barrier;
pub mod check;
pub mod conformance;
pub mod control;
pub mod copy;
pub mod counters;
mod driver;
pub mod fault;
pub mod image;
mod install;
pub mod ir;
pub mod launch;
pub mod memory;
pub mod number;
pub mod tensor;
pub mod tensor_map;

pub use control::{
    counters, last_report, set_check, set_schedule, set_step_limit, set_unchecked, take_launches,
};
pub use install::{Device, InstallError, install};

//! The CUDA driver API over a PTX interpreter, for tests.

pub mod barrier;
pub mod check;
pub mod copy;
pub mod counters;
pub mod fault;
pub mod image;
pub mod ir;
pub mod launch;
pub mod memory;
pub mod number;
pub mod tensor;
pub mod tensor_map;

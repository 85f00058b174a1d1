//! The number formats and the floating-point arithmetic of PTX.
//!
//! [`format`](mod@format) converts between bits and values in every rounding mode;
//! [`arithmetic`] is the exactly rounded part of the instruction set;
//! [`approximate`] is the part whose error the PTX ISA only bounds.
//!
//! Narrow values travel as their bits in the low end of a `u32`. Where PTX leaves a NaN's payload
//! open, the result is the format's canonical NaN (all magnitude bits set), as on NVIDIA hardware.

pub mod approximate;
pub mod arithmetic;
pub mod format;

pub use format::{
    BF16, E4M3, E5M2, F16, F32, Format, Integer, Overflow, Rounding, TF32, bf16_to_f32, f16_to_f32,
    f32_to_bf16, f32_to_f16, tf32_truncate,
};

//! Everything on the CPU.

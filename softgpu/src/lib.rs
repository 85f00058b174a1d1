//! The CUDA driver API over a PTX interpreter, for tests.

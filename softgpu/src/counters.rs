//! What one launch did, counted.

/// Counts of one launch (or, added up, of several).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counters {
    /// Bytes that the kernel read from device memory, by any engine.
    pub bytes_read: u64,
    /// Bytes that the kernel wrote to device memory.
    pub bytes_written: u64,
    /// Multiply-adds of the tensor cores (an m16n8k16 counts 2048).
    pub tensor_operations: u64,
    /// Bytes read from and written to shared memory.
    pub shared_bytes: u64,
    /// Instructions, one for each executed by a warp or a part of one.
    pub instructions: u64,
}

impl std::ops::AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        self.bytes_read += other.bytes_read;
        self.bytes_written += other.bytes_written;
        self.tensor_operations += other.tensor_operations;
        self.shared_bytes += other.shared_bytes;
        self.instructions += other.instructions;
    }
}

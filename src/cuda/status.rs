//! What only the device can see: rows that are not finite.

use cudarc::driver::CudaSlice;

use super::device::{Device, Memory};
use super::params::{NO_ROW_INDEX, StatusWords};
use crate::error::{Error, Result};

/// The first row of a batch that is not finite, by argument, in device memory.
#[derive(Debug)]
pub(super) struct Status {
    words: CudaSlice<StatusWords>,
}

impl Status {
    /// Nothing seen yet.
    pub fn new(device: &Device) -> Result<Self> {
        let none = StatusWords {
            queries: 0,
            keys: 0,
            logits: 0,
        };
        let words = device.upload("status", &[none])?;
        Ok(Self { words })
    }

    /// Puts on the stream that nothing is seen yet, and gives the words to kernels.
    pub fn clear<'a>(&'a mut self, device: &'a Device) -> Result<Memory<'a, StatusWords>> {
        device.clear(&mut self.words)?;
        device.write("status", &mut self.words)
    }

    /// What kernels have seen: the argument and its first row, of the queries if there is one, else
    /// of the keys, else of the logits. Waits for the stream.
    pub fn read(&self, device: &Device) -> Result<Option<(&'static str, usize)>> {
        let words = device.download("status", &self.words, 1)?[0];
        let seen = [
            ("queries", words.queries),
            ("keys", words.keys),
            ("logits", words.logits),
        ];
        let first = seen.into_iter().find(|&(_, word)| word != 0);
        Ok(first.map(|(argument, word)| (argument, (NO_ROW_INDEX - word) as usize)))
    }

    /// [`Status::read`] as an error.
    pub fn check(&self, device: &Device) -> Result<()> {
        match self.read(device)? {
            Some((argument, row)) => Err(Error::NonFinite { argument, row }),
            None => Ok(()),
        }
    }
}

//! A fabric for tests: plain arrays, and a log of what happened on barriers.

use std::collections::HashMap;

use super::{Fabric, Location, Space, Use};
use crate::fault::{Fault, Kind};

/// Memories by space, filled on demand.
#[derive(Debug, Default)]
pub(crate) struct Fake {
    pub(crate) memory: HashMap<(Space, u64), u8>,
    pub(crate) completed: HashMap<Location, u32>,
    pub(crate) expected: Vec<Location>,
    pub(crate) arrived: Vec<Location>,
    pub(crate) read: usize,
}

impl Fake {
    pub(crate) fn put(&mut self, at: Location, bytes: &[u8]) {
        for (i, &byte) in bytes.iter().enumerate() {
            self.memory.insert((at.space, at.address + i as u64), byte);
        }
    }

    pub(crate) fn get(&self, at: Location, bytes: usize) -> Vec<u8> {
        let at = |i| (at.space, at.address + i as u64);
        (0..bytes)
            .map(|i| self.memory.get(&at(i)).copied().unwrap_or(0))
            .collect()
    }
}

impl Fabric<&'static str> for Fake {
    fn read(&mut self, from: Location, bytes: &mut [u8], _: &&'static str) -> Result<(), Fault> {
        self.read += bytes.len();
        bytes.copy_from_slice(&self.get(from, bytes.len()));
        Ok(())
    }

    fn write(&mut self, to: Location, bytes: &[u8], _: &&'static str) -> Result<(), Fault> {
        self.put(to, bytes);
        Ok(())
    }

    fn complete(&mut self, at: Location, bytes: u32, _: &&'static str) -> Result<(), Fault> {
        *self.completed.entry(at).or_default() += bytes;
        Ok(())
    }

    fn expect_arrival(&mut self, barrier: Location, _: &&'static str) -> Result<(), Fault> {
        self.expected.push(barrier);
        Ok(())
    }

    fn arrive(&mut self, barrier: Location, _: &&'static str) -> Result<(), Fault> {
        self.arrived.push(barrier);
        Ok(())
    }

    fn conflict(
        &self,
        at: Location,
        earlier: (&&'static str, Use),
        later: (&&'static str, Use),
    ) -> Fault {
        Fault::new(
            Kind::AsyncCopy,
            format!("{at:?}: {earlier:?} and {later:?}"),
        )
    }
}

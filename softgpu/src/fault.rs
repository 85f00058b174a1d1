//! What went wrong, in one paragraph that a kernel's author can act on.

use std::fmt;

/// The class of a fault: what the driver turns into an error code, and the first words of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// An access outside every allocation, or across the end of one.
    OutOfBounds,
    /// An address that is not a multiple of the access's size.
    Misaligned,
    /// An access to an allocation that was freed.
    UseAfterFree,
    /// A read of bytes that nobody has written.
    Uninitialised,
    /// Two unordered accesses to shared memory, at least one of them a write.
    SharedRace,
    /// Two unordered accesses to global memory, at least one of them a write.
    GlobalRace,
    /// A barrier that only part of a warp or block can reach, or that nobody will ever complete.
    DivergentBarrier,
    /// The target or source of an asynchronous operation was used before the operation finished.
    AsyncCopy,
    /// Generic writes handed to the asynchronous proxy without `fence.proxy.async`.
    MissingProxyFence,
    /// A launch configuration beyond the device's or the kernel's limits.
    LaunchLimit,
    /// More instructions than the step limit allows: most likely a loop that never ends.
    StepLimit,
    /// The kernel executed `trap`.
    Trap,
    /// An `assert` of the kernel failed.
    Assertion,
    /// PTX that softgpu does not implement.
    Unsupported,
    /// PTX that cannot be read.
    Parse,
    /// Device memory is exhausted.
    OutOfMemory,
    /// An argument of a host-side call that makes no sense (free of an unknown address, …).
    InvalidValue,
}

impl Kind {
    /// The words that open the report, after `softgpu: `.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::OutOfBounds => "out of bounds",
            Self::Misaligned => "misaligned access",
            Self::UseAfterFree => "use after free",
            Self::Uninitialised => "uninitialised read",
            Self::SharedRace => "race in shared memory",
            Self::GlobalRace => "race in global memory",
            Self::DivergentBarrier => "divergent barrier",
            Self::AsyncCopy => "asynchronous copy",
            Self::MissingProxyFence => "missing proxy fence",
            Self::LaunchLimit => "launch limit",
            Self::StepLimit => "step limit",
            Self::Trap => "trap",
            Self::Assertion => "failed assertion",
            Self::Unsupported => "unsupported",
            Self::Parse => "malformed PTX",
            Self::OutOfMemory => "out of memory",
            Self::InvalidValue => "invalid value",
        }
    }
}

/// Who did something where: one thread at one line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Site {
    /// What the thread did there, as a verb phrase: "writes 4 bytes".
    pub action: String,
    /// The kernel's name.
    pub kernel: String,
    /// The block's index in the grid.
    pub block: [u32; 3],
    /// The thread's index in the block; `None` for all lanes of a warp, or a copy engine.
    pub thread: Option<[u32; 3]>,
    /// Source file and line (from `.loc`), or the line of the PTX where there is none.
    pub location: String,
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [x, y, z] = self.block;
        write!(f, "kernel {}, block ({x}, {y}, {z})", self.kernel)?;
        if let Some([x, y, z]) = self.thread {
            write!(f, ", thread ({x}, {y}, {z})")?;
        }
        write!(f, " {} at {}", self.action, self.location)
    }
}

/// A fault: its class, a sentence, and the one or two places in the kernel that it concerns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The class.
    pub kind: Kind,
    /// What happened, as a sentence without the final full stop.
    pub what: String,
    /// Where: empty for host-side faults, one access, or both accesses of a race.
    pub sites: Vec<Site>,
}

impl Fault {
    /// A fault that concerns no place in a kernel (yet).
    #[must_use]
    pub fn new(kind: Kind, what: impl Into<String>) -> Self {
        Self {
            kind,
            what: what.into(),
            sites: Vec::new(),
        }
    }

    /// The same fault with one more place.
    #[must_use]
    pub fn at(mut self, site: Site) -> Self {
        self.sites.push(site);
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "softgpu: {}: {}", self.kind.words(), self.what)?;
        for (i, site) in self.sites.iter().enumerate() {
            write!(f, "{} {site}", if i == 0 { ":" } else { "; before that," })?;
        }
        f.write_str(".")
    }
}

impl std::error::Error for Fault {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_race_names_both_accesses() {
        let site = |action: &str| Site {
            action: action.into(),
            kernel: "sum".into(),
            block: [1, 0, 0],
            thread: Some([2, 0, 0]),
            location: "sum.cu:7".into(),
        };
        let fault = Fault::new(Kind::SharedRace, "byte 64")
            .at(site("reads"))
            .at(site("writes"));
        assert_eq!(
            fault.to_string(),
            "softgpu: race in shared memory: byte 64: kernel sum, block (1, 0, 0), thread (2, 0, 0) \
             reads at sum.cu:7; before that, kernel sum, block (1, 0, 0), thread (2, 0, 0) writes \
             at sum.cu:7."
        );
    }
}

//! Which checks a launch runs with.

/// A class of checks that can be switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
#[non_exhaustive]
pub enum Check {
    /// Accesses outside allocations. Switched off, such reads give 0 and such writes are dropped.
    Bounds,
    /// Addresses that are no multiple of the access's size.
    Alignment,
    /// Accesses to freed allocations.
    Freed,
    /// Reads of bytes that nobody wrote.
    Uninitialised,
    /// Unordered accesses to shared memory.
    SharedRaces,
    /// Unordered accesses to global memory, and to the shared memory of other blocks of a cluster.
    GlobalRaces,
    /// Barriers that only part of a warp or block reaches.
    Barriers,
    /// Use of the target of an asynchronous operation before it finished.
    AsyncCopies,
    /// Generic writes read by the asynchronous proxy without a fence.
    Proxies,
    /// Launch configurations beyond the limits.
    Limits,
    /// The step limit.
    Steps,
}

impl Check {
    /// Every check, in the order of declaration.
    pub const ALL: [Self; 11] = [
        Self::Bounds,
        Self::Alignment,
        Self::Freed,
        Self::Uninitialised,
        Self::SharedRaces,
        Self::GlobalRaces,
        Self::Barriers,
        Self::AsyncCopies,
        Self::Proxies,
        Self::Limits,
        Self::Steps,
    ];
}

/// A set of checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checks(u32);

impl Checks {
    /// Every check: what tests run with.
    #[must_use]
    pub const fn all() -> Self {
        Self(!0)
    }

    /// No check but the step limit: for speed, once a kernel is trusted.
    #[must_use]
    pub const fn unchecked() -> Self {
        Self(1 << Check::Steps as u32)
    }

    /// Whether `check` is in the set.
    #[must_use]
    pub const fn has(self, check: Check) -> bool {
        self.0 >> check as u32 & 1 != 0
    }

    /// The set with `check` switched on or off.
    #[must_use]
    pub const fn with(self, check: Check, on: bool) -> Self {
        let bit = 1 << check as u32;
        Self(if on { self.0 | bit } else { self.0 & !bit })
    }
}

impl Default for Checks {
    fn default() -> Self {
        Self::all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_switch_one_at_a_time() {
        for check in Check::ALL {
            let checks = Checks::all().with(check, false);
            for other in Check::ALL {
                assert_eq!(checks.has(other), other != check);
            }
            assert_eq!(
                checks.with(check, true).has(check),
                Checks::all().has(check)
            );
        }
    }
}

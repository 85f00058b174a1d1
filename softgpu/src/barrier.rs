//! The mbarrier object: PTX ISA, "Parallel Synchronization and Communication Instructions:
//! mbarrier".
//!
//! An mbarrier is 8 opaque bytes of shared memory. Here they hold the whole state, so that it
//! needs no table beside memory: a mark in the top two bits that says "initialised", the parity of
//! the current phase, the expected count, the pending count and the pending bytes.

use std::fmt;

/// The largest count, of arrivals or of bytes.
pub const MOST: u32 = (1 << 20) - 1;

const MARK: u64 = 0b10 << 62;
const BYTES_BIAS: i64 = 1 << 20;

/// The state of an mbarrier.
///
/// A phase completes when no arrival and no byte is pending; the next one expects the same count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mbarrier {
    odd: bool,
    expected: u32,
    pending: u32,
    /// Bytes expected minus bytes completed: negative while bytes arrive before `expect_tx`.
    bytes: i32,
}

/// A use of an mbarrier that the ISA leaves undefined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misuse {
    /// The 8 bytes hold no initialised mbarrier.
    NotInitialised,
    /// `init` with a count outside 1 to 2²⁰ − 1.
    Count(u32),
    /// More arrivals than the phase has pending: (arrivals, pending).
    TooManyArrivals(u32, u32),
    /// The pending bytes leave the range −(2²⁰ − 1) to 2²⁰ − 1.
    Bytes(i64),
}

impl fmt::Display for Misuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotInitialised => f.write_str("no initialised mbarrier lies here"),
            Self::Count(count) => {
                write!(
                    f,
                    "an mbarrier is initialised with count {count}, not 1 to {MOST}"
                )
            }
            Self::TooManyArrivals(arrivals, pending) => {
                write!(
                    f,
                    "{arrivals} arrivals on an mbarrier that has {pending} pending"
                )
            }
            Self::Bytes(bytes) => {
                write!(f, "{bytes} bytes pending on an mbarrier, beyond ±{MOST}")
            }
        }
    }
}

impl std::error::Error for Misuse {}

impl Mbarrier {
    /// Size and alignment in shared memory.
    pub const BYTES: u32 = 8;

    /// `mbarrier.init`.
    ///
    /// # Errors
    /// `Count`.
    pub const fn new(count: u32) -> Result<Self, Misuse> {
        if count == 0 || count > MOST {
            return Err(Misuse::Count(count));
        }
        Ok(Self {
            odd: false,
            expected: count,
            pending: count,
            bytes: 0,
        })
    }

    /// The 8 bytes in shared memory. `mbarrier.inval` writes 0 instead.
    #[must_use]
    pub const fn pack(self) -> u64 {
        let bytes = (self.bytes as i64 + BYTES_BIAS) as u64;
        MARK | (self.odd as u64) << 61
            | bytes << 40
            | (self.expected as u64) << 20
            | self.pending as u64
    }

    /// Reads the 8 bytes.
    ///
    /// # Errors
    /// `NotInitialised`.
    pub const fn unpack(bits: u64) -> Result<Self, Misuse> {
        let (expected, pending) = ((bits >> 20) as u32 & MOST, bits as u32 & MOST);
        let bytes = (bits >> 40 & 0x1f_ffff) as i64 - BYTES_BIAS;
        if bits >> 62 != MARK >> 62 {
            return Err(Misuse::NotInitialised);
        }
        Ok(Self {
            odd: bits >> 61 & 1 == 1,
            expected,
            pending,
            bytes: bytes as i32,
        })
    }

    /// `mbarrier.arrive` with a count; the opaque state of the phase that it arrived at.
    ///
    /// # Errors
    /// `TooManyArrivals`.
    pub const fn arrive(&mut self, count: u32) -> Result<u64, Misuse> {
        let state = self.pack();
        if count > self.pending {
            return Err(Misuse::TooManyArrivals(count, self.pending));
        }
        self.pending -= count;
        self.advance();
        Ok(state)
    }

    /// `mbarrier.arrive_drop`: arrives, and lowers the count that later phases expect.
    ///
    /// # Errors
    /// `TooManyArrivals`.
    pub fn arrive_drop(&mut self, count: u32) -> Result<u64, Misuse> {
        if count > self.pending {
            return Err(Misuse::TooManyArrivals(count, self.pending));
        }
        self.expected = self.expected.saturating_sub(count);
        self.arrive(count)
    }

    /// `mbarrier.expect_tx`; also the first half of `mbarrier.arrive.expect_tx`.
    ///
    /// # Errors
    /// `Bytes`.
    pub const fn expect_tx(&mut self, bytes: u32) -> Result<(), Misuse> {
        self.add_bytes(bytes as i64)
    }

    /// `complete_tx`: what a bulk copy does when its bytes have landed.
    ///
    /// # Errors
    /// `Bytes`.
    pub const fn complete_tx(&mut self, bytes: u32) -> Result<(), Misuse> {
        if let Err(misuse) = self.add_bytes(-(bytes as i64)) {
            return Err(misuse);
        }
        self.advance();
        Ok(())
    }

    const fn add_bytes(&mut self, bytes: i64) -> Result<(), Misuse> {
        let sum = self.bytes as i64 + bytes;
        if sum > MOST as i64 || sum < -(MOST as i64) {
            return Err(Misuse::Bytes(sum));
        }
        self.bytes = sum as i32;
        Ok(())
    }

    /// What `cp.async.mbarrier.arrive` without `.noinc` does at issue: one more pending arrival.
    ///
    /// # Errors
    /// `TooManyArrivals` beyond the largest count.
    pub const fn increment(&mut self) -> Result<(), Misuse> {
        if self.pending == MOST {
            return Err(Misuse::TooManyArrivals(1, MOST));
        }
        self.pending += 1;
        Ok(())
    }

    const fn advance(&mut self) {
        if self.pending == 0 && self.bytes == 0 {
            self.odd = !self.odd;
            self.pending = self.expected;
        }
    }

    /// The parity of the current phase.
    #[must_use]
    pub const fn is_odd(&self) -> bool {
        self.odd
    }

    /// `test_wait` and `try_wait` with a parity: whether the phase of that parity is over.
    #[must_use]
    pub const fn is_over(&self, odd: bool) -> bool {
        self.odd != odd
    }

    /// `test_wait` and `try_wait` with the state that an arrival returned.
    ///
    /// # Errors
    /// `NotInitialised` for a state that no arrival returned.
    pub const fn is_over_since(&self, state: u64) -> Result<bool, Misuse> {
        match Self::unpack(state) {
            Ok(then) => Ok(self.is_over(then.odd)),
            Err(misuse) => Err(misuse),
        }
    }

    /// `mbarrier.pending_count`: the arrivals that were pending in `state`.
    ///
    /// # Errors
    /// `NotInitialised` for a state that no arrival returned.
    pub const fn pending_count(state: u64) -> Result<u32, Misuse> {
        match Self::unpack(state) {
            Ok(then) => Ok(then.pending),
            Err(misuse) => Err(misuse),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_alternate_as_arrivals_complete_them() {
        let mut barrier = Mbarrier::new(3).unwrap();
        assert!(
            barrier.is_over(true),
            "the phase before the first counts as over"
        );
        for odd in [false, true, false] {
            let state = barrier.arrive(1).unwrap();
            assert!(!barrier.is_over(odd));
            assert_eq!(barrier.is_over_since(state), Ok(false));
            assert_eq!(Mbarrier::pending_count(state), Ok(3));
            barrier.arrive(2).unwrap();
            assert!(barrier.is_over(odd));
            assert_eq!(barrier.is_over_since(state), Ok(true));
        }
    }

    #[test]
    fn bytes_hold_the_phase_open_in_either_order() {
        let mut barrier = Mbarrier::new(1).unwrap();
        barrier.expect_tx(512).unwrap();
        barrier.arrive(1).unwrap();
        assert!(!barrier.is_over(false));
        barrier.complete_tx(500).unwrap();
        assert!(!barrier.is_over(false));
        barrier.complete_tx(12).unwrap();
        assert!(barrier.is_over(false));
        // The copy may finish before the thread that expects its bytes says so.
        barrier.complete_tx(64).unwrap();
        assert!(!barrier.is_over(true));
        barrier.expect_tx(64).unwrap();
        assert!(!barrier.is_over(true));
        barrier.arrive(1).unwrap();
        assert!(barrier.is_over(true));
    }

    #[test]
    fn dropping_lowers_the_later_phases_and_increments_only_this_one() {
        let mut barrier = Mbarrier::new(2).unwrap();
        barrier.increment().unwrap();
        barrier.arrive_drop(1).unwrap();
        barrier.arrive(1).unwrap();
        assert!(!barrier.is_over(false));
        barrier.arrive(1).unwrap();
        assert!(barrier.is_over(false));
        barrier.arrive(1).unwrap();
        assert!(barrier.is_over(true));
    }

    #[test]
    fn the_state_survives_memory() {
        let mut barrier = Mbarrier::new(MOST).unwrap();
        barrier.complete_tx(MOST).unwrap();
        assert_eq!(Mbarrier::unpack(barrier.pack()), Ok(barrier));
        barrier.expect_tx(MOST).unwrap();
        barrier.expect_tx(MOST).unwrap();
        barrier.arrive(12).unwrap();
        assert_eq!(Mbarrier::unpack(barrier.pack()), Ok(barrier));
        barrier.arrive(MOST - 12).unwrap();
        barrier.complete_tx(MOST).unwrap();
        assert!(barrier.is_over(false));
        assert_eq!(Mbarrier::unpack(barrier.pack()), Ok(barrier));
    }

    #[test]
    fn misuse_is_named() {
        assert_eq!(Mbarrier::new(0), Err(Misuse::Count(0)));
        assert_eq!(Mbarrier::new(1 << 20), Err(Misuse::Count(1 << 20)));
        assert_eq!(Mbarrier::unpack(0), Err(Misuse::NotInitialised));
        let mut barrier = Mbarrier::new(2).unwrap();
        assert_eq!(barrier.arrive(3), Err(Misuse::TooManyArrivals(3, 2)));
        barrier.expect_tx(MOST).unwrap();
        assert_eq!(
            barrier.expect_tx(1),
            Err(Misuse::Bytes(i64::from(MOST) + 1))
        );
        barrier.arrive(2).unwrap();
        assert_eq!(barrier.arrive(1), Err(Misuse::TooManyArrivals(1, 0)));
    }
}

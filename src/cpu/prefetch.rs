//! Memory that is asked for before it is read.

/// Bytes of a cache line.
pub(super) const LINE: usize = 64;

/// Asks for the line of an address to be brought into the first cache.
#[inline(always)]
pub(super) fn into_first(address: usize) {
    prefetch::<1>(address);
}

/// Asks for the line of an address to be brought into the second cache.
#[inline(always)]
pub(super) fn into_second(address: usize) {
    prefetch::<2>(address);
}

#[inline(always)]
fn prefetch<const LEVEL: usize>(address: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
        let line = std::ptr::without_provenance(address);
        // SAFETY: a prefetch reads nothing and faults nowhere, whatever the address.
        unsafe {
            match LEVEL {
                1 => _mm_prefetch::<_MM_HINT_T0>(line),
                _ => _mm_prefetch::<_MM_HINT_T1>(line),
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

//! Numbers that a seed determines.

/// The next 32 bits of a xorshift64* generator, whose state must not begin with 0: any generator
/// would do.
pub(crate) fn draw(state: &mut u64) -> u32 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
}

/// A coin.
pub(crate) fn flip(state: &mut u64) -> bool {
    draw(state) >> 31 == 1
}

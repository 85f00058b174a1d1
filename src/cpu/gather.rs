//! Rows of the queue, gathered from all over it.

use std::ops::Range;

use super::prefetch::{LINE, into_first, into_second};
use crate::queue::Queue;

/// How many rows ahead [`gather`] asks for a row in the second cache, and then in the first: the
/// second has more requests under way at a time. In a step of 256 queries that name some 900 of
/// 65536 rows of 512 bytes, gathering took both cores 24.8 ms of processor time without, 13.4 with
/// the nearer request alone, 11.2 with 12 and 3, 11.6 with 16 and 4 and 10.8 with 24 and 8.
const GATHER_AHEAD: [usize; 2] = [24, 8];

/// The lines that these bytes touch: one more than fit into them where they do not start with one.
fn lines(bytes: Range<usize>) -> impl Iterator<Item = usize> {
    (bytes.start & !(LINE - 1)..bytes.end).step_by(LINE)
}

/// Reads the given rows of the queue as f32, [n, dim].
pub(super) fn gather(queue: &Queue, indices: &[u32], out: &mut [f32]) {
    for (at, row) in out.chunks_exact_mut(queue.dim()).enumerate() {
        if let Some(&far) = indices.get(at + GATHER_AHEAD[0]) {
            lines(queue.addresses(far as usize)).for_each(into_second);
        }
        if let Some(&near) = indices.get(at + GATHER_AHEAD[1]) {
            lines(queue.addresses(near as usize)).for_each(into_first);
        }
        queue.read_row(indices[at] as usize, row);
    }
}

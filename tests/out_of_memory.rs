//! A queue for which there is no memory is an error with its size, not the end of the process.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use hardmix::{DType, Error, Queue};

/// Bytes that may yet be asked for in large pieces.
static LEFT: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Pieces below this are nobody's rows.
const LARGE: usize = 1 << 16;

/// The system's allocator, until so much has been asked for. Nothing comes back: what is counted is
/// how often a queue is made room for.
struct Limited;

// SAFETY: every call goes to the system's allocator unchanged, or is refused as one may be.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let size = layout.size();
        let take = |left: usize| left.checked_sub(size);
        if size >= LARGE
            && LEFT
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
                .is_err()
        {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's obligations are the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's obligations are the system allocator's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Limited = Limited;

/// One test, so that nothing else allocates meanwhile.
#[test]
fn a_random_queue_is_made_or_refused_whatever_is_left() {
    const ELEMENTS: usize = 1 << 18;
    for (capacity, dim) in [(ELEMENTS, 1), (ELEMENTS / 16, 16), (1, ELEMENTS)] {
        for (dtype, converted) in [(DType::F32, 0), (DType::F16, 2), (DType::Bf16, 2)] {
            let make = |left| {
                LEFT.store(left, Ordering::Relaxed);
                let made = Queue::random(capacity, dim, dtype, 1);
                LEFT.store(usize::MAX, Ordering::Relaxed);
                made
            };
            let large = |bytes| if bytes < LARGE { 0 } else { bytes };
            // The rows, once more where they are stored in another type; a Gaussian and an f32 for
            // each element of one row, and every row's norm.
            let enough =
                (4 + converted) * ELEMENTS + large(8 * dim) + large(4 * dim) + large(4 * capacity);
            let what = format!("{dtype:?}, {capacity} × {dim}");
            assert!(make(enough).is_ok(), "{what}");
            for left in (0..enough).step_by(ELEMENTS) {
                match make(left) {
                    Err(Error::OutOfMemory { .. }) => {}
                    other => panic!("{what}: {:?}", other.map(|queue| queue.capacity())),
                }
            }
        }
    }
}

//! What a step allocates, counted by the allocator: no buffer of B×K.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use common::cases::unit_rows;
use hardmix::{Batch, Config, DType, Draws, Queue, cpu};

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

struct Counting;

fn grow(bytes: usize) {
    let now = NOW.fetch_add(bytes, Ordering::Relaxed) + bytes;
    PEAK.fetch_max(now, Ordering::Relaxed);
}

// SAFETY: every call goes to the system's allocator unchanged; the counters are no memory of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller's obligations are the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller's obligations are the system allocator's.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's obligations are the system allocator's.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both live while the contents move.
        grow(size);
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's obligations are the system allocator's.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const MIB: usize = 1 << 20;

/// Bytes at the peak of `work` beyond what lived before it.
fn peak<T>(work: impl FnOnce() -> T) -> (usize, T) {
    let before = NOW.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let result = work();
    (PEAK.load(Ordering::Relaxed) - before, result)
}

/// One test, so that nothing else allocates meanwhile.
#[test]
fn a_step_at_the_papers_size_grows_by_less_than_64_mib() {
    const CAPACITY: usize = 65_536;
    const DIM: usize = 128;
    const ROWS: usize = 256;
    let rng = &mut fastrand::Rng::with_seed(1);
    let (queries, keys) = (unit_rows(rng, ROWS, DIM), unit_rows(rng, ROWS, DIM));
    let batch = Batch::new(&queries, &keys, DIM).expect("a batch");
    for dtype in [DType::F32, DType::Bf16] {
        let queue = Queue::random(CAPACITY, DIM, dtype, 1).expect("a queue");
        for (hardest, mixed, query_mixed) in [(0, 0, 0), (1024, 1024, 128)] {
            let config = Config::mochi(hardest, mixed, query_mixed)
                .expect("valid")
                .with_uniformity(true)
                .with_matching_probability(true);
            let (first, (mut step, _)) = peak(|| {
                let mut step = cpu::Step::new(config);
                let output = step.run(&batch, &queue, &Draws::seeded(1, 1).expect("small"));
                (step, output.expect("a valid case"))
            });
            let (again, _) = peak(|| {
                let draws = Draws::seeded(1, 2).expect("small");
                step.run(&batch, &queue, &draws).expect("a valid case")
            });
            let kib = |bytes: usize| bytes / 1024;
            println!(
                "{dtype:?}, N = {hardest}: {} KiB in the first step, {} in the next",
                kib(first),
                kib(again)
            );
            assert!(first < 64 * MIB, "{} KiB in the first step", kib(first));
            assert!(again <= first, "{} KiB in a later step", kib(again));
        }
    }
}

//! What the fused step reads and multiplies, counted by softgpu at small shapes and carried over, by the
//! number of tiles, to the headline shape of docs/kernels.md: B = 256, K = 65536, d = 128.
#![cfg(feature = "cuda")]

mod common;

use std::collections::BTreeSet;

use common::cases::unit_rows;
use common::cuda::{alone, device, is_softgpu};
use hardmix::cuda::{self, Path, Precision};
use hardmix::{Batch, Config, DType, Draws, Output, Queue, Rows};
use softgpu::counters::Counters;

const DIM: usize = 128;
/// Queries and queue rows of a tile.
const QUERIES: u64 = 64;
const TILE: u64 = 32;

/// One fused step of unit rows, and what each kernel did.
fn counted(
    rows: usize,
    capacity: usize,
    dtype: DType,
    precision: Precision,
    config: Config,
) -> (Output, Vec<(String, Counters)>) {
    let rng = &mut fastrand::Rng::with_seed(capacity as u64);
    let stored = Rows::from_f32(dtype, &unit_rows(rng, capacity, DIM));
    let queue = Queue::from_rows(stored, DIM).expect("a queue");
    let (queries, keys) = (unit_rows(rng, rows, DIM), unit_rows(rng, rows, DIM));
    let batch = Batch::new(&queries, &keys, DIM).expect("a batch");
    let queue = cuda::Queue::from_host(device(), &queue).expect("a copy");
    let mut step = cuda::Step::new(device(), config)
        .expect("a step")
        .with_precision(precision)
        .with_path(Path::Fused);
    softgpu::take_launches();
    let output = step
        .run_from_host(&batch, &queue, &Draws::seeded(3, 4).expect("draws"))
        .expect("a step");
    (output, softgpu::take_launches())
}

/// What the kernels of this name did.
fn of(launches: &[(String, Counters)], is: impl Fn(&str) -> bool) -> Counters {
    let mut all = Counters::default();
    for (kernel, counters) in launches {
        if is(kernel) {
            all += *counters;
        }
    }
    all
}

fn is_pass(kernel: &str) -> bool {
    kernel.starts_with("contrast_") && !kernel.ends_with("_maxima")
}

/// The pass reads the queue once for each tile of 64 queries, and multiplies each tile of it twice, with
/// as many products as the precision takes; the rest of the step reads no queue row.
#[test]
fn one_pass_reads_the_queue_once() {
    if !is_softgpu() || !alone("one_pass_reads_the_queue_once") {
        return;
    }
    for (dtype, precision, products) in [
        (DType::F32, Precision::Exact, 3),
        (DType::F32, Precision::Tensor, 1),
        (DType::Bf16, Precision::Exact, 3),
        (DType::Bf16, Precision::Tensor, 1),
    ] {
        // One split of 8 tiles, and of 16.
        let [short, long] = [256, 512].map(|capacity| {
            let config = Config::moco();
            counted(QUERIES as usize, capacity, dtype, precision, config).1
        });
        let [few, many] = [&short, &long].map(|launches| of(launches, is_pass));
        let bytes = (many.bytes_read - few.bytes_read) / 8;
        assert_eq!(bytes, TILE * (DIM * dtype.bytes()) as u64, "of a tile");
        let multiplied = (many.tensor_operations - few.tensor_operations) / 8;
        assert_eq!(multiplied, 2 * products * QUERIES * TILE * DIM as u64);
        assert_eq!(8 * multiplied, few.tensor_operations, "beside the tiles");

        let maxima = of(&long, |kernel| kernel.ends_with("_maxima"));
        assert_eq!(
            maxima.bytes_read,
            4 * QUERIES,
            "more than whether rows are hot"
        );
        assert_eq!(maxima.tensor_operations, 0, "no row is hot");

        let (query_tiles, splits, tiles) = (256 / QUERIES, 64, 65536 / TILE);
        let of_split = few.bytes_read - 8 * bytes;
        let read = query_tiles * (splits * of_split + tiles * bytes);
        let queue = 65536 * (DIM * dtype.bytes()) as u64;
        // The queries are read by every split.
        let queries = splits * 256 * (DIM as u64 * 4);
        println!(
            "{dtype:?}, {precision:?}: {read} bytes, {} of them the queue's, {} of it; {} multiply-adds",
            query_tiles * queue,
            read as f64 / queue as f64,
            query_tiles * tiles * multiplied,
        );
        assert_eq!(
            read - query_tiles * queue - queries,
            query_tiles * splits * 1024,
            "the shifts"
        );
        assert_eq!(
            query_tiles * tiles * multiplied,
            2 * products * 256 * 65536 * DIM as u64
        );
    }
}

/// Of a query's hardest each that is mixed from is read once, and none that is not.
#[test]
fn the_direction_reads_what_was_mixed_from_once() {
    if !is_softgpu() || !alone("the_direction_reads_what_was_mixed_from_once") {
        return;
    }
    const HARDEST: usize = 60;
    for dtype in [DType::F32, DType::Bf16] {
        for (mixed, query_mixed) in [(9, 4), (500, 50)] {
            let config = Config::mochi(HARDEST, mixed, query_mixed).expect("settings");
            let (output, launches) = counted(2, 100, dtype, Precision::Exact, config);
            let read = of(&launches, |kernel| kernel.starts_with("direction_")).bytes_read;
            let taken: usize = (0..2)
                .map(|b| {
                    let draws = &output.draws;
                    let pairs = b * mixed..(b + 1) * mixed;
                    let picks = b * query_mixed..(b + 1) * query_mixed;
                    let positions = draws.first[pairs.clone()]
                        .iter()
                        .chain(&draws.second[pairs])
                        .chain(&draws.pick[picks]);
                    positions.collect::<BTreeSet<_>>().len()
                })
                .sum();
            let row = DIM * dtype.bytes();
            // Eight lanes of each block of 128 bytes look up a position's weight, and its row where it has
            // one; 256 threads look up three words of a query.
            let blocks = row / 128;
            let looked_up = blocks * (8 * (2 * HARDEST * 8 + taken * 4) + 2 * 256 * 12);
            assert_eq!(
                read as usize,
                taken * row + looked_up,
                "{dtype:?}, {mixed}, {query_mixed}"
            );
        }
    }
}

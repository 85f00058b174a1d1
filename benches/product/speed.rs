//! `cargo bench` here: GFLOP/s of each library, by product, layout and size, on one thread; and
//! both products of a step of K = 65536, B = 256, d = 128 on two.

use std::thread;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use hardmix_bench_product::{Library, Queries, Sizes, Sums, accumulate, logits, numbers};

fn tiles(criterion: &mut Criterion) {
    for queries in [32, 64, 128] {
        for dim in [64, 128, 256] {
            for tile in [256, 512, 1024, 2048] {
                one_tile(criterion, Sizes { queries, tile, dim });
            }
        }
    }
}

fn one_tile(criterion: &mut Criterion, sizes: Sizes) {
    let Sizes {
        queries: m,
        tile: rows,
        dim,
    } = sizes;
    let mut group = criterion.benchmark_group(format!("tile, m={m}, T={rows}, d={dim}"));
    group.throughput(Throughput::Elements(2 * (m * rows * dim) as u64));
    let (queries, tile) = (numbers(m * dim, 1), numbers(rows * dim, 2));
    let (mut products, mut sums) = (vec![0.0; m * rows], vec![0.0; m * dim]);
    for library in Library::ALL {
        let both = if library == Library::Hardmix { 1 } else { 2 };
        for &layout in &[Queries::Transposed, Queries::AsTheyCome][..both] {
            let id = BenchmarkId::new(format!("{library:?}"), format!("logits {layout:?}"));
            group.bench_function(id, |bencher| {
                bencher.iter(|| logits(library, sizes, layout, &queries, &tile, &mut products));
            });
        }
        for &layout in &[Sums::Transposed, Sums::RowMajor][..both] {
            let id = BenchmarkId::new(format!("{library:?}"), format!("sums {layout:?}"));
            group.bench_function(id, |bencher| {
                bencher.iter(|| accumulate(library, sizes, layout, &products, &tile, &mut sums));
            });
        }
    }
}

fn step(criterion: &mut Criterion) {
    let (capacity, batch, dim) = (65_536, 256, 128);
    let (queue, queries) = (numbers(capacity * dim, 3), numbers(batch * dim, 4));
    for m in [32, 64, 128] {
        for tile in [256, 512, 1024, 2048] {
            let sizes = Sizes {
                queries: m,
                tile,
                dim,
            };
            let mut group = criterion.benchmark_group(format!("both products, m={m}, T={tile}"));
            group.sample_size(10);
            group.throughput(Throughput::Elements(4 * (capacity * batch * dim) as u64));
            for library in Library::ALL {
                group.bench_function(format!("{library:?}"), |bencher| {
                    bencher.iter(|| both(library, sizes, &queries, &queue));
                });
            }
        }
    }
}

/// Two threads, a half of the blocks each.
fn both(library: Library, sizes: Sizes, queries: &[f32], queue: &[f32]) {
    let Sizes {
        queries: m,
        tile: rows,
        dim,
    } = sizes;
    let run = |queries: &[f32]| {
        let (mut products, mut sums) = (vec![0.0; m * rows], vec![0.0; m * dim]);
        for block in queries.chunks(m * dim) {
            for tile in queue.chunks(rows * dim) {
                logits(
                    library,
                    sizes,
                    Queries::Transposed,
                    block,
                    tile,
                    &mut products,
                );
                accumulate(library, sizes, Sums::Transposed, &products, tile, &mut sums);
            }
        }
        sums
    };
    let (first, second) = queries.split_at(queries.len() / 2);
    thread::scope(|scope| {
        scope.spawn(|| std::hint::black_box(run(first)));
        std::hint::black_box(run(second));
    });
}

criterion_group!(benches, step, tiles);
criterion_main!(benches);

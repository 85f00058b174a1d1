//! Whether a query's bits depend on the block it is in: what a step needs of a product.

use hardmix_bench_product::{Library, Queries, Sizes, Sums, accumulate, logits, numbers};

/// The most depth that gemm takes without cutting a sum.
const DEPTH: usize = 256;

/// How many of the sizes give the first query other logits or sums than a block of 64 gives.
fn differences(library: Library, widths: &[usize], dims: &[usize], tiles: &[usize]) -> usize {
    let mut count = 0;
    for &dim in dims {
        for &tile in tiles {
            let expected = first_query(
                library,
                Sizes {
                    queries: 64,
                    tile,
                    dim,
                },
            );
            for &queries in widths {
                count +=
                    usize::from(first_query(library, Sizes { queries, tile, dim }) != expected);
            }
        }
    }
    count
}

/// The bits of the first query's logits and sums; its neighbours are others in every block.
fn first_query(library: Library, sizes: Sizes) -> Vec<u32> {
    let Sizes {
        queries: m,
        tile: rows,
        dim,
    } = sizes;
    let mut queries = numbers(m * dim, m as u64);
    for (row, x) in queries.chunks_exact_mut(m).zip(numbers(dim, 1000)) {
        row[0] = x;
    }
    let tile = numbers(rows * dim, 2000);
    let (mut products, mut sums) = (vec![0.0; m * rows], vec![0.0; m * dim]);
    logits(
        library,
        sizes,
        Queries::Transposed,
        &queries,
        &tile,
        &mut products,
    );
    accumulate(
        library,
        sizes,
        Sums::Transposed,
        &products,
        &tile,
        &mut sums,
    );
    let own = products.chunks_exact(m).chain(sums.chunks_exact(m));
    own.map(|row| row[0].to_bits()).collect()
}

#[test]
fn whole_vectors_of_queries_give_the_same_bits() {
    let widths: Vec<usize> = (1..=16).map(|vectors| 16 * vectors).collect();
    let dims = [1, 2, 3, 8, 17, 100, 128, DEPTH];
    let tiles = [1, 2, 3, 7, 31, 64, 65, 100, DEPTH];
    for library in Library::ALL {
        assert_eq!(
            differences(library, &widths, &dims, &tiles),
            0,
            "{library:?}"
        );
    }
}

#[test]
fn single_queries_do_not() {
    for (library, expected) in [
        (Library::Gemm, true),
        (Library::Faer, true),
        (Library::Matrixmultiply, false),
    ] {
        let differ = differences(library, &[1], &[DEPTH], &[DEPTH]) > 0;
        assert_eq!(differ, expected, "{library:?}");
    }
}

#[test]
fn greater_depths_do_not() {
    // gemm cuts the sum over d = 768 at a place that depends on the tile.
    let whole = first_query(
        Library::Gemm,
        Sizes {
            queries: 64,
            tile: 65,
            dim: 768,
        },
    );
    let part = first_query(
        Library::Gemm,
        Sizes {
            queries: 64,
            tile: 64,
            dim: 768,
        },
    );
    assert_ne!(whole[..64], part[..64]);
    let (widths, tiles) = ([16, 32, 48, 64], [1, 2, 5, 64, 65, 700]);
    let ours = differences(Library::Hardmix, &widths, &[257, 768], &tiles);
    assert_eq!(ours, 0);
}

//! The right kernels of every shape that has planted defects: small under all six schedules, larger
//! ones that wrap every ring at least twice.

mod common;

use common::shapes::{
    Outcome, blocks, bulk, exchange, insertion, pipeline, product, relay, scores, sum, together,
    top_n, transpose,
};
use common::{Gpu, full};

/// Runs each of `runs` under its schedules; the first is the small one.
fn all(file: &str, runs: &[&dyn Fn(&Gpu) -> Outcome]) {
    let Some(gpu) = Gpu::load(file) else { return };
    for (i, run) in runs.iter().enumerate() {
        gpu.under_schedules(i == 0 || full(), || {
            run(&gpu).unwrap_or_else(|wrong| panic!("run {i}: {wrong:?}"))
        });
    }
}

#[test]
fn sums() {
    all(
        "planted",
        &[
            &|gpu| sum(gpu, "sum", 200, 64, 256),
            &|gpu| sum(gpu, "sum", 1000, 256, 1024),
            &|gpu| sum(gpu, "sum", 4096, 1024, 4096),
            &|gpu| sum(gpu, "sum_at_most_128", 1000, 128, 512),
        ],
    );
}

#[test]
fn transposes() {
    all(
        "planted",
        &[&|gpu| transpose(gpu, "transpose", 33, 65), &|gpu| {
            transpose(gpu, "transpose", 100, 130)
        }],
    );
}

#[test]
fn the_last_block_adds_up() {
    all(
        "planted",
        &[&|gpu| blocks(gpu, "blocks", 5), &|gpu| {
            blocks(gpu, "blocks", 200)
        }],
    );
}

#[test]
fn blocks_of_a_cooperative_launch_meet() {
    all(
        "planted",
        &[&|gpu| together(gpu, "together", 5), &|gpu| {
            together(gpu, "together", 100)
        }],
    );
}

#[test]
fn producers_and_consumers_meet_at_named_barriers() {
    all(
        "planted",
        &[&|gpu| relay(gpu, "relay", 5), &|gpu| {
            relay(gpu, "relay", 40)
        }],
    );
}

#[test]
fn threads_sort_in_local_memory() {
    all("planted", &[&|gpu| insertion(gpu, "insertion")]);
}

#[test]
fn scores_by_mma() {
    all(
        "scores",
        &[
            &|gpu| scores(gpu, "scores3", 300, 5, 3),
            &|gpu| scores(gpu, "scores2", 300, 5, 2),
            &|gpu| scores(gpu, "scores3", 1000, 7, 3),
            &|gpu| scores(gpu, "scores2", 64, 1, 2),
        ],
    );
}

#[test]
fn softmax_weighted_sums_by_mma() {
    all(
        "scores",
        &[
            &|gpu| scores(gpu, "weighted3", 300, 5, 3),
            &|gpu| scores(gpu, "weighted2", 500, 4, 2),
            &|gpu| scores(gpu, "weighted3", 1000, 7, 3),
        ],
    );
}

#[test]
fn top_n_by_radix() {
    all(
        "top_n",
        &[
            &|gpu| top_n(gpu, "top_n", 2, 300, 20),
            &|gpu| top_n(gpu, "top_n", 3, 1000, 64),
            &|gpu| top_n(gpu, "top_n", 1, 130, 130),
            &|gpu| top_n(gpu, "top_n", 4, 2000, 1),
        ],
    );
}

#[test]
fn wgmma_takes_every_layout() {
    let kernels = [
        "wgmma_swizzle128",
        "wgmma_swizzle64",
        "wgmma_swizzle32",
        "wgmma_unswizzled",
        "wgmma_f16",
        "wgmma_a_in_registers",
        "wgmma_b_transposed",
    ];
    for kernel in kernels {
        all("hopper", &[&|gpu| product(gpu, kernel)]);
    }
}

#[test]
fn pipelines_over_mbarriers() {
    all(
        "hopper",
        &[&|gpu| pipeline(gpu, "pipeline1", 1, 7, 1), &|gpu| {
            pipeline(gpu, "pipeline1", 2, 16, 2)
        }],
    );
}

#[test]
fn pipelines_over_clusters() {
    all(
        "hopper",
        &[&|gpu| pipeline(gpu, "pipeline2", 2, 7, 1), &|gpu| {
            pipeline(gpu, "pipeline2", 4, 16, 2)
        }],
    );
}

#[test]
fn clusters_exchange_through_shared_memory() {
    all(
        "hopper",
        &[&|gpu| exchange(gpu, "exchange", 1), &|gpu| {
            exchange(gpu, "exchange", 6)
        }],
    );
}

#[test]
fn bulk_copies_in_and_out() {
    all(
        "hopper",
        &[&|gpu| bulk(gpu, "bulk", 2), &|gpu| bulk(gpu, "bulk", 9)],
    );
}

//! The kernels with planted defects and their controls, by shape: what must be found in each.

use softgpu::check::Check::{
    AsyncCopies, Barriers, Bounds, GlobalRaces, SharedRaces, Uninitialised,
};
use softgpu::fault::Kind;

use super::case::Expected::{self, Clean, WrongResult};
use super::case::{
    Case, barrier, bounds, copy, copy_or_race, deadlock, early_store, endless, global_race,
    global_race_or_unwritten, left_early, limit, misaligned, proxy, shared_race, unwritten,
};
use super::common::Gpu;
use super::common::shapes::{
    Outcome, blocks, bulk, exchange, insertion, pipeline, product, relay, scores, sum, together,
    top_n, transpose,
};

/// Schedules that hide a defect: block 0 runs last, so that the atomic which it executes before it
/// reads tells it that all others are done.
pub const HIDDEN: [(&str, [usize; 2]); 2] = [("blocks_no_count", [2, 3]), ("blocks_spin", [2, 3])];

/// The cases of one file and shape, each named after its kernel.
fn family<const N: usize>(
    file: &'static str,
    run: fn(&Gpu, &str) -> Outcome,
    kernels: [(&'static str, Expected); N],
) -> Vec<Case> {
    let case = |(kernel, expected)| Case {
        name: kernel,
        file,
        kernel,
        expected,
        run,
    };
    kernels.into_iter().map(case).collect()
}

pub fn cases() -> Vec<Case> {
    [
        sums(),
        transposes(),
        over_blocks(),
        relays(),
        insertions(),
        scored(),
        selections(),
        products(),
        pipelines(),
        clusters_and_bulk_copies(),
        super::host::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn sums() -> Vec<Case> {
    family(
        "planted",
        |gpu, kernel| sum(gpu, kernel, 1000, 256, 1024),
        [
            ("sum_no_barrier", shared_race(&[Uninitialised])),
            ("sum_overlapping_tree", shared_race(&[])),
            ("sum_no_syncwarp", shared_race(&[])),
            ("sum_warp_first_unsynced", shared_race(&[])),
            ("sum_one_warp_unsynced", shared_race(&[])),
            ("sum_no_guard", bounds(&[])),
            ("sum_store_past_end", bounds(&[])),
            ("sum_no_fill", unwritten()),
            ("sum_misaligned", misaligned(&[])),
            ("sum_barrier_in_branch", barrier()),
            ("sum_foreign_mask", barrier()),
            ("sum_shuffle_in_branch", barrier()),
            ("sum_endless_tree", endless()),
            ("sum_half_the_tree", WrongResult),
            ("sum_at_most_128", limit()),
            ("sum_warp_first", Clean),
            ("sum_shuffles_last", Clean),
            ("sum_one_warp", Clean),
        ],
    )
}

fn transposes() -> Vec<Case> {
    let mut all = family(
        "planted",
        |gpu, kernel| transpose(gpu, kernel, 45, 99),
        [
            ("transpose_no_barrier", shared_race(&[Uninitialised])),
            ("transpose_no_reuse_barrier", shared_race(&[])),
            ("transpose_no_edge_guard", bounds(&[])),
            ("transpose_store_past_edge", bounds(&[])),
            ("transpose_overlapping_blocks", global_race(&[])),
            ("transpose_misaligned_store", misaligned(&[GlobalRaces])),
            ("transpose_two_tiles", Clean),
        ],
    );
    // One tile, so that its edge was never filled before.
    all.extend(family(
        "planted",
        |gpu, kernel| transpose(gpu, kernel, 45, 20),
        [("transpose_unfilled_edge", unwritten())],
    ));
    // Whole tiles, so that what is read was written.
    all.extend(family(
        "planted",
        |gpu, kernel| transpose(gpu, kernel, 64, 96),
        [("transpose_swapped_tile", WrongResult)],
    ));
    all
}

fn over_blocks() -> Vec<Case> {
    let mut all = family(
        "planted",
        |gpu, kernel| blocks(gpu, kernel, 6),
        [
            ("blocks_no_fence", global_race(&[])),
            ("blocks_plain_count", global_race(&[])),
            ("blocks_block_count", global_race(&[])),
            ("blocks_block_fence", global_race(&[])),
            ("blocks_no_count", global_race_or_unwritten()),
            ("blocks_one_place", global_race(&[Uninitialised])),
            ("blocks_neighbours_in_place", global_race(&[])),
            ("blocks_no_flag_barrier", shared_race(&[Uninitialised])),
            ("blocks_no_reset", WrongResult),
            ("blocks_spin", endless()),
            ("blocks_acquire_release", Clean),
            ("blocks_atomic_sum", Clean),
        ],
    );
    all.extend(family(
        "planted",
        |gpu, kernel| together(gpu, kernel, 6),
        [("together_no_sync", global_race_or_unwritten())],
    ));
    all
}

fn relays() -> Vec<Case> {
    let mut all = family(
        "planted",
        |gpu, kernel| relay(gpu, kernel, 7),
        [
            (
                "relay_no_full_wait",
                shared_race(&[Uninitialised, Barriers]),
            ),
            ("relay_no_empty_wait", shared_race(&[Barriers])),
            ("relay_one_tile", shared_race(&[Barriers])),
            ("relay_wrong_count", shared_race(&[Uninitialised, Barriers])),
            ("relay_wrong_barrier", barrier()),
            ("relay_no_release", barrier()),
            ("relay_odd_count", barrier()),
            ("relay_producers_wait", Clean),
        ],
    );
    // As many tiles as the longer ring holds.
    all.extend(family(
        "planted",
        |gpu, kernel| relay(gpu, kernel, 4),
        [("relay_four_tiles", Clean)],
    ));
    all
}

fn insertions() -> Vec<Case> {
    family(
        "planted",
        insertion,
        [
            ("insertion_unwritten", unwritten()),
            ("insertion_past_the_row", bounds(&[])),
            ("insertion_descending", WrongResult),
        ],
    )
}

fn scored() -> Vec<Case> {
    // Five tiles through a ring of two; the last tile is a part.
    let mut all = family(
        "scores",
        |gpu, kernel| scores(gpu, kernel, 300, 5, 2),
        [
            ("scores_no_wait", copy(&[Uninitialised, SharedRaces])),
            ("scores_no_commit", copy(&[Uninitialised, SharedRaces])),
            ("scores_barrier_before_wait", copy_or_race()),
            ("scores_no_syncwarp", copy_or_race()),
            ("scores_mma_in_branch", barrier()),
            ("scores_mma_after_return", barrier()),
            ("scores_swapped_fragments", WrongResult),
            ("scores_swapped_rows", WrongResult),
            ("scores_wrong_swizzle", WrongResult),
            ("scores_stale_maximum", WrongResult),
            ("scores_no_tail_guard", bounds(&[Uninitialised])),
            (
                "scores_misaligned_rows",
                misaligned(&[Bounds, AsyncCopies, SharedRaces, Uninitialised]),
            ),
            ("scores_misaligned_copy", misaligned(&[Bounds])),
            ("scores_no_merge_barrier", shared_race(&[Uninitialised])),
            ("weighted_no_reuse_barrier", shared_race(&[])),
        ],
    );
    // Two tiles, so that the unfilled end of the second was never filled before.
    all.extend(family(
        "scores",
        |gpu, kernel| scores(gpu, kernel, 100, 5, 2),
        [("scores_no_tail_fill", unwritten())],
    ));
    // Eight tiles through a ring of three.
    all.extend(family(
        "scores",
        |gpu, kernel| scores(gpu, kernel, 450, 8, 3),
        [
            ("scores_wait_too_few", copy_or_race()),
            ("scores_refill_early", copy_or_race()),
            ("scores_warp_private", Clean),
            ("scores_wait_for_all", Clean),
        ],
    ));
    all
}

fn selections() -> Vec<Case> {
    // A wrong threshold selects too few or too many: unwritten places, or places of the next row.
    let with_consequences = || shared_race(&[Uninitialised, Bounds, GlobalRaces]);
    family(
        "top_n",
        |gpu, kernel| top_n(gpu, kernel, 2, 333, 40),
        [
            ("top_n_no_clear", unwritten()),
            ("top_n_no_clear_barrier", with_consequences()),
            ("top_n_no_count_barrier", with_consequences()),
            ("top_n_no_found_barrier", with_consequences()),
            ("top_n_barrier_in_branch", with_consequences()),
            ("top_n_plain_count", with_consequences()),
            ("top_n_counts_not_doubled", with_consequences()),
            ("top_n_no_limit", bounds(&[GlobalRaces])),
            (
                "top_n_no_column_guard",
                bounds(&[Uninitialised, GlobalRaces]),
            ),
            ("top_n_misaligned_pairs", misaligned(&[])),
            ("top_n_search_forever", endless()),
            ("top_n_not_the_first_tie", WrongResult),
            ("top_n_extra_barriers", Clean),
            ("top_n_lane_zero_walks", Clean),
            ("top_n_exit_in_loop", Clean),
        ],
    )
}

fn products() -> Vec<Case> {
    family(
        "hopper",
        product,
        [
            ("wgmma_no_proxy_fence", proxy()),
            ("wgmma_no_wait", copy(&[])),
            ("wgmma_wrong_stride", WrongResult),
        ],
    )
}

fn pipelines() -> Vec<Case> {
    // Nine tiles through a ring of three.
    family(
        "hopper",
        |gpu, kernel| pipeline(gpu, kernel, 2, 9, 1),
        [
            ("pipeline_no_full_wait", copy_or_race()),
            (
                "pipeline_no_empty_wait",
                copy_or_race().or(Kind::InvalidValue),
            ),
            ("pipeline_no_product_wait", copy(&[])),
            ("pipeline_no_store_wait", copy_or_race()),
            ("pipeline_no_store_fence", proxy()),
            ("pipeline_no_store_barrier", early_store()),
            ("pipeline_expect_too_much", deadlock()),
            ("pipeline_no_release", deadlock()),
            (
                "pipeline_no_cluster_sync",
                global_race(&[SharedRaces, Uninitialised]),
            ),
            ("pipeline_release_own_only", copy_or_race()),
            ("pipeline_no_last_cluster_sync", left_early()),
            ("pipeline_store_wait_for_all", Clean),
        ],
    )
}

fn clusters_and_bulk_copies() -> Vec<Case> {
    let mut all = family(
        "hopper",
        |gpu, kernel| exchange(gpu, kernel, 2),
        [
            ("exchange_no_first_sync", global_race_or_unwritten()),
            ("exchange_no_last_sync", left_early()),
            ("exchange_arrive_then_wait", Clean),
        ],
    );
    all.extend(family(
        "hopper",
        |gpu, kernel| bulk(gpu, kernel, 2),
        [
            ("bulk_no_wait", copy_or_race()),
            ("bulk_reused_too_soon", copy(&[SharedRaces])),
            ("bulk_no_fence", proxy()),
            ("bulk_no_store_barrier", early_store()),
            ("bulk_misaligned", misaligned(&[])),
            ("bulk_past_the_end", bounds(&[Uninitialised])),
        ],
    ));
    all
}

// Scores of 16 queries against a split of the keys on the tensor cores, their online softmax, and
// the softmax-weighted sum of the keys from the same tiles: hardmix's central kernel in small, and
// an instance of it for each planted defect.
#include "ampere.cuh"

namespace {

enum Bug {
  NONE,
  NO_WAIT,              // the copies are not waited for
  WAIT_TOO_FEW,         // one group too many may still be under way
  NO_COMMIT,            // the copies never form a group, so waiting waits for nothing
  BARRIER_BEFORE_WAIT,  // a thread has waited for its own copies only
  REFILL_EARLY,         // a stage is refilled while a slower warp still reads it
  SWAPPED_FRAGMENTS,    // B's two registers the wrong way round
  SWAPPED_ROWS,         // A's rows g and g + 8 the wrong way round
  WRONG_SWIZZLE,        // written with one swizzle, read with another
  NO_TAIL_GUARD,        // the last tile reads keys past the end
  NO_TAIL_FILL,         // rows past the end are left as they are
  MISALIGNED_ROWS,      // ldmatrix rows start at odd multiples of 8 bytes
  MISALIGNED_COPY,      // 16-byte copies from odd multiples of 8 bytes
  STALE_MAXIMUM,        // the sum is not rescaled when the maximum rises
  NO_MERGE_BARRIER,     // the warps' results are merged before they are written
  NO_REUSE_BARRIER,     // results overwrite the ring while a slower warp reads it
  NO_SYNCWARP,          // WARP_PRIVATE without its __syncwarp
  MMA_IN_BRANCH,        // half of a warp's lanes sit a product out
  MMA_AFTER_RETURN,     // some lanes have returned before the warp multiplies
  // Controls: correct.
  WARP_PRIVATE,         // every warp copies its own rows, and no block barrier is needed
  WAIT_FOR_ALL,         // no copy is in flight across rounds
};

constexpr u32 QUERIES = 16, DIM = 128, TILE = 64, WARPS = 4, THREADS = WARPS * 32;
constexpr u32 CHUNKS = DIM / 8;  // of 16 bytes, in a row
constexpr u32 TILE_BYTES = TILE * DIM * 2;

// The byte offset of a 16-byte chunk in a tile; the exclusive or spares ldmatrix bank conflicts.
__device__ u32 chunk_offset(u32 row, u32 chunk, u32 mask = 7) {
  return row * DIM * 2 + (chunk ^ (row & mask)) * 16;
}

// Block b takes tiles b·split_tiles and on. `maxima` and `sums` [splits × 16] are in powers of two;
// `weighted` [splits × 16 × 128] is the sum of 2^(score − maximum) · key.
template <u32 STAGES, bool WEIGHTED, Bug BUG>
__device__ __forceinline__ void scores(const bf16* queries, const bf16* keys, u32 count,
                                       u32 split_tiles, float scale, float* maxima, float* sums,
                                       float* weighted) {
  extern __shared__ __align__(128) unsigned char ring[];
  __shared__ float warp_maxima[WARPS][QUERIES], warp_sums[WARPS][QUERIES];
  constexpr bool PRIVATE = BUG == WARP_PRIVATE || BUG == NO_SYNCWARP;
  u32 thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  u32 group = lane / 4, quad = lane % 4;
  u32 first = blockIdx.x * split_tiles * TILE;
  u32 tiles = min(split_tiles, (count - min(first, count) + TILE - 1) / TILE);

  u32 a[DIM / 16][4];
  for (u32 k = 0; k < DIM / 16; ++k)
    for (u32 i = 0; i < 4; ++i) {
      u32 row = group + (i % 2 ^ (BUG == SWAPPED_ROWS)) * 8;
      a[k][i] = *reinterpret_cast<const u32*>(queries + row * DIM + k * 16 + i / 2 * 8 + quad * 2);
    }

  auto stage = [&](u32 tile) { return shared_address(ring) + tile % STAGES * TILE_BYTES; };
  auto fill = [&](u32 tile) {
    if (tile < tiles) {
      for (u32 i = PRIVATE ? lane : thread; i < TILE / (PRIVATE ? WARPS : 1) * CHUNKS;
           i += PRIVATE ? 32 : THREADS) {
        u32 row = i / CHUNKS + (PRIVATE ? warp * 16 : 0), chunk = i % CHUNKS;
        u32 key = first + tile * TILE + row;
        bool inside = key < count || BUG == NO_TAIL_GUARD;
        if (BUG == NO_TAIL_FILL && !inside) continue;
        const bf16* from = keys + static_cast<u64>(inside ? key : 0) * DIM + chunk * 8;
        if (BUG == MISALIGNED_COPY) from += 4;
        copy16(stage(tile) + chunk_offset(row, chunk), from, inside ? 16 : 0);
      }
    }
    if (BUG != NO_COMMIT) copy_commit();
  };

  float row_max[2] = {-INFINITY, -INFINITY}, row_sum[2] = {};
  float sum_of_keys[DIM / 8][4] = {};
  for (u32 tile = 0; tile + 1 < STAGES; ++tile) fill(tile);
  for (u32 tile = 0; tile < tiles; ++tile) {
    if (BUG == BARRIER_BEFORE_WAIT) __syncthreads();
    if (BUG == WAIT_FOR_ALL) copy_wait<0>();
    else if (BUG == WAIT_TOO_FEW) copy_wait<STAGES - 1>();
    else if (BUG != NO_WAIT) copy_wait<STAGES - 2>();
    if (BUG == REFILL_EARLY) fill(tile + STAGES - 1);
    // Every thread's copies of this tile have arrived, and no thread reads the tile before.
    if (BUG == WARP_PRIVATE) __syncwarp();
    else if (BUG != BARRIER_BEFORE_WAIT && !PRIVATE) __syncthreads();
    if (BUG != REFILL_EARLY) fill(tile + STAGES - 1);

    if (BUG == MMA_AFTER_RETURN && tile + 1 == tiles && quad == 3) return;
    float s[2][4] = {};
#pragma unroll
    for (u32 k = 0; k < DIM / 16; ++k) {
      // The warp's keys 0–7 and 8–15, each by the two halves of this step of 16 dimensions.
      u32 row = warp * 16 + lane / 16 * 8 + lane % 8, chunk = k * 2 + lane / 8 % 2;
      u32 b[4], from = chunk_offset(row, chunk, BUG == WRONG_SWIZZLE ? 3 : 7);
      load_matrices(b, stage(tile) + from + (BUG == MISALIGNED_ROWS ? 8 : 0));
      if (BUG == MMA_IN_BRANCH && quad >= 2) continue;
      mma(s[0], a[k], b[BUG == SWAPPED_FRAGMENTS], b[BUG != SWAPPED_FRAGMENTS]);
      mma(s[1], a[k], b[2], b[3]);
    }

    // Elements 2·half and 2·half + 1 of an accumulator belong to row group + 8·half.
    float rescale[2];
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
      float top = row_max[half];
      for (u32 n = 0; n < 2; ++n)
        for (u32 i = 0; i < 2; ++i) {
          u32 key = first + tile * TILE + warp * 16 + n * 8 + quad * 2 + i;
          float& x = s[n][half * 2 + i];
          x = key < count || BUG == NO_TAIL_FILL ? x * scale : -INFINITY;
          top = fmaxf(top, x);
        }
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
      float shift = top == -INFINITY ? 0.0f : top;
      rescale[half] = BUG == STALE_MAXIMUM ? 1.0f : exp2_approx(row_max[half] - shift);
      row_sum[half] *= rescale[half];
      row_max[half] = top;
      for (u32 n = 0; n < 2; ++n)
        for (u32 i = 0; i < 2; ++i) {
          float& x = s[n][half * 2 + i];
          x = exp2_approx(x - shift);
          row_sum[half] += x;
        }
    }
    if (WEIGHTED) {
      // An accumulator of the first product lies in the registers as an A of the second.
      u32 p[4] = {pack(s[0][0], s[0][1]), pack(s[0][2], s[0][3]), pack(s[1][0], s[1][1]),
                  pack(s[1][2], s[1][3])};
#pragma unroll
      for (u32 n = 0; n < DIM / 8; n += 2) {
        u32 b[4];
        load_matrices_transposed(
            b, stage(tile) + chunk_offset(warp * 16 + lane % 16, n + lane / 16));
        for (u32 i = 0; i < 8; ++i) sum_of_keys[n + i / 4][i % 4] *= rescale[i % 4 / 2];
        mma(sum_of_keys[n], p, b[0], b[1]);
        mma(sum_of_keys[n + 1], p, b[2], b[3]);
      }
    }
  }

  float(*warp_weighted)[QUERIES][DIM] = reinterpret_cast<float(*)[QUERIES][DIM]>(ring);
  if (WEIGHTED && BUG != NO_REUSE_BARRIER) __syncthreads();
  for (u32 half = 0; half < 2; ++half) {
    u32 row = group + half * 8;
    row_sum[half] += __shfl_xor_sync(~0u, row_sum[half], 1);
    row_sum[half] += __shfl_xor_sync(~0u, row_sum[half], 2);
    if (quad == 0) {
      warp_maxima[warp][row] = row_max[half];
      warp_sums[warp][row] = row_sum[half];
    }
    if (WEIGHTED)
      for (u32 n = 0; n < DIM / 8; ++n)
        for (u32 i = 0; i < 2; ++i)
          warp_weighted[warp][row][n * 8 + quad * 2 + i] = sum_of_keys[n][half * 2 + i];
  }
  if (BUG != NO_MERGE_BARRIER) __syncthreads();

  auto maximum = [&](u32 row) {
    float top = warp_maxima[0][row];
    for (u32 w = 1; w < WARPS; ++w) top = fmaxf(top, warp_maxima[w][row]);
    return top;
  };
  auto factor = [&](u32 w, u32 row) {
    float top = maximum(row);
    return top == -INFINITY ? 0.0f : exp2_approx(warp_maxima[w][row] - top);
  };
  if (thread < QUERIES) {
    float sum = 0.0f;
    for (u32 w = 0; w < WARPS; ++w) sum += warp_sums[w][thread] * factor(w, thread);
    maxima[blockIdx.x * QUERIES + thread] = maximum(thread);
    sums[blockIdx.x * QUERIES + thread] = sum;
  }
  if (WEIGHTED)
    for (u32 row = 0; row < QUERIES; ++row) {
      float sum = 0.0f;
      for (u32 w = 0; w < WARPS; ++w) sum += warp_weighted[w][row][thread] * factor(w, row);
      weighted[(blockIdx.x * QUERIES + row) * DIM + thread] = sum;
    }
}

}  // namespace

#define INSTANCE(name, stages, is_weighted, bug)                                               \
  extern "C" __global__ void __launch_bounds__(THREADS)                                        \
      name(const bf16* queries, const bf16* keys, u32 count, u32 split_tiles, float scale,     \
           float* maxima, float* sums, float* weighted) {                                      \
    scores<stages, is_weighted, bug>(queries, keys, count, split_tiles, scale, maxima, sums,   \
                                     weighted);                                                \
  }

INSTANCE(scores2, 2, false, NONE)
INSTANCE(scores3, 3, false, NONE)
INSTANCE(weighted2, 2, true, NONE)
INSTANCE(weighted3, 3, true, NONE)
INSTANCE(scores_no_wait, 2, false, NO_WAIT)
INSTANCE(scores_wait_too_few, 3, false, WAIT_TOO_FEW)
INSTANCE(scores_no_commit, 2, false, NO_COMMIT)
INSTANCE(scores_barrier_before_wait, 2, false, BARRIER_BEFORE_WAIT)
INSTANCE(scores_refill_early, 3, false, REFILL_EARLY)
INSTANCE(scores_swapped_fragments, 2, false, SWAPPED_FRAGMENTS)
INSTANCE(scores_swapped_rows, 2, false, SWAPPED_ROWS)
INSTANCE(scores_wrong_swizzle, 2, false, WRONG_SWIZZLE)
INSTANCE(scores_no_tail_guard, 2, false, NO_TAIL_GUARD)
INSTANCE(scores_no_tail_fill, 2, false, NO_TAIL_FILL)
INSTANCE(scores_misaligned_rows, 2, false, MISALIGNED_ROWS)
INSTANCE(scores_misaligned_copy, 2, false, MISALIGNED_COPY)
INSTANCE(scores_stale_maximum, 2, false, STALE_MAXIMUM)
INSTANCE(scores_no_merge_barrier, 2, false, NO_MERGE_BARRIER)
INSTANCE(weighted_no_reuse_barrier, 2, true, NO_REUSE_BARRIER)
INSTANCE(scores_no_syncwarp, 2, false, NO_SYNCWARP)
INSTANCE(scores_mma_in_branch, 2, false, MMA_IN_BRANCH)
INSTANCE(scores_mma_after_return, 2, false, MMA_AFTER_RETURN)
INSTANCE(scores_warp_private, 3, false, WARP_PRIVATE)
INSTANCE(scores_wait_for_all, 3, false, WAIT_FOR_ALL)

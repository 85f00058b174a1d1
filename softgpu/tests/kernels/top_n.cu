// The exact top N of each row by radix select: histograms in shared memory from the top byte down,
// then a compaction by ballots, in column order; of equal values the first columns win. One block
// a row, and an instance for each planted defect.
#include "ampere.cuh"

namespace {

enum Bug {
  NONE,
  NO_CLEAR,               // the histogram starts as shared memory happens to be
  NO_CLEAR_BARRIER,       // counted before every bin is zero
  NO_COUNT_BARRIER,       // read before everything is counted
  NO_FOUND_BARRIER,       // the bin is read before warp 0 has found it
  PLAIN_COUNT,            // ++ in place of atomicAdd
  NO_LIMIT,               // ties at the threshold are written past the row's N
  NOT_THE_FIRST_TIE,      // of equal values the second column wins
  BARRIER_IN_BRANCH,      // a barrier that only the even warps reach: the odd ones meet the next
  MISALIGNED_PAIRS,       // loads of 8 bytes from odd columns
  NO_COLUMN_GUARD,        // reads past the last row
  SEARCH_FOREVER,         // the walk over the bins does not move
  COUNTS_NOT_DOUBLED,     // one buffer of warp counts where two are needed
  // Controls: correct.
  EXTRA_BARRIERS,
  LANE_ZERO_WALKS,        // one lane finds the bin, with no shuffles
  EXIT_IN_LOOP,           // threads without a column leave; nobody waits for those
};

constexpr u32 THREADS = 128, WARPS = THREADS / 32, BINS = 256;

template <Bug BUG>
__device__ __forceinline__ void top_n_of_row(const float* values, u32 columns, u32 n, u32* indices,
                                       float* selected) {
  __shared__ u32 bins[BINS], found_bin, found_rank, warp_counts[2][WARPS][2];
  u32 thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const float* row = values + static_cast<u64>(blockIdx.x) * columns;
  u32 end = columns + (BUG == NO_COLUMN_GUARD ? THREADS : 0);

  u32 prefix = 0, rank = n;  // of the threshold among the keys that start with `prefix`
  for (int shift = 24; shift >= 0; shift -= 8) {
    if (BUG != NO_CLEAR)
      for (u32 i = thread; i < BINS; i += THREADS) bins[i] = 0;
    if (BUG != NO_CLEAR_BARRIER) __syncthreads();
    for (u32 column = thread; column < end; column += THREADS) {
      u32 key = ordered_key(row[column]);
      if (BUG == MISALIGNED_PAIRS && column + 1 < columns) {
        float2 pair;
        asm volatile("ld.global.v2.f32 {%0, %1}, [%2];" : "=f"(pair.x), "=f"(pair.y) : "l"(row + column));
        key = ordered_key(pair.x);
      }
      if (shift < 24 && key >> (shift + 8) != prefix) continue;
      if (BUG == PLAIN_COUNT) ++bins[key >> shift & 255];
      else atomicAdd(&bins[key >> shift & 255], 1);
    }
    if (BUG == BARRIER_IN_BRANCH) {
      if (warp % 2 == 0) __syncthreads();
    } else if (BUG != NO_COUNT_BARRIER) {
      __syncthreads();
    }
    if (BUG == SEARCH_FOREVER && thread == 0) {
      u32 bin = BINS - 1, left = rank;
      while (left > *(volatile u32*)&bins[bin]) left -= bin == 0;
    }
    if (BUG == LANE_ZERO_WALKS) {
      if (thread == 0) {
        u32 bin = BINS - 1, left = rank;
        while (bin > 0 && bins[bin] < left) left -= bins[bin--];
        found_bin = bin;
        found_rank = left;
      }
    } else if (warp == 0) {
      // Lane l holds the eight bins from the l-th group from the top; an inclusive scan over lanes.
      u32 base = BINS - 8 - lane * 8, mine = 0;
      for (u32 i = 0; i < 8; ++i) mine += bins[base + i];
      u32 through = mine;
      for (u32 step = 1; step < 32; step *= 2) {
        u32 other = __shfl_up_sync(~0u, through, step);
        if (lane >= step) through += other;
      }
      u32 before = through - mine;
      if (before < rank && rank <= through) {
        u32 bin = base + 7, left = rank - before;
        while (bins[bin] < left) left -= bins[bin--];
        found_bin = bin;
        found_rank = left;
      }
    }
    if (BUG != NO_FOUND_BARRIER) __syncthreads();
    // No barrier is needed from here to the next clearing: warp 0 has read the bins.
    if (BUG == EXTRA_BARRIERS) __syncthreads();
    prefix = prefix << 8 | found_bin;
    rank = found_rank;
  }

  u32 above = 0, equal = 0;  // written so far
  for (u32 from = 0; from < columns; from += THREADS) {
    u32 column = from + thread;
    if (BUG == EXIT_IN_LOOP && column >= columns) return;
    float x = column < columns ? row[column] : 0.0f;
    u32 key = column < columns ? ordered_key(x) : 0;
    u32 is_above = __ballot_sync(~0u, column < columns && key > prefix);
    u32 is_equal = __ballot_sync(~0u, column < columns && key == prefix);
    u32(*counts)[2] = warp_counts[BUG == COUNTS_NOT_DOUBLED ? 0 : from / THREADS % 2];
    if (lane == 0) {
      counts[warp][0] = __popc(is_above);
      counts[warp][1] = __popc(is_equal);
    }
    __syncthreads();
    u32 earlier = (1u << lane) - 1;
    u32 above_here = above + __popc(is_above & earlier);
    u32 equal_here = equal + __popc(is_equal & earlier);
    for (u32 w = 0; w < WARPS; ++w) {
      if (w < warp) {
        above_here += counts[w][0];
        equal_here += counts[w][1];
      }
      above += counts[w][0];
      equal += counts[w][1];
    }
    bool take_equal = is_equal >> lane & 1;
    if (BUG == NOT_THE_FIRST_TIE) {
      take_equal = take_equal && equal_here > 0;
      equal_here -= min(equal_here, 1);
    }
    if (BUG != NO_LIMIT) take_equal = take_equal && equal_here < rank;
    u32 ties = BUG == NO_LIMIT ? equal_here : min(equal_here, rank);
    if (is_above >> lane & 1 || take_equal) {
      u64 at = static_cast<u64>(blockIdx.x) * n + above_here + ties;
      indices[at] = column;
      selected[at] = x;
    }
  }
}

}  // namespace

#define INSTANCE(name, bug)                                                                     \
  extern "C" __global__ void __launch_bounds__(THREADS)                                         \
      name(const float* values, u32 columns, u32 n, u32* indices, float* selected) {            \
    top_n_of_row<bug>(values, columns, n, indices, selected);                                         \
  }

INSTANCE(top_n, NONE)
INSTANCE(top_n_no_clear, NO_CLEAR)
INSTANCE(top_n_no_clear_barrier, NO_CLEAR_BARRIER)
INSTANCE(top_n_no_count_barrier, NO_COUNT_BARRIER)
INSTANCE(top_n_no_found_barrier, NO_FOUND_BARRIER)
INSTANCE(top_n_plain_count, PLAIN_COUNT)
INSTANCE(top_n_no_limit, NO_LIMIT)
INSTANCE(top_n_not_the_first_tie, NOT_THE_FIRST_TIE)
INSTANCE(top_n_exit_in_loop, EXIT_IN_LOOP)
INSTANCE(top_n_barrier_in_branch, BARRIER_IN_BRANCH)
INSTANCE(top_n_misaligned_pairs, MISALIGNED_PAIRS)
INSTANCE(top_n_no_column_guard, NO_COLUMN_GUARD)
INSTANCE(top_n_search_forever, SEARCH_FOREVER)
INSTANCE(top_n_counts_not_doubled, COUNTS_NOT_DOUBLED)
INSTANCE(top_n_extra_barriers, EXTRA_BARRIERS)
INSTANCE(top_n_lane_zero_walks, LANE_ZERO_WALKS)

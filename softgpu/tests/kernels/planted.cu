// Small kernels of the usual shapes, each in a right version and with one thing missing at a time:
// sum, transpose, blocks, relay, insertion. (scores.cu, top_n.cu and hopper.cu hold more.)
#include <cooperative_groups.h>

#include "ampere.cuh"

#define KERNEL extern "C" __global__ void

// ---- sum: a tree in shared memory; `partial` has a float a thread ----

namespace {

enum class Sum {
  RIGHT,
  NO_BARRIER,          // between the levels of the tree
  NO_SYNCWARP,         // between the levels inside the last warp
  WARP_FIRST_UNSYNCED, // WARP_FIRST without its __syncwarp
  ONE_WARP_UNSYNCED,   // ONE_WARP without its __syncwarp
  NO_GUARD,            // reads past n
  NO_FILL,             // threads past n leave their partial as it is
  BARRIER_IN_BRANCH,   // only the threads that still add reach the barrier
  MISALIGNED,          // 16-byte loads from odd words
  STORE_PAST_END,      // block b writes the sum of block b + 1
  FOREIGN_MASK,        // lanes wait on a mask that they are not in
  SHUFFLE_IN_BRANCH,   // a shuffle waits for lanes that wait elsewhere
  HALF_THE_TREE,       // one level too few
  OVERLAPPING_TREE,    // level n reads what level n writes
  ENDLESS_TREE,        // the levels' width is rounded up and never gets to 0
  // Controls: correct.
  WARP_FIRST,          // each warp reduces its own part under __syncwarp alone
  SHUFFLES_LAST,       // the last 32 by shuffles
  ONE_WARP,            // a warp owns the whole tree and no block barrier is left
};

template <Sum SUM>
__device__ __forceinline__ void sum(const float* in, float* sums, u32 n) {
  extern __shared__ float partial[];
  u32 thread = threadIdx.x, lane = thread % 32, at = blockIdx.x * blockDim.x + thread;
  if (SUM == Sum::MISALIGNED) {
    float4 x = *reinterpret_cast<const float4*>(in + at / 8 * 4 + 1);
    partial[thread] = x.x + x.y + x.z + x.w;
  } else if (SUM == Sum::NO_GUARD) {
    partial[thread] = in[at];
  } else if (SUM == Sum::NO_FILL) {
    if (at < n) partial[thread] = in[at];
  } else {
    partial[thread] = at < n ? in[at] : 0.0f;
  }
  if (SUM == Sum::WARP_FIRST || SUM == Sum::WARP_FIRST_UNSYNCED) {
    for (u32 step = 16; step > 0; step /= 2) {
      if (SUM == Sum::WARP_FIRST) __syncwarp();
      if (lane < step) partial[thread] += partial[thread + step];
    }
    __syncthreads();
    if (thread == 0) {
      float total = 0.0f;
      for (u32 w = 0; w < blockDim.x; w += 32) total += partial[w];
      sums[blockIdx.x] = total;
    }
    return;
  }
  if (SUM == Sum::ONE_WARP || SUM == Sum::ONE_WARP_UNSYNCED) {
    __syncthreads();
    if (thread >= 32) return;
    float total = 0.0f;
    for (u32 i = thread; i < blockDim.x; i += 32) total += partial[i];
    // Each lane reads and rewrites its own word alone, so nothing is to be ordered in between.
    partial[thread] = total;
    if (SUM == Sum::ONE_WARP) __syncwarp();
    if (thread == 0) {
      for (u32 i = 1; i < 32; ++i) total += partial[i];
      sums[blockIdx.x] = total;
    }
    return;
  }
  if (SUM != Sum::NO_BARRIER) __syncthreads();
  constexpr u32 LAST_STEP = SUM == Sum::SHUFFLES_LAST ? 32 : SUM == Sum::BARRIER_IN_BRANCH ? 1 : 64;
  for (u32 step = blockDim.x / 2; step >= LAST_STEP; step /= 2) {
    if (thread < step) {
      partial[thread] += partial[thread + step];
      if (SUM == Sum::BARRIER_IN_BRANCH) __syncthreads();
    }
    if (SUM == Sum::OVERLAPPING_TREE && thread >= step) partial[thread - step] = 0.0f;
    if (SUM != Sum::NO_BARRIER && SUM != Sum::BARRIER_IN_BRANCH) __syncthreads();
  }
  if (thread < 32) {
    float total = partial[thread];
    if (SUM == Sum::SHUFFLES_LAST) {
      for (u32 step = 16; step > 0; step /= 2) total += __shfl_down_sync(~0u, total, step);
    } else if (SUM == Sum::SHUFFLE_IN_BRANCH) {
      if (lane < 16) total += __shfl_down_sync(~0u, total, 16);
      __syncwarp();
    } else if (SUM == Sum::BARRIER_IN_BRANCH) {
      __syncwarp();
    } else {
      constexpr u32 UP = SUM == Sum::ENDLESS_TREE ? 1 : 0;
      for (u32 step = 32; step > (SUM == Sum::HALF_THE_TREE ? 1 : 0); step = (step + UP) / 2) {
        float other = lane < step ? partial[thread + step] : 0.0f;
        total += other;
        if (SUM == Sum::FOREIGN_MASK) __syncwarp(0xFFFF);
        else if (SUM != Sum::NO_SYNCWARP) __syncwarp();
        if (lane < step) partial[thread] = total;
        if (SUM == Sum::FOREIGN_MASK) __syncwarp(0xFFFF);
        else if (SUM != Sum::NO_SYNCWARP) __syncwarp();
      }
    }
    if (thread == 0) sums[blockIdx.x + (SUM == Sum::STORE_PAST_END)] = total;
  }
}

}  // namespace

#define SUM(name, kind) \
  KERNEL name(const float* in, float* sums, u32 n) { sum<Sum::kind>(in, sums, n); }

SUM(sum, RIGHT)
SUM(sum_no_barrier, NO_BARRIER)
SUM(sum_no_syncwarp, NO_SYNCWARP)
SUM(sum_warp_first_unsynced, WARP_FIRST_UNSYNCED)
SUM(sum_one_warp_unsynced, ONE_WARP_UNSYNCED)
SUM(sum_no_guard, NO_GUARD)
SUM(sum_no_fill, NO_FILL)
SUM(sum_barrier_in_branch, BARRIER_IN_BRANCH)
SUM(sum_misaligned, MISALIGNED)
SUM(sum_store_past_end, STORE_PAST_END)
SUM(sum_foreign_mask, FOREIGN_MASK)
SUM(sum_shuffle_in_branch, SHUFFLE_IN_BRANCH)
SUM(sum_half_the_tree, HALF_THE_TREE)
SUM(sum_overlapping_tree, OVERLAPPING_TREE)
SUM(sum_endless_tree, ENDLESS_TREE)
SUM(sum_warp_first, WARP_FIRST)
SUM(sum_shuffles_last, SHUFFLES_LAST)
SUM(sum_one_warp, ONE_WARP)

KERNEL __launch_bounds__(128) sum_at_most_128(const float* in, float* sums, u32 n) {
  sum<Sum::RIGHT>(in, sums, n);
}

// ---- transpose: [rows × columns] → [columns × rows] in tiles of 32×32, 32×8 threads ----

namespace {

enum class Transpose {
  RIGHT,
  NO_BARRIER,
  NO_REUSE_BARRIER,     // the next tile is written while this one is read
  NO_EDGE_GUARD,        // reads past the last row
  STORE_PAST_EDGE,      // writes past the last row of the result
  UNFILLED_EDGE,        // a guard on the wrong side: unwritten parts of the tile are read
  OVERLAPPING_BLOCKS,   // blocks write each other's results
  MISALIGNED_STORE,     // pairs are stored at odd words
  SWAPPED_TILE,         // copies instead of transposing
  // Controls: correct.
  TWO_TILES,            // tiles taken in turn, so one barrier a tile is enough
};

template <Transpose KIND>
__device__ __forceinline__ void transpose(const float* in, float* out, u32 rows, u32 columns) {
  __shared__ float tiles[2][32][33];
  u32 x = threadIdx.x, from_row = blockIdx.x * 32;
  for (u32 from = 0; from < columns; from += 32) {
    float(*tile)[33] = tiles[KIND == Transpose::TWO_TILES ? from / 32 % 2 : 0];
    for (u32 y = threadIdx.y; y < 32; y += 8) {
      u32 row = from_row + y, column = from + x;
      bool inside = row < rows && column < columns;
      if (KIND == Transpose::NO_EDGE_GUARD) inside = column < columns;
      if (inside) tile[y][x] = in[row * columns + column];
    }
    if (KIND != Transpose::NO_BARRIER) __syncthreads();
    for (u32 y = threadIdx.y; y < 32; y += 8) {
      u32 row = from_row + x, column = from + y;
      bool inside = row < rows && column < columns;
      if (KIND == Transpose::STORE_PAST_EDGE) inside = row < rows;
      float value = 0.0f;
      if (KIND == Transpose::UNFILLED_EDGE) inside = inside || row < rows;
      if (inside) value = KIND == Transpose::SWAPPED_TILE ? tile[y][x] : tile[x][y];
      if (KIND == Transpose::UNFILLED_EDGE) inside = row < rows && (column < columns || value == 1e30f);
      if (KIND == Transpose::STORE_PAST_EDGE && column >= columns) value = 0.0f;
      if (!inside) continue;
      u32 at = column * rows + row;
      if (KIND == Transpose::OVERLAPPING_BLOCKS) at = column * rows + row % 32;
      if (KIND == Transpose::MISALIGNED_STORE && at % 2 && at + 1 < rows * columns)
        *reinterpret_cast<float2*>(out + at) = make_float2(value, value);
      else
        out[at] = value;
    }
    if (KIND != Transpose::NO_REUSE_BARRIER && KIND != Transpose::TWO_TILES) __syncthreads();
  }
}

}  // namespace

#define TRANSPOSE(name, kind)                                                  \
  KERNEL name(const float* in, float* out, u32 rows, u32 columns) {            \
    transpose<Transpose::kind>(in, out, rows, columns);                        \
  }

TRANSPOSE(transpose, RIGHT)
TRANSPOSE(transpose_no_barrier, NO_BARRIER)
TRANSPOSE(transpose_no_reuse_barrier, NO_REUSE_BARRIER)
TRANSPOSE(transpose_no_edge_guard, NO_EDGE_GUARD)
TRANSPOSE(transpose_store_past_edge, STORE_PAST_EDGE)
TRANSPOSE(transpose_unfilled_edge, UNFILLED_EDGE)
TRANSPOSE(transpose_overlapping_blocks, OVERLAPPING_BLOCKS)
TRANSPOSE(transpose_misaligned_store, MISALIGNED_STORE)
TRANSPOSE(transpose_swapped_tile, SWAPPED_TILE)
TRANSPOSE(transpose_two_tiles, TWO_TILES)

// ---- blocks: the last block to finish adds up the sums of all, one warp a block ----

namespace {

enum class Blocks {
  RIGHT,
  NO_FENCE,            // the sum may arrive after the count
  PLAIN_COUNT,         // ++ in place of atomicAdd
  BLOCK_COUNT,         // an atomic among the threads of a block
  BLOCK_FENCE,         // the last block acquires among its own threads
  NO_COUNT,            // block 0 adds up what may not be there yet
  ONE_PLACE,           // every block writes the same word
  NEIGHBOURS_IN_PLACE, // overwrites what the next block reads
  NO_FLAG_BARRIER,     // the flag is read before thread 0 has written it
  NO_RESET,            // the second launch finds the first one's count
  SPIN,                // block 0 waits for blocks that may never run beside it
  // Controls: correct.
  ACQUIRE_RELEASE,     // the order comes with the atomic itself
  ATOMIC_SUM,          // no order is needed: integers, added atomically
};

template <Blocks KIND>
__device__ __forceinline__ void blocks(float* in, float* partial, u32* done, float* total) {
  __shared__ bool last;
  u32 lane = threadIdx.x, block = blockIdx.x;
  float x = in[block * 32 + lane];
  if (KIND == Blocks::NEIGHBOURS_IN_PLACE) {
    x += in[(block + 1) % gridDim.x * 32 + lane];
    in[block * 32 + lane] = x;
  }
  for (u32 step = 16; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
  if (KIND == Blocks::ATOMIC_SUM) {
    if (lane == 0) atomicAdd(done, static_cast<u32>(x));
    return;
  }
  if (lane == 0) {
    partial[KIND == Blocks::ONE_PLACE ? 0 : block] = x;
    u32 before = 0;
    if (KIND == Blocks::ACQUIRE_RELEASE) {
      asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(done) : "memory");
    } else {
      if (KIND != Blocks::NO_FENCE) __threadfence();
      if (KIND == Blocks::PLAIN_COUNT) before = (*done)++;
      else if (KIND == Blocks::BLOCK_COUNT) before = atomicAdd_block(done, 1);
      else before = atomicAdd(done, 1);
    }
    last = before == gridDim.x - 1;
    if (KIND == Blocks::NO_COUNT) last = block == 0;
    if (KIND == Blocks::SPIN) {
      last = block == 0;
      while (last && atomicAdd(done, 0) != gridDim.x) {
      }
    }
  }
  if (KIND != Blocks::NO_FLAG_BARRIER) __syncthreads();
  if (!last || lane != 0) return;
  if (KIND == Blocks::BLOCK_FENCE) __threadfence_block();
  else if (KIND != Blocks::ACQUIRE_RELEASE) __threadfence();
  float sum = 0.0f;
  for (u32 b = 0; b < gridDim.x; ++b) sum += partial[b];
  *total = sum;
  if (KIND != Blocks::NO_RESET) atomicExch(done, 0);
}

}  // namespace

#define BLOCKS(name, kind)                                                 \
  KERNEL name(float* in, float* partial, u32* done, float* total) {        \
    blocks<Blocks::kind>(in, partial, done, total);                        \
  }

BLOCKS(blocks, RIGHT)
BLOCKS(blocks_no_fence, NO_FENCE)
BLOCKS(blocks_plain_count, PLAIN_COUNT)
BLOCKS(blocks_block_count, BLOCK_COUNT)
BLOCKS(blocks_block_fence, BLOCK_FENCE)
BLOCKS(blocks_no_count, NO_COUNT)
BLOCKS(blocks_one_place, ONE_PLACE)
BLOCKS(blocks_neighbours_in_place, NEIGHBOURS_IN_PLACE)
BLOCKS(blocks_no_flag_barrier, NO_FLAG_BARRIER)
BLOCKS(blocks_no_reset, NO_RESET)
BLOCKS(blocks_spin, SPIN)
BLOCKS(blocks_acquire_release, ACQUIRE_RELEASE)
BLOCKS(blocks_atomic_sum, ATOMIC_SUM)

// The same in one cooperative launch: every block adds up all sums after a grid-wide barrier.
template <bool SYNC>
__device__ __forceinline__ void together(const float* in, float* partial, float* totals) {
  u32 lane = threadIdx.x;
  float x = in[blockIdx.x * 32 + lane];
  for (u32 step = 16; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
  if (lane == 0) partial[blockIdx.x] = x;
  if (SYNC) cooperative_groups::this_grid().sync();
  float sum = 0.0f;
  if (lane == 0) {
    for (u32 b = 0; b < gridDim.x; ++b) sum += partial[b];
    totals[blockIdx.x] = sum;
  }
}

KERNEL together(const float* in, float* partial, float* totals) {
  together<true>(in, partial, totals);
}
KERNEL together_no_sync(const float* in, float* partial, float* totals) {
  together<false>(in, partial, totals);
}

// ---- relay: two producer warps fill tiles of 64, two consumer warps sum them; 128 threads ----

namespace {

enum class Relay {
  RIGHT,
  NO_FULL_WAIT,      // consumers read before the tile is full
  NO_EMPTY_WAIT,     // producers refill what is being read
  WRONG_COUNT,       // the barrier expects 96 threads, and 128 come
  WRONG_BARRIER,     // the two sides use different barriers
  NO_RELEASE,        // consumers never say that a tile is free
  ONE_TILE,          // a ring of two barriers over one tile
  ODD_COUNT,         // a count that is no multiple of the warp size
  // Controls: correct.
  PRODUCERS_WAIT,    // producers wait at the full barrier too
  FOUR_TILES,        // a ring long enough for every tile here, and no release
};

template <Relay KIND>
__device__ __forceinline__ void relay(const float* in, float* out, u32 tiles) {
  __shared__ float ring[4][64];
  constexpr bool RELEASES = KIND != Relay::NO_RELEASE && KIND != Relay::FOUR_TILES;
  constexpr u32 LENGTH = KIND == Relay::FOUR_TILES ? 4 : 2;
  bool producer = threadIdx.x < 64;
  u32 lane = threadIdx.x % 64;
  u32 count = KIND == Relay::WRONG_COUNT ? 96 : KIND == Relay::ODD_COUNT ? 100 : 128;
  float sum = 0.0f;
  for (u32 t = 0; t < tiles; ++t) {
    u32 full = 1 + t % LENGTH, empty = 5 + t % LENGTH;
    float* tile = ring[KIND == Relay::ONE_TILE ? 0 : t % LENGTH];
    if (producer) {
      if (t >= LENGTH && KIND != Relay::NO_EMPTY_WAIT && KIND != Relay::FOUR_TILES)
        asm volatile("bar.sync %0, %1;" ::"r"(empty), "r"(count) : "memory");
      tile[lane] = in[t * 64 + lane];
      if (KIND == Relay::PRODUCERS_WAIT)
        asm volatile("bar.sync %0, %1;" ::"r"(full), "r"(count) : "memory");
      else
        asm volatile("bar.arrive %0, %1;" ::"r"(full), "r"(count) : "memory");
    } else {
      if (KIND == Relay::WRONG_BARRIER) full = 1 + (t + 1) % LENGTH;
      if (KIND != Relay::NO_FULL_WAIT)
        asm volatile("bar.sync %0, %1;" ::"r"(full), "r"(count) : "memory");
      sum += tile[(lane + 33) % 64];
      if (RELEASES && t + LENGTH < tiles)
        asm volatile("bar.arrive %0, %1;" ::"r"(empty), "r"(count) : "memory");
    }
  }
  if (!producer) out[lane] = sum;
}

}  // namespace

#define RELAY(name, kind)                                                      \
  KERNEL __launch_bounds__(128) name(const float* in, float* out, u32 tiles) { \
    relay<Relay::kind>(in, out, tiles);                                        \
  }

RELAY(relay, RIGHT)
RELAY(relay_no_full_wait, NO_FULL_WAIT)
RELAY(relay_no_empty_wait, NO_EMPTY_WAIT)
RELAY(relay_wrong_count, WRONG_COUNT)
RELAY(relay_wrong_barrier, WRONG_BARRIER)
RELAY(relay_no_release, NO_RELEASE)
RELAY(relay_one_tile, ONE_TILE)
RELAY(relay_odd_count, ODD_COUNT)
RELAY(relay_producers_wait, PRODUCERS_WAIT)
RELAY(relay_four_tiles, FOUR_TILES)

// ---- insertion: each thread sorts its 16 words in local memory ----

namespace {

enum class Insertion { RIGHT, UNWRITTEN, PAST_THE_ROW, DESCENDING };

template <Insertion KIND>
__device__ __forceinline__ void insertion(const u32* in, u32* out, u32 count) {
  u32 row[16];
  const u32* from = in + threadIdx.x * 16;
  u32 taken = KIND == Insertion::UNWRITTEN ? count - 1 : KIND == Insertion::PAST_THE_ROW ? count + 1 : count;
  for (u32 held = 0; held < taken; ++held) {
    u32 at = held, x = from[min(held, 15u)];
    while (at > 0 && (KIND == Insertion::DESCENDING ? row[at - 1] < x : row[at - 1] > x)) {
      row[at] = row[at - 1];
      --at;
    }
    row[at] = x;
  }
  for (u32 i = 0; i < count; ++i) out[threadIdx.x * 16 + i] = row[i];
}

}  // namespace

#define INSERTION(name, kind) \
  KERNEL name(const u32* in, u32* out, u32 count) { insertion<Insertion::kind>(in, out, count); }

INSERTION(insertion, RIGHT)
INSERTION(insertion_unwritten, UNWRITTEN)
INSERTION(insertion_past_the_row, PAST_THE_ROW)
INSERTION(insertion_descending, DESCENDING)

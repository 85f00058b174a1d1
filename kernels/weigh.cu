// weigh: the product of the rows' weights, exponentials and what was mixed, with the queue: the sum of
// weighted queue rows that is the negatives' part of the gradient.
//
// A block makes a tile of sums over one split of the queue, WEIGH_DEPTH queue rows after the other; a
// ring of stages in shared memory is refilled while earlier ones are multiplied. Splits are cut by the
// queue's shape alone, and their sums are merged in order by `finish`: a row's bits do not depend on
// its batch. Each stage's sum, on the tensor cores, joins its split's by an addition that rounds to
// nearest: theirs truncate, and over a whole split that would add up.
#include "device/copy.cuh"
#include "device/element.cuh"
#include "device/product.cuh"
#include "device/reduce.cuh"
#include "params.h"

namespace {

constexpr uint32_t M_WARPS = 4, N_WARPS = 2;
static_assert(M_WARPS * N_WARPS * WARP == WEIGH_THREADS && M_WARPS * 16 == WEIGH_ROWS, "warps of a tile");
// The columns of a warp, in tiles of eight.
constexpr uint32_t OWN_COLUMNS = WEIGH_COLUMNS / N_WARPS, TILES = OWN_COLUMNS / 8;

template <class T>
struct alignas(16) Stage {
  float weights[WEIGH_ROWS][WEIGH_DEPTH + (is_bf16<T> ? WEIGH_PADDING_BF16 : WEIGH_PADDING)];
  T queue[WEIGH_DEPTH][WEIGH_QUEUE_STRIDE];
};

// Copies `ROWS` × `COLUMNS` elements of [count, width] from (row, column) on, zeros past either end.
template <uint32_t ROWS, uint32_t COLUMNS, uint32_t STRIDE, class E>
__device__ void fill(E (&to)[ROWS][STRIDE], const E* data, uint32_t row, uint32_t count, uint32_t column,
                     uint32_t end, uint32_t width, bool aligned) {
  constexpr uint32_t PER_CHUNK = 16 / sizeof(E), CHUNKS = COLUMNS / PER_CHUNK;
  if (aligned) {
    for (uint32_t i = threadIdx.x; i < ROWS * CHUNKS; i += WEIGH_THREADS) {
      const uint32_t y = i / CHUNKS, x = i % CHUNKS * PER_CHUNK, at = column + x;
      const bool inside = row + y < count && at < end;
      const E* source = inside ? data + uint64_t(row + y) * width + at : data;
      copy16(shared_address(&to[y][x]), source, inside ? 16 : 0);
    }
  } else {
    for (uint32_t i = threadIdx.x; i < ROWS * COLUMNS; i += WEIGH_THREADS) {
      const uint32_t y = i / COLUMNS, x = i % COLUMNS, at = column + x;
      const bool inside = row + y < count && at < end;
      to[y][x] = inside ? data[uint64_t(row + y) * width + at] : from_float<E>(0.0f);
    }
  }
}

// The sums of one stage, of 16 rows and the columns of this warp that are less than `columns`.
template <class T, bool EXACT>
__device__ void multiply_stage(float (&totals)[TILES][4], const Stage<T>& stage, uint32_t row, uint32_t column,
                         uint32_t columns) {
  using P = Product<T, EXACT>;
  const uint32_t lane = threadIdx.x % WARP, group = lane / 4, quad = lane % 4;
  float sums[TILES][4] = {};
#pragma unroll 1
  for (uint32_t step = 0; step < WEIGH_DEPTH; step += P::DEPTH) {
    float a[P::DEPTH / 2];
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
      const float* own = stage.weights[row + group + i % 2 * 8] + step;
      if constexpr (is_bf16<T>) {
        a[2 * i] = own[quad * 2 + i / 2 * 8], a[2 * i + 1] = own[quad * 2 + i / 2 * 8 + 1];
      } else {
        a[i] = own[quad + i / 2 * 4];
      }
    }
    const typename P::Left left = P::left(a);
#pragma unroll
    for (uint32_t n = 0; n < TILES; n += P::DEPTH / 8) {
      if (column + n * 8 >= columns) continue;
      if constexpr (is_bf16<T>) {
        // Columns past the last are those of the stage's zeros.
        uint32_t words[4];
        const uint32_t x = column + n * 8 + lane / 16 * 8;
        load_transposed(words, shared_address(&stage.queue[step + lane % 16][x]));
        P::add(sums[n], left, {words[0], words[1]});
        P::add(sums[n + 1], left, {words[2], words[3]});
      } else {
        const uint32_t x = column + n * 8 + group;
        P::add(sums[n], left, {to_float(stage.queue[step + quad][x]), to_float(stage.queue[step + quad + 4][x])});
      }
    }
  }
#pragma unroll
  for (uint32_t n = 0; n < TILES; ++n) {
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) totals[n][i] += sums[n][i];
  }
}

template <class T, bool EXACT>
__device__ __forceinline__ void weigh(const WeighParams& p) {
  extern __shared__ __align__(128) unsigned char memory[];
  Stage<T>* ring = reinterpret_cast<Stage<T>*>(memory);
  const uint32_t tile = blockIdx.x / p.row_tiles;
  const uint32_t first_row = blockIdx.x % p.row_tiles * WEIGH_ROWS;
  const uint32_t first_column = tile % p.column_tiles * WEIGH_COLUMNS;
  const uint32_t split = tile / p.column_tiles;
  const uint32_t start = split * p.split_rows, end = min(start + p.split_rows, p.capacity);
  const uint32_t stages = (end - start + WEIGH_DEPTH - 1) / WEIGH_DEPTH;
  const uint32_t columns = min(WEIGH_COLUMNS, p.dim - first_column);
  const T* queue = static_cast<const T*>(p.queue);

  auto refill = [&](uint32_t stage) {
    if (stage < stages) {
      Stage<T>& to = ring[stage % WEIGH_STAGES];
      const uint32_t from = start + stage * WEIGH_DEPTH;
      fill<WEIGH_ROWS, WEIGH_DEPTH>(to.weights, p.weights, first_row, p.rows, from, end, p.capacity,
                                    p.weights_aligned);
      fill<WEIGH_DEPTH, WEIGH_COLUMNS>(to.queue, queue, from, end, first_column, p.dim, p.dim,
                                       p.queue_aligned);
    }
    copy_commit();
  };

  const uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  const uint32_t own_row = warp / N_WARPS * 16, own_column = warp % N_WARPS * OWN_COLUMNS;
  float totals[TILES][4] = {};
  for (uint32_t stage = 0; stage + 1 < WEIGH_STAGES; ++stage) refill(stage);
  for (uint32_t stage = 0; stage < stages; ++stage) {
    copy_wait<WEIGH_STAGES - 2>();
    // Every thread's copies of this stage have arrived, and no thread reads the one before.
    __syncthreads();
    refill(stage + WEIGH_STAGES - 1);
    multiply_stage<T, EXACT>(totals, ring[stage % WEIGH_STAGES], own_row, own_column, columns);
  }

#pragma unroll
  for (uint32_t half = 0; half < 2; ++half) {
    const uint32_t row = first_row + own_row + half * 8 + lane / 4;
    if (row >= p.rows) continue;
    float* sums = p.sums + (uint64_t(split) * p.rows + row) * p.dim + first_column;
#pragma unroll
    for (uint32_t n = 0; n < TILES; ++n) {
#pragma unroll
      for (uint32_t i = 0; i < 2; ++i) {
        const uint32_t column = own_column + n * 8 + lane % 4 * 2 + i;
        if (column >= columns) continue;
        const float total = totals[n][half * 2 + i];
        sums[column] = p.accumulate ? sums[column] + total : total;
      }
    }
  }
}

}  // namespace

// Named by the queue's type and the precision.
#define WEIGH(T, precision, exact)                                 \
  extern "C" __global__ void __launch_bounds__(WEIGH_THREADS, 2)   \
      weigh_##T##_##precision(const __grid_constant__ WeighParams p) { \
    weigh<T, exact>(p);                                            \
  }

using f32 = float;
WEIGH(f32, exact, true)
WEIGH(f16, exact, true)
WEIGH(bf16, exact, true)
WEIGH(f32, tensor, false)
WEIGH(f16, tensor, false)
WEIGH(bf16, tensor, false)

// logits: the logits of queries and queue, tile by tile on the tensor cores.
//
// A block makes a tile of M queries by LOGITS_ROWS queue rows, a stage of LOGITS_DEPTH dimensions
// after the other; a ring of stages in shared memory is refilled while earlier ones are multiplied.
// A logit's sum runs over its dimensions in one order, whatever the tile: its bits depend on its
// query, its queue row and the precision, and on nothing else. Where only the largest logits of some
// queries are asked for, tiles without such a query are left out.
#include <math_constants.h>

#include "device/copy.cuh"
#include "device/element.cuh"
#include "device/product.cuh"
#include "device/reduce.cuh"
#include "params.h"

namespace {

constexpr uint32_t NO_LABEL = 0xffffffffu;
constexpr uint32_t WARPS = LOGITS_THREADS / WARP;

// Rows of a stage lie in chunks of 16 bytes, exchanged so that the accesses of a warp that read the
// same chunk of neighbouring rows fall on different banks.
template <class T>
struct Queries {
  static constexpr uint32_t row_bytes = LOGITS_DEPTH * sizeof(float);
  __device__ static uint32_t offset(uint32_t row, uint32_t chunk) {
    // ldmatrix takes one chunk of eight rows, 8-byte loads two chunks of four rows.
    const uint32_t exchange = sizeof(T) == 4 ? row & 7 : (row & 3) * 2;
    return row * row_bytes + (chunk ^ exchange) * 16;
  }
};

template <class T>
struct Rows {
  static constexpr uint32_t row_bytes = LOGITS_DEPTH * sizeof(T);
  __device__ static uint32_t offset(uint32_t row, uint32_t chunk) {
    const uint32_t exchange = sizeof(T) == 4 ? row & 7 : row >> 1 & 3;
    return row * row_bytes + (chunk ^ exchange) * 16;
  }
};

// Copies dimensions `from` on of `ROWS` rows of [count, dim] into a stage, zeros past either end.
template <class Layout, uint32_t ROWS, class E>
__device__ void fill(unsigned char* stage, const E* data, uint32_t first, uint32_t count,
                     uint32_t from, uint32_t dim, bool aligned) {
  constexpr uint32_t PER_CHUNK = 16 / sizeof(E), CHUNKS = LOGITS_DEPTH / PER_CHUNK;
  if (aligned) {
    for (uint32_t i = threadIdx.x; i < ROWS * CHUNKS; i += LOGITS_THREADS) {
      const uint32_t row = i / CHUNKS, chunk = i % CHUNKS, at = from + chunk * PER_CHUNK;
      const bool inside = first + row < count && at < dim;
      const E* source = inside ? data + uint64_t(first + row) * dim + at : data;
      copy16(shared_address(stage) + Layout::offset(row, chunk), source, inside ? 16 : 0);
    }
  } else {
    for (uint32_t i = threadIdx.x; i < ROWS * LOGITS_DEPTH; i += LOGITS_THREADS) {
      const uint32_t row = i / LOGITS_DEPTH, column = i % LOGITS_DEPTH;
      const bool inside = first + row < count && from + column < dim;
      const E x = inside ? data[uint64_t(first + row) * dim + from + column] : from_float<E>(0.0f);
      unsigned char* to = stage + Layout::offset(row, column / PER_CHUNK);
      reinterpret_cast<E*>(to)[column % PER_CHUNK] = x;
    }
  }
}

// Of the steps of DEPTH dimensions that a product takes, the step-th of 16 queries. The order of the
// dimensions within a step is that of `load_rows`.
template <class T>
__device__ void load_queries(float (&a)[4], const unsigned char* stage, uint32_t row, uint32_t step) {
  const uint32_t lane = threadIdx.x % WARP;
  if constexpr (sizeof(T) == 4) {
    uint32_t bits[4];
    const uint32_t own = row + lane % 16, chunk = step * 2 + lane / 16;
    load_matrices(bits, shared_address(stage) + Queries<T>::offset(own, chunk));
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) a[i] = __uint_as_float(bits[i]);
  } else {
    const uint32_t group = lane / 4, quad = lane % 4;
#pragma unroll
    for (uint32_t half = 0; half < 2; ++half) {
      const uint32_t at = Queries<T>::offset(row + group + half * 8, step * 2 + quad / 2);
      const float2 both = *reinterpret_cast<const float2*>(stage + at + quad % 2 * 8);
      a[half] = both.x;
      a[half + 2] = both.y;
    }
  }
}

template <class T>
__device__ void load_queries(float (&a)[8], const unsigned char* stage, uint32_t row, uint32_t step) {
  const uint32_t group = threadIdx.x % WARP / 4, quad = threadIdx.x % 4;
#pragma unroll
  for (uint32_t i = 0; i < 4; ++i) {
    const uint32_t chunk = step * 4 + i / 2 * 2 + quad / 2;
    const uint32_t at = Queries<T>::offset(row + group + i % 2 * 8, chunk);
    const float2 both = *reinterpret_cast<const float2*>(stage + at + quad % 2 * 8);
    a[2 * i] = both.x;
    a[2 * i + 1] = both.y;
  }
}

// The same dimensions of two times eight queue rows.
__device__ inline void load_rows(float (&b)[2][2], const unsigned char* stage, uint32_t row, uint32_t step,
                                 float) {
  const uint32_t lane = threadIdx.x % WARP;
  uint32_t bits[4];
  const uint32_t own = row + lane / 16 * 8 + lane % 8, chunk = step * 2 + lane / 8 % 2;
  load_matrices(bits, shared_address(stage) + Rows<float>::offset(own, chunk));
#pragma unroll
  for (uint32_t i = 0; i < 4; ++i) b[i / 2][i % 2] = __uint_as_float(bits[i]);
}

__device__ inline void load_rows(float (&b)[2][2], const unsigned char* stage, uint32_t row, uint32_t step,
                                 f16) {
  uint32_t bits[2];
  load_matrices(bits, shared_address(stage) + Rows<f16>::offset(row + threadIdx.x % 16, step));
#pragma unroll
  for (uint32_t n = 0; n < 2; ++n) {
    const float2 both = __half22float2(*reinterpret_cast<const __half2*>(&bits[n]));
    b[n][0] = both.x, b[n][1] = both.y;
  }
}

__device__ inline void load_rows(uint32_t (&b)[2][2], const unsigned char* stage, uint32_t row, uint32_t step,
                                 bf16) {
  const uint32_t lane = threadIdx.x % WARP;
  uint32_t bits[4];
  load_matrices(bits, shared_address(stage) + Rows<bf16>::offset(row + lane % 16, step * 2 + lane / 16));
#pragma unroll
  for (uint32_t i = 0; i < 4; ++i) b[i % 2][i / 2] = bits[i];
}

// The largest unmasked logit that a warp has made of each of its queries.
template <uint32_t N_WARPS, uint32_t TILES>
__device__ void write_maxima(const LogitsParams& p, const float (&sums)[2][TILES][4], uint32_t first_query,
                             uint32_t first_row, uint32_t part) {
  const uint32_t lane = threadIdx.x % WARP;
#pragma unroll
  for (uint32_t m = 0; m < 2; ++m) {
#pragma unroll
    for (uint32_t half = 0; half < 2; ++half) {
      const uint32_t query = first_query + m * 16 + half * 8 + lane / 4;
      const uint32_t label = p.query_labels && query < p.rows ? p.query_labels[query] : NO_LABEL;
      float largest = -CUDART_INF_F;
#pragma unroll
      for (uint32_t n = 0; n < TILES; ++n) {
#pragma unroll
        for (uint32_t i = 0; i < 2; ++i) {
          const uint32_t row = first_row + n * 8 + lane % 4 * 2 + i;
          const bool taken = row < p.capacity && (label == NO_LABEL || p.queue_labels[row] != label);
          if (taken) largest = fmaxf(largest, sums[m][n][half * 2 + i]);
        }
      }
      largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, 2));
      const uint32_t tile = blockIdx.x / p.query_tiles;
      if (lane % 4 == 0 && query < p.rows) {
        p.maxima[uint64_t(query) * p.parts + tile * N_WARPS + part] = largest;
      }
    }
  }
}

template <class T, bool EXACT, uint32_t M_WARPS>
__device__ __forceinline__ void logits(const LogitsParams& p) {
  using P = Product<T, EXACT>;
  constexpr uint32_t M = 32 * M_WARPS, N_WARPS = WARPS / M_WARPS, OWN = LOGITS_ROWS / N_WARPS;
  constexpr uint32_t PAIRS = OWN / 16, QUERY_BYTES = M * Queries<T>::row_bytes;
  constexpr uint32_t STAGE_BYTES = QUERY_BYTES + LOGITS_ROWS * Rows<T>::row_bytes;
  extern __shared__ __align__(128) unsigned char ring[];
  const uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  const uint32_t first_query = blockIdx.x % p.query_tiles * M;
  const uint32_t first_row = blockIdx.x / p.query_tiles * LOGITS_ROWS;
  const uint32_t own_query = warp / N_WARPS * 32, own_row = warp % N_WARPS * OWN;
  const uint32_t stages = (p.dim + LOGITS_DEPTH - 1) / LOGITS_DEPTH;
  if (!p.logits) {
    const uint32_t row = first_query + threadIdx.x;
    const bool hot = threadIdx.x < M && row < p.rows && p.hot[row];
    if (!__syncthreads_or(hot)) return;
  }

  auto refill = [&](uint32_t stage) {
    if (stage < stages) {
      unsigned char* to = ring + stage % LOGITS_STAGES * STAGE_BYTES;
      const uint32_t from = stage * LOGITS_DEPTH;
      fill<Queries<T>, M>(to, p.queries, first_query, p.rows, from, p.dim, p.queries_aligned);
      fill<Rows<T>, LOGITS_ROWS>(to + QUERY_BYTES, static_cast<const T*>(p.queue), first_row,
                                 p.capacity, from, p.dim, p.queue_aligned);
    }
    copy_commit();
  };

  float sums[2][PAIRS * 2][4] = {};
  for (uint32_t stage = 0; stage + 1 < LOGITS_STAGES; ++stage) refill(stage);
  for (uint32_t stage = 0; stage < stages; ++stage) {
    copy_wait<LOGITS_STAGES - 2>();
    // Every thread's copies of this stage have arrived, and no thread reads the one before.
    __syncthreads();
    refill(stage + LOGITS_STAGES - 1);
    const unsigned char* queries = ring + stage % LOGITS_STAGES * STAGE_BYTES;
    const unsigned char* rows = queries + QUERY_BYTES;
#pragma unroll 1
    for (uint32_t step = 0; step < LOGITS_DEPTH / P::DEPTH; ++step) {
      typename P::Left left[2];
#pragma unroll
      for (uint32_t m = 0; m < 2; ++m) {
        float a[P::DEPTH / 2];
        load_queries<T>(a, queries, own_query + m * 16, step);
        left[m] = P::left(a);
      }
#pragma unroll
      for (uint32_t pair = 0; pair < PAIRS; ++pair) {
        typename P::Word b[2][2];
        load_rows(b, rows, own_row + pair * 16, step, T());
#pragma unroll
        for (uint32_t n = 0; n < 2; ++n) {
#pragma unroll
          for (uint32_t m = 0; m < 2; ++m) P::add(sums[m][pair * 2 + n], left[m], b[n]);
        }
      }
    }
  }

  if (!p.logits) {
    write_maxima<N_WARPS>(p, sums, first_query + own_query, first_row + own_row, own_row / OWN);
    return;
  }
  const bool pairs = p.capacity % 2 == 0 && reinterpret_cast<uintptr_t>(p.logits) % 8 == 0;
#pragma unroll
  for (uint32_t m = 0; m < 2; ++m) {
#pragma unroll
    for (uint32_t half = 0; half < 2; ++half) {
      const uint32_t query = first_query + own_query + m * 16 + half * 8 + lane / 4;
      if (query >= p.rows) continue;
      float* out = p.logits + uint64_t(query) * p.capacity;
#pragma unroll
      for (uint32_t n = 0; n < PAIRS * 2; ++n) {
        const uint32_t row = first_row + own_row + n * 8 + lane % 4 * 2;
        const float2 both = {sums[m][n][half * 2], sums[m][n][half * 2 + 1]};
        if (pairs && row < p.capacity) {
          *reinterpret_cast<float2*>(out + row) = both;
        } else {
          if (row < p.capacity) out[row] = both.x;
          if (row + 1 < p.capacity) out[row + 1] = both.y;
        }
      }
    }
  }
}

}  // namespace

// Named by the queue's type, the precision, and the queries of a tile.
#define LOGITS(T, precision, exact, m)                                      \
  extern "C" __global__ void __launch_bounds__(LOGITS_THREADS, 2)           \
      logits_##T##_##precision##_##m(const __grid_constant__ LogitsParams p) { \
    logits<T, exact, m / 32>(p);                                            \
  }
#define OF_TYPE(T)               \
  LOGITS(T, exact, true, 32)     \
  LOGITS(T, exact, true, 128)    \
  LOGITS(T, tensor, false, 32)   \
  LOGITS(T, tensor, false, 128)

using f32 = float;
OF_TYPE(f32)
OF_TYPE(f16)
OF_TYPE(bf16)

// Finds the first row with a NaN or an infinity.
extern "C" __global__ void __launch_bounds__(CHECK_THREADS, 4)
    check_rows(const __grid_constant__ CheckParams p) {
  const uint32_t row = warp_row<CHECK_THREADS>(), lane = threadIdx.x % WARP;
  if (row >= p.rows) return;
  const float* data = p.data + uint64_t(row) * p.dim;
  bool finite = true;
  for (uint32_t i = lane; i < p.dim; i += WARP) finite &= isfinite(data[i]);
  if (!__all_sync(ALL_LANES, finite) && lane == 0) atomicMax(p.seen, NO_ROW_INDEX - row);
}

// direction: the sum of a query's hardest queue rows, each weighed by what was mixed from it (method:
// Gradient, last point): the synthetic negatives' part of the gradient, where no weight of the whole
// queue is in memory that they could join.
//
// A block takes 128 bytes of each of a query's rows. A group of eight lanes takes every 32nd row of
// the list, 16 bytes a lane, DIRECTION_FLIGHT rows on the way at once; rows that nothing weighs are not
// read. A row's bits depend on its list alone: order and trees are fixed.
//
// A group's sum is cut into runs, so that rounding errors of short sums add up and not those of one
// that may be as long as the queue.
#include "device/element.cuh"
#include "device/reduce.cuh"
#include "params.h"

namespace {

constexpr uint32_t GROUPS = DIRECTION_THREADS / DIRECTION_LANES;
constexpr uint32_t WARPS = DIRECTION_THREADS / WARP;
static_assert(DIRECTION_RUN % DIRECTION_FLIGHT == 0, "a run is made of whole flights");

// 16 bytes of a queue row.
template <class T>
struct alignas(16) Chunk {
  static constexpr uint32_t LENGTH = 16 / sizeof(T);
  T x[LENGTH];
};

// From dimension `at` on; with WHOLE_CHUNKS it is aligned and the row has as many.
template <class T, bool WHOLE_CHUNKS>
__device__ Chunk<T> load(const T* row, uint32_t at, uint32_t dim) {
  Chunk<T> chunk;
  if constexpr (WHOLE_CHUNKS) {
    *reinterpret_cast<uint4*>(chunk.x) = __ldg(reinterpret_cast<const uint4*>(row + at));
  } else {
#pragma unroll
    for (uint32_t k = 0; k < Chunk<T>::LENGTH; ++k) {
      chunk.x[k] = at + k < dim ? row[at + k] : from_float<T>(0.0f);
    }
  }
  return chunk;
}

template <class T, bool WHOLE_CHUNKS>
__device__ __forceinline__ void direction(const DirectionParams& p) {
  constexpr uint32_t LENGTH = Chunk<T>::LENGTH, WIDTH = DIRECTION_LANES * LENGTH;
  __shared__ float slots[WARPS][WIDTH];
  const uint64_t row = blockIdx.x;
  const uint32_t lane = threadIdx.x % DIRECTION_LANES, group = threadIdx.x / DIRECTION_LANES;
  const uint32_t at = blockIdx.y * WIDTH + lane * LENGTH;
  const uint32_t count = p.faults[row] != FAULT_NONE || at >= p.dim ? 0 : p.counts[row];
  const uint32_t* hardest = p.hardest + row * p.hardest_width;
  const unsigned long long* weights = p.weights + row * p.hardest_width;
  // A power of two: the product with it is exact.
  const double unit = ldexp(1.0, p.weight_exponents[row]);
  const T* queue = static_cast<const T*>(p.queue);

  float total[LENGTH] = {};
  for (uint32_t run = 0; run < count; run += GROUPS * DIRECTION_RUN) {
    float sum[LENGTH] = {};
    const uint32_t end = min(count, run + GROUPS * DIRECTION_RUN);
    for (uint32_t n = run + group; n < end; n += GROUPS * DIRECTION_FLIGHT) {
      float weight[DIRECTION_FLIGHT];
      Chunk<T> chunk[DIRECTION_FLIGHT];
#pragma unroll
      for (uint32_t f = 0; f < DIRECTION_FLIGHT; ++f) {
        const uint32_t own = n + f * GROUPS;
        const long long units = own < end ? static_cast<long long>(weights[own]) : 0;
        weight[f] = float(double(units) * unit);
        chunk[f] = Chunk<T>();
        if (units != 0) chunk[f] = load<T, WHOLE_CHUNKS>(queue + uint64_t(hardest[own]) * p.dim, at, p.dim);
      }
#pragma unroll
      for (uint32_t f = 0; f < DIRECTION_FLIGHT; ++f) {
#pragma unroll
        for (uint32_t k = 0; k < LENGTH; ++k) sum[k] = fmaf(weight[f], to_float(chunk[f].x[k]), sum[k]);
      }
    }
#pragma unroll
    for (uint32_t k = 0; k < LENGTH; ++k) total[k] += sum[k];
  }

  // The groups of a warp, then the warps in order.
#pragma unroll
  for (uint32_t k = 0; k < LENGTH; ++k) {
#pragma unroll
    for (uint32_t offset = WARP / 2; offset >= DIRECTION_LANES; offset /= 2) {
      total[k] += __shfl_xor_sync(ALL_LANES, total[k], offset);
    }
    if (threadIdx.x % WARP < DIRECTION_LANES) slots[threadIdx.x / WARP][lane * LENGTH + k] = total[k];
  }
  __syncthreads();
  const uint32_t column = blockIdx.y * WIDTH + threadIdx.x;
  if (threadIdx.x >= WIDTH || column >= p.dim) return;
  float sum = 0.0f;
#pragma unroll
  for (uint32_t warp = 0; warp < WARPS; ++warp) sum += slots[warp][threadIdx.x];
  p.direction[row * p.dim + column] = sum;
}

}  // namespace

// Named by the queue's type; `ragged` where not every row starts at a multiple of 16 bytes.
#define DIRECTION(T)                                                    \
  extern "C" __global__ void __launch_bounds__(DIRECTION_THREADS, 3)    \
      direction_##T(const __grid_constant__ DirectionParams p) {        \
    direction<T, true>(p);                                              \
  }                                                                     \
  extern "C" __global__ void __launch_bounds__(DIRECTION_THREADS, 3)    \
      direction_ragged_##T(const __grid_constant__ DirectionParams p) { \
    direction<T, false>(p);                                             \
  }

using f32 = float;
DIRECTION(f32)
DIRECTION(f16)
DIRECTION(bf16)

// sample: rows of the queue whose logits tell above which threshold a query's hardest are, all but
// surely. A threshold can cost time, never correctness: `rank_passed` counts what has passed, and leaves a
// row where that may not be all to `repair`.
#include <math_constants.h>

#include "device/element.cuh"
#include "device/philox.cuh"
#include "device/reduce.cuh"
#include "params.h"

namespace {

// Apart from every seed's draws, and fixed: what is sampled changes no result.
constexpr uint32_t KEY = 0x5a4d504cu;

template <class T>
__device__ void sample(const SampleParams& p) {
  const uint32_t stride = blockIdx.x;
  const uint32_t start = uint64_t(stride) * p.capacity / p.count;
  const uint32_t end = uint64_t(stride + 1) * p.capacity / p.count;
  const uint32_t word = philox4x32_10({stride, 0, 0, 0}, 0, KEY).w0;
  const uint32_t row = start + uint32_t(uint64_t(word) * (end - start) >> 32);
  const T* from = static_cast<const T*>(p.queue) + uint64_t(row) * p.dim;
  T* to = static_cast<T*>(p.sample) + uint64_t(stride) * p.dim;
  for (uint32_t i = threadIdx.x; i < p.dim; i += SAMPLE_THREADS) to[i] = from[i];
  if (threadIdx.x == 0 && p.queue_labels) p.sample_labels[stride] = p.queue_labels[row];
}

}  // namespace

#define SAMPLE(T)                                                \
  extern "C" __global__ void __launch_bounds__(SAMPLE_THREADS, 4) \
      sample_##T(const __grid_constant__ SampleParams p) {       \
    sample<T>(p);                                                \
  }

using f32 = float;
SAMPLE(f32)
SAMPLE(f16)
SAMPLE(bf16)

// A warp takes a row.
extern "C" __global__ void __launch_bounds__(SAMPLE_THREADS, 4)
    thresholds(const __grid_constant__ ThresholdParams p) {
  const uint32_t row = warp_row<SAMPLE_THREADS>(), lane = threadIdx.x % WARP;
  if (row >= p.rows) return;
  float least = CUDART_INF_F;
  if (p.sampled_logits && p.counts[row] == p.rank) {
    for (uint32_t i = lane; i < p.rank; i += WARP) {
      least = fminf(least, p.sampled_logits[uint64_t(row) * p.rank + i]);
    }
    for (uint32_t i = WARP / 2; i > 0; i /= 2) least = fminf(least, __shfl_xor_sync(ALL_LANES, least, i));
  } else {
    least = -CUDART_INF_F;
  }
  if (p.forced_every > 0 && row % p.forced_every == 0) least = p.forced;
  if (lane == 0) p.thresholds[row] = least;
}

// enqueue: keys replace the oldest rows of the queue, normalised where asked for, converted to its
// type, with the squared norms of the bits that are stored.
//
// Two launches. `check` finds the first row that may not enter; `write` writes all rows or, where
// there was one, none. The cursor stays on the device: `check` copies it to `start`, which all blocks
// of `write` read while one thread moves `next`.
#include "device/element.cuh"
#include "device/reduce.cuh"
#include "params.h"

namespace {

// What is divided by: the row's norm, in double so that no finite row's square overflows, or 1.
__device__ double divisor(const EnqueueParams& p, const float* key, uint32_t lane) {
  if (!p.normalise) return 1.0;
  double squares = 0.0;
  for (uint32_t i = lane; i < p.dim; i += WARP) squares += double(key[i]) * double(key[i]);
  return sqrt(warp_sum(squares));
}

template <class T>
__device__ T stored(float key, double divisor) {
  return from_float<T>(divisor == 1.0 ? key : float(double(key) / divisor));
}

template <class T>
__device__ void check(const EnqueueParams& p) {
  const uint32_t row = warp_row<ENQUEUE_THREADS>(), lane = threadIdx.x % WARP;
  if (blockIdx.x == 0 && threadIdx.x == 0) p.state->start = p.state->next;
  if (row >= p.rows) return;
  const float* key = p.keys + uint64_t(row) * p.dim;
  const double norm = divisor(p, key, lane);
  bool finite = isfinite(norm);
  for (uint32_t i = lane; finite && i < p.dim; i += WARP) {
    finite = norm == 0.0 || isfinite(to_float(stored<T>(key[i], norm)));
  }
  finite = __all_sync(ALL_LANES, finite);
  if (lane == 0 && (!finite || norm == 0.0)) {
    const uint32_t kind = finite ? REFUSED_ZERO_NORM : REFUSED_NON_FINITE;
    atomicMax(p.refusal, NO_ROW_INDEX - (2 * row + kind));
  }
}

template <class T>
__device__ void write(const EnqueueParams& p) {
  const uint32_t lane = threadIdx.x % WARP;
  const uint32_t refusal = *p.refusal, start = p.state->start;
  const bool first = blockIdx.x == 0 && threadIdx.x == 0;
  if (refusal != 0) {
    if (first && *p.refused == 0) *p.refused = refusal;
    return;
  }
  if (first) p.state->next = (uint64_t(start) + p.rows) % p.capacity;
  // Of more than `capacity` keys the last stay, each where it would have ended up one by one.
  const uint32_t skipped = p.rows > p.capacity ? p.rows - p.capacity : 0;
  const uint32_t row = skipped + warp_row<ENQUEUE_THREADS>();
  if (row >= p.rows) return;
  const float* key = p.keys + uint64_t(row) * p.dim;
  const uint32_t at = (uint64_t(start) + row) % p.capacity;
  T* to = static_cast<T*>(p.queue) + uint64_t(at) * p.dim;
  const double norm = divisor(p, key, lane);
  double squares = 0.0;
  for (uint32_t i = lane; i < p.dim; i += WARP) {
    const T x = stored<T>(key[i], norm);
    to[i] = x;
    squares += double(to_float(x)) * double(to_float(x));
  }
  squares = warp_sum(squares);
  if (lane == 0) {
    p.squared_norms[at] = float(squares);
    if (p.queue_labels) p.queue_labels[at] = p.labels ? p.labels[row] : NO_ROW_INDEX;
  }
}

}  // namespace

#define KERNELS(T)                                                                \
  extern "C" __global__ void __launch_bounds__(ENQUEUE_THREADS, 4)               \
      enqueue_check_##T(const __grid_constant__ EnqueueParams p) { check<T>(p); } \
  extern "C" __global__ void __launch_bounds__(ENQUEUE_THREADS, 4)               \
      enqueue_write_##T(const __grid_constant__ EnqueueParams p) { write<T>(p); }

using f32 = float;
KERNELS(f32)
KERNELS(f16)
KERNELS(bf16)

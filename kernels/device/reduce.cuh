// Warps that take a row each, and sums over their lanes, in a fixed tree: every lane gets the same bits.
#pragma once
#include <stdint.h>

constexpr uint32_t WARP = 32;
constexpr uint32_t ALL_LANES = 0xffffffffu;

// The row of this warp where a warp takes a row. Of 2^27 rows or more the threads before it are too many
// for 32 bits to count.
template <uint32_t THREADS>
__device__ uint32_t warp_row() {
  return blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP;
}

template <class T>
__device__ T warp_sum(T x) {
#pragma unroll
  for (uint32_t offset = WARP / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(ALL_LANES, x, offset);
  return x;
}

// The largest over the lanes of a warp; NaN loses against a number.
__device__ inline float warp_max(float x) {
#pragma unroll
  for (uint32_t offset = WARP / 2; offset > 0; offset /= 2) {
    x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, offset));
  }
  return x;
}

// The sum of `x` over the threads before this one, and over all in `total`. `slots` is shared and
// belongs to this; `parity` alternates from call to call, so that one barrier a call is enough.
template <uint32_t THREADS>
__device__ uint32_t block_prefix(uint32_t x, uint32_t (&slots)[2][THREADS / WARP], uint32_t parity,
                                 uint32_t& total) {
  static_assert(THREADS / WARP <= WARP, "a warp adds up the warps' sums");
  const uint32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  uint32_t through = x;
#pragma unroll
  for (uint32_t offset = 1; offset < WARP; offset *= 2) {
    const uint32_t before = __shfl_up_sync(ALL_LANES, through, offset);
    if (lane >= offset) through += before;
  }
  if (lane == WARP - 1) slots[parity][warp] = through;
  __syncthreads();
  const uint32_t of_warp = lane < THREADS / WARP ? slots[parity][lane] : 0;
  total = __reduce_add_sync(ALL_LANES, of_warp);
  return __reduce_add_sync(ALL_LANES, lane < warp ? of_warp : 0) + through - x;
}

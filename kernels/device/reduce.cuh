// Sums over the lanes of a warp, in a fixed tree: every lane gets the same bits.
#pragma once
#include <stdint.h>

constexpr uint32_t WARP = 32;
constexpr uint32_t ALL_LANES = 0xffffffffu;

template <class T>
__device__ T warp_sum(T x) {
#pragma unroll
  for (uint32_t offset = WARP / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(ALL_LANES, x, offset);
  return x;
}

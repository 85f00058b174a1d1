// Which key is the rank-th largest of a set, by a histogram of a few bits at a time.
#pragma once
#include <stdint.h>

#include "reduce.cuh"

// Bits of a key by level, from the top: 11, 11 and 10.
constexpr uint32_t LEVELS = 3, BINS = 2048;

template <uint32_t LEVEL>
struct Level {
  static constexpr uint32_t shift = LEVEL == 0 ? 21 : LEVEL == 1 ? 10 : 0;
  static constexpr uint32_t mask = LEVEL == 2 ? 1023 : 2047;
  // The bits above this level's.
  __device__ static uint32_t prefix(uint32_t key) {
    return LEVEL == 0 ? 0 : key >> (LEVEL == 1 ? 21 : 10);
  }
  __device__ static uint32_t bin(uint32_t key) { return key >> shift & mask; }
};

struct Bin {
  uint32_t index;
  uint32_t above;  // how many keys lie in the bins above
  uint32_t count;  // how many in this one
  uint32_t total;  // how many in all
};

// The bin in which the rank-th largest of the counted keys lies, where `rank` gives, for their number,
// a rank from 1 up to it; without keys, the lowest. All threads call it after a barrier that follows
// the counting; it ends with one.
template <uint32_t THREADS, class Rank>
__device__ Bin find_bin(const uint32_t (&histogram)[BINS], uint32_t (&slots)[2][THREADS / WARP],
                        uint32_t parity, Bin& found, Rank rank) {
  constexpr uint32_t OWN = BINS / THREADS;
  static_assert(OWN * THREADS == BINS && OWN % 4 == 0, "a thread owns whole vectors of bins");
  // Thread 0 owns the topmost bins, in descending order.
  const uint32_t lowest = BINS - OWN * (threadIdx.x + 1);
  uint32_t count[OWN], sum = 0;
#pragma unroll
  for (uint32_t i = 0; i < OWN; i += 4) {
    const uint4 four = *reinterpret_cast<const uint4*>(&histogram[lowest + i]);
    count[i] = four.x, count[i + 1] = four.y, count[i + 2] = four.z, count[i + 3] = four.w;
    sum += four.x + four.y + four.z + four.w;
  }
  uint32_t total;
  uint32_t above = block_prefix<THREADS>(sum, slots, parity, total);
  const uint32_t wanted = rank(total);
  if (total == 0 && threadIdx.x == 0) found = {0, 0, 0, 0};
  if (above < wanted && wanted <= above + sum) {
#pragma unroll
    for (uint32_t i = OWN; i-- > 0;) {
      if (above < wanted && wanted <= above + count[i]) {
        found = {lowest + i, above, count[i], total};
      }
      above += count[i];
    }
  }
  __syncthreads();
  return found;
}

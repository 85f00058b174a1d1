// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011), the bits of
// `philox4x32_10` in src/draws.rs.
#pragma once
#include <stdint.h>

struct Words {
  uint32_t w0, w1, w2, w3;
};

__device__ inline Words philox4x32_10(Words counter, uint32_t key_0, uint32_t key_1) {
  constexpr uint32_t MULTIPLIER_0 = 0xd2511f53u, MULTIPLIER_1 = 0xcd9e8d57u;
  constexpr uint32_t WEYL_0 = 0x9e3779b9u, WEYL_1 = 0xbb67ae85u;
#pragma unroll
  for (uint32_t round = 0; round < 10; ++round) {
    counter = {
        __umulhi(MULTIPLIER_1, counter.w2) ^ counter.w1 ^ key_0,
        MULTIPLIER_1 * counter.w2,
        __umulhi(MULTIPLIER_0, counter.w0) ^ counter.w3 ^ key_1,
        MULTIPLIER_0 * counter.w0,
    };
    key_0 += WEYL_0;
    key_1 += WEYL_1;
  }
  return counter;
}

// Unsigned keys that order as floats do.
#pragma once
#include <stdint.h>

// −0 counts as +0, and a NaN of either sign as more than infinity.
__device__ inline uint32_t ordered_key(float x) {
  const uint32_t bits = __float_as_uint(x + 0.0f);
  if (isnan(x)) return 0xffffffffu;
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

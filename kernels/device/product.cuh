// The products of f32 operands with elements of the queue, f32 or rounded to TF32: wherever a logit is
// made it has the same bits.
#pragma once
#include "element.cuh"
#include "mma.cuh"

// An element of the queue: those of 16 bits are TF32 numbers.
template <class T>
__device__ inline Split split_element(float x) {
  if constexpr (sizeof(T) == 4) return split(x);
  return {__float_as_uint(x), 0};
}

// One product of an f32 operand with the queue's; with EXACT of f32, the small ones first.
template <class T, bool EXACT>
__device__ inline void multiply(float (&sum)[4], const uint32_t (&a_high)[4], const uint32_t (&a_low)[4],
                         const float (&b)[2]) {
  const Split b0 = split_element<T>(b[0]), b1 = split_element<T>(b[1]);
  const uint32_t b_high[2] = {b0.high, b1.high}, b_low[2] = {b0.low, b1.low};
  if (EXACT && sizeof(T) == 4) mma_tf32(sum, a_high, b_low);
  if (EXACT) mma_tf32(sum, a_low, b_high);
  mma_tf32(sum, a_high, b_high);
}

// The products of f32 operands with elements of the queue, 16 rows by 8 on the tensor cores: wherever a
// logit is made it has the same bits.
//
// `Product<T, EXACT>` takes DEPTH elements of the summed dimension at a time. A lane holds of the left
// operand what `left` is given, and of the queue's, the right one, its two words; which elements these are
// is said in mma.cuh. With EXACT, products are those of f32; else one product of rounded operands.
#pragma once
#include "element.cuh"
#include "mma.cuh"

// In TF32. Elements of f16 are TF32 numbers as they are: of them the left operand alone is split.
template <class T, bool EXACT>
struct Product {
  static constexpr uint32_t DEPTH = 8;
  using Word = float;

  struct Left {
    uint32_t high[4], low[4];
  };

  __device__ static Left left(const float (&a)[4]) {
    Left result;
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
      const Split parts = split(a[i]);
      result.high[i] = parts.high, result.low[i] = parts.low;
    }
    return result;
  }

  // sum += a·b, the small products first.
  __device__ static void add(float (&sum)[4], const Left& a, const Word (&b)[2]) {
    constexpr bool WHOLE = sizeof(T) == 2;
    const uint32_t bits[2] = {__float_as_uint(b[0]), __float_as_uint(b[1])};
    const Split b0 = WHOLE ? Split{bits[0], 0} : split(b[0]), b1 = WHOLE ? Split{bits[1], 0} : split(b[1]);
    const uint32_t b_high[2] = {b0.high, b1.high}, b_low[2] = {b0.low, b1.low};
    if (EXACT && !WHOLE) mma_tf32(sum, a.high, b_low);
    if (EXACT) mma_tf32(sum, a.low, b_high);
    mma_tf32(sum, a.high, b_high);
  }
};

// In bf16, at twice the rate. Words hold two elements, the earlier one in the low half.
template <bool EXACT>
struct Product<bf16, EXACT> {
  static constexpr uint32_t DEPTH = 16, PARTS = EXACT ? 3 : 1;
  using Word = uint32_t;

  // The high parts first.
  struct Left {
    uint32_t parts[PARTS][4];
  };

  // Two floats as words of their parts: three, each cut off at 8 bits of significand, are the floats
  // themselves; one is the nearest.
  __device__ static void split_pair(float x, float y, uint32_t (&words)[PARTS]) {
    if constexpr (EXACT) {
#pragma unroll
      for (uint32_t part = 0; part < PARTS; ++part) {
        const uint32_t high_x = __float_as_uint(x) & 0xffff0000u, high_y = __float_as_uint(y) & 0xffff0000u;
        words[part] = high_x >> 16 | high_y;
        x -= __uint_as_float(high_x), y -= __uint_as_float(high_y);
      }
    } else {
      words[0] = uint32_t(__bfloat16_as_ushort(__float2bfloat16_rn(x))) |
                 uint32_t(__bfloat16_as_ushort(__float2bfloat16_rn(y))) << 16;
    }
  }

  __device__ static Left left(const float (&a)[8]) {
    Left result;
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
      uint32_t words[PARTS];
      split_pair(a[2 * i], a[2 * i + 1], words);
#pragma unroll
      for (uint32_t part = 0; part < PARTS; ++part) result.parts[part][i] = words[part];
    }
    return result;
  }

  // sum += a·b, the small products first.
  __device__ static void add(float (&sum)[4], const Left& a, const Word (&b)[2]) {
#pragma unroll
    for (uint32_t part = PARTS; part-- > 0;) mma_bf16(sum, a.parts[part], b);
  }
};

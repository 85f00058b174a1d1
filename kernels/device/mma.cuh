// Products on the tensor cores, in TF32 and in bf16, of which product.cuh makes f32 products.
//
// TF32 keeps 11 bits of significand. x = high + low in TF32 is exact to 2⁻²²·|x|, so that three
// products, high·high + high·low + low·high, give an f32 product to 3·2⁻²² (the missing low·low is
// one of the three errors of 2⁻²²). Elements of f16 are TF32 numbers as they are: then two products
// suffice, exact to 2⁻²². bf16 keeps 8 bits, and f32's exponents: three numbers of it, each cut off from
// what the ones before leave, are a float exactly, and three products with elements of bf16 are exact.
// Sums are in f32, with truncation on hardware.
#pragma once
#include <stdint.h>

// The nearest TF32 number, as the bits of a float.
__device__ inline uint32_t to_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

// A float as the sum of two TF32 numbers.
struct Split {
  uint32_t high, low;
};

// PTX says nothing of the 13 bits that a float has and TF32 has not: tensor cores ignore them, and so must
// the subtraction, for what is left to be all that they leave out.
__device__ inline Split split(float x) {
  const uint32_t high = to_tf32(x) & 0xffffe000u;
  return {high, to_tf32(x - __uint_as_float(high))};
}

// d += a · b for 16×8 by 8×8. With group = lane / 4 and quad = lane % 4, a lane holds of a rows group
// and group + 8 of column quad, then the same rows of column quad + 4; of b rows quad and quad + 4 of
// column group; of d columns 2·quad and 2·quad + 1 of row group, then of row group + 8.
__device__ inline void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// d += a · b for 16×16 by 16×8. Words hold two elements. Of a a lane holds rows group and group + 8 of
// columns 2·quad and 2·quad + 1, then the same rows eight columns on; of b rows 2·quad and 2·quad + 1 of
// column group, then eight rows on; of d what `mma_tf32` holds.
__device__ inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

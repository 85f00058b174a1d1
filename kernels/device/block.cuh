// Reductions over a block of THREADS threads, a power of two, in a fixed tree: all threads get the same bits.
#pragma once
#include <stdint.h>

struct Add {
  template <class T>
  __device__ T operator()(T a, T b) const { return a + b; }
};

// NaN loses against a number.
struct Largest {
  __device__ double operator()(double a, double b) const { return fmax(a, b); }
  __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

template <uint32_t THREADS, class T, class Combine>
__device__ T block_reduce(T x, T (&slots)[THREADS], Combine combine) {
  slots[threadIdx.x] = x;
  for (uint32_t width = THREADS / 2; width > 0; width /= 2) {
    __syncthreads();
    if (threadIdx.x < width) {
      slots[threadIdx.x] = combine(slots[threadIdx.x], slots[threadIdx.x + width]);
    }
  }
  __syncthreads();
  const T result = slots[0];
  __syncthreads();
  return result;
}

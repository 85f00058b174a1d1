// How threads share work and memory: warps, barriers, blocks, grids, atomics, and the memories
// themselves, one kernel each.
#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>
#include <cuda_fp16.h>

namespace cg = cooperative_groups;
using u32 = unsigned;
using u64 = unsigned long long;

#define KERNEL extern "C" __global__ void

KERNEL add(const float* a, const float* b, float* sum, u32 n) {
  for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
    sum[i] = a[i] + b[i];
}

// Loads of 16 bytes, through the read-only path, and saxpy: fused multiply-adds.
KERNEL scale_add(float factor, const float4* x, float4* y, u32 n) {
  u32 i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  float4 a = __ldg(x + i), b = y[i];
  y[i] = make_float4(fmaf(factor, a.x, b.x), fmaf(factor, a.y, b.y), fmaf(factor, a.z, b.z),
                     fmaf(factor, a.w, b.w));
}

// The sum of a block's 8 elements a thread, per block: a butterfly in each warp, then one in warp 0.
KERNEL block_sums(const float* in, float* sums, u32 n) {
  __shared__ float partial[32];
  float sum = 0.0f;
  u32 base = blockIdx.x * blockDim.x * 8;
#pragma unroll
  for (u32 i = 0; i < 8; ++i) {
    u32 at = base + i * blockDim.x + threadIdx.x;
    sum += at < n ? in[at] : 0.0f;
  }
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x < 32) {
    sum = threadIdx.x < blockDim.x / 32 ? partial[threadIdx.x] : 0.0f;
    for (int step = 16; step > 0; step /= 2) sum += __shfl_down_sync(~0u, sum, step);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
  }
}

// Every kind of shuffle, vote, match and warp reduction; lanes past `active` stay out.
KERNEL warp_operations(const u32* in, u32* out, u32 active) {
  u32 lane = threadIdx.x;
  u32 members = __ballot_sync(~0u, lane < active);
  if (lane >= active) return;
  u32 x = in[lane], *o = out + lane * 16;
  o[0] = __shfl_sync(members, x, lane * 5 % active);
  o[1] = __shfl_up_sync(members, x, 3);
  o[2] = __shfl_down_sync(members, x, 2, 8);
  o[3] = __shfl_xor_sync(members, x, 1);
  o[4] = __ballot_sync(members, x & 1);
  o[5] = __all_sync(members, x < 4000000000u) * 2 + __any_sync(members, x % 7 == 0);
  o[6] = __match_any_sync(members, x % 4);
  int uniform;
  o[7] = __match_all_sync(members, 5, &uniform) + uniform;
  o[8] = __reduce_add_sync(members, x);
  o[9] = __reduce_max_sync(members, static_cast<int>(x));
  o[10] = __reduce_min_sync(members, x);
  o[11] = __reduce_or_sync(members, x);
  o[12] = __reduce_xor_sync(members, x);
  o[13] = __popc(members & ((1u << lane) - 1));
  o[14] = __activemask();
  o[15] = members;
}

// An insertion sort in an array that no register can hold: local memory.
KERNEL sort_each(const u32* in, u32* out) {
  u32 row[16];
  const u32* from = in + threadIdx.x * 16;
  u32 held = 0;
  for (; held < 16; ++held) {
    u32 at = held, x = from[held];
    while (at > 0 && row[at - 1] > x) {
      row[at] = row[at - 1];
      --at;
    }
    row[at] = x;
  }
  for (u32 i = 0; i < 16; ++i) out[threadIdx.x * 16 + i] = row[i];
}

__constant__ u32 primes[8] = {2, 3, 5, 7, 11, 13, 17, 19};
__device__ const float table[4] = {0.5f, -1.25f, 3e9f, -0.0f};
__device__ u32 tally = 40;
__constant__ const u32* prime_pointer = primes + 3;
struct Mixed {
  unsigned char tag;
  short small;
  double large;
};
__constant__ Mixed mixed = {7, -300, 1.5};

KERNEL module_data(u32* out) {
  u32 i = threadIdx.x;
  out[i] = primes[i % 8] + *prime_pointer;
  out[32 + i] = __float_as_uint(table[i % 4]);
  if (i == 0) {
    out[64] = atomicAdd(&tally, 2);
    out[65] = mixed.tag + mixed.small;
    out[66] = static_cast<u32>(mixed.large * 2);
  }
}

struct Parameters {
  const float* in;
  float* out;
  u32 n;
  float factors[5];
  unsigned char which;
};

KERNEL parameter_struct(const __grid_constant__ Parameters p) {
  u32 i = threadIdx.x;
  if (i < p.n) p.out[i] = p.in[i] * p.factors[(i + p.which) % 5];
}

// Two producer warps fill a tile, two consumer warps sum it: named barriers, two buffers.
KERNEL producer_consumer(const float* in, float* out, u32 tiles) {
  __shared__ float tile[2][64];
  bool producer = threadIdx.x < 64;
  u32 lane = threadIdx.x % 64;
  float sum = 0.0f;
  for (u32 t = 0; t < tiles; ++t) {
    u32 full = 1 + t % 2, empty = 3 + t % 2;
    if (producer) {
      if (t >= 2) asm volatile("bar.sync %0, 128;" ::"r"(empty) : "memory");
      tile[t % 2][lane] = in[t * 64 + lane];
      asm volatile("bar.arrive %0, 128;" ::"r"(full) : "memory");
    } else {
      asm volatile("bar.sync %0, 128;" ::"r"(full) : "memory");
      sum += tile[t % 2][(lane + 1) % 64];
      if (t + 2 < tiles) asm volatile("bar.arrive %0, 128;" ::"r"(empty) : "memory");
    }
  }
  if (!producer) out[lane] = sum;
}

// Barriers that reduce: the count, the conjunction and the disjunction over a block.
KERNEL block_votes(const u32* in, u32* out) {
  bool odd = in[threadIdx.x] & 1;
  int count = __syncthreads_count(odd);
  int all = __syncthreads_and(odd), any = __syncthreads_or(odd);
  if (threadIdx.x == 0) {
    out[0] = count;
    out[1] = all ? 1 : 0;
    out[2] = any ? 1 : 0;
  }
}

// A prefix over blocks in two phases with a grid-wide barrier between them.
KERNEL grid_sync(const u32* in, u32* totals, u32* out) {
  cg::grid_group grid = cg::this_grid();
  cg::thread_block block = cg::this_thread_block();
  cg::thread_block_tile<32> warp = cg::tiled_partition<32>(block);
  __shared__ u32 sums[32];
  u32 x = in[grid.thread_rank()];
  u32 sum = cg::reduce(warp, x, cg::plus<u32>());
  if (warp.thread_rank() == 0) sums[warp.meta_group_rank()] = sum;
  block.sync();
  if (block.thread_rank() == 0) {
    u32 total = 0;
    for (u32 w = 0; w < warp.meta_group_size(); ++w) total += sums[w];
    totals[blockIdx.x] = total;
  }
  grid.sync();
  u32 before = 0;
  for (u32 b = 0; b < blockIdx.x; ++b) before += totals[b];
  out[grid.thread_rank()] = x + before;
}

// The last block to arrive adds up what the others left, in block order: fence and atomic.
KERNEL last_block(const float* in, float* partial, u32* done, float* sum) {
  __shared__ bool last;
  float x = in[blockIdx.x * blockDim.x + threadIdx.x];
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = x;
    __threadfence();
    last = atomicAdd(done, 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (!last) return;
  if (threadIdx.x == 0) {
    __threadfence();
    float total = 0.0f;
    for (u32 b = 0; b < gridDim.x; ++b) total += __ldcg(partial + b);
    *sum = total;
    *done = 0;
  }
}

KERNEL atomics(u32* words, u64* wide, float* reals, double* doubles, __half2* halves) {
  u32 i = threadIdx.x + blockIdx.x * blockDim.x;
  atomicAdd(words, i);
  atomicMax(words + 1, i * 7 % 1000);
  atomicMin(reinterpret_cast<int*>(words) + 2, -static_cast<int>(i));
  atomicOr(words + 3, 1u << i % 32);
  atomicAnd(words + 4, ~(1u << i % 7));
  atomicXor(words + 5, i);
  atomicInc(words + 6, 99);
  atomicSub(words + 7, 2);
  u32 seen = 0;
  for (;;) {
    u32 found = atomicCAS(words + 8, seen, seen + 3);
    if (found == seen) break;
    seen = found;
  }
  u32 place = atomicAdd(words + 9, 1);
  atomicExch(words + 16 + place, i);
  atomicAdd(wide, static_cast<u64>(i) << 20);
  atomicMax(wide + 1, static_cast<u64>(i) << 33);
  atomicAdd(reals, 0.25f);
  atomicAdd(doubles, 0.125);
  atomicAdd(halves, __floats2half2_rn(1.0f, 0.5f));
  __shared__ u32 bins[8];
  if (threadIdx.x < 8) bins[threadIdx.x] = 0;
  __syncthreads();
  atomicAdd(bins + i % 8, i);
  __syncthreads();
  if (threadIdx.x < 8) atomicAdd(words + 10, bins[threadIdx.x]);
}

// The classic of divergence: lanes leave loops at different times and meet again.
KERNEL collatz(const u32* in, u32* steps, u32 n) {
  u32 i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  u32 x = in[i], taken = 0;
  while (x != 1) {
    x = x % 2 ? 3 * x + 1 : x / 2;
    ++taken;
  }
  switch (taken % 4) {
    case 0: taken += 1000; break;
    case 1: taken += 2000; break;
    case 2: taken ^= 0xffff; break;
    default: taken *= 3;
  }
  steps[i] = taken;
}

// One kernel for each thing that hardmix's kernels lean on besides the tensor cores: reductions,
// Philox, f64, local memory, module data, packed arithmetic, named barriers, grid sync, atomics.
#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>
#include <cuda_bf16.h>
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

KERNEL integers(const u32* a, const u32* b, u32* out, u32 n) {
  u32 i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  u32 x = a[i], y = b[i], *o = out + i * 24;
  u64 wide = static_cast<u64>(x) << 32 | y;
  o[0] = x / (y | 1);
  o[1] = x % (y | 1);
  o[2] = static_cast<u32>(static_cast<int>(x) / static_cast<int>(y | 1));
  o[3] = __umulhi(x, y);
  o[4] = static_cast<u32>(__mulhi(static_cast<int>(x), static_cast<int>(y)));
  o[5] = __popc(x) + __popcll(wide) * 256;
  o[6] = __clz(x) + __clzll(wide) * 256;
  o[7] = __ffs(x) + __ffsll(wide) * 256;
  o[8] = __brev(x);
  o[9] = __byte_perm(x, y, 0x4721);
  o[10] = __funnelshift_l(x, y, y & 63);
  o[11] = __funnelshift_rc(x, y, y & 63);
  o[12] = x << (y & 63 ? 7 : 9);
  o[13] = static_cast<u32>(static_cast<int>(x) >> (y & 31));
  o[14] = static_cast<u32>(wide % 1000003u);
  o[15] = static_cast<u32>(wide / (y | 1));
  o[16] = static_cast<u32>(min(static_cast<int>(x), static_cast<int>(y)));
  o[17] = max(x, y);
  o[18] = __sad(static_cast<int>(x), static_cast<int>(y), 3u);
  o[19] = static_cast<u32>(__umul64hi(wide, wide) >> 7);
  o[20] = (x & ~y) ^ (x | 0x55u);
  o[21] = static_cast<unsigned short>(x) * static_cast<unsigned short>(y);
  o[22] = static_cast<u32>(static_cast<signed char>(x)) + static_cast<short>(y);
  o[23] = __vsubus4(x, y) + (x > y ? 3 : 5);
}

// The arithmetic whose result IEEE 754 or PTX fixes to the bit.
KERNEL floats(const float* a, const float* b, float* out, u32 n) {
  u32 i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  float x = a[i], y = b[i], *o = out + i * 20;
  o[0] = x / y;
  o[1] = sqrtf(fabsf(x));
  o[2] = fmaf(x, y, -x);
  o[3] = fminf(x, y);
  o[4] = fmaxf(x, y);
  o[5] = __fadd_rz(x, y);
  o[6] = __fmul_ru(x, y);
  o[7] = __fadd_rd(x, y);
  o[8] = __int_as_float(__float2int_rn(x * 100));
  o[9] = __int_as_float(__float2int_rz(x * 100));
  o[10] = __int_as_float(__float2int_ru(x * 1e12f));
  o[11] = __uint_as_float(__float2uint_rn(x * 100));
  o[12] = __int2float_rn(__float_as_int(x));
  o[13] = __uint2float_rz(__float_as_uint(y));
  o[14] = rintf(x * 3);
  o[15] = floorf(x * 3) + ceilf(y * 3) + truncf(x * 5);
  o[16] = __saturatef(x);
  o[17] = copysignf(x, -y);
  o[18] = static_cast<float>(static_cast<double>(x) * y);
  o[19] = isnan(x) ? 1.0f : isinf(x) ? 2.0f : x < y ? 3.0f : 4.0f;
}

// The approximations; the error that PTX allows them is the test's tolerance.
KERNEL approximations(const float* a, float* out, u32 n) {
  u32 i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  float x = a[i], *o = out + i * 10;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(o[0]) : "f"(x));
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(o[1]) : "f"(fabsf(x)));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(o[2]) : "f"(x));
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(o[3]) : "f"(fabsf(x)));
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(o[4]) : "f"(fabsf(x)));
  asm("tanh.approx.f32 %0, %1;" : "=f"(o[5]) : "f"(x));
  o[6] = __sinf(x);
  o[7] = __cosf(x);
  o[8] = expf(x);
  o[9] = logf(fabsf(x));
}

// Sums and products in f64, the only exact accumulation at hand.
KERNEL doubles(const float* a, const float* b, double* out, u32 n) {
  double sum = 0.0, dot = 0.0, largest = -1e300;
  for (u32 i = threadIdx.x; i < n; i += 32) {
    sum += a[i];
    dot = fma(static_cast<double>(a[i]), static_cast<double>(b[i]), dot);
    largest = fmax(largest, static_cast<double>(a[i]));
  }
  for (int step = 16; step > 0; step /= 2) {
    sum += __shfl_xor_sync(~0u, sum, step);
    dot += __shfl_xor_sync(~0u, dot, step);
    largest = fmax(largest, __shfl_xor_sync(~0u, largest, step));
  }
  if (threadIdx.x == 0) {
    out[0] = sum;
    out[1] = dot;
    out[2] = largest;
    out[3] = sqrt(fabs(dot)) / (1.0 + fabs(sum));
    out[4] = static_cast<double>(static_cast<long long>(sum * 1e6));
    out[5] = rint(sum * 8) + floor(dot);
  }
}

// Philox4x32-10: the words of `counter` under `key`.
KERNEL philox(const uint4* counters, const uint2* keys, uint4* words, u32 n) {
  u32 i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  uint4 c = counters[i];
  uint2 k = keys[i];
  for (int round = 0; round < 10; ++round) {
    u32 high0 = __umulhi(0xD2511F53u, c.x), low0 = 0xD2511F53u * c.x;
    u32 high1 = __umulhi(0xCD9E8D57u, c.z), low1 = 0xCD9E8D57u * c.z;
    c = make_uint4(high1 ^ c.y ^ k.x, low1, high0 ^ c.w ^ k.y, low0);
    k.x += 0x9E3779B9u;
    k.y += 0xBB67AE85u;
  }
  words[i] = c;
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

KERNEL packed(const __half2* h, const __nv_bfloat162* b, __half2* hs, __nv_bfloat162* bs, u32 n) {
  u32 i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  __half2 x = h[2 * i], y = h[2 * i + 1];
  __half2* o = hs + 10 * i;
  o[0] = __hadd2(x, y);
  o[1] = __hmul2(x, y);
  o[2] = __hfma2(x, y, x);
  o[3] = __hsub2(x, y);
  o[4] = __hmax2(x, y);
  o[5] = __hmin2(x, y);
  o[6] = __hneg2(x);
  o[7] = __habs2(y);
  o[8] = __floats2half2_rn(__low2float(x) * 1.0001f, __high2float(y) / 3);
  o[9] = __halves2half2(__hgt(__low2half(x), __low2half(y)) ? __low2half(x) : __high2half(y),
                        __float2half_rz(__high2float(x) * 1.001f));
  __nv_bfloat162 u = b[2 * i], v = b[2 * i + 1];
  __nv_bfloat162* p = bs + 8 * i;
  p[0] = __hadd2(u, v);
  p[1] = __hmul2(u, v);
  p[2] = __hfma2(u, v, u);
  p[3] = __hmax2(u, v);
  p[4] = __hmin2(u, v);
  p[5] = __hneg2(u);
  p[6] = __floats2bfloat162_rn(__low2float(u) * 1.01f, __high2float(v) / 3);
  p[7] = __halves2bfloat162(__float2bfloat16_rz(__low2float(v) * 1.01f), __high2bfloat16(u));
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
  u32 seen = words[8];
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

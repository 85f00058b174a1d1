// Arithmetic in every type that hardmix's kernels compute in.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

using u32 = unsigned;
using u64 = unsigned long long;

#define KERNEL extern "C" __global__ void

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

// Sums of four words and a product of two by the carry: a + b, a - b, and a.xy · b.xy.
extern "C" __global__ void carries(const uint4* a, const uint4* b, uint4* out, unsigned n) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const uint4 x = a[i], y = b[i];
    uint4 sum, difference, product;
    asm("add.cc.u32 %0, %4, %8;\n\t"
        "addc.cc.u32 %1, %5, %9;\n\t"
        "addc.cc.u32 %2, %6, %10;\n\t"
        "addc.u32 %3, %7, %11;"
        : "=&r"(sum.x), "=&r"(sum.y), "=&r"(sum.z), "=&r"(sum.w)
        : "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w), "r"(y.x), "r"(y.y), "r"(y.z), "r"(y.w));
    asm("sub.cc.u32 %0, %4, %8;\n\t"
        "subc.cc.u32 %1, %5, %9;\n\t"
        "subc.cc.u32 %2, %6, %10;\n\t"
        "subc.u32 %3, %7, %11;"
        : "=&r"(difference.x), "=&r"(difference.y), "=&r"(difference.z), "=&r"(difference.w)
        : "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w), "r"(y.x), "r"(y.y), "r"(y.z), "r"(y.w));
    asm("mul.lo.u32 %0, %4, %6;\n\t"
        "mul.hi.u32 %1, %4, %6;\n\t"
        "mad.lo.cc.u32 %1, %4, %7, %1;\n\t"
        "madc.hi.u32 %2, %4, %7, 0;\n\t"
        "mad.lo.cc.u32 %1, %5, %6, %1;\n\t"
        "madc.hi.cc.u32 %2, %5, %6, %2;\n\t"
        "addc.u32 %3, 0, 0;\n\t"
        "mad.lo.cc.u32 %2, %5, %7, %2;\n\t"
        "madc.hi.u32 %3, %5, %7, %3;"
        : "=&r"(product.x), "=&r"(product.y), "=&r"(product.z), "=&r"(product.w)
        : "r"(x.x), "r"(x.y), "r"(y.x), "r"(y.y));
    out[3 * i] = sum;
    out[3 * i + 1] = difference;
    out[3 * i + 2] = product;
}

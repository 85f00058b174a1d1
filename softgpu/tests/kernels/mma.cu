// Every mma.sync form that hardmix plans, one warp a kernel: D = A·B + C with A [16×k] row-major and
// B [k×8] given by columns ([8×k]), loaded by hand from the fragment layouts in the PTX manual, and
// ldmatrix against the same layouts.
#include "ampere.cuh"

#define KERNEL extern "C" __global__ void

namespace {

// The offsets in C and D: rows g and g + 8, columns 2t and 2t + 1.
__device__ u32 corner(u32 i) {
  u32 lane = threadIdx.x;
  return (lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2;
}

// Registers of `PER` elements each from a row-major matrix of width `k`.
template <typename Word>
__device__ u32 word(const void* matrix, u32 row, u32 at, u32 k) {
  return *reinterpret_cast<const u32*>(static_cast<const Word*>(matrix) + row * k + at);
}

}  // namespace

#define MMA_16(name, k, form, registers)                                                        \
  KERNEL name(const unsigned short* a, const unsigned short* b, const float* c, float* d) {    \
    u32 g = threadIdx.x / 4, t = threadIdx.x % 4;                                               \
    float x[4];                                                                                 \
    u32 f[6];                                                                                   \
    for (u32 i = 0; i < 4; ++i) x[i] = c[corner(i)];                                            \
    f[0] = word<unsigned short>(a, g, 2 * t, k);                                                \
    f[1] = word<unsigned short>(a, g + 8, 2 * t, k);                                            \
    f[2] = word<unsigned short>(a, g, (2 * t + 8) % k, k);                                      \
    f[3] = word<unsigned short>(a, g + 8, (2 * t + 8) % k, k);                                  \
    f[4] = word<unsigned short>(b, g, 2 * t, k);                                                \
    f[5] = word<unsigned short>(b, g, (2 * t + 8) % k, k);                                      \
    asm volatile("mma.sync.aligned." form " {%0, %1, %2, %3}, " registers ", {%0, %1, %2, %3};" \
                 : "+f"(x[0]), "+f"(x[1]), "+f"(x[2]), "+f"(x[3])                               \
                 : "r"(f[0]), "r"(f[1]), "r"(f[2]), "r"(f[3]), "r"(f[4]), "r"(f[5]));           \
    for (u32 i = 0; i < 4; ++i) d[corner(i)] = x[i];                                            \
  }

MMA_16(mma_bf16_k16, 16, "m16n8k16.row.col.f32.bf16.bf16.f32", "{%4, %5, %6, %7}, {%8, %9}")
MMA_16(mma_bf16_k8, 8, "m16n8k8.row.col.f32.bf16.bf16.f32", "{%4, %5}, {%8}")
MMA_16(mma_f16_k16, 16, "m16n8k16.row.col.f32.f16.f16.f32", "{%4, %5, %6, %7}, {%8, %9}")
MMA_16(mma_f16_k8, 8, "m16n8k8.row.col.f32.f16.f16.f32", "{%4, %5}, {%8}")

// The accumulator in f16.
KERNEL mma_f16_f16(const unsigned short* a, const unsigned short* b, const __half* c, __half* d) {
  u32 g = threadIdx.x / 4, t = threadIdx.x % 4;
  u32 x[2];
  for (u32 i = 0; i < 2; ++i) x[i] = *reinterpret_cast<const u32*>(c + corner(2 * i));
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%0, %1}, {%2, %3, %4, %5}, {%6, %7}, "
      "{%0, %1};"
      : "+r"(x[0]), "+r"(x[1])
      : "r"(word<__half>(a, g, 2 * t, 16)), "r"(word<__half>(a, g + 8, 2 * t, 16)),
        "r"(word<__half>(a, g, 2 * t + 8, 16)), "r"(word<__half>(a, g + 8, 2 * t + 8, 16)),
        "r"(word<__half>(b, g, 2 * t, 16)), "r"(word<__half>(b, g, 2 * t + 8, 16)));
  for (u32 i = 0; i < 2; ++i) *reinterpret_cast<u32*>(d + corner(2 * i)) = x[i];
}

namespace {

__device__ u32 tf32(float x) {
  u32 y;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
  return y;
}

}  // namespace

KERNEL mma_tf32_k8(const float* a, const float* b, const float* c, float* d) {
  u32 g = threadIdx.x / 4, t = threadIdx.x % 4;
  float x[4];
  for (u32 i = 0; i < 4; ++i) x[i] = c[corner(i)];
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(x[0]), "+f"(x[1]), "+f"(x[2]), "+f"(x[3])
      : "r"(tf32(a[g * 8 + t])), "r"(tf32(a[(g + 8) * 8 + t])), "r"(tf32(a[g * 8 + t + 4])),
        "r"(tf32(a[(g + 8) * 8 + t + 4])), "r"(tf32(b[g * 8 + t])), "r"(tf32(b[g * 8 + t + 4])));
  for (u32 i = 0; i < 4; ++i) d[corner(i)] = x[i];
}

KERNEL mma_tf32_k4(const float* a, const float* b, const float* c, float* d) {
  u32 g = threadIdx.x / 4, t = threadIdx.x % 4;
  float x[4];
  for (u32 i = 0; i < 4; ++i) x[i] = c[corner(i)];
  asm volatile(
      "mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
      "{%0, %1, %2, %3};"
      : "+f"(x[0]), "+f"(x[1]), "+f"(x[2]), "+f"(x[3])
      : "r"(tf32(a[g * 4 + t])), "r"(tf32(a[(g + 8) * 4 + t])), "r"(tf32(b[g * 4 + t])));
  for (u32 i = 0; i < 4; ++i) d[corner(i)] = x[i];
}

// What each lane holds after ldmatrix of a 32×8 matrix of u16: x1, x2, x4 and x4.trans, then
// movmatrix of the first register.
KERNEL load_matrix(const uint4* in, u32* out) {
  __shared__ uint4 rows[32];
  u32 lane = threadIdx.x;
  rows[lane] = in[lane];
  __syncwarp();
  u32 one, two[2], four[4], transposed[4], moved;
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
               : "=r"(one)
               : "r"(shared_address(rows + 8 + lane % 8))
               : "memory");
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(two[0]), "=r"(two[1])
               : "r"(shared_address(rows + 16 + lane % 16))
               : "memory");
  load_matrices(four, shared_address(rows + lane));
  load_matrices_transposed(transposed, shared_address(rows + lane));
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(moved) : "r"(four[0]));
  u32* o = out + lane * 12;
  o[0] = one;
  o[1] = two[0];
  o[2] = two[1];
  for (u32 i = 0; i < 4; ++i) {
    o[3 + i] = four[i];
    o[7 + i] = transposed[i];
  }
  o[11] = moved;
}

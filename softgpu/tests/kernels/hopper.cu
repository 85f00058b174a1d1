// What only sm_90a has: wgmma on every swizzle, TMA pipelines over mbarriers, clusters with
// distributed shared memory and multicast. Instances for the planted defects beside the kernels.
#include "hopper.cuh"

#define KERNEL extern "C" __global__ void

// ---- wgmma: D [64×64] = A [64×64] · B, one warpgroup, operands laid out by plain stores ----

namespace {

enum class Product { BF16, F16, REGISTERS, TRANSPOSED, NO_PROXY_FENCE, NO_WAIT, WRONG_STRIDE };

// The byte offset of the 16-byte chunk `chunk` of `row` in a 64×64 tile of 16-bit elements.
template <Swizzle SWIZZLE>
__device__ u32 tile_offset(u32 row, u32 chunk) {
  if (SWIZZLE == Swizzle::NONE) return row / 8 * 1024 + chunk * 128 + row % 8 * 16;
  constexpr u32 WIDTH = SWIZZLE == Swizzle::B128 ? 128 : SWIZZLE == Swizzle::B64 ? 64 : 32;
  constexpr u32 CHUNKS = WIDTH / 16;
  u32 at = chunk / CHUNKS * 64 * WIDTH + row * WIDTH + chunk % CHUNKS * 16;
  return at ^ (at >> 7 & (CHUNKS - 1)) << 4;
}

// The descriptor of the 16 elements of k from 16·step on, of such a tile, K-major.
template <Swizzle SWIZZLE>
__device__ u64 tile_descriptor(u32 shared, u32 step) {
  if (SWIZZLE == Swizzle::NONE) return descriptor(shared + step * 256, 128, 1024, SWIZZLE);
  constexpr u32 WIDTH = SWIZZLE == Swizzle::B128 ? 128 : SWIZZLE == Swizzle::B64 ? 64 : 32;
  constexpr u32 STEPS = WIDTH / 32;
  return descriptor(shared + step / STEPS * 64 * WIDTH + step % STEPS * 32, 16, 8 * WIDTH, SWIZZLE);
}

// B is given as [n][k], for TRANSPOSED as [k][n].
template <Swizzle SWIZZLE, Product PRODUCT>
__device__ __forceinline__ void product(const bf16* a, const bf16* b, float* d) {
  __shared__ __align__(1024) unsigned char tiles[2][64 * 128];
  u32 thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  u32 a_at = shared_address(tiles[0]), b_at = shared_address(tiles[1]);
  for (u32 i = thread; i < 64 * 8; i += 128) {
    u32 row = i / 8, chunk = i % 8, at = tile_offset<SWIZZLE>(row, chunk);
    *reinterpret_cast<uint4*>(tiles[0] + at) = reinterpret_cast<const uint4*>(a)[i];
    *reinterpret_cast<uint4*>(tiles[1] + at) = reinterpret_cast<const uint4*>(b)[i];
  }
  if (PRODUCT != Product::NO_PROXY_FENCE) proxy_fence();
  __syncthreads();
  float sum[32];
  for (float& x : sum) x = 0.0f;
  u32 fragments[4][4] = {};
  if (PRODUCT == Product::REGISTERS)
    for (u32 step = 0; step < 4; ++step)
      for (u32 i = 0; i < 4; ++i) {
        u32 row = warp * 16 + lane / 4 + i % 2 * 8, column = step * 16 + i / 2 * 8 + lane % 4 * 2;
        fragments[step][i] = *reinterpret_cast<const u32*>(a + row * 64 + column);
        asm volatile("" : "+r"(fragments[step][i])::"memory");
      }
  keep(sum);
  wgmma_fence();
  for (u32 step = 0; step < 4; ++step) {
    u64 a_tile = tile_descriptor<SWIZZLE>(a_at, step), b_tile = tile_descriptor<SWIZZLE>(b_at, step);
    if (PRODUCT == Product::WRONG_STRIDE) b_tile = descriptor(b_at + step * 32, 16, 512, SWIZZLE);
    if (PRODUCT == Product::REGISTERS) {
      wgmma_registers(sum, fragments[step], b_tile, step > 0);
    } else if (PRODUCT == Product::TRANSPOSED) {
      // N-major: an atom is 64 of n by 8 of k, 1024 bytes; 16 of k are two of them.
      wgmma<true>(sum, a_tile, descriptor(b_at + step * 2048, 8192, 1024, SWIZZLE), step > 0);
    } else if (PRODUCT == Product::F16) {
      wgmma_f16(sum, a_tile, b_tile, step > 0);
    } else {
      wgmma(sum, a_tile, b_tile, step > 0);
    }
  }
  wgmma_commit();
  if (PRODUCT != Product::NO_WAIT) wgmma_wait<0>();
  keep(sum);
  for (u32 i = 0; i < 32; ++i) {
    u32 row = warp * 16 + lane / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
    d[row * 64 + column] = sum[i];
  }
}

}  // namespace

#define PRODUCT(name, swizzle, kind)                                                       \
  KERNEL __launch_bounds__(128) name(const bf16* a, const bf16* b, float* d) {             \
    product<Swizzle::swizzle, Product::kind>(a, b, d);                                     \
  }

PRODUCT(wgmma_unswizzled, NONE, BF16)
PRODUCT(wgmma_swizzle32, B32, BF16)
PRODUCT(wgmma_swizzle64, B64, BF16)
PRODUCT(wgmma_swizzle128, B128, BF16)
PRODUCT(wgmma_f16, B128, F16)
PRODUCT(wgmma_a_in_registers, B128, REGISTERS)
PRODUCT(wgmma_b_transposed, B128, TRANSPOSED)
PRODUCT(wgmma_no_proxy_fence, B128, NO_PROXY_FENCE)
PRODUCT(wgmma_no_wait, B128, NO_WAIT)
PRODUCT(wgmma_wrong_stride, B128, WRONG_STRIDE)

// ---- pipeline: scores [queries × keys] of 64 queries a block, through TMA and back ----

namespace {

enum Bug {
  NONE,
  NO_FULL_WAIT,         // consumers read a stage before it has arrived
  NO_EMPTY_WAIT,        // the producer overwrites a stage that is being read
  EXPECT_TOO_MUCH,      // the barrier expects bytes that never come
  NO_RELEASE,           // consumers never release a stage
  NO_STORE_FENCE,       // plain writes are handed to the store without a proxy fence
  NO_STORE_WAIT,        // the staging tile is rewritten while the store before reads it
  NO_STORE_BARRIER,     // the store is issued before every warp has written the staging tile
  NO_PRODUCT_WAIT,      // accumulators are read while wgmma still writes them
  NO_CLUSTER_SYNC,      // copies into a peer that has not initialised its barriers
  RELEASE_OWN_ONLY,     // a stage is released to its own block, though the peer fills half of it
  NO_LAST_CLUSTER_SYNC, // a block leaves while its peer still arrives at its barriers
  // Controls: correct.
  STORE_WAIT_FOR_ALL,   // waits for the writes, not only for the reads
};

constexpr u32 ROWS = 64, STAGES = 3, TILE_BYTES = ROWS * 128;

struct PipelineShared {
  unsigned char queries[TILE_BYTES];
  unsigned char keys[STAGES][TILE_BYTES];
  unsigned char staging[TILE_BYTES];
  u64 full[STAGES], empty[STAGES], queries_full;
};

// Warpgroup 0 produces, warpgroup 1 consumes. Each cluster takes key tiles split, split + splits, …;
// its blocks hold different queries, each loads its share of a tile into all of them.
template <u32 CLUSTER, Bug BUG>
__device__ __forceinline__ void pipeline(const CUtensorMap* queries, const CUtensorMap* keys,
                                         const CUtensorMap* scores, u32 tiles) {
  extern __shared__ __align__(1024) unsigned char bytes[];
  PipelineShared& shared = *reinterpret_cast<PipelineShared*>(bytes);
  u32 thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  u32 rank = CLUSTER > 1 ? cluster_rank() : 0;
  u32 query_tile = blockIdx.x, split = blockIdx.y, splits = gridDim.y;
  u32 full = shared_address(shared.full), empty = shared_address(shared.empty);
  u32 queries_full = shared_address(&shared.queries_full);
  if (thread == 0) {
    for (u32 s = 0; s < STAGES; ++s) {
      barrier_init(full + s * 8, 1);
      barrier_init(empty + s * 8, 4 * CLUSTER);
    }
    barrier_init(queries_full, 1);
    barrier_init_fence();
  }
  if (CLUSTER > 1 && BUG != NO_CLUSTER_SYNC) cluster_sync();
  else __syncthreads();

  if (warp < 4) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (warp == 0 && elect_one()) {
      barrier_expect(queries_full, TILE_BYTES);
      tensor_load(shared_address(shared.queries), queries, 0, query_tile * ROWS, queries_full);
      u32 round = 0;
      for (u32 tile = split; tile < tiles; tile += splits, ++round) {
        u32 s = round % STAGES, phase = round / STAGES % 2;
        if (BUG != NO_EMPTY_WAIT) {
          if (CLUSTER > 1) barrier_wait_cluster(empty + s * 8, phase ^ 1);
          else barrier_wait(empty + s * 8, phase ^ 1);
        }
        barrier_expect(full + s * 8, TILE_BYTES + (BUG == EXPECT_TOO_MUCH ? 64 : 0));
        u32 at = shared_address(shared.keys[s]);
        if (CLUSTER > 1) {
          constexpr u32 SHARE = ROWS / CLUSTER;
          tensor_load_multicast(at + rank * SHARE * 128, keys, 0, tile * ROWS + rank * SHARE,
                                full + s * 8, (1 << CLUSTER) - 1);
        } else {
          tensor_load(at, keys, 0, tile * ROWS, full + s * 8);
        }
      }
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    u32 mine = warp - 4;
    if (BUG != NO_FULL_WAIT) barrier_wait(queries_full, 0);
    u32 a = shared_address(shared.queries), staging = shared_address(shared.staging), round = 0;
    for (u32 tile = split; tile < tiles; tile += splits, ++round) {
      u32 s = round % STAGES, phase = round / STAGES % 2;
      if (BUG != NO_FULL_WAIT) barrier_wait(full + s * 8, phase);
      u32 b = shared_address(shared.keys[s]);
      float sum[32];
      for (float& x : sum) x = 0.0f;
      keep(sum);
      wgmma_fence();
      for (u32 step = 0; step < 4; ++step)
        wgmma(sum, tile_descriptor<Swizzle::B128>(a, step),
              tile_descriptor<Swizzle::B128>(b, step), step > 0);
      wgmma_commit();
      if (BUG != NO_PRODUCT_WAIT) wgmma_wait<0>();
      keep(sum);
      if (lane == 0 && BUG != NO_RELEASE) {
        if (CLUSTER > 1)
          for (u32 peer = 0; peer < CLUSTER; ++peer)
            barrier_arrive_remote(empty + s * 8, BUG == RELEASE_OWN_ONLY ? rank : peer);
        else barrier_arrive(empty + s * 8);
      }

      // The staging tile is free once the store before has read it; only its issuer can tell.
      if (BUG != NO_STORE_WAIT && mine == 0 && lane == 0) {
        if (BUG == STORE_WAIT_FOR_ALL) bulk_wait<0>();
        else bulk_wait_read<0>();
      }
      asm volatile("bar.sync 1, 128;" ::: "memory");
      for (u32 n = 0; n < 8; n += 2) {
        // Matrices: rows 0–7 and 8–15 of the warp's 16, at columns 8n; then the same at 8(n + 1).
        u32 row = mine * 16 + lane % 16, at = tile_offset<Swizzle::B128>(row, n + lane / 16);
        float* x = sum + n * 4;
        store_matrices(staging + at, pack(x[0], x[1]), pack(x[2], x[3]), pack(x[4], x[5]),
                       pack(x[6], x[7]));
      }
      if (BUG != NO_STORE_FENCE) proxy_fence();
      if (BUG != NO_STORE_BARRIER) asm volatile("bar.sync 1, 128;" ::: "memory");
      if (mine == 0 && lane == 0) {
        tensor_store(scores, tile * ROWS, query_tile * ROWS, staging);
        bulk_commit();
      }
    }
    if (mine == 0 && lane == 0) bulk_wait<0>();
  }
  // A peer may still arrive at this block's barriers.
  if (CLUSTER > 1 && BUG != NO_LAST_CLUSTER_SYNC) cluster_sync();
}

}  // namespace

#define PIPELINE(name, cluster, bug)                                                       \
  KERNEL __launch_bounds__(256, 1) __cluster_dims__(cluster, 1, 1)                            \
      name(const __grid_constant__ CUtensorMap queries, const __grid_constant__ CUtensorMap keys, \
           const __grid_constant__ CUtensorMap scores, u32 tiles) {                        \
    pipeline<cluster, bug>(&queries, &keys, &scores, tiles);                               \
  }

PIPELINE(pipeline1, 1, NONE)
PIPELINE(pipeline2, 2, NONE)
PIPELINE(pipeline_no_full_wait, 1, NO_FULL_WAIT)
PIPELINE(pipeline_no_empty_wait, 1, NO_EMPTY_WAIT)
PIPELINE(pipeline_expect_too_much, 1, EXPECT_TOO_MUCH)
PIPELINE(pipeline_no_release, 1, NO_RELEASE)
PIPELINE(pipeline_no_store_fence, 1, NO_STORE_FENCE)
PIPELINE(pipeline_no_store_wait, 1, NO_STORE_WAIT)
PIPELINE(pipeline_no_store_barrier, 1, NO_STORE_BARRIER)
PIPELINE(pipeline_no_product_wait, 1, NO_PRODUCT_WAIT)
PIPELINE(pipeline_no_cluster_sync, 2, NO_CLUSTER_SYNC)
PIPELINE(pipeline_release_own_only, 2, RELEASE_OWN_ONLY)
PIPELINE(pipeline_no_last_cluster_sync, 2, NO_LAST_CLUSTER_SYNC)
PIPELINE(pipeline_store_wait_for_all, 1, STORE_WAIT_FOR_ALL)

// ---- exchange: each block of a cluster of 4 adds up its peers' partial sums ----

namespace {

enum class Exchange { RIGHT, NO_FIRST_SYNC, NO_LAST_SYNC, ARRIVE_THEN_WAIT };

template <Exchange EXCHANGE>
__device__ __forceinline__ void exchange(const float* in, float* out) {
  __shared__ float partial[32];
  u32 lane = threadIdx.x;
  partial[lane] = in[blockIdx.x * 32 + lane];
  if (EXCHANGE == Exchange::ARRIVE_THEN_WAIT) {
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
  } else if (EXCHANGE != Exchange::NO_FIRST_SYNC) {
    cluster_sync();
  }
  float sum = 0.0f;
  for (u32 peer = 0; peer < 4; ++peer) {
    u32 remote;
    float x;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
                 : "=r"(remote)
                 : "r"(shared_address(partial + (lane + 1) % 32)), "r"(peer));
    asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(x) : "r"(remote) : "memory");
    sum += x;
  }
  out[blockIdx.x * 32 + lane] = sum;
  if (EXCHANGE == Exchange::NO_LAST_SYNC) return;
  if (EXCHANGE == Exchange::ARRIVE_THEN_WAIT) {
    // Nothing is read after this, so the arrival need not release.
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
    asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
  } else {
    cluster_sync();
  }
}

}  // namespace

#define EXCHANGE(name, kind)                                                       \
  KERNEL __launch_bounds__(32) __cluster_dims__(4, 1, 1) name(const float* in, float* out) { \
    exchange<Exchange::kind>(in, out);                                             \
  }

EXCHANGE(exchange, RIGHT)
EXCHANGE(exchange_no_first_sync, NO_FIRST_SYNC)
EXCHANGE(exchange_no_last_sync, NO_LAST_SYNC)
EXCHANGE(exchange_arrive_then_wait, ARRIVE_THEN_WAIT)

// ---- bulk: each block adds one to its 1024 words by one-dimensional bulk copies ----

namespace {

enum class Bulk {
  RIGHT, NO_WAIT, NO_FENCE, NO_STORE_BARRIER, NO_LAST_WAIT_THEN_REUSE, MISALIGNED, PAST_THE_END
};

template <Bulk BULK>
__device__ __forceinline__ void bulk(const u32* in, u32* out) {
  __shared__ __align__(128) u32 words[1024];
  __shared__ u64 barrier;
  u32 thread = threadIdx.x, at = shared_address(words), full = shared_address(&barrier);
  const u32* from = in + blockIdx.x * 1024;
  if (thread == 0) {
    barrier_init(full, 1);
    barrier_init_fence();
  }
  __syncthreads();
  if (thread == 0) {
    barrier_expect(full, 4096);
    u32 shift = BULK == Bulk::MISALIGNED ? 2 : BULK == Bulk::PAST_THE_END ? 1024 : 0;
    bulk_load(at, from + shift, 4096, full);
  }
  if (BULK != Bulk::NO_WAIT) barrier_wait(full, 0);
  for (u32 i = thread; i < 1024; i += blockDim.x) ++words[i];
  if (BULK != Bulk::NO_FENCE) proxy_fence();
  if (BULK != Bulk::NO_STORE_BARRIER) __syncthreads();
  if (thread == 0) {
    bulk_store(out + blockIdx.x * 1024, at, 4096);
    bulk_commit();
    if (BULK == Bulk::NO_LAST_WAIT_THEN_REUSE) words[0] = 0;
    bulk_wait<0>();
  }
}

}  // namespace

#define BULK(name, kind) \
  KERNEL __launch_bounds__(128) name(const u32* in, u32* out) { bulk<Bulk::kind>(in, out); }

BULK(bulk, RIGHT)
BULK(bulk_no_wait, NO_WAIT)
BULK(bulk_no_fence, NO_FENCE)
BULK(bulk_no_store_barrier, NO_STORE_BARRIER)
BULK(bulk_reused_too_soon, NO_LAST_WAIT_THEN_REUSE)
BULK(bulk_misaligned, MISALIGNED)
BULK(bulk_past_the_end, PAST_THE_END)

// ---- programmatic dependent launch ----

KERNEL first_of_two(u32* words) {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
  words[blockIdx.x * blockDim.x + threadIdx.x] = threadIdx.x;
}

KERNEL second_of_two(const u32* words, u32* doubled) {
  u32 i = blockIdx.x * blockDim.x + threadIdx.x;
  asm volatile("griddepcontrol.wait;" ::: "memory");
  doubled[i] = words[i] * 2;
}

// CUB's block and warp primitives, compiled from the toolkit's own headers: code that nobody here
// wrote. Every kernel is one block of THREADS threads over THREADS * ITEMS items.
#include <cub/block/block_adjacent_difference.cuh>
#include <cub/block/block_discontinuity.cuh>
#include <cub/block/block_exchange.cuh>
#include <cub/block/block_histogram.cuh>
#include <cub/block/block_load.cuh>
#include <cub/block/block_merge_sort.cuh>
#include <cub/block/block_radix_rank.cuh>
#include <cub/block/block_radix_sort.cuh>
#include <cub/block/block_reduce.cuh>
#include <cub/block/block_run_length_decode.cuh>
#include <cub/block/block_scan.cuh>
#include <cub/block/block_shuffle.cuh>
#include <cub/block/block_store.cuh>
#include <cub/warp/warp_exchange.cuh>
#include <cub/warp/warp_merge_sort.cuh>
#include <cub/warp/warp_reduce.cuh>
#include <cub/warp/warp_scan.cuh>

constexpr int THREADS = 128;
constexpr int ITEMS = 4;
using u32 = unsigned;

#define KERNEL extern "C" __global__ void __launch_bounds__(THREADS)

template <typename T>
__device__ void load_blocked(const T* in, T (&items)[ITEMS]) {
  cub::LoadDirectBlocked(threadIdx.x, in, items);
}

template <typename T>
__device__ void store_blocked(T* out, T (&items)[ITEMS]) {
  cub::StoreDirectBlocked(threadIdx.x, out, items);
}

struct Less {
  __device__ bool operator()(u32 a, u32 b) const { return a < b; }
};

KERNEL block_reduce(const u32* in, u32* out) {
  using Raking = cub::BlockReduce<u32, THREADS, cub::BLOCK_REDUCE_RAKING>;
  using Shuffles = cub::BlockReduce<u32, THREADS, cub::BLOCK_REDUCE_WARP_REDUCTIONS>;
  using Commutative = cub::BlockReduce<double, THREADS, cub::BLOCK_REDUCE_RAKING_COMMUTATIVE_ONLY>;
  __shared__ union {
    Raking::TempStorage raking;
    Shuffles::TempStorage shuffles;
    Commutative::TempStorage commutative;
  } shared;
  u32 items[ITEMS];
  load_blocked(in, items);
  u32 sum = Raking(shared.raking).Sum(items);
  __syncthreads();
  u32 largest = Shuffles(shared.shuffles).Reduce(items, [](u32 a, u32 b) { return a > b ? a : b; });
  __syncthreads();
  double mean = Commutative(shared.commutative).Sum(items[0] / 128.0);
  if (threadIdx.x == 0) {
    out[0] = sum;
    out[1] = largest;
    out[2] = static_cast<u32>(mean);
  }
}

KERNEL block_scan(const u32* in, u32* out) {
  using Scan = cub::BlockScan<u32, THREADS>;
  using Raking = cub::BlockScan<u32, THREADS, cub::BLOCK_SCAN_RAKING>;
  __shared__ union {
    Scan::TempStorage scan;
    Raking::TempStorage raking;
  } shared;
  u32 items[ITEMS], sums[ITEMS];
  load_blocked(in, items);
  Scan(shared.scan).ExclusiveSum(items, sums);
  store_blocked(out, sums);
  __syncthreads();
  Raking(shared.raking).InclusiveScan(items, sums, [](u32 a, u32 b) { return a > b ? a : b; });
  store_blocked(out + THREADS * ITEMS, sums);
}

KERNEL block_radix_sort(const u32* in, u32* out) {
  using Sort = cub::BlockRadixSort<u32, THREADS, ITEMS, u32>;
  __shared__ Sort::TempStorage shared;
  u32 keys[ITEMS], values[ITEMS];
  load_blocked(in, keys);
  for (int i = 0; i < ITEMS; ++i) values[i] = threadIdx.x * ITEMS + i;
  Sort(shared).SortDescending(keys, values);
  store_blocked(out, keys);
  store_blocked(out + THREADS * ITEMS, values);
}

KERNEL block_radix_rank(const u32* in, u32* out) {
  using Rank = cub::BlockRadixRankMatch<THREADS, 5, false>;
  __shared__ Rank::TempStorage shared;
  u32 keys[ITEMS];
  int ranks[ITEMS];
  load_blocked(in, keys);
  Rank(shared).RankKeys(keys, ranks, cub::BFEDigitExtractor<u32>(0, 5));
  for (int i = 0; i < ITEMS; ++i) out[threadIdx.x * ITEMS + i] = ranks[i];
}

// CUB's merges look one key ahead (SerialMerge in block_merge_sort.cuh): past the last one they read
// a word that its storage has for this and that nobody writes, and throw it away. softgpu finds that
// read; here the word is written, so that every check can stay on.
template <u32 KEYS, class Storage>
__device__ __forceinline__ void fill_spare_key(Storage& shared) {
  static_assert(sizeof(Storage) >= (KEYS + 1) * sizeof(u32));
  reinterpret_cast<u32*>(&shared)[KEYS] = 0;
}

KERNEL block_merge_sort(const u32* in, u32* out) {
  using Sort = cub::BlockMergeSort<u32, THREADS, ITEMS>;
  __shared__ Sort::TempStorage shared;
  u32 keys[ITEMS];
  load_blocked(in, keys);
  if (threadIdx.x == 0) fill_spare_key<THREADS * ITEMS>(shared);
  Sort(shared).Sort(keys, Less());
  store_blocked(out, keys);
}

KERNEL block_load_store(const u32* in, u32* out) {
  using Load = cub::BlockLoad<u32, THREADS, ITEMS, cub::BLOCK_LOAD_TRANSPOSE>;
  using Vector = cub::BlockLoad<u32, THREADS, ITEMS, cub::BLOCK_LOAD_VECTORIZE>;
  using Store = cub::BlockStore<u32, THREADS, ITEMS, cub::BLOCK_STORE_WARP_TRANSPOSE>;
  __shared__ union {
    Load::TempStorage load;
    Store::TempStorage store;
  } shared;
  u32 items[ITEMS], again[ITEMS];
  Load(shared.load).Load(in, items);
  Vector().Load(in, again);
  __syncthreads();
  for (int i = 0; i < ITEMS; ++i) items[i] = items[i] * 4 + again[i] + i;
  Store(shared.store).Store(out, items);
}

KERNEL block_exchange(const u32* in, u32* out) {
  using Exchange = cub::BlockExchange<u32, THREADS, ITEMS>;
  __shared__ Exchange::TempStorage shared;
  u32 items[ITEMS];
  load_blocked(in, items);
  Exchange(shared).BlockedToStriped(items);
  store_blocked(out, items);
}

KERNEL block_histogram(const u32* in, u32* out) {
  using Atomic = cub::BlockHistogram<unsigned char, THREADS, ITEMS, 32, cub::BLOCK_HISTO_ATOMIC>;
  using Sorting = cub::BlockHistogram<unsigned char, THREADS, ITEMS, 32, cub::BLOCK_HISTO_SORT>;
  __shared__ union {
    Atomic::TempStorage atomic;
    Sorting::TempStorage sorting;
  } shared;
  __shared__ u32 counts[64];
  unsigned char bins[ITEMS];
  for (int i = 0; i < ITEMS; ++i) bins[i] = in[threadIdx.x * ITEMS + i] % 32;
  Atomic(shared.atomic).Histogram(bins, counts);
  __syncthreads();
  Sorting(shared.sorting).Histogram(bins, counts + 32);
  __syncthreads();
  if (threadIdx.x < 64) out[threadIdx.x] = counts[threadIdx.x];
}

KERNEL block_discontinuity(const u32* in, u32* out) {
  using Heads = cub::BlockDiscontinuity<u32, THREADS>;
  __shared__ Heads::TempStorage shared;
  u32 items[ITEMS], flags[ITEMS];
  load_blocked(in, items);
  for (u32& item : items) item %= 2;
  Heads(shared).FlagHeads(flags, items, [](u32 a, u32 b) { return a != b; });
  store_blocked(out, flags);
}

KERNEL block_adjacent_difference(const u32* in, u32* out) {
  using Difference = cub::BlockAdjacentDifference<u32, THREADS>;
  __shared__ Difference::TempStorage shared;
  u32 items[ITEMS], differences[ITEMS];
  load_blocked(in, items);
  Difference(shared).SubtractLeft(items, differences, [](u32 a, u32 b) { return a - b; });
  store_blocked(out, differences);
}

KERNEL block_shuffle(const u32* in, u32* out) {
  using Shuffle = cub::BlockShuffle<u32, THREADS>;
  __shared__ Shuffle::TempStorage shared;
  u32 rotated = 0;
  Shuffle(shared).Rotate(in[threadIdx.x], rotated, 37);
  out[threadIdx.x] = rotated;
}

KERNEL block_run_length_decode(const u32* in, u32* out) {
  using Decode = cub::BlockRunLengthDecode<u32, THREADS, 1, ITEMS>;
  __shared__ Decode::TempStorage shared;
  u32 values[1] = {in[threadIdx.x]};
  u32 lengths[1] = {in[threadIdx.x] % 4 + 1};
  u32 total = 0, items[ITEMS];
  Decode decode(shared, values, lengths, total);
  for (u32 from = 0; from < total; from += THREADS * ITEMS) {
    decode.RunLengthDecode(items, from);
    for (int i = 0; i < ITEMS; ++i) {
      u32 at = from + threadIdx.x * ITEMS + i;
      if (at < total) out[at] = items[i];
    }
  }
}

KERNEL warp_reduce(const u32* in, u32* out) {
  using Warp = cub::WarpReduce<u32>;
  using Quarter = cub::WarpReduce<u32, 8>;
  __shared__ Warp::TempStorage shared[THREADS / 32];
  __shared__ Quarter::TempStorage quarter[THREADS / 8];
  u32 sum = Warp(shared[threadIdx.x / 32]).Sum(in[threadIdx.x]);
  if (threadIdx.x % 32 == 0) out[threadIdx.x / 32] = sum;
  u32 part = Quarter(quarter[threadIdx.x / 8]).Sum(in[threadIdx.x]);
  if (threadIdx.x % 8 == 0) out[THREADS / 32 + threadIdx.x / 8] = part;
}

KERNEL warp_scan(const u32* in, u32* out) {
  using Warp = cub::WarpScan<u32>;
  __shared__ Warp::TempStorage shared[THREADS / 32];
  u32 sum, total;
  Warp(shared[threadIdx.x / 32]).InclusiveSum(in[threadIdx.x], sum, total);
  out[threadIdx.x] = sum;
  if (threadIdx.x % 32 == 0) out[THREADS + threadIdx.x / 32] = total;
}

KERNEL warp_merge_sort(const u32* in, u32* out) {
  using Sort = cub::WarpMergeSort<u32, ITEMS, 32>;
  __shared__ Sort::TempStorage shared[THREADS / 32];
  u32 keys[ITEMS];
  load_blocked(in, keys);
  if (threadIdx.x % 32 == 0) fill_spare_key<32 * ITEMS>(shared[threadIdx.x / 32]);
  Sort(shared[threadIdx.x / 32]).Sort(keys, Less());
  store_blocked(out, keys);
}

KERNEL warp_exchange(const u32* in, u32* out) {
  using Exchange = cub::WarpExchange<u32, ITEMS, 32>;
  __shared__ Exchange::TempStorage shared[THREADS / 32];
  u32 items[ITEMS];
  load_blocked(in, items);
  Exchange(shared[threadIdx.x / 32]).BlockedToStriped(items, items);
  store_blocked(out, items);
}

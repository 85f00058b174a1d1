// rank: of each row of logits the `hardest` largest that are not masked, exactly.
//
// The set is that of the largest logits, ties to the lower index, −0 equal to +0; it is listed by
// ascending index, padded where fewer rows are unmasked. The result does not depend on the order in
// which anything runs: histograms are sums of integers, and lists are written by prefix sums.
//
// A block takes a row. A histogram of the keys' top 11 bits says in which bin the boundary lies and
// how many candidates there are, those of that bin and of the ones above. Normally they fit into
// shared memory: a second pass lists them there, and the rest happens on the list. Where they do not
// fit, the same code works on the row itself, in three more passes.
//
// `rank_logits` ranks whole rows; `rank_passed` what the pass over the queue has let pass, a superset of
// the hardest if it is as long as their list. Where it is not, or was clipped, it marks the row, and
// `repair` makes that row's logits again and ranks them: no candidate is ever dropped in silence.
#include "device/ordered_key.cuh"
#include "device/product.cuh"
#include "device/radix_select.cuh"
#include "params.h"

namespace {

constexpr uint32_t NO_LABEL = 0xffffffffu;

// Consecutive elements that a thread takes of a tile; a tile is one step of a block.
constexpr uint32_t OWN = 8, TILE = OWN * RANK_THREADS;

struct Candidate {
  uint32_t index;
  float logit;
};

// A thread's elements of a tile, by ascending index.
struct Elements {
  Candidate of[OWN];
  uint32_t valid;  // a bit each
};

struct Shared {
  alignas(16) uint32_t histogram[BINS];
  uint32_t slots[2][RANK_THREADS / WARP];
  Bin bin;
};

// The row in global memory. Elements are taken four at a time from 16-byte boundaries, wherever the
// row itself begins: `shift` elements before it.
struct Row {
  const float* logits;
  const uint32_t* labels;
  uint32_t label, capacity, shift;

  // Of row `row` of the part, whose logits are these.
  __device__ Row(const RankParams& p, uint32_t row, const float* own) {
    logits = own;
    labels = p.queue_labels;
    label = p.query_labels ? p.query_labels[row] : NO_LABEL;
    capacity = p.capacity;
    shift = uint32_t(reinterpret_cast<uintptr_t>(logits) / sizeof(float)) % 4;
  }

  __device__ uint32_t tiles() const { return (capacity + shift + TILE - 1) / TILE; }

  __device__ Elements load(uint32_t tile) const {
    Elements e{};
#pragma unroll
    for (uint32_t quad = 0; quad < OWN; quad += 4) {
      // Before the row it wraps and is as far out of range as behind the end.
      const uint32_t index = tile * TILE + threadIdx.x * OWN + quad - shift;
      float4 four = {0.0f, 0.0f, 0.0f, 0.0f};
      if (index < capacity && capacity - index >= 4) {
        four = *reinterpret_cast<const float4*>(logits + index);
        e.valid |= 0xfu << quad;
      } else {
        if (index + 0 < capacity) four.x = logits[index + 0], e.valid |= 1u << quad;
        if (index + 1 < capacity) four.y = logits[index + 1], e.valid |= 2u << quad;
        if (index + 2 < capacity) four.z = logits[index + 2], e.valid |= 4u << quad;
        if (index + 3 < capacity) four.w = logits[index + 3], e.valid |= 8u << quad;
      }
      e.of[quad + 0] = {index + 0, four.x};
      e.of[quad + 1] = {index + 1, four.y};
      e.of[quad + 2] = {index + 2, four.z};
      e.of[quad + 3] = {index + 3, four.w};
    }
    if (label != NO_LABEL) {
#pragma unroll
      for (uint32_t i = 0; i < OWN; ++i) {
        const bool inside = e.valid >> i & 1;
        if (inside && labels[e.of[i].index] == label) e.valid &= ~(1u << i);
      }
    }
    return e;
  }
};

// Candidates in shared memory, by ascending index.
struct List {
  const Candidate* candidates;
  uint32_t count;

  __device__ uint32_t tiles() const { return (count + TILE - 1) / TILE; }

  __device__ Elements load(uint32_t tile) const {
    Elements e{};
#pragma unroll
    for (uint32_t i = 0; i < OWN; ++i) {
      const uint32_t at = tile * TILE + threadIdx.x * OWN + i;
      if (at < count) e.of[i] = candidates[at], e.valid |= 1u << i;
    }
    return e;
  }
};

// Counts the keys with the given prefix by the bits of a level. Ends with a barrier. Returns whether
// this thread saw a logit of which twice the bits exceed `limit`.
template <uint32_t LEVEL, class Source>
__device__ bool count(const Source& source, Shared& shared, uint32_t prefix, uint32_t limit) {
  for (uint32_t i = threadIdx.x; i < BINS; i += RANK_THREADS) shared.histogram[i] = 0;
  __syncthreads();
  bool beyond = false;
  for (uint32_t tile = 0; tile < source.tiles(); ++tile) {
    const Elements e = source.load(tile);
#pragma unroll
    for (uint32_t i = 0; i < OWN; ++i) {
      if (e.valid >> i & 1) {
        const float logit = e.of[i].logit;
        const uint32_t key = ordered_key(logit);
        beyond |= __float_as_uint(logit) << 1 > limit;
        if (Level<LEVEL>::prefix(key) == prefix) {
          atomicAdd(&shared.histogram[Level<LEVEL>::bin(key)], 1);
        }
      }
    }
  }
  __syncthreads();
  return beyond;
}

// Which keys are taken: all above `key`, and the first `ties` that equal it.
struct Boundary {
  uint32_t key, ties;
};

// The boundary of the `rank` largest, whose top bits are known to be `top`'s with `above` beyond.
template <class Source>
__device__ Boundary refine(const Source& source, Shared& shared, Bin top, uint32_t rank) {
  rank -= top.above;
  count<1>(source, shared, top.index, ~0u);
  auto wanted = [&](uint32_t) { return rank; };
  const Bin middle = find_bin<RANK_THREADS>(shared.histogram, shared.slots, 0, shared.bin, wanted);
  const uint32_t prefix = top.index << 11 | middle.index;
  rank -= middle.above;
  count<2>(source, shared, prefix, ~0u);
  const Bin last = find_bin<RANK_THREADS>(shared.histogram, shared.slots, 1, shared.bin, wanted);
  return {prefix << 10 | last.index, rank - last.above};
}

// Gives `put` every element inside the boundary with its position among them, by ascending index.
template <class Source, class Put>
__device__ void list(const Source& source, Shared& shared, Boundary boundary, Put put) {
  static_assert(TILE < 1 << 16, "both counts of a tile share a word");
  uint32_t above = 0, ties = 0;
  Elements next = source.load(0);
  for (uint32_t tile = 0; tile < source.tiles(); ++tile) {
    const Elements e = next;
    // Asked for before the barrier below.
    if (tile + 1 < source.tiles()) next = source.load(tile + 1);
    // Of each element: above the boundary in bit i, tied in bit i + 16.
    uint32_t kinds = 0;
#pragma unroll
    for (uint32_t i = 0; i < OWN; ++i) {
      const uint32_t key = ordered_key(e.of[i].logit);
      if (e.valid >> i & 1) kinds |= (key > boundary.key) << i | (key == boundary.key) << (i + 16);
    }
    const uint32_t own = __popc(kinds & 0xffff) | __popc(kinds >> 16) << 16;
    uint32_t total;
    const uint32_t before = block_prefix<RANK_THREADS>(own, shared.slots, tile % 2, total);
    uint32_t own_above = above + (before & 0xffff), own_ties = ties + (before >> 16);
#pragma unroll
    for (uint32_t i = 0; i < OWN; ++i) {
      const bool is_above = kinds >> i & 1, is_tie = kinds >> (i + 16) & 1;
      if (is_above || (is_tie && own_ties < boundary.ties)) {
        put(own_above + min(own_ties, boundary.ties), e.of[i]);
      }
      own_above += is_above;
      own_ties += is_tie;
    }
    above += total & 0xffff;
    ties += total >> 16;
  }
  __syncthreads();
}

// Where the hardest of a row of the part go.
struct Out {
  const RankParams& p;
  const uint32_t row;

  // Their number, and what stands behind them.
  __device__ void begin(uint32_t taken) const {
    if (threadIdx.x == 0) p.counts[row] = taken;
    for (uint32_t i = taken + threadIdx.x; i < p.hardest; i += RANK_THREADS) {
      p.indices[uint64_t(row) * p.hardest + i] = NO_ROW_INDEX;
      p.hardest_logits[uint64_t(row) * p.hardest + i] = -INFINITY;
    }
  }

  __device__ void operator()(uint32_t at, Candidate candidate) const {
    p.indices[uint64_t(row) * p.hardest + at] = candidate.index;
    p.hardest_logits[uint64_t(row) * p.hardest + at] = candidate.logit;
  }
};

// The bin of the boundary by the top bits of all logits of a source, of which one that is no number
// goes to the status.
template <class Source>
__device__ Bin top_bin(const Source& source, Shared& shared, const Out& out) {
  const uint32_t limit = out.p.infinities ? 0xff000000u : 0xfeffffffu;
  const bool beyond = count<0>(source, shared, 0, limit);
  if (__syncthreads_or(beyond) && threadIdx.x == 0) {
    atomicMax(&out.p.status->logits, NO_ROW_INDEX - (out.p.first_row + out.row));
  }
  auto wanted = [&](uint32_t total) { return min(out.p.hardest, total); };
  return find_bin<RANK_THREADS>(shared.histogram, shared.slots, 1, shared.bin, wanted);
}

// The hardest of a whole row of logits.
__device__ void rank_row(const Row& row, Shared& shared, Candidate* candidates, const Out& out) {
  const Bin top = top_bin(row, shared, out);
  const uint32_t taken = min(out.p.hardest, top.total);
  out.begin(taken);
  if (taken == 0) return;
  const uint32_t listed = top.above + top.count;
  if (listed <= RANK_CANDIDATES) {
    const Boundary all = {top.index << Level<0>::shift, ~0u};
    list(row, shared, all, [&](uint32_t at, Candidate candidate) { candidates[at] = candidate; });
    const List source = {candidates, listed};
    list(source, shared, refine(source, shared, top, taken), out);
  } else {
    list(row, shared, refine(row, shared, top, taken), out);
  }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(RANK_THREADS, 2)
    rank_logits(const __grid_constant__ RankParams p) {
  extern __shared__ __align__(16) Candidate candidates[];
  __shared__ Shared shared;
  const float* logits = p.logits + uint64_t(blockIdx.x) * p.capacity;
  rank_row(Row(p, blockIdx.x, logits), shared, candidates, {p, blockIdx.x});
}

// ── Of what `contrast` lets pass ─────────────────────────────────────────────────────────────────

namespace {

// Where a chunk's tiles have their logits among their split's: a thread takes a tile.
struct Chunk {
  uint32_t counts[RANK_THREADS];
  uint32_t before[RANK_THREADS];  // of each split, in the chunks before; splits are no more than threads
};

// Lists what has passed, by ascending index. A thread takes a tile of the queue, a chunk of tiles after
// the other; tiles of a split lie `splits` apart, and their logits one behind the other.
__device__ void gather(const PassedParams& p, Shared& shared, Chunk& chunk, Candidate* candidates) {
  for (uint32_t i = threadIdx.x; i < p.splits; i += RANK_THREADS) chunk.before[i] = 0;
  const float* values = p.passed_logits + uint64_t(blockIdx.x) * p.splits * p.room;
  uint32_t listed = 0;
  for (uint32_t first = 0, parity = 0; first < p.tiles; first += RANK_THREADS, parity ^= 1) {
    const uint32_t tile = first + threadIdx.x, split = tile % p.splits;
    uint32_t word = tile < p.tiles ? p.passing[uint64_t(blockIdx.x) * p.tiles + tile] : 0;
    chunk.counts[threadIdx.x] = __popc(word);
    uint32_t total;
    // Its barrier is that of `counts` and `before` too.
    uint32_t at = listed + block_prefix<RANK_THREADS>(__popc(word), shared.slots, parity, total);
    uint32_t from = chunk.before[split];
    for (uint32_t i = threadIdx.x; i >= p.splits; i -= p.splits) from += chunk.counts[i - p.splits];
    const uint32_t behind = from + __popc(word);
    for (; word != 0; word &= word - 1) {
      const uint32_t index = tile * CONTRAST_DEPTH + __ffs(word) - 1;
      candidates[at++] = {index, values[uint64_t(split) * p.room + from++]};
    }
    listed += total;
    __syncthreads();
    // The last tile of each split in this chunk.
    if (threadIdx.x + p.splits >= RANK_THREADS) chunk.before[split] = behind;
  }
  __syncthreads();
}

}  // namespace

extern "C" __global__ void __launch_bounds__(RANK_THREADS, 2)
    rank_passed(const __grid_constant__ PassedParams p) {
  extern __shared__ __align__(16) Candidate candidates[];
  __shared__ Shared shared;
  __shared__ Chunk chunk;
  const Out out = {p.out, blockIdx.x};
  // Its logits are all zero, and all pass: to repair a batch of such rows would take forever, for lists
  // that nobody reads.
  if (p.faults[blockIdx.x] != FAULT_NONE) {
    if (threadIdx.x == 0) p.marked[blockIdx.x] = 0;
    out.begin(0);
    return;
  }
  uint32_t passed = 0, unmasked = 0;
  bool clipped = false;
  for (uint32_t i = 0; i < p.splits; ++i) {
    const uint64_t at = uint64_t(blockIdx.x) * p.splits + i;
    passed += p.passed[at], unmasked += p.unmasked[at];
    clipped |= p.passed[at] > p.room;
  }
  // If as many have passed as are wanted, the hardest are among them, ties and all.
  const bool short_of = passed < min(p.out.hardest, unmasked);
  const bool marked = short_of || clipped || passed > RANK_CANDIDATES;
  if (threadIdx.x == 0) p.marked[blockIdx.x] = marked;
  if (marked) return;
  gather(p, shared, chunk, candidates);
  const List source = {candidates, passed};
  const Bin top = top_bin(source, shared, out);
  const uint32_t taken = min(p.out.hardest, top.total);
  out.begin(taken);
  if (taken > 0) list(source, shared, refine(source, shared, top, taken), out);
}

// ── What is not surely right ─────────────────────────────────────────────────────────────────────

namespace {

// All logits of a query, to the bit those of `contrast`: the same products in the same order, of 8 queue
// rows a warp. Of the operand's sixteen queries one is real, which is slow and does not matter.
template <class T, bool EXACT>
__device__ void rescore(const RepairParams& p, uint32_t row, float* logits) {
  using P = Product<T, EXACT>;
  const uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, group = lane / 4, quad = lane % 4;
  const float* query = p.queries + uint64_t(row) * p.dim;
  const uint32_t capacity = p.out.capacity;
  for (uint32_t first = warp * 8; first < capacity; first += RANK_THREADS / WARP * 8) {
    const bool inside = first + group < capacity;
    const T* own = static_cast<const T*>(p.queue) + uint64_t(inside ? first + group : first) * p.dim;
    const uint32_t query_end = group == 0 ? p.dim : 0, own_end = inside ? p.dim : 0;
    float sum[4] = {};
#pragma unroll 1
    for (uint32_t step = 0; step < p.dim; step += P::DEPTH) {
      if constexpr (is_bf16<T>) {
        float a[8] = {};
        uint32_t b[2] = {};
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i) {
          const uint32_t at = step + i / 2 * 8 + quad * 2 + i % 2;
          if (at < query_end) a[i / 2 * 4 + i % 2] = query[at];
          if (at < own_end) b[i / 2] |= uint32_t(__bfloat16_as_ushort(own[at])) << i % 2 * 16;
        }
        P::add(sum, P::left(a), b);
      } else {
        float a[4] = {}, b[2] = {};
#pragma unroll
        for (uint32_t i = 0; i < 2; ++i) {
          // As `contrast` pairs them: see its `Queries`.
          const uint32_t at = step + (sizeof(T) == 4 ? quad + i * 4 : quad * 2 + i);
          if (at < query_end) a[i * 2] = query[at];
          if (at < own_end) b[i] = to_float(own[at]);
        }
        P::add(sum, P::left(a), b);
      }
    }
    if (group == 0) {
#pragma unroll
      for (uint32_t i = 0; i < 2; ++i) {
        if (first + quad * 2 + i < capacity) logits[first + quad * 2 + i] = sum[i];
      }
    }
  }
}

// Each marked row is some block's, in turn.
template <class T, bool EXACT>
__device__ void repair(const RepairParams& p) {
  extern __shared__ __align__(16) Candidate candidates[];
  __shared__ Shared shared;
  float* logits = p.logits + uint64_t(blockIdx.x) * p.out.capacity;
  uint32_t turn = 0;
  for (uint32_t row = 0; row < p.rows; ++row) {
    if (!p.marked[row] || turn++ % REPAIR_BLOCKS != blockIdx.x) continue;
    rescore<T, EXACT>(p, row, logits);
    // Looks at a logit only behind a barrier, and ends behind one.
    rank_row(Row(p.out, row, logits), shared, candidates, {p.out, row});
  }
}

}  // namespace

// Named by the queue's type and the precision.
#define REPAIR(T, precision, exact)                                        \
  extern "C" __global__ void __launch_bounds__(RANK_THREADS, 1)            \
      repair_##T##_##precision(const __grid_constant__ RepairParams p) {   \
    repair<T, exact>(p);                                                   \
  }

using f32 = float;
REPAIR(f32, exact, true)
REPAIR(f16, exact, true)
REPAIR(bf16, exact, true)
REPAIR(f32, tensor, false)
REPAIR(f16, tensor, false)
REPAIR(bf16, tensor, false)

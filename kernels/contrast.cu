// contrast: exponentials of the logits and the sum of queue rows weighted by them, in one pass over
// the queue, without a logit or a weight in memory (FlashAttention-2's forward pass, Dao, 2023, with
// the queue for both keys and values).
//
// A warp takes 16 queries. Of each tile of CONTRAST_DEPTH queue rows it makes the logits, then the
// exponentials relative to a shift fixed before the pass, then their product with the same tile in
// shared memory. With a fixed shift partial sums merge by addition, and nothing is rescaled on the way.
//
// The shift is a bound of the row's logits, ‖q‖·max‖n‖, where no exponential can then be small enough
// to lose bits; else the row is hot, and a pass before this one, `contrast_*_maxima`, gives its largest
// logit. A split takes every `splits`-th tile. Splits are cut by the queue's length alone, and a
// logit's bits are those of logits.cu: a row's bits do not depend on its batch.
//
// Where the hardest are asked for, the logits that may be among them leave the pass: those not below
// the row's threshold, one behind the other, and a bit for each row of the queue.
//
// Each tile's sum, on the tensor cores, joins its split's by an addition that rounds to nearest:
// theirs truncate, and over a whole split that would add up.
#include <math_constants.h>

#include "device/copy.cuh"
#include "device/element.cuh"
#include "device/product.cuh"
#include "device/reduce.cuh"
#include "params.h"

namespace {

constexpr uint32_t NO_LABEL = 0xffffffffu;
constexpr uint32_t WARPS = CONTRAST_THREADS / WARP;
static_assert(WARPS * 16 == CONTRAST_ROWS, "a warp takes 16 queries");
// A tile's logits of a warp, by eight.
constexpr uint32_t TILES = CONTRAST_DEPTH / 8;

// Everything of at most DIM dimensions.
template <uint32_t DIM>
constexpr uint32_t STAGES = DIM == CONTRAST_DIM ? CONTRAST_STAGES : CONTRAST_LARGE_STAGES;

template <class T, uint32_t DIM>
struct alignas(16) Stage {
  T rows[CONTRAST_DEPTH][DIM + (sizeof(T) == 4 ? CONTRAST_PADDING : CONTRAST_PADDING_16)];
};

// A block's queries as the product takes them, of each warp 16.
template <class T, bool EXACT, uint32_t DIM>
struct Queries {
  using P = Product<T, EXACT>;
  float rows[CONTRAST_ROWS][DIM + CONTRAST_PADDING];

  // Two dimensions, from an even one on, so that each meets its like in a queue row: of f16 a register
  // holds dimensions 2k and 2k + 1, the k-th and (k + 4)-th of eight for the tensor cores.
  __device__ void put(uint32_t row, uint32_t at, float x, float y) {
    const uint32_t within = at % 8;
    const uint32_t place = sizeof(T) == 4 ? at : at - within / 2;
    rows[row][place] = x;
    rows[row][place + (sizeof(T) == 4 ? 1 : 4)] = y;
  }

  __device__ typename P::Left load(uint32_t first, uint32_t at) const {
    const uint32_t group = threadIdx.x % WARP / 4, quad = threadIdx.x % 4;
    float a[4];
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) a[i] = rows[first + group + i % 2 * 8][at + quad + i / 2 * 4];
    return P::left(a);
  }
};

// Split once, and not again for each tile.
template <bool EXACT, uint32_t DIM>
struct alignas(16) Queries<bf16, EXACT, DIM> {
  using P = Product<bf16, EXACT>;
  uint32_t parts[P::PARTS][CONTRAST_ROWS][(DIM + CONTRAST_PADDING_16) / 2];

  __device__ void put(uint32_t row, uint32_t at, float x, float y) {
    uint32_t words[P::PARTS];
    P::split_pair(x, y, words);
#pragma unroll
    for (uint32_t part = 0; part < P::PARTS; ++part) parts[part][row][at / 2] = words[part];
  }

  __device__ typename P::Left load(uint32_t first, uint32_t at) const {
    const uint32_t lane = threadIdx.x % WARP;
    typename P::Left a;
#pragma unroll
    for (uint32_t part = 0; part < P::PARTS; ++part) {
      load_matrices(a.parts[part], shared_address(&parts[part][first + lane % 16][at / 2 + lane / 16 * 4]));
    }
    return a;
  }
};

// Copies `width` elements, a multiple of a product's DEPTH, of each queue row from `first` on, zeros past either end.
template <class T, uint32_t DIM>
__device__ void fill(Stage<T, DIM>& to, const ContrastParams& p, uint32_t first, uint32_t width) {
  constexpr uint32_t PER_CHUNK = 16 / sizeof(T);
  const T* queue = static_cast<const T*>(p.queue);
  if (p.queue_aligned) {
    const uint32_t chunks = width / PER_CHUNK;
    for (uint32_t i = threadIdx.x; i < CONTRAST_DEPTH * chunks; i += CONTRAST_THREADS) {
      const uint32_t y = i / chunks, x = i % chunks * PER_CHUNK;
      const bool inside = first + y < p.capacity && x < p.dim;
      const T* source = inside ? queue + uint64_t(first + y) * p.dim + x : queue;
      copy16(shared_address(&to.rows[y][x]), source, inside ? 16 : 0);
    }
  } else {
    for (uint32_t i = threadIdx.x; i < CONTRAST_DEPTH * width; i += CONTRAST_THREADS) {
      const uint32_t y = i / width, x = i % width;
      const bool inside = first + y < p.capacity && x < p.dim;
      to.rows[y][x] = inside ? queue[uint64_t(first + y) * p.dim + x] : from_float<T>(0.0f);
    }
  }
}

// Eight dimensions of a queue row as the first product's operand.
__device__ inline void load_pair(float (&b)[2], const float* row) {
  const uint32_t quad = threadIdx.x % 4;
  b[0] = row[quad], b[1] = row[quad + 4];
}

__device__ inline void load_pair(float (&b)[2], const f16* row) {
  const uint32_t quad = threadIdx.x % 4;
  b[0] = to_float(row[2 * quad]), b[1] = to_float(row[2 * quad + 1]);
}

// The logits of a warp's queries and a tile: the arithmetic of logits.cu, in its order.
template <class T, bool EXACT, uint32_t DIM>
__device__ void logits_of(float (&logits)[TILES][4], const Queries<T, EXACT, DIM>& queries, uint32_t first,
                          const Stage<T, DIM>& stage, uint32_t width) {
  using P = Product<T, EXACT>;
  const uint32_t lane = threadIdx.x % WARP;
#pragma unroll 1
  for (uint32_t at = 0; at < width; at += P::DEPTH) {
    const typename P::Left a = queries.load(first, at);
    if constexpr (is_bf16<T>) {
#pragma unroll
      for (uint32_t n = 0; n < TILES; n += 2) {
        uint32_t words[4];
        load_matrices(words, shared_address(&stage.rows[n * 8 + lane % 16][at + lane / 16 * 8]));
        P::add(logits[n], a, {words[0], words[2]});
        P::add(logits[n + 1], a, {words[1], words[3]});
      }
    } else {
#pragma unroll
      for (uint32_t n = 0; n < TILES; ++n) {
        float b[2];
        load_pair(b, &stage.rows[n * 8 + lane / 4][at]);
        P::add(logits[n], a, b);
      }
    }
  }
}

// The exponentials' product with the tile, into sums of its own. A lane holds of eight queue rows those at
// 2·quad and 2·quad + 1, as bf16 words are held; in TF32 they go to the tensor cores as the quad-th and
// (quad + 4)-th.
template <class T, bool EXACT, uint32_t DIM>
__device__ void weigh(float (&totals)[DIM / 8][4], const float (&weights)[TILES][4],
                      const Stage<T, DIM>& stage, uint32_t width) {
  using P = Product<T, EXACT>;
  // Of the left operand.
  constexpr uint32_t STEPS = CONTRAST_DEPTH / P::DEPTH;
  const uint32_t lane = threadIdx.x % WARP;
  typename P::Left left[STEPS];
#pragma unroll
  for (uint32_t step = 0; step < STEPS; ++step) {
    if constexpr (is_bf16<T>) {
      const float (&a)[4] = weights[2 * step], (&b)[4] = weights[2 * step + 1];
      left[step] = P::left({a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]});
    } else {
      const float (&a)[4] = weights[step];
      left[step] = P::left({a[0], a[2], a[1], a[3]});
    }
  }
#pragma unroll
  for (uint32_t column = 0; column < DIM / 8; column += P::DEPTH / 8) {
    if (column * 8 >= width) continue;
    float sums[P::DEPTH / 8][4] = {};
#pragma unroll
    for (uint32_t step = 0; step < STEPS; ++step) {
      if constexpr (is_bf16<T>) {
        uint32_t words[4];
        load_transposed(words,
                        shared_address(&stage.rows[step * 16 + lane % 16][column * 8 + lane / 16 * 8]));
        P::add(sums[0], left[step], {words[0], words[1]});
        P::add(sums[1], left[step], {words[2], words[3]});
      } else {
        const uint32_t row = step * 8 + lane % 4 * 2, x = column * 8 + lane / 4;
        P::add(sums[0], left[step], {to_float(stage.rows[row][x]), to_float(stage.rows[row + 1][x])});
      }
    }
#pragma unroll
    for (uint32_t n = 0; n < P::DEPTH / 8; ++n) {
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i) totals[column + n][i] += sums[n][i];
    }
  }
}

// Over the four lanes of a row, in a fixed tree.
template <class T, class Combine>
__device__ T quad_reduce(T x, Combine combine) {
  x = combine(x, __shfl_xor_sync(ALL_LANES, x, 1));
  return combine(x, __shfl_xor_sync(ALL_LANES, x, 2));
}

struct Plus {
  template <class T>
  __device__ T operator()(T a, T b) const { return a + b; }
};

struct Max {
  __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

// What a pass makes: the largest logit of each hot row and nothing else, exponentials and sums, or these
// and the logits that are candidates for the hardest.
enum class Pass { MAXIMA, SUMS, RANKED };

// Writes the logits of a lane's row and a tile that pass, one behind the other in queue order, and a bit
// each. The four lanes of a row call it together; all know how many passed before.
__device__ inline void emit(const ContrastParams& p, uint32_t row, uint32_t split, uint32_t tile,
                            uint32_t own_bits, const float (&own)[8], uint32_t& passed) {
  const uint32_t quad = threadIdx.x % 4;
  uint32_t word = own_bits;
  word |= __shfl_xor_sync(ALL_LANES, word, 1);
  word |= __shfl_xor_sync(ALL_LANES, word, 2);
  if (row < p.rows) {
    if (quad == 0) p.passing[uint64_t(row) * p.tiles + tile] = word;
    float* values = p.passed_logits + (uint64_t(row) * p.splits + split) * p.room;
#pragma unroll
    for (uint32_t i = 0; i < 8; ++i) {
      const uint32_t bit = i / 2 * 8 + quad * 2 + i % 2;
      const uint32_t at = passed + __popc(word & ((1u << bit) - 1));
      if ((own_bits >> bit & 1) && at < p.room) values[at] = own[i];
    }
  }
  passed += __popc(word);
}

template <class T, bool EXACT, uint32_t DIM, Pass PASS>
__device__ __forceinline__ void contrast(const ContrastParams& p) {
  constexpr bool MAXIMA = PASS == Pass::MAXIMA, RANKED = PASS == Pass::RANKED;
  static_assert(CONTRAST_DEPTH == 32, "a tile's passing bits are a word");
  extern __shared__ __align__(128) unsigned char memory[];
  Stage<T, DIM>* ring = reinterpret_cast<Stage<T, DIM>*>(memory);
  auto& queries = *reinterpret_cast<Queries<T, EXACT, DIM>*>(memory + STAGES<DIM> * sizeof(Stage<T, DIM>));
  const uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, quad = lane % 4;
  const uint32_t first_query = blockIdx.x * CONTRAST_ROWS, split = blockIdx.y;
  if (MAXIMA) {
    const uint32_t row = first_query + threadIdx.x;
    const bool hot = threadIdx.x < CONTRAST_ROWS && row < p.rows && p.hot[row];
    if (!__syncthreads_or(hot)) return;
  }
  constexpr uint32_t DEPTH = Product<T, EXACT>::DEPTH;
  const uint32_t width = (p.dim + DEPTH - 1) / DEPTH * DEPTH;
  for (uint32_t i = threadIdx.x; i < CONTRAST_ROWS * width / 2; i += CONTRAST_THREADS) {
    const uint32_t y = i / (width / 2), x = i % (width / 2) * 2;
    const float* own = p.queries + uint64_t(first_query + y) * p.dim;
    const bool inside = first_query + y < p.rows;
    queries.put(y, x, inside && x < p.dim ? own[x] : 0.0f, inside && x + 1 < p.dim ? own[x + 1] : 0.0f);
  }

  const uint32_t all = (p.capacity + CONTRAST_DEPTH - 1) / CONTRAST_DEPTH;
  const uint32_t stages = (all - split + p.splits - 1) / p.splits;
  auto refill = [&](uint32_t stage) {
    if (stage < stages) {
      fill(ring[stage % STAGES<DIM>], p, (split + stage * p.splits) * CONTRAST_DEPTH, width);
    }
    copy_commit();
  };

  // Of the lane's two rows, eight apart.
  uint32_t own[2], unmasked[2] = {0, 0}, passed[2] = {0, 0};
  float threshold[2];
  float shift[2], largest[2] = {-CUDART_INF_F, -CUDART_INF_F};
  double total[2] = {0.0, 0.0}, uniformity[2] = {0.0, 0.0};
#pragma unroll
  for (uint32_t half = 0; half < 2; ++half) {
    const uint32_t row = min(first_query + warp * 16 + half * 8 + lane / 4, p.rows - 1);
    own[half] = p.query_labels ? p.query_labels[row] : NO_LABEL;
    shift[half] = MAXIMA ? 0.0f : p.shifts[row];
    threshold[half] = RANKED ? p.thresholds[row] : 0.0f;
  }
  float sums[DIM / 8][4] = {};

  for (uint32_t stage = 0; stage + 1 < STAGES<DIM>; ++stage) refill(stage);
  for (uint32_t stage = 0; stage < stages; ++stage) {
    copy_wait<STAGES<DIM> - 2>();
    // Every thread's copies of this stage have arrived, and no thread reads the one before.
    __syncthreads();
    refill(stage + STAGES<DIM> - 1);
    const Stage<T, DIM>& tile = ring[stage % STAGES<DIM>];
    float logits[TILES][4] = {};
    logits_of<T, EXACT>(logits, queries, warp * 16, tile, width);

    const uint32_t first = (split + stage * p.splits) * CONTRAST_DEPTH;
    float tile_total[2] = {0.0f, 0.0f}, tile_uniformity[2] = {0.0f, 0.0f};
    uint32_t bits[2] = {0, 0};
    float candidates[2][8];
#pragma unroll
    for (uint32_t n = 0; n < TILES; ++n) {
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i) {
        const uint32_t half = i / 2, column = first + n * 8 + quad * 2 + i % 2;
        // A label that is none equals nothing.
        const bool taken = column < p.capacity &&
                           (own[half] == NO_LABEL || p.queue_labels[column] != own[half]);
        const float logit = logits[n][i];
        if (RANKED) {
          candidates[half][n * 2 + i % 2] = logit;
          // Not `logit >= threshold`: what is no number passes, and is seen.
          const bool passes = taken && !(logit < threshold[half]);
          bits[half] |= uint32_t(passes) << (n * 8 + quad * 2 + i % 2);
        }
        logits[n][i] = 0.0f;
        if (!taken) continue;
        largest[half] = fmaxf(largest[half], logit);
        ++unmasked[half];
        if (MAXIMA) continue;
        const float exponential = exp2f((logit - shift[half]) * p.exponent_scale);
        logits[n][i] = exponential;
        tile_total[half] += exponential;
        if (p.uniformity) tile_uniformity[half] += exp2f((logit - shift[half]) * p.uniformity_scale);
      }
    }
    if constexpr (RANKED) {
#pragma unroll
      for (uint32_t half = 0; half < 2; ++half) {
        const uint32_t row = first_query + warp * 16 + half * 8 + lane / 4;
        emit(p, row, split, split + stage * p.splits, bits[half], candidates[half], passed[half]);
      }
    }
    if constexpr (!MAXIMA) {
#pragma unroll
      for (uint32_t half = 0; half < 2; ++half) {
        total[half] += double(tile_total[half]);
        uniformity[half] += double(tile_uniformity[half]);
      }
      weigh<T, EXACT>(sums, logits, tile, width);
    }
  }

#pragma unroll
  for (uint32_t half = 0; half < 2; ++half) {
    const uint32_t row = first_query + warp * 16 + half * 8 + lane / 4;
    const float row_largest = quad_reduce(largest[half], Max());
    const uint32_t row_unmasked = quad_reduce(unmasked[half], Plus());
    const double row_total = quad_reduce(total[half], Plus());
    const double row_uniformity = quad_reduce(uniformity[half], Plus());
    if (row >= p.rows) continue;
    const uint64_t at = uint64_t(row) * p.splits + split;
    if (quad == 0) p.maxima[at] = row_largest;
    if constexpr (MAXIMA) continue;
    if (quad == 0) {
      p.unmasked[at] = row_unmasked;
      p.totals[at] = row_total;
      if (p.uniformity) p.uniformity[at] = row_uniformity;
      if (RANKED) p.passed[at] = passed[half];
    }
    float* out = p.sums + (uint64_t(split) * p.rows + row) * p.dim;
#pragma unroll
    for (uint32_t n = 0; n < DIM / 8; ++n) {
#pragma unroll
      for (uint32_t i = 0; i < 2; ++i) {
        const uint32_t column = n * 8 + quad * 2 + i;
        if (column < p.dim) out[column] = sums[n][half * 2 + i];
      }
    }
  }
}

}  // namespace

// Named by the queue's type, the precision, the most dimensions, `maxima` for the pass before, and `ranked`
// where it emits.
#define CONTRAST_PASS(T, name, exact, dim, blocks, pass)                     \
  extern "C" __global__ void __launch_bounds__(CONTRAST_THREADS, blocks)     \
      contrast_##T##_##name(const __grid_constant__ ContrastParams p) {      \
    contrast<T, exact, dim, pass>(p);                                        \
  }
#define CONTRAST_DIMENSIONS(T, name, exact, dim, blocks)               \
  CONTRAST_PASS(T, name, exact, dim, blocks, Pass::SUMS)               \
  CONTRAST_PASS(T, name##_maxima, exact, dim, blocks, Pass::MAXIMA)    \
  CONTRAST_PASS(T, name##_ranked, exact, dim, blocks, Pass::RANKED)
#define CONTRAST(T)                                                          \
  CONTRAST_DIMENSIONS(T, exact_128, true, CONTRAST_DIM, 2)                   \
  CONTRAST_DIMENSIONS(T, tensor_128, false, CONTRAST_DIM, 2)                 \
  CONTRAST_DIMENSIONS(T, exact_256, true, CONTRAST_LARGE_DIM, 1)             \
  CONTRAST_DIMENSIONS(T, tensor_256, false, CONTRAST_LARGE_DIM, 1)

using f32 = float;
CONTRAST(f32)
CONTRAST(f16)
CONTRAST(bf16)

// A thread takes a row: its bound, and whether exponentials relative to it could be too small.
extern "C" __global__ void __launch_bounds__(BOUND_THREADS, 4)
    bound_logits(const __grid_constant__ BoundParams p) {
  const uint32_t row = blockIdx.x * BOUND_THREADS + threadIdx.x;
  if (row >= p.rows) return;
  float longest = 0.0f;
  for (uint32_t i = 0; i < p.longest_splits; ++i) longest = fmaxf(longest, p.longest[i]);
  const double bound = sqrt(p.query_squares[row]) * sqrt(double(longest));
  const bool faulty = p.faults[row] != 0;
  // No logit is further from the bound than twice the bound.
  p.hot[row] = !faulty && !(2.0 * bound <= double(p.most));
  p.shifts[row] = faulty ? 0.0f : __double2float_ru(bound);
}

// A warp takes a row: where it is hot, its shift is its largest logit.
extern "C" __global__ void __launch_bounds__(BOUND_THREADS, 4)
    settle_shifts(const __grid_constant__ BoundParams p) {
  const uint32_t row = warp_row<BOUND_THREADS>(), lane = threadIdx.x % WARP;
  if (row >= p.rows || !p.hot[row]) return;
  float largest = -CUDART_INF_F;
  for (uint32_t i = lane; i < p.splits; i += WARP) {
    largest = fmaxf(largest, p.maxima[uint64_t(row) * p.splits + i]);
  }
  largest = warp_max(largest);
  // Of a row without negatives no exponential is taken.
  if (lane == 0) p.shifts[row] = isfinite(largest) ? largest : 0.0f;
}

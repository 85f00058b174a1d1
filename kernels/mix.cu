// mix: synthetic negatives of a query, from two of its hardest or from the query and one of them
// (method: Loss, 2 and 3).
//
// `mix` makes their logits, which are functions of logits and norms that are there already and, for a
// pair, of one dot product more. `fold` makes their gradient weights of the hardest (method: Gradient,
// last point), so that the queue's own product takes them along, or direction.cu, and no mixture is ever written out;
// `mix_features` is for those who want them written out.
#include <math_constants.h>

#include "device/block.cuh"
#include "device/draws.cuh"
#include "device/element.cuh"
#include "device/reduce.cuh"
#include "params.h"

namespace {

// A mixture shorter than this is the zero vector.
constexpr double SHORTEST = 1e-12;

// ── The draws ────────────────────────────────────────────────────────────────────────────────────

// One synthetic negative: of which row, the how manieth of its kind.
struct Synthetic {
  uint32_t row;
  uint32_t index;
  bool query_mixed;
  uint32_t count;  // of the row's hardest
  uint64_t at;     // in the arrays of its kind
};

__device__ void refuse(const MixParams& p, const Synthetic& own, uint32_t kind) {
  const uint64_t row = p.first_row + own.row;
  const auto to = reinterpret_cast<unsigned long long*>(p.refused_draw);
  atomicMax(to, NO_DRAW - (row << 35 | uint64_t(kind) << 32 | own.index));
}

// A draw as given. One out of range is reported and replaced by one that is not; of a row without
// hardest any position will do.
__device__ Draw given(const MixParams& p, const Synthetic& own) {
  const bool q = own.query_mixed;
  const Draw draw{q ? 0 : p.given_first[own.at], (q ? p.given_pick : p.given_second)[own.at],
                  (q ? p.given_beta : p.given_alpha)[own.at]};
  if (own.count == 0) return draw;
  if (!(draw.weight >= 0.0f && draw.weight <= 1.0f)) refuse(p, own, q ? DRAW_BETA : DRAW_ALPHA);
  if (draw.first >= own.count) refuse(p, own, DRAW_FIRST);
  if (draw.second >= own.count) refuse(p, own, q ? DRAW_PICK : DRAW_SECOND);
  return draw;
}

// The draw of a synthetic negative; written where the caller will look for it, by one lane.
__device__ Draw resolve(const MixParams& p, const Synthetic& own, bool writes) {
  Draw draw;
  if (p.seed_and_step == nullptr) {
    draw = given(p, own);
  } else if (own.query_mixed) {
    draw = query_mixed_draw(p.seed_and_step, p.row_offset + own.row, own.index, own.count);
  } else {
    draw = mixed_draw(p.seed_and_step, p.row_offset + own.row, own.index, own.count);
  }
  if (writes && own.query_mixed) {
    p.pick[own.at] = draw.second;
    p.beta[own.at] = draw.weight;
  } else if (writes) {
    p.first[own.at] = draw.first;
    p.second[own.at] = draw.second;
    p.alpha[own.at] = draw.weight;
  }
  const uint32_t last = own.count == 0 ? 0 : own.count - 1;
  return {min(draw.first, last), min(draw.second, last), draw.weight};
}

// ── The mixtures ─────────────────────────────────────────────────────────────────────────────────

// Sum over the MIX_LANES lanes that share a mixture; all of them get it.
template <class U>
__device__ U group_sum(U x) {
  const uint32_t group = ((1u << MIX_LANES) - 1) << (threadIdx.x % WARP / MIX_LANES * MIX_LANES);
#pragma unroll
  for (uint32_t offset = MIX_LANES / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(group, x, offset);
  return x;
}

// 16 bytes of a row, as floats.
template <class T>
struct Chunk {
  static constexpr uint32_t LENGTH = 16 / sizeof(T);
  alignas(16) T x[LENGTH];

  __device__ explicit Chunk(const T* at) {
    *reinterpret_cast<uint4*>(x) = __ldg(reinterpret_cast<const uint4*>(at));
  }
};

// This lane's part of a·b.
template <class T, bool WHOLE_CHUNKS>
__device__ float partial_dot(const T* a, const T* b, uint32_t dim, uint32_t lane) {
  float sum = 0.0f;
  if constexpr (WHOLE_CHUNKS) {
    constexpr uint32_t LENGTH = Chunk<T>::LENGTH;
#pragma unroll 4
    for (uint32_t i = lane * LENGTH; i < dim; i += MIX_LANES * LENGTH) {
      const Chunk<T> x(a + i), y(b + i);
#pragma unroll
      for (uint32_t k = 0; k < LENGTH; ++k) sum = fmaf(to_float(x.x[k]), to_float(y.x[k]), sum);
    }
  } else {
#pragma unroll 4
    for (uint32_t i = lane; i < dim; i += MIX_LANES) sum = fmaf(to_float(a[i]), to_float(b[i]), sum);
  }
  return sum;
}

struct Mixture {
  double logit;
  double inverse;  // 1/r, 0 where r is too short
};

// q·h and 1/r from the rows themselves, by a group of lanes.
template <class A, class B>
__device__ Mixture from_rows(double weight, const float* query, const A* a, const B* b, uint32_t dim,
                             uint32_t lane) {
  double squares = 0.0, logit = 0.0;
  for (uint32_t i = lane; i < dim; i += MIX_LANES) {
    const double h = weight * double(to_float(a[i])) + (1.0 - weight) * double(to_float(b[i]));
    squares += h * h;
    logit += double(query[i]) * h;
  }
  const double r = sqrt(group_sum(squares));
  logit = group_sum(logit);
  if (r < SHORTEST) return {0.0, 0.0};
  return {logit / r, 1.0 / r};
}

// The same from products of the two rows. 1/r is NaN where r² overflows, and where the rows all but
// cancel: with r² less than a sixteenth of its parts the error of the f32 products, some 1e-7 of
// those, would show in the logit's sixth digit.
__device__ Mixture from_products(double weight, const double (&squares)[2], const double (&logits)[2],
                                 double dot) {
  const double rest = 1.0 - weight;
  const double parts = weight * weight * squares[0] + rest * rest * squares[1];
  const double squared = parts + 2.0 * weight * rest * dot;
  const bool sound =
      squared >= parts * (1.0 / 16.0) && squared >= SHORTEST * SHORTEST && isfinite(squared);
  const double inverse = sound ? 1.0 / sqrt(squared) : CUDART_NAN;
  return {(weight * logits[0] + rest * logits[1]) * inverse, inverse};
}

template <class T, bool WHOLE_CHUNKS>
__device__ Mixture mixture(const MixParams& p, const Synthetic& own, const Draw& draw, uint32_t lane) {
  const T* queue = static_cast<const T*>(p.queue);
  const float* query = p.queries + uint64_t(own.row) * p.dim;
  const uint64_t list = uint64_t(own.row) * p.hardest_width;
  const double weight = draw.weight;
  const uint32_t second = p.hardest[list + draw.second];
  const double second_logit = p.hardest_logits[list + draw.second];
  const T* b = queue + uint64_t(second) * p.dim;
  if (own.query_mixed) {
    // A square may overflow f32 where no logit does.
    const double squares[2] = {double(float(p.query_squares[own.row])), p.squared_norms[second]};
    const double logits[2] = {squares[0], second_logit};
    const Mixture m = from_products(weight, squares, logits, second_logit);
    return isnan(m.inverse) ? from_rows(weight, query, query, b, p.dim, lane) : m;
  }
  const uint32_t first = p.hardest[list + draw.first];
  const T* a = queue + uint64_t(first) * p.dim;
  const double squares[2] = {p.squared_norms[first], p.squared_norms[second]};
  const double logits[2] = {p.hardest_logits[list + draw.first], second_logit};
  const float dot = group_sum(partial_dot<T, WHOLE_CHUNKS>(a, b, p.dim, lane));
  const Mixture m = from_products(weight, squares, logits, dot);
  return isnan(m.inverse) ? from_rows(weight, query, a, b, p.dim, lane) : m;
}

// Number `at` of the row that this block works on, mixed before query-mixed.
__device__ Synthetic synthetic(const MixParams& p, uint32_t at) {
  Synthetic own;
  own.row = blockIdx.x;
  own.query_mixed = at >= p.mixed;
  own.index = own.query_mixed ? at - p.mixed : at;
  // No list is longer than its room, whatever is said of it.
  own.count = p.faults && p.faults[own.row] != FAULT_NONE ? 0 : min(p.counts[own.row], p.hardest_width);
  own.at = uint64_t(own.row) * (own.query_mixed ? p.query_mixed : p.mixed) + own.index;
  return own;
}

// Calls `make` for each synthetic negative that this group of lanes makes.
template <class Make>
__device__ void for_own(const MixParams& p, Make make) {
  const uint32_t first = blockIdx.y * MIX_PER_BLOCK + threadIdx.x / MIX_LANES;
  const uint32_t all = p.mixed + p.query_mixed, stride = gridDim.y * MIX_PER_BLOCK;
  for (uint32_t at = first; at < all; at += stride) make(synthetic(p, at));
}

template <class T, bool WHOLE_CHUNKS>
__device__ void mix(const MixParams& p, const Synthetic& own) {
  const uint32_t lane = threadIdx.x % MIX_LANES;
  const Draw draw = resolve(p, own, lane == 0);
  Mixture m{-CUDART_INF, 0.0};
  if (own.count > 0) m = mixture<T, WHOLE_CHUNKS>(p, own, draw, lane);
  if (lane != 0) return;
  (own.query_mixed ? p.query_mixed_logits : p.mixed_logits)[own.at] = float(m.logit);
  const uint64_t base = uint64_t(own.row) * (p.mixed + p.query_mixed);
  p.inverses[base + (own.query_mixed ? p.mixed : 0) + own.index] = m.inverse;
}

template <class A, class B>
__device__ void write_mixture(double weight, const A* a, const B* b, float* h, uint32_t dim,
                              uint32_t lane) {
  double squares = 0.0;
  for (uint32_t i = lane; i < dim; i += MIX_LANES) {
    const double x = weight * double(to_float(a[i])) + (1.0 - weight) * double(to_float(b[i]));
    squares += x * x;
  }
  const double r = sqrt(group_sum(squares));
  for (uint32_t i = lane; i < dim; i += MIX_LANES) {
    const double x = weight * double(to_float(a[i])) + (1.0 - weight) * double(to_float(b[i]));
    h[i] = r < SHORTEST ? 0.0f : float(x / r);
  }
}

template <class T>
__device__ void features(const MixParams& p, const Synthetic& own) {
  const uint32_t lane = threadIdx.x % MIX_LANES;
  const Draw draw = resolve(p, own, lane == 0);
  float* h = (own.query_mixed ? p.query_mixed_features : p.mixed_features) + own.at * p.dim;
  if (own.count == 0) {
    for (uint32_t i = lane; i < p.dim; i += MIX_LANES) h[i] = 0.0f;
    return;
  }
  const T* queue = static_cast<const T*>(p.queue);
  const uint32_t* list = p.hardest + uint64_t(own.row) * p.hardest_width;
  const auto listed = [&](uint32_t position) {
    const uint32_t row = list[position];
    if (row >= p.capacity) refuse(p, own, DRAW_LISTED);
    return queue + uint64_t(min(row, p.capacity - 1)) * p.dim;
  };
  const T* b = listed(draw.second);
  if (own.query_mixed) {
    write_mixture(double(draw.weight), p.queries + uint64_t(own.row) * p.dim, b, h, p.dim, lane);
  } else {
    write_mixture(double(draw.weight), listed(draw.first), b, h, p.dim, lane);
  }
}

// ── Their exponentials and weights ───────────────────────────────────────────────────────────────

// One of a row's synthetic negatives: its exponential, and what its two rows weigh in the gradient.
struct Share {
  float exponential;
  double first, second;
};

__device__ Share share(const FoldParams& p, uint32_t at, float shift) {
  const uint64_t row = blockIdx.x;
  const bool q = at >= p.mixed;
  const uint64_t own = q ? row * p.query_mixed + at - p.mixed : row * p.mixed + at;
  const float logit = (q ? p.query_mixed_logits : p.mixed_logits)[own];
  const double weight = (q ? p.beta : p.alpha)[own];
  const double inverse = p.inverses[row * (p.mixed + p.query_mixed) + at];
  const float exponential = exp2f((logit - shift) * p.exponent_scale);
  const double both = double(exponential) * inverse;
  Share s{exponential, both * weight, both * (1.0 - weight)};
  if (q && p.attached) {
    const double tangent = weight * double(logit) * inverse;
    s.first *= 2.0 - tangent;
    s.second *= 1.0 - tangent;
  }
  return s;
}

}  // namespace

#define KERNEL(NAME, ...)                                                          \
  extern "C" __global__ void __launch_bounds__(MIX_THREADS, 4)                    \
      NAME(const __grid_constant__ MixParams p) {                                 \
    for_own(p, [&](const Synthetic& own) { __VA_ARGS__(p, own); });               \
  }
#define KERNELS(T, NAME)                  \
  KERNEL(mix_##NAME, mix<T, true>)         \
  KERNEL(mix_ragged_##NAME, mix<T, false>) \
  KERNEL(mix_features_##NAME, features<T>)

KERNELS(float, f32)
KERNELS(f16, f16)
KERNELS(bf16, bf16)

// A block takes a row. Several synthetic negatives may weigh the same hardest, in any order: the
// weights are added up as integers, so that the order is nowhere to be seen. Their unit is such that
// the sum of all of them, each as large as the largest, fits 62 bits; what that drops is 2^-48 of the
// largest weight and less.
extern "C" __global__ void __launch_bounds__(MIX_THREADS, 4)
    fold(const __grid_constant__ FoldParams p) {
  __shared__ double slots[MIX_THREADS];
  const uint64_t row = blockIdx.x;
  const uint32_t all = p.mixed + p.query_mixed;
  const uint32_t count = p.faults[row] != FAULT_NONE ? 0 : min(p.counts[row], p.hardest_width);
  const float shift = p.shifts[row];
  unsigned long long* weights = p.weights + row * p.hardest_width;
  for (uint32_t n = threadIdx.x; n < count; n += MIX_THREADS) weights[n] = 0;

  double total = 0.0, query_weight = 0.0, largest = 0.0;
  for (uint32_t at = threadIdx.x; count > 0 && at < all; at += MIX_THREADS) {
    const Share s = share(p, at, shift);
    total += double(s.exponential);
    if (at >= p.mixed) query_weight += s.first;
    largest = fmax(largest, fmax(fabs(s.first), fabs(s.second)));
  }
  // The barriers in here also end the clearing above.
  total = block_reduce(total, slots, Add());
  query_weight = block_reduce(query_weight, slots, Add());
  largest = block_reduce(largest, slots, Largest());

  int exponent = 0;
  if (largest > 0.0) {
    // Two weights each: 2·all ≤ 2^bits.
    const int bits = 33 - __clz(all);
    frexp(largest, &exponent);
    exponent += bits - 62;
    for (uint32_t at = threadIdx.x; at < all; at += MIX_THREADS) {
      const Share s = share(p, at, shift);
      const bool q = at >= p.mixed;
      const uint64_t own = q ? row * p.query_mixed + at - p.mixed : row * p.mixed + at;
      const auto add = [&](uint32_t position, double weight) {
        const long long units = llrint(ldexp(weight, -exponent));
        atomicAdd(weights + min(position, count - 1), static_cast<unsigned long long>(units));
      };
      if (!q) add(p.first[own], s.first);
      add((q ? p.pick : p.second)[own], s.second);
    }
  }
  if (threadIdx.x == 0) {
    p.weight_exponents[row] = exponent;
    p.query_weights[row] = query_weight;
    p.synthetic_totals[row] = total;
  }
}

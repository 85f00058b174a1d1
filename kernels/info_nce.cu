// info_nce: loss, gradient and figures of a row from its logits (method: Loss, 4; Gradient; What to
// report).
//
// Exponentials are taken relative to a shift fixed before any of them, the row's largest logit, real
// or synthetic (each kind has its own on the fused path): partial sums then merge by addition. All cuts depend on the queue's length alone and
// all trees are fixed, so that a row's bits depend neither on its batch nor on the device.
#include <math_constants.h>

#include "device/block.cuh"
#include "device/reduce.cuh"
#include "params.h"

namespace {

constexpr uint32_t NO_LABEL = 0xffffffffu;

// The largest product of norms whose partial sums, and exponents at any temperature from 0.1 up, stay
// clear of f32's end at 3.4e38.
constexpr double LARGEST_LOGIT = 1e37;

// The exponent's factor in the uniformity, 2t with t = 2, and as an exponent of 2.
constexpr double UNIFORMITY_FACTOR = 4.0;
constexpr float UNIFORMITY_SCALE = 5.7707801635558535f;

// Blocks that every multiprocessor holds: those of compute capabilities 8.6, 8.9 and 12 have no more than
// 1536 threads, and for them ptxas refuses to be asked for more.
constexpr uint32_t FULL = 1536 / INFO_NCE_THREADS;

// How many exponentials a thread sums in f32 before the sum joins a double.
constexpr uint32_t CHUNK = 16;
static_assert(INFO_NCE_SPLIT == CHUNK * INFO_NCE_THREADS, "a thread's logits of a split are a chunk");

// The labels by which a row's logits are masked.
struct Mask {
  const uint32_t* labels;
  uint32_t own;

  __device__ Mask(const uint32_t* query_labels, const uint32_t* queue_labels, uint32_t row)
      : labels(queue_labels), own(query_labels ? query_labels[row] : NO_LABEL) {}

  // A label that is none equals nothing.
  __device__ bool operator()(uint32_t column) const {
    return own != NO_LABEL && labels[column] == own;
  }
};

}  // namespace

extern "C" __global__ void __launch_bounds__(INFO_NCE_THREADS, FULL)
    longest(const __grid_constant__ LongestParams p) {
  __shared__ float slots[INFO_NCE_THREADS];
  const uint32_t start = blockIdx.x * LONGEST_SPLIT;
  const uint32_t end = min(start + LONGEST_SPLIT, p.capacity);
  float largest = 0.0f;
  for (uint32_t i = start + threadIdx.x; i < end; i += INFO_NCE_THREADS) {
    largest = fmaxf(largest, p.squared_norms[i]);
  }
  largest = block_reduce(largest, slots, Largest());
  if (threadIdx.x == 0) p.longest[blockIdx.x] = largest;
}

// A warp takes a row. Squares are summed in double: no finite row's overflows.
extern "C" __global__ void __launch_bounds__(INFO_NCE_THREADS, 4)
    prepare(const __grid_constant__ PrepareParams p) {
  const uint32_t lane = threadIdx.x % WARP;
  const uint32_t row = warp_row<INFO_NCE_THREADS>();
  if (row >= p.rows) return;
  const float* query = p.queries + uint64_t(row) * p.dim;
  const float* key = p.keys + uint64_t(row) * p.dim;
  double query_square = 0.0, key_square = 0.0;
  for (uint32_t i = lane; i < p.dim; i += WARP) {
    const double q = query[i], k = key[i];
    query_square += q * q;
    key_square += k * k;
  }
  query_square = warp_sum(query_square);
  key_square = warp_sum(key_square);
  float longest = 0.0f;
  for (uint32_t i = 0; i < p.splits; ++i) longest = fmaxf(longest, p.longest[i]);

  uint32_t fault = FAULT_NONE;
  const double other = fmax(fmax(sqrt(double(longest)), sqrt(key_square)), 1.0);
  if (!isfinite(query_square)) {
    fault = FAULT_QUERIES;
  } else if (!isfinite(key_square)) {
    fault = FAULT_KEYS;
  } else if (!(sqrt(query_square) * other * double(p.stretch) <= LARGEST_LOGIT)) {
    // Zero times infinity is NaN and not bounded either.
    fault = FAULT_LOGITS;
  }
  float* usable = p.usable + uint64_t(row) * p.dim;
  for (uint32_t i = lane; i < p.dim; i += WARP) usable[i] = fault == FAULT_NONE ? query[i] : 0.0f;
  if (p.product_queries) {
    const uint32_t width = (p.dim + PRODUCT_GROUP - 1) / PRODUCT_GROUP * PRODUCT_GROUP;
    for (uint32_t i = lane; i < width; i += WARP) {
      // The tensor cores get dimension 2k as their k-th and 2k + 1 as their (k + 4)-th of eight, which
      // is how two elements share a register.
      const uint32_t at = i % PRODUCT_GROUP, half = PRODUCT_GROUP / 2;
      const uint32_t from = i - at + (at < half ? 2 * at : 2 * (at - half) + 1);
      const uint64_t to = uint64_t(row) * width + i;
      p.product_queries[to] = from < p.dim && fault == FAULT_NONE ? query[from] : 0.0f;
      p.product_keys[to] = from < p.dim ? key[from] : 0.0f;
    }
  }
  if (p.key_parts) {
    // Cut off at 8 bits of significand each, so that they are the key, and a key of bf16 the first.
    uint16_t* parts = static_cast<uint16_t*>(p.key_parts) + uint64_t(row) * KEY_PARTS * p.dim;
    for (uint32_t i = lane; i < p.dim; i += WARP) {
      float rest = key[i];
#pragma unroll
      for (uint32_t part = 0; part < KEY_PARTS; ++part) {
        const uint32_t high = __float_as_uint(rest) & 0xffff0000u;
        parts[part * p.dim + i] = high >> 16;
        rest -= __uint_as_float(high);
      }
    }
  }
  if (lane == 0) {
    p.faults[row] = fault;
    p.query_squares[row] = query_square;
  }
}

// A block takes a split of a row.
extern "C" __global__ void __launch_bounds__(INFO_NCE_THREADS, FULL)
    maxima(const __grid_constant__ MaximaParams p) {
  __shared__ float slots[INFO_NCE_THREADS];
  __shared__ uint32_t counts[INFO_NCE_THREADS];
  const uint32_t row = blockIdx.x, start = blockIdx.y * INFO_NCE_SPLIT;
  const float* logits = p.logits + uint64_t(row) * p.capacity;
  const Mask masked(p.query_labels, p.queue_labels, row);
  float largest = -CUDART_INF_F;
  uint32_t unmasked = 0;
#pragma unroll 4
  for (uint32_t k = 0; k < CHUNK; ++k) {
    const uint32_t column = start + k * INFO_NCE_THREADS + threadIdx.x;
    if (column >= p.capacity || masked(column)) continue;
    largest = fmaxf(largest, logits[column]);
    ++unmasked;
  }
  largest = block_reduce(largest, slots, Largest());
  unmasked = block_reduce(unmasked, counts, Add());
  if (threadIdx.x != 0) return;
  const uint64_t at = uint64_t(row) * gridDim.y + blockIdx.y;
  p.maxima[at] = largest;
  p.unmasked[at] = unmasked;
}

// A block takes a row.
extern "C" __global__ void __launch_bounds__(INFO_NCE_THREADS, FULL)
    shift(const __grid_constant__ ShiftParams p) {
  __shared__ float slots[INFO_NCE_THREADS];
  __shared__ uint32_t counts[INFO_NCE_THREADS];
  const uint64_t row = blockIdx.x;
  float largest = -CUDART_INF_F;
  uint32_t unmasked = 0;
  for (uint32_t i = threadIdx.x; i < p.splits; i += INFO_NCE_THREADS) {
    largest = fmaxf(largest, p.maxima[row * p.splits + i]);
    unmasked += p.unmasked[row * p.splits + i];
  }
  largest = block_reduce(largest, slots, Largest());
  unmasked = block_reduce(unmasked, counts, Add());

  const uint64_t group = row / PRODUCT_ROWS * PRODUCT_ROWS;
  const uint64_t width = min(uint64_t(PRODUCT_ROWS), p.rows - group);
  const float* products = p.products + (group * PRODUCT_ROWS + (row - group) * (width + 1)) * p.key_parts;
  float positive = products[p.key_parts - 1];
  for (uint32_t part = p.key_parts - 1; part-- > 0;) positive += products[part];
  float synthetic = -CUDART_INF_F;
  uint32_t unbeaten = 0, overflow = 0, harder[2];
#pragma unroll
  for (uint32_t kind = 0; kind < 2; ++kind) {
    const uint32_t width = kind == 0 ? p.mixed : p.query_mixed;
    const float* logits = (kind == 0 ? p.mixed_logits : p.query_mixed_logits) + row * width;
    uint32_t above = 0;
    for (uint32_t i = threadIdx.x; i < width; i += INFO_NCE_THREADS) {
      const float logit = logits[i];
      synthetic = fmaxf(synthetic, logit);
      above += logit > largest;
      unbeaten += !(positive > logit);
      overflow += !isfinite(logit);
    }
    harder[kind] = block_reduce(above, counts, Add());
  }
  synthetic = block_reduce(synthetic, slots, Largest());
  unbeaten = block_reduce(unbeaten, counts, Add());
  overflow = block_reduce(overflow, counts, Add());
  if (threadIdx.x != 0) return;
  // Of a row without negatives no exponential is taken; of one that overflows none is used.
  const auto shift_of = [](float logit) { return isfinite(logit) ? logit : 0.0f; };
  if (p.shifts) p.shifts[row] = shift_of(fmaxf(largest, synthetic));
  if (p.synthetic_shifts) p.synthetic_shifts[row] = shift_of(synthetic);
  RowFigures& figures = p.figures[row];
  figures.positive = positive;
  figures.largest = largest;
  figures.unmasked = unmasked;
  figures.mixed_harder = harder[0];
  figures.query_mixed_harder = harder[1];
  figures.hit = positive > largest;
  figures.hit_with_synthetic = figures.hit && unbeaten == 0;
  figures.fault = p.faults[row];
  figures.overflow = unmasked > 0 && overflow > 0;
}

namespace {

// The first of `count` ascending indices that is not below `bound`.
__device__ uint32_t lower_bound(const uint32_t* indices, uint32_t count, uint32_t bound) {
  uint32_t low = 0;
  while (low < count) {
    const uint32_t middle = low + (count - low) / 2;
    if (indices[middle] < bound) {
      low = middle + 1;
    } else {
      count = middle;
    }
  }
  return low;
}

}  // namespace

// A block takes a split of a row.
extern "C" __global__ void __launch_bounds__(INFO_NCE_THREADS, 4)
    exponentials(const __grid_constant__ ExponentialsParams p) {
  __shared__ double slots[INFO_NCE_THREADS];
  const uint32_t row = blockIdx.x, start = blockIdx.y * INFO_NCE_SPLIT;
  const uint32_t end = min(start + INFO_NCE_SPLIT, p.capacity);
  float* logits = p.logits + uint64_t(row) * p.capacity;
  const Mask masked(p.query_labels, p.queue_labels, row);
  const float shift = p.shifts[row], largest = p.figures[row].largest;
  float total = 0.0f, real_total = 0.0f, uniformity = 0.0f;
#pragma unroll 4
  for (uint32_t k = 0; k < CHUNK; ++k) {
    const uint32_t column = start + k * INFO_NCE_THREADS + threadIdx.x;
    if (column >= p.capacity) break;
    if (masked(column)) {
      logits[column] = 0.0f;
      continue;
    }
    const float logit = logits[column];
    const float exponential = exp2f((logit - shift) * p.exponent_scale);
    logits[column] = exponential;
    total += exponential;
    if (p.real_totals) real_total += exp2f((logit - largest) * p.exponent_scale);
    if (p.uniformity) uniformity += exp2f((logit - largest) * UNIFORMITY_SCALE);
  }
  const uint64_t at = uint64_t(row) * gridDim.y + blockIdx.y;
  const double sum = block_reduce(double(total), slots, Add());
  if (threadIdx.x == 0) p.totals[at] = sum;
  if (p.real_totals) {
    const double sum = block_reduce(double(real_total), slots, Add());
    if (threadIdx.x == 0) p.real_totals[at] = sum;
  }
  if (p.uniformity) {
    const double sum = block_reduce(double(uniformity), slots, Add());
    if (threadIdx.x == 0) p.uniformity[at] = sum;
  }
  if (!p.weights || p.figures[row].fault != FAULT_NONE) return;
  // The barriers above end the writing of the exponentials; every hardest has one owner.
  const uint64_t list = uint64_t(row) * p.hardest_width;
  const uint32_t count = p.counts[row];
  const uint32_t first = lower_bound(p.hardest + list, count, start);
  const int exponent = p.weight_exponents[row];
  for (uint32_t n = first + threadIdx.x; n < count; n += INFO_NCE_THREADS) {
    const uint32_t column = p.hardest[list + n];
    if (column >= end) break;
    const double units = double(static_cast<long long>(p.weights[list + n]));
    logits[column] += float(ldexp(units, exponent));
  }
}

// ── Given features ───────────────────────────────────────────────────────────────────────────────

// A warp takes a feature of a row: its logit, −∞ in a row without negatives.
extern "C" __global__ void __launch_bounds__(INFO_NCE_THREADS, 4)
    given_logits(const __grid_constant__ GivenParams p) {
  constexpr uint32_t WARPS = INFO_NCE_THREADS / WARP;
  const uint32_t lane = threadIdx.x % WARP;
  const uint64_t row = blockIdx.x;
  const uint32_t all = p.mixed_count + p.query_mixed_count;
  const float* query = p.queries + row * p.dim;
  uint32_t unmasked = 0;
  for (uint32_t i = 0; i < p.splits; ++i) unmasked |= p.unmasked[row * p.splits + i];
  for (uint32_t at = blockIdx.y * WARPS + threadIdx.x / WARP; at < all; at += gridDim.y * WARPS) {
    const bool q = at >= p.mixed_count;
    const uint64_t own = q ? row * p.query_mixed_count + at - p.mixed_count : row * p.mixed_count + at;
    const float* feature = (q ? p.query_mixed : p.mixed) + own * p.dim;
    float logit = 0.0f;
    for (uint32_t i = lane; i < p.dim; i += WARP) logit = fmaf(query[i], feature[i], logit);
    logit = warp_sum(logit);
    if (lane == 0) {
      (q ? p.query_mixed_logits : p.mixed_logits)[own] = unmasked > 0 ? logit : -CUDART_INF_F;
    }
  }
}

// A block takes a row: the sum of the features' exponentials, and of the features weighted by them.
extern "C" __global__ void __launch_bounds__(INFO_NCE_THREADS, 4)
    given_sums(const __grid_constant__ GivenParams p) {
  __shared__ double slots[INFO_NCE_THREADS];
  const uint64_t row = blockIdx.x;
  const float shift = p.shifts[row];
  double total = 0.0;
#pragma unroll
  for (uint32_t kind = 0; kind < 2; ++kind) {
    const uint32_t width = kind == 0 ? p.mixed_count : p.query_mixed_count;
    const float* logits = (kind == 0 ? p.mixed_logits : p.query_mixed_logits) + row * width;
    const float* features = (kind == 0 ? p.mixed : p.query_mixed) + row * width * p.dim;
    for (uint32_t i = threadIdx.x; i < width; i += INFO_NCE_THREADS) {
      total += double(exp2f((logits[i] - shift) * p.exponent_scale));
    }
    for (uint32_t x = threadIdx.x; x < p.dim; x += INFO_NCE_THREADS) {
      float sum = kind == 0 ? 0.0f : p.direction[row * p.dim + x];
      for (uint32_t i = 0; i < width; ++i) {
        const float exponential = exp2f((logits[i] - shift) * p.exponent_scale);
        sum = fmaf(exponential, features[uint64_t(i) * p.dim + x], sum);
      }
      p.direction[row * p.dim + x] = sum;
    }
  }
  total = block_reduce(total, slots, Add());
  if (threadIdx.x == 0) p.synthetic_totals[row] = total;
}

// ── Loss and gradient ────────────────────────────────────────────────────────────────────────────

namespace {

// What follows from l⁺ and Z₋ = `total`·e^{shift/τ}.
struct RowLoss {
  double loss, log_sum_exp;
  double positive;  // p⁺
  double negative;  // 1 − p⁺ = Z₋/Z: the difference would lose everything on a confident row
};

__device__ RowLoss row_loss(float positive, float shift, double total, float temperature) {
  const double exponent = double(positive) / double(temperature);
  if (total == 0.0) return {0.0, exponent, 1.0, 0.0};
  // x = log(Z₋/e^{l⁺/τ}); the loss is log(1 + e^x) and 1 − p⁺ the logistic function of x.
  const double x = (double(shift) - double(positive)) / double(temperature) + log(total);
  const double loss = fmax(x, 0.0) + log1p(exp(-fabs(x)));
  return {loss, exponent + loss, 1.0 / (1.0 + exp(x)), 1.0 / (1.0 + exp(-x))};
}

// Of a row's splits, in a fixed tree.
__device__ double merged(const double* totals, uint32_t splits, double (&slots)[INFO_NCE_THREADS]) {
  double sum = 0.0;
  for (uint32_t i = threadIdx.x; i < splits; i += INFO_NCE_THREADS) {
    sum += totals[uint64_t(blockIdx.x) * splits + i];
  }
  return block_reduce(sum, slots, Add());
}

template <class T>
__device__ void fill(T* data, uint64_t row, uint32_t width, T value) {
  for (uint32_t i = threadIdx.x; i < width; i += INFO_NCE_THREADS) data[row * width + i] = value;
}

// A row that is no number: NaN everywhere, so that no one can take it for a result.
__device__ void poison(const FinishParams& p, uint64_t row) {
  fill(p.grad_queries, row, p.dim, CUDART_NAN_F);
  if (p.grad_keys) fill(p.grad_keys, row, p.dim, CUDART_NAN_F);
  fill(p.mixed_logits, row, p.mixed, CUDART_NAN_F);
  fill(p.query_mixed_logits, row, p.query_mixed, CUDART_NAN_F);
  if (threadIdx.x != 0) return;
  RowFigures& figures = p.figures[row];
  const uint32_t fault = figures.fault == FAULT_NONE ? FAULT_LOGITS : figures.fault;
  figures = RowFigures{};
  figures.loss = figures.log_sum_exp = figures.positive_probability = CUDART_NAN;
  figures.fault = fault;
  p.loss_rows[row] = CUDART_NAN_F;
}

}  // namespace

// A block takes a row. With four blocks a multiprocessor the logarithms in double would spill.
extern "C" __global__ void __launch_bounds__(INFO_NCE_THREADS, 3)
    finish(const __grid_constant__ FinishParams p) {
  __shared__ double slots[INFO_NCE_THREADS];
  __shared__ uint32_t counts[INFO_NCE_THREADS];
  const uint64_t row = blockIdx.x;
  RowFigures& figures = p.figures[row];
  if (p.faults[row] != FAULT_NONE) {
    fill(p.hardest, row, p.hardest_width, NO_ROW_INDEX);
    poison(p, row);
    return;
  }
  const float positive = figures.positive;
  const uint32_t unmasked = figures.unmasked, overflow = figures.overflow;
  const bool mixes = p.synthetic_totals && unmasked > 0;
  const double real = merged(p.totals, p.logit_splits, slots);
  // Both kinds of negatives relative to the larger of their shifts. A factor so small that double loses
  // it, e^-700, belongs to what is nothing beside the other kind: of that, the largest exponential is
  // e^-60 at the least if it is a real negative's, and 1 if a synthetic one's.
  const float real_shift = p.shifts[row];
  const float synthetic_shift = mixes ? p.synthetic_shifts[row] : real_shift;
  const float shift = fmaxf(real_shift, synthetic_shift);
  const auto factor = [&](float from) {
    return exp((double(from) - double(shift)) / double(p.temperature));
  };
  const double of_real = factor(real_shift), of_synthetic = factor(synthetic_shift);
  const double total = real * of_real + (mixes ? p.synthetic_totals[row] * of_synthetic : 0.0);
  const RowLoss loss = row_loss(positive, shift, total, p.temperature);

  // dL/dq = (1−p⁺)/τ·(Σ p_j n_j/Z₋ − k), the sum over all negatives: method, Gradient.
  const double outer = loss.negative / double(p.temperature) * p.per_row;
  const double inner = total == 0.0 ? 0.0 : outer / total;
  const double query_weight = mixes && p.query_weights ? p.query_weights[row] : 0.0;
  const uint64_t stride = uint64_t(p.rows) * p.dim;
  // As they are given back: double holds what float does not.
  uint32_t wrong = !isfinite(float(loss.loss)) || !isfinite(float(loss.log_sum_exp));
  for (uint32_t i = threadIdx.x; i < p.dim; i += INFO_NCE_THREADS) {
    const uint64_t at = row * p.dim + i;
    const double query = p.queries[at];
    double negatives = query_weight * query;
    if (mixes && p.direction) negatives += double(p.direction[at]);
    negatives *= of_synthetic;
    for (uint32_t split = 0; split < p.sum_splits; ++split) {
      negatives += of_real * double(p.sums[split * stride + at]);
    }
    const float grad_query = float(inner * negatives - outer * double(p.keys[at]));
    p.grad_queries[at] = grad_query;
    wrong |= !isfinite(grad_query);
    if (p.grad_keys) {
      const float grad_key = float(-outer * query);
      p.grad_keys[at] = grad_key;
      wrong |= !isfinite(grad_key);
    }
  }
  wrong = block_reduce(wrong, counts, Add());
  if (wrong > 0 || overflow > 0) {
    poison(p, row);
    return;
  }

  const uint32_t listed = p.counts ? p.counts[row] : 0;
  const uint32_t own = p.query_labels ? p.query_labels[row] : NO_LABEL;
  uint32_t same_label = 0, labelled = 0;
  if (own != NO_LABEL && p.queue_labels) {
    for (uint32_t n = threadIdx.x; n < listed; n += INFO_NCE_THREADS) {
      const uint32_t label = p.queue_labels[p.hardest[row * p.hardest_width + n]];
      same_label += label == own;
      labelled += label != NO_LABEL;
    }
  }
  same_label = block_reduce(same_label, counts, Add());
  labelled = block_reduce(labelled, counts, Add());
  const double real_total = p.real_totals ? merged(p.real_totals, p.logit_splits, slots) : 0.0;
  const double uniformity = p.uniformity ? merged(p.uniformity, p.logit_splits, slots) : 0.0;
  if (threadIdx.x != 0) return;
  const float metrics_shift = p.real_shifts ? p.real_shifts[row] : figures.largest;
  figures.loss = loss.loss;
  figures.log_sum_exp = loss.log_sum_exp;
  figures.positive_probability = loss.positive;
  figures.real_log_sum_exp = row_loss(positive, metrics_shift, real_total, p.temperature).log_sum_exp;
  figures.log_uniformity = UNIFORMITY_FACTOR * double(metrics_shift) + log(uniformity);
  figures.listed = listed;
  figures.same_label = same_label;
  figures.labelled = labelled;
  p.loss_rows[row] = float(loss.loss);
}

// One block: the rows' losses in a fixed tree, and the first row with each fault.
extern "C" __global__ void __launch_bounds__(INFO_NCE_THREADS, 1)
    reduce(const __grid_constant__ ReduceParams p) {
  __shared__ double slots[INFO_NCE_THREADS];
  __shared__ uint32_t first[INFO_NCE_THREADS];
  double sum = 0.0;
  uint32_t seen[FAULT_LOGITS + 1] = {0, 0, 0, 0};
  for (uint32_t row = threadIdx.x; row < p.rows; row += INFO_NCE_THREADS) {
    sum += p.figures[row].loss;
    const uint32_t fault = p.figures[row].fault;
#pragma unroll
    for (uint32_t kind = FAULT_QUERIES; kind <= FAULT_LOGITS; ++kind) {
      if (fault == kind && seen[kind] == 0) seen[kind] = NO_ROW_INDEX - row;
    }
  }
  sum = block_reduce(sum, slots, Add());
#pragma unroll
  for (uint32_t kind = FAULT_QUERIES; kind <= FAULT_LOGITS; ++kind) {
    seen[kind] = block_reduce(seen[kind], first, [](uint32_t a, uint32_t b) { return max(a, b); });
  }
  if (threadIdx.x != 0) return;
  *p.loss = float(sum * p.per_row);
  *p.status = {seen[FAULT_QUERIES], seen[FAULT_KEYS], seen[FAULT_LOGITS]};
}

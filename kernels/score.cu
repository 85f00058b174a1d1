// score: what `contrast` does with the logits of its tiles, with those of a slice of the queue that lie in
// memory: exponentials in their place, and of each split the total, the largest, how many are unmasked,
// and the candidates for the hardest. For more dimensions than sums fit into registers.
//
// A warp takes a query and a split, one tile after the other, a logit a lane. Slices come one after the
// other, and each goes on where the one before has ended: splits and tiles are those of contrast.cu, cut by
// the queue's length alone, and a row's bits do not depend on its batch.
#include <math_constants.h>

#include "device/reduce.cuh"
#include "params.h"

namespace {

constexpr uint32_t NO_LABEL = 0xffffffffu;
static_assert(CONTRAST_DEPTH == WARP, "a tile has a logit a lane");

}  // namespace

extern "C" __global__ void __launch_bounds__(SCORE_THREADS, 4) score(const __grid_constant__ ScoreParams p) {
  const uint32_t lane = threadIdx.x % WARP;
  const uint64_t own = (uint64_t(blockIdx.x) * SCORE_THREADS + threadIdx.x) / WARP;
  if (own >= uint64_t(p.rows) * p.splits) return;
  const uint32_t row = own / p.splits, split = own % p.splits;
  const uint32_t label = p.query_labels ? p.query_labels[row] : NO_LABEL;
  const float shift = p.shifts[row], threshold = p.thresholds ? p.thresholds[row] : 0.0f;
  float* logits = p.logits + uint64_t(row) * p.length;
  float* values = p.passed_logits + own * p.room;

  const bool begun = p.first > 0;
  // Read by the lane that writes it in the end.
  uint32_t passed = begun && p.thresholds && lane == 0 ? p.passed[own] : 0, unmasked = 0;
  passed = __shfl_sync(ALL_LANES, passed, 0);
  float largest = -CUDART_INF_F, total = 0.0f, uniformity = 0.0f;
  const uint32_t first_tile = p.first / CONTRAST_DEPTH;
  const uint32_t end = first_tile + (p.length + CONTRAST_DEPTH - 1) / CONTRAST_DEPTH;
  uint32_t tile = first_tile + (split + p.splits - first_tile % p.splits) % p.splits;
  for (; tile < end; tile += p.splits) {
    const uint32_t at = tile * CONTRAST_DEPTH - p.first + lane;
    const bool inside = at < p.length;
    const float logit = inside ? logits[at] : 0.0f;
    // A label that is none equals nothing.
    const bool taken = inside && (label == NO_LABEL || p.queue_labels[p.first + at] != label);
    if (p.thresholds) {
      // Not `logit >= threshold`: what is no number passes, and is seen.
      const bool passes = taken && !(logit < threshold);
      const uint32_t word = __ballot_sync(ALL_LANES, passes);
      const uint32_t place = passed + __popc(word & ((1u << lane) - 1));
      if (passes && place < p.room) values[place] = logit;
      if (lane == 0) p.passing[uint64_t(row) * p.tiles + tile] = word;
      passed += __popc(word);
    }
    const float exponential = taken ? exp2f((logit - shift) * p.exponent_scale) : 0.0f;
    if (inside) logits[at] = exponential;
    // A lane takes at most SCORE_LENGTH / 512 logits of a slice.
    total += exponential;
    if (!taken) continue;
    if (p.uniformity) uniformity += exp2f((logit - shift) * p.uniformity_scale);
    largest = fmaxf(largest, logit);
    ++unmasked;
  }

  largest = warp_max(largest);
  unmasked = warp_sum(unmasked);
  const double sum = warp_sum(double(total)), uniform = warp_sum(double(uniformity));
  if (lane != 0) return;
  p.maxima[own] = begun ? fmaxf(p.maxima[own], largest) : largest;
  p.unmasked[own] = begun ? p.unmasked[own] + unmasked : unmasked;
  p.totals[own] = begun ? p.totals[own] + sum : sum;
  if (p.uniformity) p.uniformity[own] = begun ? p.uniformity[own] + uniform : uniform;
  if (p.thresholds) p.passed[own] = passed;
}

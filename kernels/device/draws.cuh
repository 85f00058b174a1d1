// Which rows are mixed, and with which weights: the bits of `mixed_draw` and `query_mixed_draw` in
// src/draws.rs (method: Draws).
#pragma once
#include <stdint.h>

#include "philox.cuh"

// A mixture of two rows: positions in the list of hardest, and the weight of the first. A query-mixed
// negative has the query for its first row.
struct Draw {
  uint32_t first, second;
  float weight;
};

// The words of the synthetic negative `index` of a global row; `tag` is 0 for mixed, 1 for
// query-mixed. `seed_and_step` is in device memory, so that a replayed graph draws afresh.
__device__ inline Words draw_words(const uint64_t* seed_and_step, uint32_t row, uint32_t index,
                                   uint32_t tag) {
  const uint64_t seed = seed_and_step[0], step = seed_and_step[1];
  // Bits of the step from 2^63 up are ignored.
  const uint32_t upper = uint32_t(step >> 32) & 0x7fffffffu;
  return philox4x32_10({index, row, uint32_t(step), upper | tag << 31}, uint32_t(seed),
                       uint32_t(seed >> 32));
}

// Two of `count` positions, and α in [0, 1).
__device__ inline Draw mixed_draw(const uint64_t* seed_and_step, uint32_t row, uint32_t index,
                                  uint32_t count) {
  const Words w = draw_words(seed_and_step, row, index, 0);
  return {__umulhi(w.w0, count), __umulhi(w.w1, count), float(w.w2 >> 8) * 0x1p-24f};
}

// One of `count` positions, and β in [0, 0.5).
__device__ inline Draw query_mixed_draw(const uint64_t* seed_and_step, uint32_t row, uint32_t index,
                                        uint32_t count) {
  const Words w = draw_words(seed_and_step, row, index, 1);
  return {0, __umulhi(w.w0, count), float(w.w2 >> 8) * 0x1p-25f};
}

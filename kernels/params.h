// What the kernels and Rust share: one struct of parameters a kernel, passed by value, and the
// constants that launches depend on. Pointers are to device memory. Nothing may be included here but
// <stdint.h>; bindgen reads this file too and checks the layouts.
#pragma once
#include <stdint.h>

// A row that is none.
constexpr uint32_t NO_ROW_INDEX = 0xffffffffu;

// NO_ROW_INDEX minus the first row of a batch that is not finite, by argument; 0 where all are.
struct StatusWords {
  uint32_t queries;
  uint32_t keys;
  uint32_t logits;
};

// ── enqueue ──────────────────────────────────────────────────────────────────────────────────────

// Threads of a block; a warp takes a row.
constexpr uint32_t ENQUEUE_THREADS = 256;

// The ring's state, in device memory so that a replayed graph goes on where the last one stopped.
struct RingState {
  uint32_t next;     // the row that the next key replaces
  uint32_t start;    // what `next` was when the enqueue under way began
  uint32_t refused;  // the first refusal since the host last asked, or 0
};

// A refusal is NO_ROW_INDEX − (2 · row + kind) of the first row that may not enter, 0 where all may.

constexpr uint32_t REFUSED_NON_FINITE = 0;
constexpr uint32_t REFUSED_ZERO_NORM = 1;

struct EnqueueParams {
  const float* keys;       // [rows, dim]
  const uint32_t* labels;  // [rows], or null: none has one
  void* queue;             // [capacity, dim], in the type that the kernel is named by
  float* squared_norms;    // [capacity]
  uint32_t* queue_labels;  // [capacity], or null: the queue has none
  RingState* state;
  uint32_t* refusal;  // of this enqueue; 0 before
  uint32_t rows;
  uint32_t capacity;
  uint32_t dim;
  uint32_t normalise;  // whether a key's direction is stored instead of the key
};

// ── contrast ─────────────────────────────────────────────────────────────────────────────────────

// Threads of a block of `logits`, the queue rows of its tile, and the dimensions of a stage.
constexpr uint32_t LOGITS_THREADS = 256;
constexpr uint32_t LOGITS_ROWS = 128;
constexpr uint32_t LOGITS_DEPTH = 32;

// Stages of its ring in shared memory. With three, two blocks fit a multiprocessor of sm_90, and one
// of sm_80.
constexpr uint32_t LOGITS_STAGES = 3;

struct LogitsParams {
  const float* queries;  // [rows, dim]
  const void* queue;     // [capacity, dim], in the type that the kernel is named by
  float* logits;         // [rows, capacity]
  uint32_t rows;
  uint32_t capacity;  // less than 2^31
  uint32_t dim;
  uint32_t query_tiles;      // of the queries; the grid has that many blocks a tile of the queue
  uint32_t queries_aligned;  // whether every row of the queries starts at a multiple of 16 bytes
  uint32_t queue_aligned;    // and every row of the queue
};

// Threads of a block of `check_rows`; a warp takes a row.
constexpr uint32_t CHECK_THREADS = 256;

struct CheckParams {
  const float* data;  // [rows, dim]
  uint32_t* seen;     // a word of a status
  uint32_t rows;
  uint32_t dim;
};

// ── rank ─────────────────────────────────────────────────────────────────────────────────────────

// Threads of a block, which takes a row of logits.
constexpr uint32_t RANK_THREADS = 512;

// Candidates, 8 bytes each, that a block holds in shared memory. Rows with more of them take two
// further passes over their logits. 64 KiB: two blocks fit a multiprocessor of either architecture.
constexpr uint32_t RANK_CANDIDATES = 8192;

struct RankParams {
  const float* logits;           // [rows, capacity]; the grid has `rows` blocks
  const uint32_t* query_labels;  // [rows], or null: nothing is masked
  const uint32_t* queue_labels;  // [capacity], where there are query labels
  uint32_t* indices;             // [rows, hardest]
  float* hardest_logits;         // [rows, hardest]
  uint32_t* counts;              // [rows]
  StatusWords* status;
  uint32_t capacity;  // less than 2^31
  uint32_t hardest;   // 1 to capacity
  uint32_t first_row;  // what the status calls the first of the rows
  uint32_t infinities;  // whether they are logits like any other
};

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
  uint32_t next;   // the row that the next key replaces
  uint32_t start;  // what `next` was when the enqueue under way began
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
  uint32_t* refused;  // the first since the host last asked, or 0
  uint32_t rows;
  uint32_t capacity;
  uint32_t dim;
  uint32_t normalise;  // whether a key's direction is stored instead of the key
};

// ── logits ───────────────────────────────────────────────────────────────────────────────────────

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
  float* logits;         // [rows, capacity], or null: the largest are asked for
  const uint32_t* hot;           // [rows], whose largest logits are asked for; only then, as all these
  const uint32_t* query_labels;  // [rows], or null: nothing is masked
  const uint32_t* queue_labels;  // [capacity], where there are query labels
  float* maxima;                 // [rows, parts], the largest unmasked logit of each part of the queue
  uint32_t parts;                // two a tile
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

// ── contrast ─────────────────────────────────────────────────────────────────────────────────────

// Threads of a block, its queries, and the queue rows of its tile.
constexpr uint32_t CONTRAST_THREADS = 128;
constexpr uint32_t CONTRAST_ROWS = 64;
constexpr uint32_t CONTRAST_DEPTH = 32;
// The most dimensions, whose sums lie in registers, and the stages of its ring in shared memory: of the
// kernels for few dimensions two blocks fit a multiprocessor, but of f32 one where it has the 164 KiB of
// sm_80; of those for many one does.
constexpr uint32_t CONTRAST_DIM = 128;
constexpr uint32_t CONTRAST_STAGES = 3;
constexpr uint32_t CONTRAST_LARGE_DIM = 256;
constexpr uint32_t CONTRAST_LARGE_STAGES = 2;
// Elements between rows in shared memory beyond their dimensions: fragments are then read without bank
// conflicts, of f32 and of 16 bits, across rows and along them.
constexpr uint32_t CONTRAST_PADDING = 4;
constexpr uint32_t CONTRAST_PADDING_16 = 8;

struct ContrastParams {
  const float* queries;          // [rows, dim], usable ones
  const void* queue;             // [capacity, dim], in the type that the kernel is named by
  const uint32_t* query_labels;  // [rows], or null: nothing is masked
  const uint32_t* queue_labels;  // [capacity], where there are query labels
  const uint32_t* hot;           // [rows], whether a row's shift is its largest logit
  const float* shifts;           // [rows]
  float* maxima;                 // [rows, splits], the largest unmasked logit
  uint32_t* unmasked;            // [rows, splits]
  double* totals;                // [rows, splits]
  double* uniformity;            // [rows, splits], of e^{4 l}, or null
  float* sums;                   // [splits, rows, dim]
  const float* thresholds;       // [rows], of the logits that are emitted; of `ranked` alone, as all these
  uint32_t* passing;             // [rows, tiles], a bit for each row of the queue
  float* passed_logits;          // [rows, splits, room], those of a split's tiles one behind the other
  uint32_t* passed;              // [rows, splits], how many, also where that is more than the room
  float exponent_scale;          // log2(e) / temperature
  float uniformity_scale;        // 4·log2(e)
  uint32_t rows;
  uint32_t capacity;             // less than 2^31
  uint32_t dim;                  // at most as many as the kernel is named by
  uint32_t splits;               // at most as many as the queue has tiles
  uint32_t tiles;                // of CONTRAST_DEPTH rows of the queue
  uint32_t room;
  uint32_t queue_aligned;        // whether every row of the queue starts at a multiple of 16 bytes
};

// Threads of a block of `bound_logits`, where a thread takes a row, and `settle_shifts`, where a warp does.
constexpr uint32_t BOUND_THREADS = 256;

// The shifts of the rows before the pass.
struct BoundParams {
  const float* longest;         // [longest_splits]
  const double* query_squares;  // [rows]
  const uint32_t* faults;       // [rows]
  const float* maxima;          // [rows, splits], of hot rows
  uint32_t* hot;                // [rows]
  float* shifts;                // [rows]
  float most;                   // how far the least logit of a row that is not hot may be from the shift
  uint32_t rows;
  uint32_t splits;
  uint32_t longest_splits;
};

// ── score ────────────────────────────────────────────────────────────────────────────────────────

// Threads of a block.
constexpr uint32_t SCORE_THREADS = 256;

// Queue rows of a slice, and the most queries whose logits with it are made: 8 MiB, which an L2 of 40 MB
// keeps beside what else is read. The rows are a multiple of CONTRAST_DEPTH.
constexpr uint32_t SCORE_LENGTH = 8192;
constexpr uint32_t SCORE_QUERIES = 256;

// See ContrastParams.
struct ScoreParams {
  float* logits;                 // [rows, length]; then exponentials, zeros where they are masked
  const uint32_t* query_labels;
  const uint32_t* queue_labels;
  const float* shifts;
  float* maxima;
  uint32_t* unmasked;
  double* totals;
  double* uniformity;
  const float* thresholds;       // or null, where nothing is ranked
  uint32_t* passing;
  float* passed_logits;
  uint32_t* passed;
  float exponent_scale;
  float uniformity_scale;
  uint32_t first;                // queue row of the slice, a multiple of CONTRAST_DEPTH
  uint32_t length;
  uint32_t rows;
  uint32_t splits;
  uint32_t tiles;
  uint32_t room;
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

// Of the logits that `contrast` let pass, at most RANK_CANDIDATES a row.
struct PassedParams {
  struct RankParams out;         // without logits; the grid has `rows` blocks
  const uint32_t* passing;       // [rows, tiles]
  const float* passed_logits;    // [rows, splits, room]
  const uint32_t* passed;        // [rows, splits]
  const uint32_t* unmasked;      // [rows, splits]
  const uint32_t* faults;        // [rows]
  uint32_t* marked;              // [rows], whether the hardest are not surely among what has passed
  uint32_t tiles;
  uint32_t splits;
  uint32_t room;
};

// Blocks of `repair`: as many rows' logits lie in memory, whatever the batch.
constexpr uint32_t REPAIR_BLOCKS = 16;

struct RepairParams {
  struct RankParams out;    // without logits
  const uint32_t* marked;   // [rows]
  const float* queries;     // [rows, dim], usable ones
  const void* queue;        // [capacity, dim], in the type that the kernel is named by
  float* logits;            // [REPAIR_BLOCKS, capacity]
  uint32_t rows;
  uint32_t dim;
};

// ── sample ───────────────────────────────────────────────────────────────────────────────────────

// Threads of a block.
constexpr uint32_t SAMPLE_THREADS = 256;

// Rows of the queue, one at a hashed place in each of `count` equal strides: neither a sorted nor a
// periodic queue can mislead them.
struct SampleParams {
  const void* queue;             // [capacity, dim], in the type that the kernel is named by
  const uint32_t* queue_labels;  // [capacity], or null
  void* sample;                  // [count, dim]
  uint32_t* sample_labels;       // [count], where there are labels
  uint32_t capacity;
  uint32_t dim;
  uint32_t count;                // 1 to capacity
};

// The thresholds of the rows: the least of the `rank` largest sampled logits, −∞ where there are fewer.
struct ThresholdParams {
  const float* sampled_logits;  // [rows, rank], or null: every logit passes
  const uint32_t* counts;       // [rows]
  float* thresholds;            // [rows]
  uint32_t rows;
  uint32_t rank;
  uint32_t forced_every;        // for tests: every how manieth row has `forced` for its threshold; 0: none
  float forced;
};

// ── mix ──────────────────────────────────────────────────────────────────────────────────────────

// Threads of a block, and the lanes that share a mixture: enough to have its two rows' loads under way
// at once, few enough that short rows leave none idle.
constexpr uint32_t MIX_THREADS = 256;
constexpr uint32_t MIX_LANES = 8;
constexpr uint32_t MIX_PER_BLOCK = MIX_THREADS / MIX_LANES;

// The first draw that is refused, as NO_DRAW − (row·2^35 + kind·2^32 + index); 0 where none is. The
// kinds are in the order in which a row's draws are looked at: positions behind the row's list, a
// weight that is none, and a position whose entry in a list that was given lies behind the queue.
constexpr uint64_t NO_DRAW = ~uint64_t(0);
constexpr uint32_t DRAW_FIRST = 0;
constexpr uint32_t DRAW_SECOND = 1;
constexpr uint32_t DRAW_PICK = 2;
constexpr uint32_t DRAW_ALPHA = 3;
constexpr uint32_t DRAW_BETA = 4;
constexpr uint32_t DRAW_LISTED = 5;

// What is mixed from what: for `mix`, which makes logits, and for `mix_features`.
struct MixParams {
  const float* queries;            // [rows, dim]
  const void* queue;               // [capacity, dim], in the type that the kernel is named by
  const float* squared_norms;      // [capacity]
  const uint32_t* hardest;         // [rows, hardest_width]
  const float* hardest_logits;     // [rows, hardest_width]
  const uint32_t* counts;          // [rows]
  const uint32_t* faults;          // [rows], or null: a row with a fault has no hardest
  const double* query_squares;     // [rows]
  const uint64_t* seed_and_step;   // [2], or null: the draws are given
  const uint32_t* given_first;     // [rows, mixed]
  const uint32_t* given_second;    // [rows, mixed]
  const float* given_alpha;        // [rows, mixed]
  const uint32_t* given_pick;      // [rows, query_mixed]
  const float* given_beta;         // [rows, query_mixed]
  uint32_t* first;                 // the draws that are used: [rows, mixed]
  uint32_t* second;                // [rows, mixed]
  float* alpha;                    // [rows, mixed]
  uint32_t* pick;                  // [rows, query_mixed]
  float* beta;                     // [rows, query_mixed]
  float* mixed_logits;             // [rows, mixed]
  float* query_mixed_logits;       // [rows, query_mixed]
  double* inverses;                // 1/r, [rows, mixed + query_mixed]
  float* mixed_features;           // `mix_features` alone: [rows, mixed, dim]
  float* query_mixed_features;     // [rows, query_mixed, dim]
  uint64_t* refused_draw;          // 0, or the first draw that is refused
  uint32_t dim;
  uint32_t capacity;
  uint32_t hardest_width;
  uint32_t mixed;
  uint32_t query_mixed;
  uint32_t first_row;              // of the batch, for `refused_draw`
  uint32_t row_offset;             // of the first row here among all shards, for the draws
};

// A row's synthetic negatives as exponentials, and as weights of its hardest.
struct FoldParams {
  const uint32_t* counts;            // [rows]
  const uint32_t* faults;            // [rows]
  const uint32_t* first;             // [rows, mixed]
  const uint32_t* second;            // [rows, mixed]
  const float* alpha;                // [rows, mixed]
  const uint32_t* pick;              // [rows, query_mixed]
  const float* beta;                 // [rows, query_mixed]
  const float* mixed_logits;         // [rows, mixed]
  const float* query_mixed_logits;   // [rows, query_mixed]
  const double* inverses;            // [rows, mixed + query_mixed]
  const float* shifts;               // [rows], of the synthetic negatives
  unsigned long long* weights;       // [rows, hardest_width], in units of 2^weight_exponent
  int32_t* weight_exponents;         // [rows]
  double* query_weights;             // [rows], what the query weighs in the gradient
  double* synthetic_totals;          // [rows], the sum of the exponentials
  float exponent_scale;              // log2(e) / temperature
  uint32_t hardest_width;
  uint32_t mixed;
  uint32_t query_mixed;
  uint32_t attached;                 // whether the gradient flows through the query in h'
};

// ── direction ────────────────────────────────────────────────────────────────────────────────────

// Threads of a block; the lanes that share a queue row, 16 bytes each; rows that each group of them has
// on the way at once (with eight of 16 bits the kernel spills); and the rows that a group sums before
// the sum joins the others'.
constexpr uint32_t DIRECTION_THREADS = 256;
constexpr uint32_t DIRECTION_LANES = 8;
constexpr uint32_t DIRECTION_FLIGHT = 4;
constexpr uint32_t DIRECTION_RUN = 32;

// The hardest of each query, weighed by what was mixed from them.
struct DirectionParams {
  const void* queue;                  // [capacity, dim], in the type that the kernel is named by
  const uint32_t* hardest;            // [rows, hardest_width]
  const uint32_t* counts;             // [rows]
  const uint32_t* faults;             // [rows]
  const unsigned long long* weights;  // [rows, hardest_width], in units of 2^weight_exponent
  const int32_t* weight_exponents;    // [rows]
  float* direction;                   // [rows, dim]
  uint32_t dim;
  uint32_t hardest_width;
};

// ── info_nce ─────────────────────────────────────────────────────────────────────────────────────

// Threads of a block, and the logits of a row that a block takes: the partial sums are cut by the
// queue's length alone.
constexpr uint32_t INFO_NCE_THREADS = 256;
constexpr uint32_t INFO_NCE_SPLIT = 4096;

// Squared norms that a block takes.
constexpr uint32_t LONGEST_SPLIT = 16384;

// The rows whose queries and keys are multiplied with each other by the kernel that multiplies queries
// and queue, so that a key that is also a queue row has that row's logit, to the bit.
constexpr uint32_t PRODUCT_ROWS = 128;
constexpr uint32_t PRODUCT_GROUP = 8;
// Elements of bf16 that an f32 number is the sum of.
constexpr uint32_t KEY_PARTS = 3;

// Why a row cannot be computed.
constexpr uint32_t FAULT_NONE = 0;
constexpr uint32_t FAULT_QUERIES = 1;
constexpr uint32_t FAULT_KEYS = 2;
constexpr uint32_t FAULT_LOGITS = 3;

// The largest squared norm of each split of the queue.
struct LongestParams {
  const float* squared_norms;  // [capacity]
  float* longest;              // [splits]
  uint32_t capacity;
};

// Before the product: which rows are usable, and what queries and keys alone give.
struct PrepareParams {
  const float* queries;   // [rows, dim]
  const float* keys;      // [rows, dim]
  const float* longest;   // [splits]
  float* usable;          // [rows, dim], the queries, zeros where a row has a fault
  uint32_t* faults;       // [rows]
  double* query_squares;  // [rows]
  float* product_queries; // the usable queries, or null; [rows, dim], rounded up to PRODUCT_GROUP
                          // dimensions, each group in the order in which the product of queries and
                          // a queue of f16 takes them
  float* product_keys;    // the keys in the same order
  void* key_parts;        // [rows, KEY_PARTS, dim] in bf16, of which each key is the sum, or null
  uint32_t rows;
  uint32_t dim;
  uint32_t splits;
  float stretch;          // max(1, 1/temperature)
};

// The largest unmasked logit of each split of a row, and how many are unmasked.
struct MaximaParams {
  const float* logits;            // [rows, capacity]
  const uint32_t* query_labels;   // [rows], or null: nothing is masked
  const uint32_t* queue_labels;   // [capacity], where there are query labels
  float* maxima;                  // [rows, splits]
  uint32_t* unmasked;             // [rows, splits]
  uint32_t capacity;
};

// The shift of a row, and how its synthetic logits compare with the real ones and the positive.
struct ShiftParams {
  const float* maxima;               // [rows, splits]
  const uint32_t* unmasked;          // [rows, splits]
  const float* products;             // of queries and keys' parts, [n, n, key_parts] for each
                                     // n = PRODUCT_ROWS rows, or fewer in the end; the positives are the
                                     // sums of those on the diagonals
  const uint32_t* faults;            // [rows]
  const float* mixed_logits;         // [rows, mixed]
  const float* query_mixed_logits;   // [rows, query_mixed]
  float* shifts;                     // [rows], the largest logit of all, or null
  float* synthetic_shifts;           // [rows], the largest synthetic logit, or null
  struct RowFigures* figures;        // [rows]
  uint32_t key_parts;                // 1, or KEY_PARTS
  uint32_t rows;
  uint32_t splits;
  uint32_t mixed;
  uint32_t query_mixed;
};

// Logits become exponentials in place, and the weights of the hardest join them.
struct ExponentialsParams {
  float* logits;                      // [rows, capacity]
  const uint32_t* query_labels;       // [rows], or null: nothing is masked
  const uint32_t* queue_labels;       // [capacity], where there are query labels
  const float* shifts;                // [rows]
  const struct RowFigures* figures;   // [rows]
  const uint32_t* hardest;            // [rows, hardest_width]
  const uint32_t* counts;             // [rows]
  const unsigned long long* weights;  // [rows, hardest_width], or null: nothing was mixed
  const int32_t* weight_exponents;    // [rows]
  double* totals;                     // [rows, splits]
  double* real_totals;                // relative to the largest real logit, or null
  double* uniformity;                 // the same of e^{4 l}, or null
  float exponent_scale;               // log2(e) / temperature
  uint32_t capacity;
  uint32_t hardest_width;
};

// Features that are given: their logits, and their part in the gradient.
struct GivenParams {
  const float* queries;              // [rows, dim]
  const float* mixed;                // [rows, mixed, dim]
  const float* query_mixed;          // [rows, query_mixed, dim]
  const uint32_t* unmasked;          // [rows, splits]
  const float* shifts;               // [rows], of the features, for the gradient
  float* mixed_logits;               // [rows, mixed]
  float* query_mixed_logits;         // [rows, query_mixed]
  double* synthetic_totals;          // [rows]
  float* direction;                  // [rows, dim], the weighted sum of the features
  float exponent_scale;
  uint32_t dim;
  uint32_t splits;
  uint32_t mixed_count;
  uint32_t query_mixed_count;
};

// What a row contributes to losses and metrics.
struct RowFigures {
  double loss;
  double log_sum_exp;
  double positive_probability;
  double real_log_sum_exp;    // over the positive and the real negatives
  double log_uniformity;      // log of the sum of e^{4 l} over the real negatives
  float positive;
  float largest;              // the largest real logit
  uint32_t unmasked;
  uint32_t listed;
  uint32_t mixed_harder;
  uint32_t query_mixed_harder;
  uint32_t same_label;
  uint32_t labelled;
  uint32_t hit;
  uint32_t hit_with_synthetic;
  uint32_t fault;
  uint32_t overflow;          // whether a synthetic logit is not finite
};

// Sums become loss and gradient.
struct FinishParams {
  const float* queries;              // [rows, dim], usable ones
  const float* keys;                 // [rows, dim]
  const float* sums;                 // [splits, rows, dim], of `weigh`
  const float* direction;            // [rows, dim], relative to synthetic_shifts, or null
  const double* totals;              // [rows, splits of the logits]
  const double* real_totals;         // or null
  const double* uniformity;          // or null
  const float* real_shifts;          // of these two, [rows], or null: the largest real logits
  const double* synthetic_totals;    // [rows], relative to synthetic_shifts, or null
  const double* query_weights;       // [rows], the same, or null
  const float* shifts;               // [rows], of totals and sums
  const float* synthetic_shifts;     // [rows], where there are synthetic_totals
  const uint32_t* faults;            // [rows]
  const uint32_t* counts;            // [rows], or null
  uint32_t* hardest;                 // [rows, hardest_width]
  const uint32_t* query_labels;      // [rows], or null
  const uint32_t* queue_labels;      // [capacity], or null
  RowFigures* figures;               // [rows]
  float* loss_rows;                  // [rows]
  float* grad_queries;               // [rows, dim]
  float* grad_keys;                  // [rows, dim], or null
  float* mixed_logits;               // [rows, mixed]
  float* query_mixed_logits;         // [rows, query_mixed]
  double per_row;                    // 1, or 1/B for the mean
  float temperature;
  uint32_t rows;
  uint32_t dim;
  uint32_t sum_splits;
  uint32_t logit_splits;
  uint32_t hardest_width;
  uint32_t mixed;
  uint32_t query_mixed;
};

// The rows' losses become one.
struct ReduceParams {
  const RowFigures* figures;  // [rows]
  float* loss;                // [1]
  StatusWords* status;
  double per_row;             // 1, or 1/B for the mean
  uint32_t rows;
};

// ── weigh ────────────────────────────────────────────────────────────────────────────────────────

// A block makes WEIGH_ROWS × WEIGH_COLUMNS sums from tiles of WEIGH_DEPTH queue rows. Its warps lie
// four by two.
constexpr uint32_t WEIGH_THREADS = 256;
constexpr uint32_t WEIGH_ROWS = 64;
constexpr uint32_t WEIGH_COLUMNS = 128;
constexpr uint32_t WEIGH_DEPTH = 32;
constexpr uint32_t WEIGH_STAGES = 3;
// Elements between rows of the tiles in shared memory: fragments are then read without bank conflicts.
constexpr uint32_t WEIGH_PADDING = 4;
constexpr uint32_t WEIGH_PADDING_BF16 = 8;
constexpr uint32_t WEIGH_QUEUE_STRIDE = WEIGH_COLUMNS + 8;

struct WeighParams {
  const float* weights;  // [rows, capacity]
  const void* queue;     // [capacity, dim], in the type that the kernel is named by
  float* sums;           // [splits, rows, dim]
  uint32_t accumulate;   // whether they are added to what stands there
  uint32_t rows;
  uint32_t capacity;
  uint32_t dim;
  uint32_t split_rows;       // queue rows of a split, a multiple of WEIGH_DEPTH
  uint32_t row_tiles;        // the grid has row_tiles × column_tiles blocks a split
  uint32_t column_tiles;
  uint32_t weights_aligned;  // whether every row of the weights starts at a multiple of 16 bytes
  uint32_t queue_aligned;    // and every row of the queue
};

/* hardmix: contrastive learning with hard negative mixing (MoCHi, Kalantidis et al., NeurIPS 2020).
 *
 * A step takes B queries with one key each and a queue of K negatives, all of dimension d, and gives
 * the InfoNCE loss over the queue's negatives and those mixed from each query's N hardest, its exact
 * gradient, and diagnostics:
 *
 *     hardmix_plan *plan = NULL;
 *     hardmix_queue *queue = NULL;
 *     hardmix_plan_create(1024, 512, 256, 0.2f, &plan);
 *     hardmix_queue_random(65536, 128, HARDMIX_F32, 0, &queue);
 *
 *     hardmix_batch batch = {queries, keys, NULL, 256, 128, 0};
 *     hardmix_draws draws = {.seed = 42, .step = step};
 *     hardmix_output output = {.loss = &loss, .grad_queries = gradient};
 *     if (hardmix_step(plan, &batch, queue, &draws, &output) != HARDMIX_OK)
 *         fprintf(stderr, "%s\n", hardmix_last_error());
 *     hardmix_queue_enqueue(queue, keys, NULL, 256, 0);     // after the loss, never before
 *
 * Arrays are row-major and dense; [B, d] is B rows of d elements. Pointers are to memory of the
 * caller's, aligned to its elements, at least as long as the shape that is stated, and neither kept
 * nor freed. Where NULL is allowed it is said. Handles come from a function that creates them and go
 * to the one that frees them, once; NULL is refused elsewhere and nothing there.
 *
 * What a function refuses it names in hardmix_last_error(), and has changed nothing. A pointer that
 * is not NULL and does not point to what is stated is undefined behaviour, as everywhere in C.
 *
 * Threads: a plan works on one step at a time and makes other callers wait; queues may be read by
 * many at once. A handle may be used from any thread, but not while it is freed. The same inputs give
 * the same bits, whatever the number of threads (RAYON_NUM_THREADS sets it).
 */
#ifndef HARDMIX_H
#define HARDMIX_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What a function returns. */
typedef int32_t hardmix_status;
enum {
    HARDMIX_OK = 0,
    /* A pointer is NULL that must not be. */
    HARDMIX_ERROR_NULL = 1,
    /* A value is outside its domain, or sizes disagree. */
    HARDMIX_ERROR_INVALID = 2,
    /* A row is not finite, or has norm 0 where it is to be normalised. */
    HARDMIX_ERROR_NON_FINITE = 3,
    /* Memory for an argument or a result cannot be had. */
    HARDMIX_ERROR_OUT_OF_MEMORY = 4,
    /* A file cannot be read or written, or holds something else. */
    HARDMIX_ERROR_FILE = 5,
    /* The CUDA driver is missing, or refused something. */
    HARDMIX_ERROR_CUDA = 6,
    /* A kernel failed in a way that its context does not survive. */
    HARDMIX_ERROR_CUDA_CONTEXT_LOST = 7,
    /* A defect of hardmix: please report it. A handle that was being changed is then refused. */
    HARDMIX_ERROR_INTERNAL = 8
};

/* The element type in which queue rows are stored: values for `dtype`. */
enum { HARDMIX_F32 = 0, HARDMIX_F16 = 1, HARDMIX_BF16 = 2 };

/* Whether the gradient also flows through the query inside a query-mixed negative: values for
 * `query_gradient`. A new plan is detached, as the public ports of MoCHi are. */
enum { HARDMIX_DETACHED = 0, HARDMIX_ATTACHED = 1 };

/* How the losses of the rows become one, and what the gradient is a gradient of: values for
 * `reduction`. With HARDMIX_NO_REDUCTION, row b of the gradient is that of row b's own loss, and the
 * loss is the sum. A new plan takes the mean. */
enum { HARDMIX_MEAN = 0, HARDMIX_SUM = 1, HARDMIX_NO_REDUCTION = 2 };

/* The label of a row that has none; it equals nothing. And what pads a list of hardest rows that is
 * shorter than N. */
#define HARDMIX_NO_LABEL UINT32_MAX
#define HARDMIX_NO_ROW UINT32_MAX

/* "0.1.0": major, minor, patch. */
const char *hardmix_version(void);

/* The text of the last error on the calling thread, in UTF-8: the argument, what it was and what was
 * expected. Empty where there was none. Valid until the next error on this thread, or its end. */
const char *hardmix_last_error(void);

/* ---- The queue of negatives: a ring of K rows in host memory ---- */

typedef struct hardmix_queue hardmix_queue;

/* K = `capacity` random unit rows of dimension `dim`, the same for the same `seed`, without labels,
 * as MoCo starts. */
hardmix_status hardmix_queue_random(size_t capacity, size_t dim, int32_t dtype, uint64_t seed,
                                    hardmix_queue **out);

/* A copy of `rows` [capacity, dim], rounded to `dtype` (to nearest, ties to even). `labels`
 * [capacity] or NULL. The next key replaces row `cursor`. Rows must be finite, also once rounded. */
hardmix_status hardmix_queue_create(const float *rows, const uint32_t *labels, size_t capacity,
                                    size_t dim, int32_t dtype, size_t cursor, hardmix_queue **out);

/* A file of hardmix_queue_save's, or of the Rust library's: safetensors. `path` is UTF-8. */
hardmix_status hardmix_queue_load(const char *path, hardmix_queue **out);

/* Writes rows, labels and cursor to a safetensors file, whole or not at all. */
hardmix_status hardmix_queue_save(const hardmix_queue *queue, const char *path);

/* Writes `keys` [rows, dim] over the oldest rows, each divided by its norm first where `normalise` is
 * not 0. `labels` [rows] or NULL for none. A row that is not finite refuses all of them. */
hardmix_status hardmix_queue_enqueue(hardmix_queue *queue, const float *keys,
                                     const uint32_t *labels, size_t rows, int32_t normalise);

/* K, d, and the row that the next key replaces; each may be NULL. */
hardmix_status hardmix_queue_shape(const hardmix_queue *queue, size_t *capacity, size_t *dim,
                                   size_t *cursor);

/* Copies out the rows [K, d], exactly, and the labels [K]; each may be NULL. */
hardmix_status hardmix_queue_read(const hardmix_queue *queue, float *rows, uint32_t *labels);

void hardmix_queue_free(hardmix_queue *queue);

/* ---- The plan: settings, and memory that is reused from step to step ---- */

typedef struct hardmix_plan hardmix_plan;

/* N = `hardest` queue rows a query of which s = `mixed` negatives are mixed in pairs and
 * s' = `query_mixed` with the query itself, at temperature tau = `temperature` (0.2 in the paper). All
 * three 0 is plain MoCo. */
hardmix_status hardmix_plan_create(size_t hardest, size_t mixed, size_t query_mixed,
                                   float temperature, hardmix_plan **out);

/* Other N, s, s', as at the end of warm-up: (N, 0, 0) is plain MoCo's loss with its hardest known. */
hardmix_status hardmix_plan_set_negatives(hardmix_plan *plan, size_t hardest, size_t mixed,
                                          size_t query_mixed);
hardmix_status hardmix_plan_set_temperature(hardmix_plan *plan, float temperature);
hardmix_status hardmix_plan_set_query_gradient(hardmix_plan *plan, int32_t query_gradient);
hardmix_status hardmix_plan_set_reduction(hardmix_plan *plan, int32_t reduction);

/* The class oracle, off (0) in a new plan: queue rows of the query's own label are no negatives. It
 * wants labels on both sides; without it they only measure. */
hardmix_status hardmix_plan_set_oracle(hardmix_plan *plan, int32_t on);

/* The gradient with respect to the keys, off (0) in a new plan. */
hardmix_status hardmix_plan_set_key_gradient(hardmix_plan *plan, int32_t on);

/* The metric `uniformity`, off (0) in a new plan: it doubles the exponentials. */
hardmix_status hardmix_plan_set_uniformity(hardmix_plan *plan, int32_t on);

void hardmix_plan_free(hardmix_plan *plan);

/* ---- A step ---- */

/* B = `rows` queries with their keys; the key of a row is its positive. L2-normalised, as the method
 * has them, or not. */
typedef struct hardmix_batch {
    const float *queries;   /* [B, d] */
    const float *keys;      /* [B, d] */
    const uint32_t *labels; /* [B], or NULL */
    size_t rows;            /* B */
    size_t dim;             /* d, the queue's */
    uint32_t row_offset;    /* the global index of row 0, for one shard of a larger batch; else 0 */
} hardmix_batch;

/* Which of a query's hardest are mixed with which weights: by seed and step, the same on every device,
 * where all pointers are NULL, else as given. Positions count in the row's list of hardest. */
typedef struct hardmix_draws {
    uint64_t seed;          /* of the whole run */
    uint64_t step;          /* the training step, less than 2^63 */
    const uint32_t *first;  /* [B, s] positions i */
    const uint32_t *second; /* [B, s] positions j */
    const float *alpha;     /* [B, s] weights of i, from 0 to 1 */
    const uint32_t *pick;   /* [B, s'] positions j */
    const float *beta;      /* [B, s'] weights of the query, from 0 to 1 */
} hardmix_draws;

/* Figures about a batch, each a mean over its rows; NAN where there is nothing to say. */
typedef struct hardmix_metrics {
    double proxy_accuracy;                /* share of rows whose positive beats every real negative */
    double proxy_accuracy_with_synthetic; /* and every synthetic one */
    double alignment;                     /* 2 - 2 mean(q.k) */
    double uniformity;                    /* log mean e^(-2 (2 - 2 q.n)); on request */
    double mixed_harder;                  /* share of mixed negatives harder than the hardest real */
    double query_mixed_harder;            /* the same of query-mixed negatives */
    double same_label_share;              /* of the hardest with labels, share of the query's */
} hardmix_metrics;

/* Where results go: what is NULL is not wanted. Nothing may lie inside a handle's memory. */
typedef struct hardmix_output {
    float *loss;               /* [1] */
    float *loss_rows;          /* [B] */
    float *grad_queries;       /* [B, d], of the reduced loss */
    float *grad_keys;          /* [B, d]; NULL unless the plan makes it */
    uint32_t *hardest;         /* [B, N] queue rows, ascending, padded with HARDMIX_NO_ROW */
    float *mixed_logits;       /* [B, s] q.h before tau; -INFINITY in rows without a negative */
    float *query_mixed_logits; /* [B, s'] q.h' likewise */
    uint32_t *first;           /* [B, s] the draws that were used, as in hardmix_draws */
    uint32_t *second;          /* [B, s] */
    float *alpha;              /* [B, s] */
    uint32_t *pick;            /* [B, s'] */
    float *beta;               /* [B, s'] */
    hardmix_metrics *metrics;  /* [1] */
} hardmix_output;

/* Loss, gradient and diagnostics of a batch against the queue as it is; enqueue the keys afterwards.
 *
 * With HARDMIX_ERROR_NON_FINITE everything has been written: the rows that are not finite, or whose
 * logits could overflow, are NAN, the loss too, and the others are what they would be without them. */
hardmix_status hardmix_step(hardmix_plan *plan, const hardmix_batch *batch,
                            const hardmix_queue *queue, const hardmix_draws *draws,
                            const hardmix_output *output);

/* ---- On an NVIDIA GPU: with HARDMIX_CUDA defined, of a library built with `--features cuda` ----
 *
 * Here arrays are in device memory: pointers of the CUDA runtime's, or a CUdeviceptr that is cast.
 * Functions put their work on the stream of their device and return; those that wait for it say so.
 * They make the device's primary context current to the calling thread. */
#ifdef HARDMIX_CUDA

typedef struct hardmix_cuda_device hardmix_cuda_device;
typedef struct hardmix_cuda_queue hardmix_cuda_queue;
typedef struct hardmix_cuda_plan hardmix_cuda_plan;

/* The device `ordinal`, with the kernels loaded, and a CUstream (cudaStream_t) of its primary context
 * that all work goes to; NULL is the default stream. The stream must outlive this handle and those
 * made of it, which may be freed in any order. A plan takes queues of the same device handle. Needs
 * compute capability 8.0 or newer. */
hardmix_status hardmix_cuda_device_create(int32_t ordinal, void *stream, hardmix_cuda_device **out);
void hardmix_cuda_device_free(hardmix_cuda_device *device);

/* A copy of a queue in device memory; waits. */
hardmix_status hardmix_cuda_queue_create(const hardmix_cuda_device *device,
                                         const hardmix_queue *queue, hardmix_cuda_queue **out);

/* A copy in host memory, to save for instance, and to be freed; waits. */
hardmix_status hardmix_cuda_queue_to_host(const hardmix_cuda_queue *queue, hardmix_queue **out);

/* As hardmix_queue_enqueue; `keys` and `labels` in device memory. Keys that only the device can
 * refuse (not finite, or of norm 0) leave the queue as it was, and hardmix_cuda_queue_check says so. */
hardmix_status hardmix_cuda_queue_enqueue(hardmix_cuda_queue *queue, const float *keys,
                                          const uint32_t *labels, size_t rows, int32_t normalise);

/* Whether all keys since the last call were taken; waits. */
hardmix_status hardmix_cuda_queue_check(hardmix_cuda_queue *queue);

void hardmix_cuda_queue_free(hardmix_cuda_queue *queue);

/* A plan for the device with the settings that `settings` has now; and others later. */
hardmix_status hardmix_cuda_plan_create(const hardmix_cuda_device *device,
                                        const hardmix_plan *settings, hardmix_cuda_plan **out);
hardmix_status hardmix_cuda_plan_set(hardmix_cuda_plan *plan, const hardmix_plan *settings);
void hardmix_cuda_plan_free(hardmix_cuda_plan *plan);

/* As hardmix_draws, in device memory, where the caller can advance the step. */
typedef struct hardmix_cuda_draws {
    const uint64_t *seed_and_step; /* [2]; not read where the draws are given */
    const uint32_t *first;         /* [B, s] */
    const uint32_t *second;        /* [B, s] */
    const float *alpha;            /* [B, s] */
    const uint32_t *pick;          /* [B, s'] */
    const float *beta;             /* [B, s'] */
} hardmix_cuda_draws;

/* As hardmix_output, in device memory: what is NULL is not wanted. No two may overlap. */
typedef struct hardmix_cuda_output {
    float *loss;               /* [1]; NAN where a row is not finite */
    float *loss_rows;          /* [B] */
    float *grad_queries;       /* [B, d], of the reduced loss */
    float *grad_keys;          /* [B, d]; NULL unless the plan makes it */
    uint32_t *hardest;         /* [B, N] */
    float *mixed_logits;       /* [B, s] */
    float *query_mixed_logits; /* [B, s'] */
    uint32_t *first;           /* [B, s] the draws that were used */
    uint32_t *second;          /* [B, s] */
    float *alpha;              /* [B, s] */
    uint32_t *pick;            /* [B, s'] */
    float *beta;               /* [B, s'] */
} hardmix_cuda_output;

/* hardmix_step on the device: the arrays of `batch` and `draws` and the places of `output` are device
 * memory, the structs themselves are not. Given draws that are out of range are refused by
 * hardmix_cuda_step_read. All of them must stay as they are until the
 * stream has come past. Memory is allocated where a batch, a queue or a setting is larger than any
 * before. */
hardmix_status hardmix_cuda_step(hardmix_cuda_plan *plan, const hardmix_batch *batch,
                                 const hardmix_cuda_queue *queue, const hardmix_cuda_draws *draws,
                                 const hardmix_cuda_output *output);

/* Whether the last step was finite, as hardmix_step says it, and its loss and metrics in host memory;
 * each may be NULL. Waits. */
hardmix_status hardmix_cuda_step_read(const hardmix_cuda_plan *plan, float *loss,
                                      hardmix_metrics *metrics);

#endif

#ifdef __cplusplus
}
#endif

#endif

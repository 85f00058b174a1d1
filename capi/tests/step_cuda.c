/* The C interface on the device: a step, on memory and a stream that C has made through the driver,
 * beside the same step on the CPU. Prints what fails and exits with 1. */
#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HARDMIX_CUDA
#include "expect.h"

/* The few functions of the driver that a caller needs, without its header. */
typedef unsigned long long device_pointer;
static int (*cuInit)(unsigned);
static int (*cuDevicePrimaryCtxRetain)(void **, int);
static int (*cuCtxSetCurrent)(void *);
static int (*cuStreamCreate)(void **, unsigned);
static int (*cuStreamSynchronize)(void *);
static int (*cuMemAlloc)(device_pointer *, size_t);
static int (*cuMemcpyHtoD)(device_pointer, const void *, size_t);
static int (*cuMemcpyDtoH)(void *, device_pointer, size_t);

static void *driver;

/* POSIX's way around C's ban on casts from data to functions. */
static void find(void *function, const char *name) {
    void *found = dlsym(driver, name);
    if (found == NULL) {
        fprintf(stderr, "the driver has no %s\n", name);
        exit(2);
    }
    memcpy(function, &found, sizeof found);
}

static void done(int result) {
    if (result != 0) {
        fprintf(stderr, "the driver fails: %d\n", result);
        exit(2);
    }
}

static void *allocate(size_t bytes) {
    device_pointer pointer = 0;
    done(cuMemAlloc(&pointer, bytes));
    return (void *)(uintptr_t)pointer;
}

static void *upload(const void *values, size_t bytes) {
    void *there = allocate(bytes);
    done(cuMemcpyHtoD((uintptr_t)there, values, bytes));
    return there;
}

static void download(void *values, const void *there, size_t bytes) {
    done(cuMemcpyDtoH(values, (uintptr_t)there, bytes));
}

/* The distance of two gradients, in the length of the second. */
static double off(const float *a, const float *b) {
    double difference = 0.0, length = 0.0;
    for (size_t i = 0; i < B * D; i++) {
        difference += pow((double)a[i] - b[i], 2);
        length += pow(b[i], 2);
    }
    return sqrt(difference / length);
}

static float queries[B * D], keys[B * D], rows[K * D];
static float loss, loss_rows[B], gradient[B * D], grad_keys[B * D], logits[B * S], query_logits[B * T];
static uint32_t hardest[B * N], first[B * S], second[B * S], pick[B * T];
static float alpha[B * S], beta[B * T];

/* Whether what lies there is, bit by bit, what is here. */
static int same(const void *here, const void *there, size_t bytes) {
    static char copy[B * D * sizeof(float)];
    download(copy, there, bytes);
    return bytes <= sizeof copy && memcmp(here, copy, bytes) == 0;
}

int main(void) {
    void *context = NULL, *stream = NULL;
    driver = dlopen("libcuda.so.1", RTLD_NOW);
    if (driver == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        return 2;
    }
    find(&cuInit, "cuInit");
    find(&cuDevicePrimaryCtxRetain, "cuDevicePrimaryCtxRetain");
    find(&cuCtxSetCurrent, "cuCtxSetCurrent");
    find(&cuStreamCreate, "cuStreamCreate");
    find(&cuStreamSynchronize, "cuStreamSynchronize");
    find(&cuMemAlloc, "cuMemAlloc_v2");
    find(&cuMemcpyHtoD, "cuMemcpyHtoD_v2");
    find(&cuMemcpyDtoH, "cuMemcpyDtoH_v2");
    done(cuInit(0));
    done(cuDevicePrimaryCtxRetain(&context, 0));
    done(cuCtxSetCurrent(context));
    done(cuStreamCreate(&stream, 1 /* CU_STREAM_NON_BLOCKING */));

    unit_rows(queries, B, 1);
    unit_rows(keys, B, 2);
    unit_rows(rows, K, 3);
    uint32_t labels[B] = {1, 2, 3, 4, 5};
    uint64_t words[2] = {42, 3};

    /* On the CPU. */
    hardmix_plan *plan = NULL;
    hardmix_queue *queue = NULL;
    hardmix_metrics metrics;
    hardmix_batch batch = {queries, keys, NULL, B, D, 0};
    hardmix_draws draws = {words[0], words[1], NULL, NULL, NULL, NULL, NULL};
    hardmix_output output = {0};
    output.loss = &loss;
    output.loss_rows = loss_rows;
    output.grad_queries = gradient;
    output.grad_keys = grad_keys;
    output.hardest = hardest;
    output.mixed_logits = logits;
    output.query_mixed_logits = query_logits;
    output.first = first;
    output.second = second;
    output.alpha = alpha;
    output.pick = pick;
    output.beta = beta;
    output.metrics = &metrics;
    EXPECT(hardmix_plan_create(N, S, T, 0.2f, &plan) == HARDMIX_OK);
    EXPECT(hardmix_plan_set_key_gradient(plan, 1) == HARDMIX_OK);
    EXPECT(hardmix_queue_create(rows, NULL, K, D, HARDMIX_F32, K - 2, &queue) == HARDMIX_OK);
    EXPECT(hardmix_step(plan, &batch, queue, &draws, &output) == HARDMIX_OK);

    /* On the device. */
    hardmix_cuda_device *device = NULL;
    hardmix_cuda_queue *ring = NULL;
    hardmix_cuda_plan *there = NULL;
    EXPECT(hardmix_cuda_device_create(0, stream, &device) == HARDMIX_OK);
    EXPECT(hardmix_cuda_queue_create(device, queue, &ring) == HARDMIX_OK);
    EXPECT(hardmix_cuda_plan_create(device, plan, &there) == HARDMIX_OK);
    if (failures > 0) return 1;
    batch.queries = upload(queries, sizeof queries);
    batch.keys = upload(keys, sizeof keys);
    hardmix_cuda_draws seeded = {upload(words, sizeof words), NULL, NULL, NULL, NULL, NULL};
    hardmix_cuda_output places = {allocate(sizeof loss),     allocate(sizeof loss_rows),
                                  allocate(sizeof gradient), allocate(sizeof grad_keys),
                                  allocate(sizeof hardest),  allocate(sizeof logits),
                                  allocate(sizeof query_logits), allocate(sizeof first),
                                  allocate(sizeof second),   allocate(sizeof alpha),
                                  allocate(sizeof pick),     allocate(sizeof beta)};
    EXPECT(hardmix_cuda_step(there, &batch, ring, &seeded, &places) == HARDMIX_OK);
    EXPECT(hardmix_cuda_queue_enqueue(ring, batch.keys, upload(labels, sizeof labels), B, 0) ==
           HARDMIX_OK);
    done(cuStreamSynchronize(stream));

    float got, got_rows[B], got_gradient[B * D], got_keys[B * D], read;
    hardmix_metrics got_metrics;
    download(&got, places.loss, sizeof got);
    download(got_rows, places.loss_rows, sizeof got_rows);
    download(got_gradient, places.grad_queries, sizeof got_gradient);
    download(got_keys, places.grad_keys, sizeof got_keys);
    /* The method's tolerance for f32 at tau = 0.2: of a loss absolute, of a gradient relative. */
    EXPECT(fabsf(got - loss) < 1e-5f);
    for (size_t b = 0; b < B; b++) EXPECT(fabsf(got_rows[b] - loss_rows[b]) < 1e-5f);
    EXPECT(off(got_gradient, gradient) < 1e-5);
    EXPECT(off(got_keys, grad_keys) < 1e-5);
    EXPECT(same(hardest, places.hardest, sizeof hardest));
    EXPECT(same(first, places.first, sizeof first) && same(second, places.second, sizeof second));
    EXPECT(same(pick, places.pick, sizeof pick) && same(alpha, places.alpha, sizeof alpha));
    EXPECT(same(beta, places.beta, sizeof beta));
    float got_logits[B * S], got_query_logits[B * T];
    download(got_logits, places.mixed_logits, sizeof got_logits);
    download(got_query_logits, places.query_mixed_logits, sizeof got_query_logits);
    for (size_t i = 0; i < B * S; i++) EXPECT(fabsf(got_logits[i] - logits[i]) < 1e-5f);
    for (size_t i = 0; i < B * T; i++) EXPECT(fabsf(got_query_logits[i] - query_logits[i]) < 1e-5f);
    EXPECT(hardmix_cuda_step_read(there, &read, &got_metrics) == HARDMIX_OK);
    EXPECT(memcmp(&read, &got, sizeof got) == 0);
    EXPECT(got_metrics.proxy_accuracy == metrics.proxy_accuracy);
    EXPECT(fabs(got_metrics.alignment - metrics.alignment) < 1e-5);

    /* The same draws, given: the same bits, against the queue as it was. Then one out of range. */
    hardmix_cuda_queue *before = NULL;
    hardmix_cuda_draws given = {NULL, upload(first, sizeof first), upload(second, sizeof second),
                                upload(alpha, sizeof alpha), upload(pick, sizeof pick),
                                upload(beta, sizeof beta)};
    hardmix_cuda_output only = {0};
    only.grad_queries = allocate(sizeof gradient);
    EXPECT(hardmix_cuda_queue_create(device, queue, &before) == HARDMIX_OK);
    EXPECT(hardmix_cuda_step(there, &batch, before, &given, &only) == HARDMIX_OK);
    EXPECT(hardmix_cuda_step_read(there, &read, NULL) == HARDMIX_OK);
    EXPECT(same(got_gradient, only.grad_queries, sizeof got_gradient));
    pick[1] = N;
    given.pick = upload(pick, sizeof pick);
    EXPECT(hardmix_cuda_step(there, &batch, before, &given, &only) == HARDMIX_OK);
    EXPECT_REFUSED(hardmix_cuda_step_read(there, &read, NULL), HARDMIX_ERROR_INVALID,
                   "draw pick[0, 1] is position 8; expected less than 8, the number of that row's "
                   "hardest");
    given.alpha = NULL;
    EXPECT_REFUSED(hardmix_cuda_step(there, &batch, before, &given, &only), HARDMIX_ERROR_NULL,
                   "draws.alpha is NULL");
    hardmix_cuda_queue_free(before);

    /* The queue, back: what the CPU's is after the same keys. */
    hardmix_queue *back = NULL;
    float expected[K * D], found[K * D];
    uint32_t found_labels[K];
    size_t cursor = 0;
    EXPECT(hardmix_cuda_queue_check(ring) == HARDMIX_OK);
    EXPECT(hardmix_cuda_queue_to_host(ring, &back) == HARDMIX_OK);
    EXPECT(hardmix_queue_enqueue(queue, keys, NULL, B, 0) == HARDMIX_OK);
    EXPECT(hardmix_queue_read(queue, expected, NULL) == HARDMIX_OK);
    EXPECT(hardmix_queue_read(back, found, found_labels) == HARDMIX_OK);
    EXPECT(hardmix_queue_shape(back, NULL, NULL, &cursor) == HARDMIX_OK);
    EXPECT(memcmp(expected, found, sizeof found) == 0 && cursor == B - 2);
    EXPECT(found_labels[K - 1] == 2 && found_labels[0] == 3 &&
           found_labels[B] == HARDMIX_NO_LABEL);

    /* Other settings; a NaN; misuse. */
    EXPECT(hardmix_plan_set_key_gradient(plan, 0) == HARDMIX_OK);
    EXPECT(hardmix_cuda_plan_set(there, plan) == HARDMIX_OK);
    EXPECT_REFUSED(hardmix_cuda_step(there, &batch, ring, &seeded, &places),
                   HARDMIX_ERROR_INVALID,
                   "output.grad_keys is given; expected NULL, or "
                   "hardmix_plan_set_key_gradient(plan, 1) before");
    places.grad_keys = NULL;
    queries[2 * D + 1] = NAN;
    batch.queries = upload(queries, sizeof queries);
    EXPECT(hardmix_cuda_step(there, &batch, ring, &seeded, &places) == HARDMIX_OK);
    EXPECT_REFUSED(hardmix_cuda_step_read(there, &read, NULL), HARDMIX_ERROR_NON_FINITE,
                   "row 2 of queries is not finite");
    EXPECT(isnan(read));
    EXPECT(hardmix_cuda_queue_enqueue(ring, batch.queries, NULL, B, 1) == HARDMIX_OK);
    EXPECT_REFUSED(hardmix_cuda_queue_check(ring), HARDMIX_ERROR_NON_FINITE,
                   "row 2 of keys is not finite");
    EXPECT_REFUSED(hardmix_cuda_step(there, &batch, ring, NULL, &places), HARDMIX_ERROR_NULL,
                   "draws is NULL");
    hardmix_cuda_draws none_given = {0};
    EXPECT_REFUSED(hardmix_cuda_step(there, &batch, ring, &none_given, &places), HARDMIX_ERROR_NULL,
                   "draws.seed_and_step is NULL");
    EXPECT_REFUSED(hardmix_cuda_step(there, &batch, NULL, &seeded, &places),
                   HARDMIX_ERROR_NULL, "queue is NULL");
    EXPECT_REFUSED(hardmix_cuda_queue_enqueue(ring, NULL, NULL, B, 0), HARDMIX_ERROR_NULL,
                   "keys is NULL");
    batch.dim = D - 1;
    EXPECT(hardmix_cuda_step(there, &batch, ring, &seeded, &places) ==
           HARDMIX_ERROR_INVALID);
    hardmix_cuda_device *none = NULL;
    EXPECT_REFUSED(hardmix_cuda_device_create(1000, NULL, &none), HARDMIX_ERROR_INVALID,
                   "device is 1000; expected less than the number of CUDA devices");
    EXPECT(hardmix_cuda_device_create(-1, NULL, &none) == HARDMIX_ERROR_INVALID && none == NULL);

    /* In any order. */
    hardmix_cuda_device_free(device);
    hardmix_cuda_plan_free(there);
    hardmix_cuda_queue_free(ring);
    hardmix_queue_free(back);
    hardmix_queue_free(queue);
    hardmix_plan_free(plan);
    if (failures == 0) printf("hardmix %s on the device from C: all passed\n", hardmix_version());
    return failures != 0;
}

/* The C interface from C: a step against the formulas in double, written naively; the queue; and
 * what is refused. Run with a folder to write in. Prints what fails and exits with 1. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "expect.h"

static double dot(const float *a, const double *b) {
    double sum = 0.0;
    for (size_t i = 0; i < D; i++) sum += (double)a[i] * b[i];
    return sum;
}

/* a u + (1 - a) v, divided by its norm. */
static void mix(double a, const float *u, const float *v, double *h) {
    double norm = 0.0;
    for (size_t i = 0; i < D; i++) {
        h[i] = a * u[i] + (1.0 - a) * v[i];
        norm += h[i] * h[i];
    }
    for (size_t i = 0; i < D; i++) h[i] /= sqrt(norm);
}

/* Loss of one row and its gradient, the gradient through synthetic negatives detached. */
static double reference(const float *query, const float *key, const float *queue, size_t row,
                        const hardmix_output *made, double temperature, double *gradient) {
    static double candidates[1 + K + S + T][D];
    double weights[1 + K + S + T], sum = 0.0;
    for (size_t i = 0; i < D; i++) candidates[0][i] = key[i];
    for (size_t j = 0; j < K; j++)
        for (size_t i = 0; i < D; i++) candidates[1 + j][i] = queue[j * D + i];
    const uint32_t *hardest = made->hardest + row * N;
    for (size_t m = 0; m < S; m++) {
        size_t at = row * S + m;
        const float *u = queue + hardest[made->first[at]] * D;
        const float *v = queue + hardest[made->second[at]] * D;
        mix(made->alpha[at], u, v, candidates[1 + K + m]);
    }
    for (size_t m = 0; m < T; m++) {
        size_t at = row * T + m;
        const float *v = queue + hardest[made->pick[at]] * D;
        mix(made->beta[at], query, v, candidates[1 + K + S + m]);
    }
    for (size_t c = 0; c < 1 + K + S + T; c++) {
        weights[c] = exp(dot(query, candidates[c]) / temperature);
        sum += weights[c];
    }
    for (size_t i = 0; i < D; i++) {
        gradient[i] = -candidates[0][i];
        for (size_t c = 0; c < 1 + K + S + T; c++) gradient[i] += weights[c] / sum * candidates[c][i];
        gradient[i] /= temperature * B;
    }
    return log(sum / weights[0]);
}

/* Whether these are the N rows with the largest logits, ascending by index. */
static int are_hardest(const float *query, const float *queue, const uint32_t *hardest) {
    char listed[K] = {0};
    double least = INFINITY, most = -INFINITY;
    for (size_t n = 0; n < N; n++) {
        if (hardest[n] >= K || (n > 0 && hardest[n] <= hardest[n - 1])) return 0;
        listed[hardest[n]] = 1;
    }
    for (size_t j = 0; j < K; j++) {
        double logit = 0.0;
        for (size_t i = 0; i < D; i++) logit += (double)query[i] * queue[j * D + i];
        if (listed[j]) least = fmin(least, logit);
        else most = fmax(most, logit);
    }
    return least > most;
}

static float queries[B * D], keys[B * D], rows[K * D];
static float loss, loss_rows[B], gradient[B * D], grad_keys[B * D], alpha[B * S], beta[B * T];
static float mixed_logits[B * S], query_mixed_logits[B * T];
static uint32_t hardest[B * N], first[B * S], second[B * S], pick[B * T];
static hardmix_metrics metrics;

static const hardmix_batch batch = {queries, keys, NULL, B, D, 0};
static const hardmix_draws seeded = {42, 3, NULL, NULL, NULL, NULL, NULL};
static const hardmix_output output = {&loss, loss_rows, gradient, NULL, hardest, mixed_logits,
                                      query_mixed_logits, first, second, alpha, pick, beta,
                                      &metrics};

static void a_step_is_the_formulas(hardmix_plan *plan, const hardmix_queue *queue) {
    EXPECT(hardmix_step(plan, &batch, queue, &seeded, &output) == HARDMIX_OK);
    double mean = 0.0, aligned = 0.0;
    for (size_t b = 0; b < B; b++) {
        double expected[D];
        EXPECT(are_hardest(queries + b * D, rows, hardest + b * N));
        double own = reference(queries + b * D, keys + b * D, rows, b, &output, 0.2, expected);
        mean += own / B;
        /* Some ten roundings of f32 on logits of at most 1/tau = 5. */
        EXPECT(fabs(loss_rows[b] - own) < 10 * 5 * 6e-8);
        for (size_t i = 0; i < D; i++)
            EXPECT(fabs(gradient[b * D + i] - expected[i]) < 10 * 5 * 6e-8);
        for (size_t i = 0; i < D; i++) aligned += (double)queries[b * D + i] * keys[b * D + i] / B;
    }
    EXPECT(fabs(loss - mean) < 10 * 5 * 6e-8);
    EXPECT(fabs(metrics.alignment - (2.0 - 2.0 * aligned)) < 1e-6);
    EXPECT(isnan(metrics.uniformity) && isnan(metrics.same_label_share));

    /* What was drawn, given back, is the same step. */
    float again[B * D], same;
    hardmix_draws given = {0, 0, first, second, alpha, pick, beta};
    hardmix_output wanted = {0};
    wanted.loss = &same;
    wanted.grad_queries = again;
    EXPECT(hardmix_step(plan, &batch, queue, &given, &wanted) == HARDMIX_OK);
    EXPECT(memcmp(&same, &loss, sizeof loss) == 0);
    EXPECT(memcmp(again, gradient, sizeof again) == 0);
}

static void settings_matter(const hardmix_queue *queue) {
    hardmix_plan *plan = NULL;
    EXPECT(hardmix_plan_create(N, S, T, 0.2f, &plan) == HARDMIX_OK);
    float detached[B * D], sum;
    hardmix_output wanted = {0};
    wanted.loss = &sum;
    wanted.grad_queries = detached;
    EXPECT(hardmix_step(plan, &batch, queue, &seeded, &wanted) == HARDMIX_OK);
    float mean = sum;
    EXPECT(hardmix_plan_set_query_gradient(plan, HARDMIX_ATTACHED) == HARDMIX_OK);
    EXPECT(hardmix_plan_set_key_gradient(plan, 1) == HARDMIX_OK);
    EXPECT(hardmix_plan_set_uniformity(plan, 1) == HARDMIX_OK);
    EXPECT(hardmix_plan_set_reduction(plan, HARDMIX_SUM) == HARDMIX_OK);
    wanted.grad_queries = gradient;
    wanted.grad_keys = grad_keys;
    wanted.metrics = &metrics;
    EXPECT(hardmix_step(plan, &batch, queue, &seeded, &wanted) == HARDMIX_OK);
    EXPECT(fabsf(sum - B * mean) < 1e-5f);
    EXPECT(fabsf(gradient[0] - B * detached[0]) > 1e-4f);
    EXPECT(isfinite(metrics.uniformity));
    /* A key's gradient is -(1 - p)/tau times its query. */
    EXPECT(grad_keys[0] * queries[0] < 0.0f);

    EXPECT(hardmix_plan_set_negatives(plan, 0, 0, 0) == HARDMIX_OK);
    EXPECT(hardmix_plan_set_temperature(plan, 1.0f) == HARDMIX_OK);
    wanted.grad_keys = NULL;
    EXPECT(hardmix_step(plan, &batch, queue, &seeded, &wanted) == HARDMIX_OK);
    EXPECT(sum < B * mean);
    hardmix_plan_free(plan);
}

static void a_queue_is_a_ring(const char *folder) {
    char path[4096];
    size_t capacity, dim, cursor;
    float read[K * D];
    uint32_t labels[K], own[B] = {5, 6, 7, 8, 9};
    hardmix_queue *queue = NULL, *loaded = NULL;
    EXPECT(hardmix_queue_create(rows, NULL, K, D, HARDMIX_F32, K - 2, &queue) == HARDMIX_OK);
    EXPECT(hardmix_queue_enqueue(queue, keys, own, B, 0) == HARDMIX_OK);
    EXPECT(hardmix_queue_shape(queue, &capacity, &dim, &cursor) == HARDMIX_OK);
    EXPECT(capacity == K && dim == D && cursor == B - 2);
    snprintf(path, sizeof path, "%s/queue.safetensors", folder);
    EXPECT(hardmix_queue_save(queue, path) == HARDMIX_OK);
    EXPECT(hardmix_queue_load(path, &loaded) == HARDMIX_OK);
    EXPECT(hardmix_queue_read(loaded, read, labels) == HARDMIX_OK);
    EXPECT(memcmp(read, keys + 2 * D, (B - 2) * D * sizeof *read) == 0);
    EXPECT(memcmp(read + (K - 2) * D, keys, 2 * D * sizeof *read) == 0);
    EXPECT(memcmp(read + (B - 2) * D, rows + (B - 2) * D, (K - B) * D * sizeof *read) == 0);
    EXPECT(labels[0] == 7 && labels[K - 1] == 6 && labels[10] == HARDMIX_NO_LABEL);

    /* The oracle: with every row of one label, a query of that label has no negative. */
    hardmix_plan *plan = NULL;
    hardmix_batch labelled = batch;
    hardmix_output wanted = {0};
    for (size_t j = 0; j < K; j++) labels[j] = 5;
    hardmix_queue *alike = NULL;
    EXPECT(hardmix_queue_create(rows, labels, K, D, HARDMIX_BF16, 0, &alike) == HARDMIX_OK);
    EXPECT(hardmix_plan_create(N, S, T, 0.2f, &plan) == HARDMIX_OK);
    EXPECT(hardmix_plan_set_oracle(plan, 1) == HARDMIX_OK);
    labelled.labels = own;
    wanted.loss_rows = loss_rows;
    EXPECT(hardmix_step(plan, &labelled, alike, &seeded, &wanted) == HARDMIX_OK);
    EXPECT(loss_rows[0] == 0.0f && loss_rows[1] > 0.0f);
    EXPECT_REFUSED(hardmix_step(plan, &batch, alike, &seeded, &wanted), HARDMIX_ERROR_INVALID,
                   "the oracle masks by label, but queries has no labels");
    hardmix_plan_free(plan);
    hardmix_queue_free(alike);
    hardmix_queue_free(loaded);
    hardmix_queue_free(queue);
}

static void misuse_is_refused(hardmix_plan *plan, hardmix_queue *queue) {
    hardmix_plan *no_plan = NULL;
    hardmix_queue *no_queue = NULL;
    hardmix_batch wrong = batch;
    hardmix_output wanted = {0};
    EXPECT_REFUSED(hardmix_plan_create(N, S, T, 0.2f, NULL), HARDMIX_ERROR_NULL, "out is NULL");
    EXPECT_REFUSED(hardmix_plan_create(N, S, T, 0.0f, &no_plan), HARDMIX_ERROR_INVALID,
                   "temperature is 0; expected a positive, finite number of at least 1.2e-38");
    EXPECT_REFUSED(hardmix_plan_create(0, S, T, 0.2f, &no_plan), HARDMIX_ERROR_INVALID,
                   "hardest is 0 with mixed = 9 and query_mixed = 7; expected at least 1, or no "
                   "synthetic negatives");
    EXPECT(no_plan == NULL);
    EXPECT_REFUSED(hardmix_plan_set_oracle(NULL, 1), HARDMIX_ERROR_NULL, "plan is NULL");
    EXPECT_REFUSED(hardmix_plan_set_query_gradient(plan, 2), HARDMIX_ERROR_INVALID,
                   "query_gradient is 2; expected HARDMIX_DETACHED or HARDMIX_ATTACHED");
    EXPECT_REFUSED(hardmix_plan_set_reduction(plan, -1), HARDMIX_ERROR_INVALID,
                   "reduction is -1; expected HARDMIX_MEAN, HARDMIX_SUM or HARDMIX_NO_REDUCTION");
    EXPECT_REFUSED(hardmix_step(NULL, &batch, queue, &seeded, &output), HARDMIX_ERROR_NULL,
                   "plan is NULL");
    EXPECT_REFUSED(hardmix_step(plan, NULL, queue, &seeded, &output), HARDMIX_ERROR_NULL,
                   "batch is NULL");
    EXPECT_REFUSED(hardmix_step(plan, &batch, NULL, &seeded, &output), HARDMIX_ERROR_NULL,
                   "queue is NULL");
    EXPECT_REFUSED(hardmix_step(plan, &batch, queue, NULL, &output), HARDMIX_ERROR_NULL,
                   "draws is NULL");
    EXPECT_REFUSED(hardmix_step(plan, &batch, queue, &seeded, NULL), HARDMIX_ERROR_NULL,
                   "output is NULL");
    wrong.keys = NULL;
    EXPECT_REFUSED(hardmix_step(plan, &wrong, queue, &seeded, &wanted), HARDMIX_ERROR_NULL,
                   "batch.keys is NULL");
    wrong = batch;
    wrong.rows = 0;
    EXPECT_REFUSED(hardmix_step(plan, &wrong, queue, &seeded, &wanted), HARDMIX_ERROR_INVALID,
                   "queries is 0; expected at least 1");
    wrong.rows = SIZE_MAX;
    EXPECT(hardmix_step(plan, &wrong, queue, &seeded, &wanted) == HARDMIX_ERROR_OUT_OF_MEMORY);
    wrong.rows = B;
    wrong.dim = D - 1;
    EXPECT_REFUSED(hardmix_step(plan, &wrong, queue, &seeded, &wanted), HARDMIX_ERROR_INVALID,
                   "queue has dimension 12; the queries have 11");
    wrong.dim = 0;
    EXPECT_REFUSED(hardmix_step(plan, &wrong, queue, &seeded, &wanted), HARDMIX_ERROR_INVALID,
                   "dim is 0; expected at least 1");
    wrong = batch;
    wrong.queries = (const float *)(const void *)((const char *)queries + 1);
    EXPECT(hardmix_step(plan, &wrong, queue, &seeded, &wanted) == HARDMIX_ERROR_INVALID);
    EXPECT(strstr(hardmix_last_error(), "expected an address aligned to 4 bytes") != NULL);
    hardmix_draws some = {0, 0, first, NULL, NULL, NULL, NULL};
    EXPECT_REFUSED(hardmix_step(plan, &batch, queue, &some, &wanted), HARDMIX_ERROR_NULL,
                   "draws.second is NULL");
    some = (hardmix_draws){0, 0, first, second, alpha, pick, beta};
    pick[T] = N;
    EXPECT_REFUSED(hardmix_step(plan, &batch, queue, &some, &wanted), HARDMIX_ERROR_INVALID,
                   "draw pick[1, 0] is position 8; expected less than 8, the number of that row's "
                   "hardest");
    some = seeded;
    some.step = (uint64_t)1 << 63;
    EXPECT(hardmix_step(plan, &batch, queue, &some, &wanted) == HARDMIX_ERROR_INVALID);
    wanted.grad_keys = grad_keys;
    EXPECT_REFUSED(hardmix_step(plan, &batch, queue, &seeded, &wanted), HARDMIX_ERROR_INVALID,
                   "output.grad_keys is given; expected NULL, or "
                   "hardmix_plan_set_key_gradient(plan, 1) before");

    EXPECT_REFUSED(hardmix_queue_random(0, D, HARDMIX_F32, 0, &no_queue), HARDMIX_ERROR_INVALID,
                   "capacity is 0; expected at least 1");
    EXPECT_REFUSED(hardmix_queue_random(K, D, 3, 0, &no_queue), HARDMIX_ERROR_INVALID,
                   "dtype is 3; expected HARDMIX_F32, HARDMIX_F16 or HARDMIX_BF16");
    EXPECT(hardmix_queue_random(K, SIZE_MAX / K, HARDMIX_F32, 0, &no_queue) ==
           HARDMIX_ERROR_OUT_OF_MEMORY);
    EXPECT_REFUSED(hardmix_queue_create(NULL, NULL, K, D, HARDMIX_F32, 0, &no_queue),
                   HARDMIX_ERROR_NULL, "rows is NULL");
    EXPECT(hardmix_queue_create(rows, NULL, K, D, HARDMIX_F32, K, &no_queue) ==
           HARDMIX_ERROR_INVALID);
    EXPECT_REFUSED(hardmix_queue_create(rows, NULL, 0, D, HARDMIX_F32, 0, &no_queue),
                   HARDMIX_ERROR_INVALID, "capacity is 0; expected at least 1");
    EXPECT_REFUSED(hardmix_queue_create(rows, NULL, K, 0, HARDMIX_F32, 0, &no_queue),
                   HARDMIX_ERROR_INVALID, "dim is 0; expected at least 1");
    float spoilt[2 * D];
    memcpy(spoilt, rows, sizeof spoilt);
    spoilt[D + 3] = 1e30f;
    EXPECT_REFUSED(hardmix_queue_create(spoilt, NULL, 2, D, HARDMIX_F16, 0, &no_queue),
                   HARDMIX_ERROR_NON_FINITE, "row 1 of rows is not finite");
    EXPECT(hardmix_queue_load("/nowhere/at/all", &no_queue) == HARDMIX_ERROR_FILE);
    EXPECT(strstr(hardmix_last_error(), "/nowhere/at/all") != NULL);
    EXPECT(hardmix_queue_load("\xff", &no_queue) == HARDMIX_ERROR_INVALID);
    EXPECT_REFUSED(hardmix_queue_load(NULL, &no_queue), HARDMIX_ERROR_NULL, "path is NULL");
    EXPECT(no_queue == NULL);
    EXPECT_REFUSED(hardmix_queue_enqueue(queue, NULL, NULL, B, 0), HARDMIX_ERROR_NULL,
                   "keys is NULL");
    hardmix_plan_free(NULL);
    hardmix_queue_free(NULL);

    /* A NaN is never taken for a loss, and spoils no other row. */
    float kept = loss_rows[0];
    hardmix_output rows_alone = {0};
    rows_alone.loss = &loss;
    rows_alone.loss_rows = loss_rows;
    EXPECT(hardmix_step(plan, &batch, queue, &seeded, &rows_alone) == HARDMIX_OK);
    kept = loss_rows[0];
    queries[2 * D + 1] = NAN;
    EXPECT_REFUSED(hardmix_step(plan, &batch, queue, &seeded, &rows_alone),
                   HARDMIX_ERROR_NON_FINITE, "row 2 of queries is not finite");
    EXPECT(isnan(loss) && isnan(loss_rows[2]) && loss_rows[0] == kept);
    EXPECT_REFUSED(hardmix_queue_enqueue(queue, queries, NULL, B, 1), HARDMIX_ERROR_NON_FINITE,
                   "row 2 of keys is not finite");
}

int main(int count, char **arguments) {
    if (count != 2) {
        fprintf(stderr, "usage: step FOLDER\n");
        return 2;
    }
    hardmix_plan *plan = NULL;
    hardmix_queue *queue = NULL;
    EXPECT(strcmp(hardmix_last_error(), "") == 0);
    unit_rows(queries, B, 1);
    unit_rows(keys, B, 2);
    unit_rows(rows, K, 3);
    EXPECT(hardmix_plan_create(N, S, T, 0.2f, &plan) == HARDMIX_OK);
    EXPECT(hardmix_queue_create(rows, NULL, K, D, HARDMIX_F32, 0, &queue) == HARDMIX_OK);
    a_step_is_the_formulas(plan, queue);
    settings_matter(queue);
    a_queue_is_a_ring(arguments[1]);
    misuse_is_refused(plan, queue);
    hardmix_queue_free(queue);
    hardmix_plan_free(plan);
    if (failures == 0) printf("hardmix %s from C: all passed\n", hardmix_version());
    return failures != 0;
}

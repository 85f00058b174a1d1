/* What both programs share: the shapes, what they expect, and rows to compute with. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "hardmix.h"

enum { B = 5, D = 12, K = 40, N = 8, S = 9, T = 7 };

static int failures = 0;

#define EXPECT(condition)                                                                     \
    do {                                                                                      \
        if (!(condition)) {                                                                   \
            failures += 1;                                                                    \
            fprintf(stderr, "%s:%d: %s (%s)\n", __FILE__, __LINE__, #condition,               \
                    hardmix_last_error());                                                    \
        }                                                                                     \
    } while (0)

#define EXPECT_REFUSED(call, expected, text)                                                  \
    do {                                                                                      \
        hardmix_status got = (call);                                                          \
        if (got != (expected) || strcmp(hardmix_last_error(), text) != 0) {                   \
            failures += 1;                                                                    \
            fprintf(stderr, "%s:%d: status %d, \"%s\"\n", __FILE__, __LINE__, (int)got,       \
                    hardmix_last_error());                                                    \
        }                                                                                     \
    } while (0)

/* Unit rows from a linear congruential generator (Knuth's MMIX). */
static void unit_rows(float *rows, size_t count, uint64_t state) {
    for (size_t row = 0; row < count; row++) {
        double norm = 0.0;
        for (size_t i = 0; i < D; i++) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            rows[row * D + i] = (float)(state >> 40) / 8388608.0f - 1.0f;
            norm += (double)rows[row * D + i] * rows[row * D + i];
        }
        for (size_t i = 0; i < D; i++) rows[row * D + i] /= (float)sqrt(norm);
    }
}

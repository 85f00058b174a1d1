/* As much of cuBLAS as candle links: handles, and the product of f32 matrices, computed by the host.
 *
 * Built by `tools/softgpu --libraries`. Everything that is not written here is refused, never wrong. */
#include <stdint.h>
#include <stdlib.h>

enum { SUCCESS = 0, ALLOC_FAILED = 3, INVALID_VALUE = 7, EXECUTION_FAILED = 13, NOT_SUPPORTED = 15 };
enum { OP_N = 0, R_32F = 0 };

typedef void *Stream;
typedef struct {
    Stream stream;
} Handle;

int cuStreamSynchronize(Stream);
int cuMemcpyDtoH_v2(void *, uint64_t, size_t);
int cuMemcpyHtoD_v2(uint64_t, const void *, size_t);

int cublasCreate_v2(Handle **out) {
    *out = calloc(1, sizeof **out);
    return *out ? SUCCESS : ALLOC_FAILED;
}

int cublasDestroy_v2(Handle *handle) {
    free(handle);
    return SUCCESS;
}

int cublasSetStream_v2(Handle *handle, Stream stream) {
    handle->stream = stream;
    return SUCCESS;
}

/* Of a column-major matrix as it is stored, before any transposition. */
static size_t span(int64_t rows, int64_t columns, int64_t pitch) {
    return rows && columns ? (size_t)(pitch * (columns - 1) + rows) : 0;
}

static float *download(uint64_t from, size_t count) {
    float *copy = malloc(count * sizeof *copy + 1);
    if (copy && count && cuMemcpyDtoH_v2(copy, from, count * sizeof *copy)) {
        free(copy);
        return NULL;
    }
    return copy;
}

/* c [m, n] = alpha·op(a)·op(b) + beta·c */
static void product(int a_transposed, int b_transposed, int m, int n, int k, float alpha,
                    const float *a, int64_t lda, const float *b, int64_t ldb, float beta, float *c,
                    int64_t ldc) {
    for (int j = 0; j < n; j++) {
        for (int i = 0; i < m; i++) {
            double sum = 0.0;
            for (int l = 0; l < k; l++) {
                double left = a_transposed ? a[l + i * lda] : a[i + l * lda];
                sum += left * (b_transposed ? b[j + l * ldb] : b[l + j * ldb]);
            }
            float *place = &c[i + j * ldc];
            /* What is overwritten may be anything, NaN too. */
            *place = (float)(alpha * sum) + (beta == 0.0f ? 0.0f : beta * *place);
        }
    }
}

int cublasGemmStridedBatchedEx(Handle *handle, int a_op, int b_op, int m, int n, int k,
                               const void *alpha, uint64_t a, int a_type, int lda, long long a_stride,
                               uint64_t b, int b_type, int ldb, long long b_stride, const void *beta,
                               uint64_t c, int c_type, int ldc, long long c_stride, int batch,
                               int compute, int algorithm) {
    (void)compute, (void)algorithm;
    if (a_type != R_32F || b_type != R_32F || c_type != R_32F)
        return NOT_SUPPORTED;
    if (m < 0 || n < 0 || k < 0 || batch < 0)
        return INVALID_VALUE;
    if (cuStreamSynchronize(handle->stream))
        return EXECUTION_FAILED;
    size_t a_count = a_op == OP_N ? span(m, k, lda) : span(k, m, lda);
    size_t b_count = b_op == OP_N ? span(k, n, ldb) : span(n, k, ldb);
    size_t c_count = span(m, n, ldc);
    int status = SUCCESS;
    for (int index = 0; index < batch && status == SUCCESS; index++) {
        uint64_t place = c + sizeof(float) * index * c_stride;
        float *left = download(a + sizeof(float) * index * a_stride, a_count);
        float *right = download(b + sizeof(float) * index * b_stride, b_count);
        float *out = download(place, c_count);
        if (left && right && out) {
            product(a_op != OP_N, b_op != OP_N, m, n, k, *(const float *)alpha, left, lda, right, ldb,
                    *(const float *)beta, out, ldc);
            if (c_count && cuMemcpyHtoD_v2(place, out, c_count * sizeof *out))
                status = EXECUTION_FAILED;
        } else {
            status = EXECUTION_FAILED;
        }
        free(left), free(right), free(out);
    }
    return status;
}

int cublasDgemmStridedBatched(void) {
    return NOT_SUPPORTED;
}

// A ReLU network of a few narrow layers, with the slope of one linear read-out: the only place its formulas are
// written. Everything is a product of small matrices on a block of rows that stays in the cache from the first layer to
// the last. Letters: N rows, I inputs, H hidden width, K layers. Layer k has weight [H, I or H] and bias [H]; a_0 = x
// and a_k = relu(a_(k-1) W_k^T + b_k). With a read-out w [H], the slope is d (a_K . w) / d x: s_K = w * [a_K > 0],
// s_(k-1) = (s_k W_k) * [a_(k-1) > 0], slope = s_1 W_1.
#pragma once
#include "portable.h"

constexpr int kMaxLayers = 4;

struct MlpParams {
    const float* x;                   // [N, I]
    const float* weight[kMaxLayers];  // [H, I] for the first layer, [H, H] for the others
    const float* bias[kMaxLayers];    // [H]
    const float* readout;             // [H] or null: no slope
    float* hidden[kMaxLayers];        // [N, H] each layer's output: out of the forward, in of the backward
    float* slope;                     // [N, I] out of the forward, where there is a read-out
    const float* grad_features;       // [N, H] of the last layer's output, or null
    const float* grad_slope;          // [N, I] or null
    float* grad_x;                    // [N, I] out, or null
    float* grad_parameters;           // out: K pairs of weight and bias gradients end to end, then the read-out's
    int64_t rows;                     // N
    int64_t inputs;                   // I, a multiple of 16, at most 128
    int64_t width;                    // H, a multiple of 16, at most 128
    int64_t layers;                   // K
};

// Eight floats that are added and multiplied together; compilers turn them into the widest registers there are.
#if defined(__GNUC__)
typedef float Eight __attribute__((vector_size(32), aligned(4), may_alias));
#else
struct Eight {
    float v[8];
    HD friend Eight operator*(float a, const Eight& b) {
        Eight r;
        for (int i = 0; i < 8; ++i) r.v[i] = a * b.v[i];
        return r;
    }
    HD Eight& operator+=(const Eight& o) {
        for (int i = 0; i < 8; ++i) v[i] += o.v[i];
        return *this;
    }
};
#endif

// Loops over the rows of a register tile must be unrolled, or the tile ends up in memory.
#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#elif defined(__GNUC__)
#define UNROLL _Pragma("GCC unroll 8")
#else
#define UNROLL
#endif

// C[m][n] = (or +=) sum_p A(m, p) B[p][n] on a tile of kRows x 16, which stays in registers. A is row-major, or, where
// it is read transposed, A(m, p) = a[p * lda + m].
template <int kRows, bool kTransposed>
HD void tile(const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc, int64_t depth, bool add) {
    Eight sum[kRows][2];
    UNROLL
    for (int m = 0; m < kRows; ++m)
        for (int half = 0; half < 2; ++half)
            sum[m][half] = add ? *reinterpret_cast<const Eight*>(c + m * ldc + 8 * half) : Eight{};
    for (int64_t p = 0; p < depth; ++p) {
        const Eight low = *reinterpret_cast<const Eight*>(b + p * ldb),
                    high = *reinterpret_cast<const Eight*>(b + p * ldb + 8);
        UNROLL
        for (int m = 0; m < kRows; ++m) {
            const float factor = kTransposed ? a[p * lda + m] : a[m * lda + p];
            sum[m][0] += factor * low;
            sum[m][1] += factor * high;
        }
    }
    UNROLL
    for (int m = 0; m < kRows; ++m)
        for (int half = 0; half < 2; ++half) *reinterpret_cast<Eight*>(c + m * ldc + 8 * half) = sum[m][half];
}

// The same for a whole matrix C [rows, columns]; rows is a multiple of kRows and columns of 16.
template <int kRows, bool kTransposed>
HD void product(const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc, int64_t rows,
                int64_t columns, int64_t depth, bool add) {
    for (int64_t n = 0; n < columns; n += 16)
        for (int64_t m = 0; m < rows; m += kRows)
            tile<kRows, kTransposed>(kTransposed ? a + m : a + m * lda, lda, b + n, ldb, c + m * ldc + n, ldc, depth,
                                     add);
}

// out[r][j] = max(out[r][j] + bias[j], 0)
HD void add_bias_and_clamp(float* out, const float* bias, int64_t rows, int64_t width) {
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t j = 0; j < width; ++j) {
            const float value = out[r * width + j] + bias[j];
            out[r * width + j] = value > 0.0f ? value : 0.0f;
        }
}

// out = in where the unit is on, else 0.
HD void mask(const float* in, const float* unit, float* out, int64_t count) {
    for (int64_t i = 0; i < count; ++i) out[i] = unit[i] > 0.0f ? in[i] : 0.0f;
}

// sum[j] += sum_r in[r][j]
HD void add_columns(const float* in, float* sum, int64_t rows, int64_t width) {
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t j = 0; j < width; ++j) sum[j] += in[r * width + j];
}

// A network of a few narrow layers, with the slope of one linear read-out: the only place its formulas are written.
// Everything is a product of small matrices on a block of rows that stays in the cache from the first layer to the last.
// Letters: N rows, I inputs, H hidden width, K layers. Layer k has weight [H, I or H] and bias [H]; a_0 = x and
// a_k = f(a_(k-1) W_k^T + b_k), where f is relu, or the softplus log(1 + exp(beta z)) / beta. Both have a derivative that
// the output alone tells: f' = [a > 0], or f' = 1 - exp(-beta a); of the second, f'' = beta f' (1 - f').
// With a read-out w [H], the slope is d (a_K . w) / d x: s_K = w * f'_K, s_(k-1) = (s_k W_k) * f'_(k-1), slope = s_1 W_1.
// Its derivative along z_k is (u_k * s_k) beta (1 - f'_k), where u_k is the gradient that reaches s_k; zero for relu.
#pragma once
#include <cstdint>
#include <cstring>

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
    float beta;                       // of the softplus; 0: relu
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

// exp(x) for x <= 0, to 2 units in the last place of its 24 bits; 0 below -87. Without branches, so that compilers make
// vectors of it: 2^n exp(r) with |r| <= log(2) / 2 and a polynomial (Cephes).
HD float exp_of_negative(float x) {
    const float bounded = x < -87.0f ? -87.0f : x;
    const float n = float(int32_t(bounded * 1.44269504f - 0.5f));  // truncation of a negative number is rounding here
    const float r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const int32_t bits = (int32_t(n) + 127) << 23;
    float scale;
    std::memcpy(&scale, &bits, sizeof scale);
    return x < -87.0f ? 0.0f : p * scale;
}

// log(1 + t) for 0 <= t <= 1: twice the area hyperbolic tangent of z = t / (2 + t), as a series to z^13.
HD float log_of_one_and(float t) {
    const float z = t / (2.0f + t), q = z * z;
    float p = 1.0f / 13.0f;
    p = p * q + 1.0f / 11.0f;
    p = p * q + 1.0f / 9.0f;
    p = p * q + 1.0f / 7.0f;
    p = p * q + 1.0f / 5.0f;
    p = p * q + 1.0f / 3.0f;
    return 2.0f * z * (p * q + 1.0f);
}

// out[r][j] = f(out[r][j] + bias[j])
HD void add_bias_and_activate(float* out, const float* bias, int64_t rows, int64_t width, float beta) {
    for (int64_t r = 0; r < rows; ++r) {
        float* row = out + r * width;
        if (beta == 0.0f) {
            for (int64_t j = 0; j < width; ++j) {
                const float value = row[j] + bias[j];
                row[j] = value > 0.0f ? value : 0.0f;
            }
            continue;
        }
        const float inverse = 1.0f / beta;
        for (int64_t j = 0; j < width; ++j) {
            const float value = row[j] + bias[j], size = value < 0.0f ? value : -value;
            const float rest = inverse * log_of_one_and(exp_of_negative(beta * size));
            row[j] = (value > 0.0f ? value : 0.0f) + rest;
        }
    }
}

// out = in * f', from the units' outputs.
HD void times_derivative(const float* in, const float* unit, float* out, int64_t count, float beta) {
    if (beta == 0.0f) {
        for (int64_t i = 0; i < count; ++i) out[i] = unit[i] > 0.0f ? in[i] : 0.0f;
        return;
    }
    for (int64_t i = 0; i < count; ++i) out[i] = in[i] * (1.0f - exp_of_negative(-beta * unit[i]));
}

// out = u * s * beta (1 - f'), what a gradient u of s = v * f' gives to the units' inputs.
HD void second_derivative(const float* u, const float* s, const float* unit, float* out, int64_t count, float beta) {
    for (int64_t i = 0; i < count; ++i) out[i] = u[i] * s[i] * beta * exp_of_negative(-beta * unit[i]);
}

// sum[j] += sum_r in[r][j]
HD void add_columns(const float* in, float* sum, int64_t rows, int64_t width) {
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t j = 0; j < width; ++j) sum[j] += in[r * width + j];
}

// Frequency encoding of one coordinate and its gradient: the only place these formulas are written.
// out = [x, sin(x), cos(x), sin(2 x), cos(2 x), ..., cos(2^(K-1) x)], D coordinates side by side in each entry.
#pragma once
#include "portable.h"

struct FreqParams {
    const void* x;          // [M, D]           radians
    const void* encoded;    // [M, D + 2 D K]   backward only: what the forward gave
    const void* grad_out;   // [M, D + 2 D K]   backward only
    void* out;              // [M, D + 2 D K]   out of the forward
    void* grad_x;           // [M, D]           out of the backward
    int64_t num_points;     // M
    int64_t dims;           // D
    int64_t octaves;        // K
    int64_t active;         // octaves that count, low ones first; the others are zero
};

// sin(2^k x) and cos(2^k x) for k = 0, 1, ...; next() goes to the next octave.
template <typename S>
struct Octaves;

// In float32 one sine and cosine in double, then the double-angle formulas in double. As squaring of cos + i sin they double
// an error (and add one of about 1e-16), so at octave k it is about 2^k * 2e-16: 2e-9 at k = 23, below float32's 6e-8.
template <>
struct Octaves<float> {
    double sine, cosine;
    HD explicit Octaves(float x) : sine(sin(double(x))), cosine(cos(double(x))) {}
    HD void next() {
        const double twice = 2.0 * sine * cosine;
        cosine = cosine * cosine - sine * sine;
        sine = twice;
    }
};

template <>
struct Octaves<double> {
    double angle, sine, cosine;
    HD explicit Octaves(double x) : angle(x), sine(sin(x)), cosine(cos(x)) {}
    HD void next() {
        angle *= 2.0;  // exact
        sine = sin(angle);
        cosine = cos(angle);
    }
};

// Where the entries of coordinate d of point n lie in the encoding: the first here, then every D-th.
HD int64_t first_entry(const FreqParams& p, int64_t n, int64_t d) { return n * p.dims * (1 + 2 * p.octaves) + d; }

template <typename S>
struct FreqForward {
    FreqParams p;
    HD void operator()(int64_t n, int64_t d) const {
        const S x = static_cast<const S*>(p.x)[n * p.dims + d];
        S* out = static_cast<S*>(p.out) + first_entry(p, n, d);
        *out = x;
        Octaves<S> octave(x);
        for (int64_t k = 0; k < p.octaves; ++k) {
            out[(1 + 2 * k) * p.dims] = k < p.active ? S(octave.sine) : S(0);
            out[(2 + 2 * k) * p.dims] = k < p.active ? S(octave.cosine) : S(0);
            if (k + 1 < p.active) octave.next();
        }
    }
};

// d sin(2^k x) / dx = 2^k cos(2^k x) and d cos(2^k x) / dx = -2^k sin(2^k x): entries of the encoding itself.
template <typename S>
struct FreqBackward {
    FreqParams p;
    HD void operator()(int64_t n, int64_t d) const {
        const int64_t first = first_entry(p, n, d);
        const S* encoded = static_cast<const S*>(p.encoded) + first;
        const S* grad = static_cast<const S*>(p.grad_out) + first;
        S sum = *grad, frequency = S(1);
        for (int64_t k = 0; k < p.active; ++k) {
            const int64_t sine = (1 + 2 * k) * p.dims, cosine = sine + p.dims;
            sum += frequency * (grad[sine] * encoded[cosine] - grad[cosine] * encoded[sine]);
            frequency *= S(2);
        }
        static_cast<S*>(p.grad_x)[n * p.dims + d] = sum;
    }
};

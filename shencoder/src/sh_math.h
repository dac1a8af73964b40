// Real spherical harmonics of one direction and their gradient, by recurrences: the only place their formulas are
// written. Y_l^m = N_l^m * Q_l^|m|(z) * (Re or Im)(x + i y)^|m|, where Q_l^m(z) = P_l^m(z) / (1 - z^2)^(m/2) is a
// polynomial that obeys the recurrence of the associated Legendre functions, (l - m) Q_l = (2l - 1) z Q_(l-1) - (l + m
// - 1) Q_(l-2), with the Condon-Shortley sign. Off the unit sphere this continues the harmonics as polynomials;
// gradients are theirs.
#pragma once
#include "portable.h"

constexpr int kMaxDegree = 8;  // bands

struct ShParams {
    const void* directions;                // [M, 3]   unit vectors
    const void* grad_values;               // [M, n*n] backward only
    void* values;                          // [M, n*n] out of the forward
    void* grad_directions;                 // [M, 3]   out of the backward
    int64_t num_directions;                // M
    int64_t degree;                        // n bands, l = 0 .. n - 1
    double norm[kMaxDegree * kMaxDegree];  // [l][m] N_l^m, with sqrt(2) for m > 0
};

// Calls visit(index, value, d/dx, d/dy, d/dz) for every harmonic; index = l * l + l + m.
template <typename S, typename Visit>
HD void for_each_harmonic(const ShParams& p, S x, S y, S z, const Visit& visit) {
    S cosine = S(1), sine = S(0), lower_cosine = S(0), lower_sine = S(0);  // of the powers m and m - 1 of x + i y
    S diagonal = S(1);                                                     // Q_m^m = (-1)^m (2m - 1)!!
    for (int m = 0; m < int(p.degree); ++m) {
        S before = S(0), slope_before = S(0), q = diagonal, slope = S(0);  // Q_(l-1), Q'_(l-1), Q_l, Q'_l
        for (int l = m; l < int(p.degree); ++l) {
            const S norm = S(p.norm[l * kMaxDegree + m]), scaled = norm * q, scaled_slope = norm * slope, order = S(m);
            const int middle = l * l + l;
            visit(middle + m, scaled * cosine, scaled * order * lower_cosine, -scaled * order * lower_sine,
                  scaled_slope * cosine);
            if (m > 0)
                visit(middle - m, scaled * sine, scaled * order * lower_sine, scaled * order * lower_cosine,
                      scaled_slope * sine);
            const S a = S(2 * l + 1) / S(l + 1 - m), b = S(l + m) / S(l + 1 - m);
            const S next = a * z * q - b * before, next_slope = a * (q + z * slope) - b * slope_before;
            before = q, slope_before = slope, q = next, slope = next_slope;
        }
        diagonal *= -S(2 * m + 1);
        lower_cosine = cosine, lower_sine = sine;
        cosine = x * lower_cosine - y * lower_sine;
        sine = x * lower_sine + y * lower_cosine;
    }
}

template <typename S>
struct ShForward {
    ShParams p;
    HD void operator()(int64_t n) const {
        const somnia::Vec3<S> d = somnia::load3(static_cast<const S*>(p.directions) + 3 * n);
        S* values = static_cast<S*>(p.values) + n * p.degree * p.degree;
        for_each_harmonic(p, d.x, d.y, d.z, [values](int index, S value, S, S, S) { values[index] = value; });
    }
};

template <typename S>
struct ShBackward {
    ShParams p;
    HD void operator()(int64_t n) const {
        const somnia::Vec3<S> d = somnia::load3(static_cast<const S*>(p.directions) + 3 * n);
        const S* grad = static_cast<const S*>(p.grad_values) + n * p.degree * p.degree;
        somnia::Vec3<S> sum{S(0), S(0), S(0)};
        for_each_harmonic(p, d.x, d.y, d.z, [&sum, grad](int index, S, S along_x, S along_y, S along_z) {
            sum = sum + grad[index] * somnia::Vec3<S>{along_x, along_y, along_z};
        });
        somnia::store3(static_cast<S*>(p.grad_directions) + 3 * n, sum);
    }
};

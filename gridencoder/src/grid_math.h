// Multiresolution grid encoding (Mueller et al. 2022, "Instant neural graphics primitives", section 3): the only place
// its formulas are written. One point at one level; the .cpp and .cu files are loops over these functions. Letters: M
// points, D dimensions, L levels, F features a level, E rows of the whole table. S is the scalar computed in.
#pragma once
#include <stdint.h>

#include "portable.h"

constexpr int kMaxLevels = 32;

struct GridParams {
    const void* positions;         // [M, D]       points; outside [-bound, bound] the encoding is zero
    const void* table;             // [E, F]       features of all levels, end to end
    const void* grad_values;       // [M, L*F]     or null
    const void* grad_jacobian;     // [L, M, D, F] or null
    const void* known_jacobian;    // [L, M, D, F] in of contract and its backward
    const void* grad_contraction;  // [M, D]       in of contract_backward
    void* values;                  // [M, L*F]     out
    void* jacobian;         // [L, M, D, F] out, d values / d positions, or null; of contract_backward its gradient
    void* grad_table;       // [E, F]       out, overwritten
    void* grad_positions;   // [M, D]       out
    double* sums;           // [L]          out, sum over the points or rows of each level
    double bound;           // half the edge of the box
    int64_t num_points;     // M
    int64_t dims;           // D: 2, 3 or 4
    int64_t features;       // F: 1, 2, 4 or 8
    int64_t levels;         // L
    int64_t active;         // levels below this count, the others are zero
    int64_t hashed;         // 1: levels too fine for their rows are hashed; 0: they are tiled
    int64_t smooth;         // 1: smoothstep between the corners; 0: linear
    int64_t align_corners;  // 1: the outer corners lie on the faces of the box; 0: half a cell inside
    int64_t first[kMaxLevels + 1];   // level l owns rows first[l] .. first[l + 1]
    int64_t resolution[kMaxLevels];  // corners along one edge of level l, at least 2
};

// Where a coordinate lies in its cell: interpolation weight of the upper corner, and its derivatives.
template <typename S>
struct Axis {
    int32_t cell;  // lower corner, 0 .. resolution - 2
    S weight;      // of the upper corner, in [0, 1]
    S slope;       // d weight / d u
    S curve;       // d2 weight / d u2
};

// How the coordinates of one level are laid out along an axis, and the polynomial a w + b w^2 + c w^3 of the weights:
// the identity for linear interpolation, 3 w^2 - 2 w^3 for smoothstep.
template <typename S>
struct Scale {
    S cells, shift, last;  // position = u * cells - shift, within [0, last]
    S a, b, c;

    HD Scale(const GridParams& p, int level)
        : cells(S(p.align_corners ? p.resolution[level] - 1 : p.resolution[level])),
          shift(p.align_corners ? S(0) : S(0.5)),
          last(S(p.resolution[level] - 1)),
          a(p.smooth ? S(0) : S(1)),
          b(p.smooth ? S(3) : S(0)),
          c(p.smooth ? S(-2) : S(0)) {}
};

// Place u in [0, 1] on an axis. Branch-free, so that a compiler can vectorise it.
template <typename S>
HD Axis<S> place(S u, const Scale<S>& by) {
    const S raw = u * by.cells - by.shift;
    const S gain =
        (raw < S(0) || raw > by.last) ? S(0) : by.cells;  // within half a cell of the box's face nothing changes
    const S floored = raw > S(0) ? raw : S(0);  // in this form each comparison is one instruction, even of vectors
    const S position = floored < by.last ? floored : by.last;
    const int32_t below = int32_t(position), highest = int32_t(by.last) - 1;
    Axis<S> axis;
    axis.cell = below < highest ? below : highest;
    const S w = position - S(axis.cell);
    axis.weight = w * (by.a + w * (by.b + w * by.c));
    axis.slope = gain * (by.a + w * (S(2) * by.b + w * S(3) * by.c));
    axis.curve = gain * gain * (S(2) * by.b + w * S(6) * by.c);
    return axis;
}

// How a level turns the integer coordinates of a corner into a row.
struct Indexing {
    uint32_t step[4];  // what one step along an axis adds: a stride, or a prime of the hash
    uint32_t mask;     // all ones where every corner has its own row
    bool sum;          // the axes are added, or else combined by exclusive or (the hash)
};

// The primes are those of Teschner et al. 2003 as extended by instant-ngp; rows of a hashed or tiled level are a power
// of two.
HD Indexing indexing_of(const GridParams& p, int level) {
    const uint32_t primes[4] = {1u, 2654435761u, 805459861u, 3674653429u};
    const uint64_t rows = uint64_t(p.first[level + 1] - p.first[level]);
    const uint64_t resolution = uint64_t(p.resolution[level]);
    Indexing by;
    uint64_t corners = 1;
    for (int d = 0; d < p.dims; ++d) {
        by.step[d] = uint32_t(corners);  // may wrap round 2^32 where the level is tiled; the mask makes that harmless
        corners = corners > rows ? corners : corners * resolution;
    }
    const bool fits = corners <= rows;
    if (!fits && !p.hashed) {
        uint32_t stride = 1;
        for (int d = 0; d < p.dims; ++d, stride *= uint32_t(resolution)) by.step[d] = stride;
    }
    by.sum = fits || !p.hashed;
    for (int d = 0; d < p.dims && !by.sum; ++d) by.step[d] = primes[d];
    by.mask = fits ? 0xffffffffu : uint32_t(rows - 1);
    return by;
}

// Row of a corner within its level (bit d of its number = upper end of axis d); lower[d] and upper[d] are cell * step.
// kSum: the axes are added, else they are combined by exclusive or.
template <int D, bool kSum>
HD uint32_t row_of(const uint32_t* lower, const uint32_t* upper, int corner, uint32_t mask) {
    uint32_t row = corner & 1 ? upper[0] : lower[0];
    for (int d = 1; d < D; ++d) {
        const uint32_t part = (corner >> d) & 1 ? upper[d] : lower[d];
        row = kSum ? row + part : row ^ part;
    }
    return row & mask;
}

// W features of one row, or of one gradient, as a small vector (W is 1 or 2: wider rows are handled piece by piece).
template <typename S, int W>
struct Row;

template <typename S>
struct Row<S, 1> {
    S v[1];
    HD Row operator+(const Row& o) const { return {{v[0] + o.v[0]}}; }
    HD Row operator-(const Row& o) const { return {{v[0] - o.v[0]}}; }
    HD Row operator*(S s) const { return {{v[0] * s}}; }
};

template <typename S>
struct Row<S, 2> {
#if defined(__GNUC__) && !defined(__CUDACC__)
    S v __attribute__((vector_size(2 * sizeof(S))));  // one register; compilers take the pair apart otherwise
    HD Row operator+(const Row& o) const { return {v + o.v}; }
    HD Row operator-(const Row& o) const { return {v - o.v}; }
    HD Row operator*(S s) const { return {v * s}; }
#else
    S v[2];
    HD Row operator+(const Row& o) const { return {{v[0] + o.v[0], v[1] + o.v[1]}}; }
    HD Row operator-(const Row& o) const { return {{v[0] - o.v[0], v[1] - o.v[1]}}; }
    HD Row operator*(S s) const { return {{v[0] * s, v[1] * s}}; }
#endif
};

// A value and its derivatives along the first K axes; for a gradient, those of the value and of the derivatives.
template <typename V, int K>
struct Jet {
    V value;
    V along[K > 0 ? K : 1];
};

// Multilinear interpolation over the first K axes of the corners `corner`, `corner` + 1, ...; load(c) gives corner c.
// Recursive, axis by axis, so that everything stays in registers.
template <int K, typename V, typename S, typename Load>
HD V blend(const Load& load, const S* weight, int corner = 0) {
    if constexpr (K == 0) {
        return load(corner);
    } else {
        const V lower = blend<K - 1, V>(load, weight, corner);
        const V upper = blend<K - 1, V>(load, weight, corner + (1 << (K - 1)));
        return lower + (upper - lower) * weight[K - 1];
    }
}

// The same with the derivative along each axis; slope: d weight / d position.
template <int K, typename V, typename S, typename Load>
HD Jet<V, K> blend_jet(const Load& load, const S* weight, const S* slope, int corner = 0) {
    Jet<V, K> jet;
    if constexpr (K == 0) {
        jet.value = load(corner);
    } else {
        const Jet<V, K - 1> lower = blend_jet<K - 1, V>(load, weight, slope, corner);
        const Jet<V, K - 1> upper = blend_jet<K - 1, V>(load, weight, slope, corner + (1 << (K - 1)));
        const V difference = upper.value - lower.value;
        jet.value = lower.value + difference * weight[K - 1];
        for (int e = 0; e < K - 1; ++e)
            jet.along[e] = lower.along[e] + (upper.along[e] - lower.along[e]) * weight[K - 1];
        jet.along[K - 1] = difference * slope[K - 1];
    }
    return jet;
}

// Transpose of blend: hands each corner its share of the value's gradient, add(c, share).
template <int K, typename V, typename S, typename Add>
HD void spread(const V& gradient, const S* weight, const Add& add, int corner = 0) {
    if constexpr (K == 0) {
        add(corner, gradient);
    } else {
        const V upper = gradient * weight[K - 1];
        spread<K - 1>(gradient - upper, weight, add, corner);
        spread<K - 1>(upper, weight, add, corner + (1 << (K - 1)));
    }
}

// Transpose of blend_jet.
template <int K, typename V, typename S, typename Add>
HD void spread_jet(const Jet<V, K>& gradient, const S* weight, const S* slope, const Add& add, int corner = 0) {
    if constexpr (K == 0) {
        add(corner, gradient.value);
    } else {
        Jet<V, K - 1> lower, upper;
        upper.value = gradient.value * weight[K - 1] + gradient.along[K - 1] * slope[K - 1];
        lower.value = gradient.value - upper.value;
        for (int e = 0; e < K - 1; ++e) {
            upper.along[e] = gradient.along[e] * weight[K - 1];
            lower.along[e] = gradient.along[e] - upper.along[e];
        }
        spread_jet<K - 1>(lower, weight, slope, add, corner);
        spread_jet<K - 1>(upper, weight, slope, add, corner + (1 << (K - 1)));
    }
}

// Factor of one corner in the derivative of the value along axes `first` and `second`.
template <int D, typename S>
HD S second_derivative_factor(const Axis<S>* axis, int corner, int first, int second) {
    S factor = S(1);
    for (int d = 0; d < D; ++d) {
        const bool upper = (corner >> d) & 1;
        const int order = (d == first) + (d == second);
        const S weight = upper ? axis[d].weight : S(1) - axis[d].weight;
        const S change = order == 2 ? axis[d].curve : axis[d].slope;
        factor *= order == 0 ? weight : (upper ? change : -change);
    }
    return factor;
}

// A point located in one level: its axes and the rows of the corners of its cell.
template <typename S, int D>
struct Cell {
    Axis<S> axis[D];
    uint32_t row[1 << D];

    // u: [D] in the unit box.
    HD Cell(const GridParams& p, int level, const Indexing& by, const S* u) {
        uint32_t lower[D], upper[D];
        const Scale<S> scale(p, level);
        for (int d = 0; d < D; ++d) {
            axis[d] = place(u[d], scale);
            lower[d] = uint32_t(axis[d].cell) * by.step[d];
            upper[d] = lower[d] + by.step[d];
        }
        for (int c = 0; c < 1 << D; ++c)
            row[c] = by.sum ? row_of<D, true>(lower, upper, c, by.mask) : row_of<D, false>(lower, upper, c, by.mask);
    }
};

// What a point is to the grid; one that is not a number gives values that are not numbers, and no gradient.
enum Place : uint8_t { kOutside, kInside, kNotANumber };

// Map a point to the unit box. u: [D] out, within [0, 1] whatever the point. Without branches, so that a compiler can
// vectorise it.
template <typename S, int D>
HD Place enter_box(const S* x, S bound, S* u) {
    int32_t within = 1, number = 1;
    for (int d = 0; d < D; ++d) {
        const S fraction = (x[d] + bound) / (S(2) * bound);
        const int32_t here = int32_t(fraction >= S(0)) & int32_t(fraction <= S(1));
        u[d] = here ? fraction : S(0);
        within &= here;
        number &= int32_t(fraction == fraction);
    }
    return within ? kInside : (number ? kOutside : kNotANumber);
}

// Gradient of the positions from that of the Jacobian at one level: grad[e] += sum_df G[d, f] d2 y[f] / dx_e dx_d.
// T is what the table holds; G: [D, F].
template <typename S, int D, typename T>
HD void add_second_derivatives(const Cell<S, D>& cell, const T* table, const T* grad_jacobian, int features, S per_unit,
                               S* grad) {
    for (int c = 0; c < 1 << D; ++c)
        for (int d = 0; d < D; ++d) {
            S along = S(0);
            for (int f = 0; f < features; ++f)
                along += S(table[int64_t(cell.row[c]) * features + f]) * S(grad_jacobian[d * features + f]);
            for (int e = 0; e < D; ++e)
                grad[e] += along * per_unit * per_unit * second_derivative_factor<D>(cell.axis, c, d, e);
        }
}

// The part of one level in the contraction of a point's Jacobian J [D, F] with a gradient g [F] of its values:
// result[d] += sum_f J[d, f] g[f].
template <typename S, int D, typename T>
HD void contract_one(const T* jacobian, const T* g, int features, S* result) {
    for (int d = 0; d < D; ++d)
        for (int f = 0; f < features; ++f) result[d] += S(jacobian[d * features + f]) * S(g[f]);
}

// Its gradients from v [D], that of the result: dJ[d, f] = v[d] g[f] and dg[f] = sum_d v[d] J[d, f].
template <typename S, int D, typename T>
HD void contract_one_backward(const T* jacobian, const T* g, const S* v, int features, T* grad_jacobian, T* grad_g) {
    for (int f = 0; f < features; ++f) {
        S sum = S(0);
        for (int d = 0; d < D; ++d) {
            sum += v[d] * S(jacobian[d * features + f]);
            grad_jacobian[d * features + f] = T(v[d] * S(g[f]));
        }
        grad_g[f] = T(sum);
    }
}

// Total variation at the lower corner of a cell: sqrt(sum over the axes of |neighbour - corner|^2 + eps) - sqrt(eps).
// The neighbours are the upper corners of the same cell, so none lies beyond the level's resolution.
constexpr double kVariationEpsilon = 1e-9;

template <typename S, int D, typename T>
HD S variation(const Cell<S, D>& cell, const T* table, int features) {
    S sum = S(0);
    for (int d = 0; d < D; ++d)
        for (int f = 0; f < features; ++f) {
            const S step =
                S(table[int64_t(cell.row[1 << d]) * features + f]) - S(table[int64_t(cell.row[0]) * features + f]);
            sum += step * step;
        }
    return sqrt(sum + S(kVariationEpsilon)) - sqrt(S(kVariationEpsilon));
}

// Add the gradient of variation() to the rows of the cell; G is the scalar that gradients are summed in.
template <typename S, int D, typename T, typename G>
HD void add_variation_gradient(const Cell<S, D>& cell, const T* table, int features, G* grad) {
    const S root = variation(cell, table, features) + sqrt(S(kVariationEpsilon));
    for (int d = 0; d < D; ++d)
        for (int f = 0; f < features; ++f) {
            const int64_t corner = int64_t(cell.row[0]) * features + f,
                          neighbour = int64_t(cell.row[1 << d]) * features + f;
            const S step = (S(table[neighbour]) - S(table[corner])) / root;
            somnia::atomic_add(grad + neighbour, G(step));
            somnia::atomic_add(grad + corner, G(-step));
        }
}

// Where a triangle covers the pixels of an image, the weights of its corners there, and the derivatives of both: the only
// place these formulas are written. All of it is computed in double, whatever the tensors hold.
//
// A corner is (x, y, z, w) in clip space; what a pixel centre P = (X, Y, 1) sees depends on the rows (x, y, w) alone, which are
// the corner's coordinates about the eye. With e_k = (p_(k+1) x p_(k+2)) . P and D = p_0 . (p_1 x p_2), the point of the plane
// behind P is sum_k (e_k / D) p_k, so P is covered, in front of the eye, where every e_k has the sign of D: no vertex is ever
// divided by its w, and triangles that cross w = 0 need no clipping (Olano and Greer 1997, "Triangle scan conversion using 2D
// homogeneous coordinates"). Weights are e_k / sum(e), and z/w is sum(e_k z_k) / D, an affine function of X and Y.
// Letters: B views, V vertices, T triangles, H x W pixels, C channels; row 0 is the top.
#pragma once

#include "portable.h"

namespace somnia {

template <typename T>
struct RasterParams {
    const T* clip;            // [B, V, 4]
    const int32_t* faces;     // [T, 3]
    T* bary;                  // [B, H, W, 2] out
    T* depth;                 // [B, H, W]    out
    int32_t* triangle;        // [B, H, W]    out of the forward, in of the backward
    uint64_t* nearest;        // [B, H, W]    scratch of the CUDA forward
    const T* grad_bary;       // [B, H, W, 2]
    const T* grad_depth;      // [B, H, W] or null
    T* grad_clip;             // [B, V, 4]    out, zero on entry
    int64_t views, vertices, triangles, height, width, cull_back;
};

// Products and sums that no compiler contracts, so that every backend and every pass rounds alike.
HD double product(double a, double b) {
#if defined(__CUDA_ARCH__)
    return __dmul_rn(a, b);
#else
    return a * b;
#endif
}

HD double sum(double a, double b) {
#if defined(__CUDA_ARCH__)
    return __dadd_rn(a, b);
#else
    return a + b;
#endif
}

// Centre of a column or row in NDC: x grows to the right, y upwards.
HD double column_centre(int64_t column, int64_t width) { return double(2 * column + 1 - width) / double(width); }
HD double row_centre(int64_t row, int64_t height) { return double(height - 1 - 2 * row) / double(height); }

struct Corner {
    double x, y, z, w;
};

template <typename T>
HD Corner load_corner(const T* clip, int64_t vertex) {
    const T* v = clip + 4 * vertex;
    return {double(v[0]), double(v[1]), double(v[2]), double(v[3])};
}

// The line through two corners: a X + b Y + c, positive on the side of the third corner of a triangle with positive D.
struct Line {
    double a, b, c;
};

HD Line line_through(const Corner& p, const Corner& q) {
    return {sum(product(p.y, q.w), -product(p.w, q.y)), sum(product(p.w, q.x), -product(p.x, q.w)),
            sum(product(p.x, q.y), -product(p.y, q.x))};
}

HD double at(const Line& l, double x, double y) { return sum(product(l.a, x), sum(product(l.b, y), l.c)); }

HD double volume(const Corner& p, const Line& opposite) {
    return sum(product(p.x, opposite.a), sum(product(p.y, opposite.b), product(p.w, opposite.c)));
}

// A pixel centre on an edge belongs to the triangle for which it is a left edge (the inside is to its right) or a horizontal
// top edge. For the neighbour across the edge both signs are the opposite, so exactly one of the two has it.
HD bool owns_edge(double a, double b) { return a > 0 || (a == 0 && b < 0); }

constexpr double kRounding = 1e-14;    // of a line's value, relative to |a| + |b| + |c|, with a wide margin
constexpr double kDepthSlack = 1e-10;  // so that a surface that lies in the near or far plane is there as a whole

struct Corners {
    Corner at[3];
};

template <typename T>
HD Corners load_corners(const T* clip, const int32_t* face) {
    return {{load_corner(clip, face[0]), load_corner(clip, face[1]), load_corner(clip, face[2])}};
}

// A triangle ready to be tested against pixels; its lines are positive inside.
struct Shape {
    Line line[3];
    Line depth;   // z/w
    double sign;  // of D; 0: covers nothing (no extent as seen from the eye, or not finite)
};

HD Shape make_shape(const Corners& c) {
    const Corner *p = c.at;
    Shape s{{line_through(p[1], p[2]), line_through(p[2], p[0]), line_through(p[0], p[1])}, {0, 0, 0}, 0};
    const double d = volume(p[0], s.line[0]);
    if (d == 0 || !is_finite(d)) return s;
    s.sign = d > 0 ? 1.0 : -1.0;
    const double inverse = 1.0 / d;
    for (int k = 0; k < 3; ++k) {
        Line& l = s.line[k];
        const double share = product(p[k].z, inverse);
        s.depth.a = sum(s.depth.a, product(l.a, share));
        s.depth.b = sum(s.depth.b, product(l.b, share));
        s.depth.c = sum(s.depth.c, product(l.c, share));
        l = {s.sign * l.a, s.sign * l.b, s.sign * l.c};
    }
    return s;
}

// Whether a triangle is drawn at all: it has an extent and, if back faces are culled, turns counter-clockwise as seen.
HD bool is_drawn(const Shape& s, int64_t cull_back) { return cull_back ? s.sign > 0 : s.sign != 0; }

// Closer to zero than this, the sign of a line's value is not certain.
HD double slack_of(const Line& l) { return kRounding * (fabs(l.a) + fabs(l.b) + fabs(l.c)); }

// The side of edge k on which a pixel centre lies, where its line is too close to zero: with the corners taken relative to the
// pixel, which gives exactly zero at a corner; then the rule for edges.
HD bool inside_closely(const Shape& s, const Corners& c, int k, double x, double y) {
    const Corner &p = c.at[(k + 1) % 3], &q = c.at[(k + 2) % 3];
    const double px = sum(p.x, -product(x, p.w)), py = sum(p.y, -product(y, p.w));
    const double qx = sum(q.x, -product(x, q.w)), qy = sum(q.y, -product(y, q.w));
    const double value = s.sign * sum(product(px, qy), -product(py, qx));
    return value > 0 || (value == 0 && owns_edge(s.line[k].a, s.line[k].b));
}

HD bool inside(const Shape& s, const Corners& c, double x, double y) {
    for (int k = 0; k < 3; ++k) {
        const double value = at(s.line[k], x, y), slack = slack_of(s.line[k]);
        if (value > slack) continue;
        if (!(value >= -slack) || !inside_closely(s, c, k, x, y)) return false;
    }
    return true;
}

HD bool in_depth_range(double z) { return fabs(z) <= 1.0 + kDepthSlack; }

// Pixels [first, last] of a row or column range; empty where last < first.
struct Box {
    int32_t first_column, last_column, first_row, last_row;
};

// A corner in pixels (centres are whole numbers); x is NaN where it is not in front of the eye.
struct Projected {
    double x, y;
};

HD Projected project(const Corner& p, int64_t height, int64_t width) {
    if (!(p.w > 0)) return {double(NAN), 0.0};
    const double inverse = 1.0 / p.w;
    return {(p.x * inverse + 1.0) * 0.5 * double(width) - 0.5, (1.0 - p.y * inverse) * 0.5 * double(height) - 0.5};
}

HD int32_t whole(double x, int64_t size) { return int32_t(clamp_to(x, -1.0, double(size))); }

// Which pixel centres a triangle may cover, a little generously. One with a corner that is not in front of the eye may cover any.
HD Box box_of(const Projected& p, const Projected& q, const Projected& r, int64_t height, int64_t width) {
    const Box all{0, int32_t(width - 1), 0, int32_t(height - 1)};
    if (is_nan(p.x) || is_nan(q.x) || is_nan(r.x)) {
        const bool none = is_nan(p.x) && is_nan(q.x) && is_nan(r.x);
        return none ? Box{0, -1, 0, -1} : all;
    }
    const double margin = 1e-6;
    const double left = ceil(min_of(p.x, min_of(q.x, r.x)) - margin), right = floor(max_of(p.x, max_of(q.x, r.x)) + margin);
    const double top = ceil(min_of(p.y, min_of(q.y, r.y)) - margin), low = floor(max_of(p.y, max_of(q.y, r.y)) + margin);
    return {max_of(whole(left, width), 0), min_of(whole(right, width), all.last_column), max_of(whole(top, height), 0),
            min_of(whole(low, height), all.last_row)};
}

// Weights of corners 0 and 1 of a covered pixel, from the values of its lines, and z/w.
template <typename T>
HD void write_pixel(const RasterParams<T>& p, int64_t pixel, double e0, double e1, double e2, double z) {
    const double total = e0 + e1 + e2, inverse = total > 0 ? 1.0 / total : 0.0;
    p.bary[2 * pixel] = T(e0 * inverse);
    p.bary[2 * pixel + 1] = T(e1 * inverse);
    p.depth[pixel] = T(clamp_to(z, -1.0, 1.0));
}

template <typename T>
HD void write_empty(const RasterParams<T>& p, int64_t pixel) {
    p.bary[2 * pixel] = p.bary[2 * pixel + 1] = T(0);
    p.depth[pixel] = T(1);
    p.triangle[pixel] = -1;
}

// ---- Backward ----

// What the pixels of one triangle give to its lines, and past them to the z and w of its corners.
struct ShapeGradient {
    Line line[3];
    double z[3], w[3];
};

// A triangle's lines without a sign, for the backward.
struct Slopes {
    Corners corners;
    Line line[3];
    double inverse_volume;
};

HD Slopes make_slopes(const Corners& c) {
    const Corner* p = c.at;
    Slopes s{c, {line_through(p[1], p[2]), line_through(p[2], p[0]), line_through(p[0], p[1])}, 0};
    s.inverse_volume = 1.0 / volume(p[0], s.line[0]);
    return s;
}

// With D = sum(e_k w_k): d weight_i / d e_k = ([i = k] - weight_i) / sum(e), d (z/w) / d e_k = (z_k - (z/w) w_k) / D. The lines
// get d e_k times the pixel; z_k and w_k get e_k / D and -(z/w) e_k / D times the gradient.
HD void add_pixel(const Slopes& s, double x, double y, double grad_u, double grad_v, double grad_z, ShapeGradient& g) {
    const double e[3] = {at(s.line[0], x, y), at(s.line[1], x, y), at(s.line[2], x, y)};
    const double total = e[0] + e[1] + e[2];
    if (total == 0) return;
    const double inverse = 1.0 / total;
    const double mean = (grad_u * e[0] + grad_v * e[1]) * inverse;
    double grad_e[3] = {(grad_u - mean) * inverse, (grad_v - mean) * inverse, -mean * inverse};
    if (grad_z != 0) {
        const double share = grad_z * s.inverse_volume;
        const Corner* c = s.corners.at;
        const double z = (e[0] * c[0].z + e[1] * c[1].z + e[2] * c[2].z) * s.inverse_volume;
        for (int k = 0; k < 3; ++k) {
            grad_e[k] += share * (c[k].z - z * c[k].w);
            g.z[k] += share * e[k];
            g.w[k] -= share * z * e[k];
        }
    }
    for (int k = 0; k < 3; ++k) {
        g.line[k].a += grad_e[k] * x;
        g.line[k].b += grad_e[k] * y;
        g.line[k].c += grad_e[k];
    }
}

// Through line = p x q: adds q x grad to p's gradient and grad x p to q's, both (x, y, z, w).
HD void add_through_line(const Corner& p, const Corner& q, const Line& grad, double* to_p, double* to_q) {
    to_p[0] += q.y * grad.c - q.w * grad.b;
    to_p[1] += q.w * grad.a - q.x * grad.c;
    to_p[3] += q.x * grad.b - q.y * grad.a;
    to_q[0] += grad.b * p.w - grad.c * p.y;
    to_q[1] += grad.c * p.x - grad.a * p.w;
    to_q[3] += grad.a * p.y - grad.b * p.x;
}

// The gradient of a triangle's three corners, (x, y, z, w) each.
HD void corner_gradients(const Slopes& s, const ShapeGradient& g, double out[3][4]) {
    for (int k = 0; k < 3; ++k) {
        out[k][0] = out[k][1] = 0;
        out[k][2] = g.z[k];
        out[k][3] = g.w[k];
    }
    for (int k = 0; k < 3; ++k) {
        const int i = (k + 1) % 3, j = (k + 2) % 3;
        add_through_line(s.corners.at[i], s.corners.at[j], g.line[k], out[i], out[j]);
    }
}

// ---- Interpolation ----

template <typename T>
struct InterpolateParams {
    const T* attributes;      // [A, V, C], A is 1 or B
    const int32_t* faces;     // [T, 3]
    const T* bary;            // [B, H, W, 2]
    const int32_t* triangle;  // [B, H, W]
    T* out;                   // [B, H, W, C]
    const T* grad_out;        // [B, H, W, C]
    T* grad_attributes;       // [A, V, C] out, zero on entry; or null
    T* grad_bary;             // [B, H, W, 2] out
    int64_t views, vertices, triangles, channels, height, width;
    int64_t shared;           // 1: one set of attributes for all views
};

template <typename T>
HD const T* attributes_of(const InterpolateParams<T>& p, int64_t view) {
    return p.attributes + (p.shared ? 0 : view) * p.vertices * p.channels;
}

// One pixel's channels; kChannels 0 stands for a number that is known at run time only.
template <typename T, int kChannels>
HD void interpolate_pixel(const InterpolateParams<T>& p, const T* attributes, int64_t pixel) {
    const int64_t channels = kChannels ? kChannels : p.channels;
    const int32_t triangle = p.triangle[pixel];
    T* out = p.out + pixel * channels;
    if (triangle < 0) {
        for (int64_t c = 0; c < channels; ++c) out[c] = T(0);
        return;
    }
    const int32_t* face = p.faces + 3 * int64_t(triangle);
    const T u = p.bary[2 * pixel], v = p.bary[2 * pixel + 1], rest = T(1) - u - v;
    const T *a0 = attributes + face[0] * channels, *a1 = attributes + face[1] * channels, *a2 = attributes + face[2] * channels;
    for (int64_t c = 0; c < channels; ++c) out[c] = u * a0[c] + v * a1[c] + rest * a2[c];
}

// One pixel's share in the gradients: returns those of its weights and adds those of its triangle's corners to sums [3, C],
// each where there is a place for it.
template <typename T, int kChannels, typename Sum>
HD void interpolate_pixel_backward(const InterpolateParams<T>& p, const T* attributes, const int32_t* face, int64_t pixel,
                                   Sum* sums) {
    const int64_t channels = kChannels ? kChannels : p.channels;
    const T *grad = p.grad_out + pixel * channels, *a2 = attributes + face[2] * channels;
    const T *a0 = attributes + face[0] * channels, *a1 = attributes + face[1] * channels;
    if (p.grad_bary) {
        T grad_u = T(0), grad_v = T(0);
        for (int64_t c = 0; c < channels; ++c) {
            grad_u += grad[c] * (a0[c] - a2[c]);
            grad_v += grad[c] * (a1[c] - a2[c]);
        }
        p.grad_bary[2 * pixel] = grad_u;
        p.grad_bary[2 * pixel + 1] = grad_v;
    }
    if (!sums) return;
    const Sum u = Sum(p.bary[2 * pixel]), v = Sum(p.bary[2 * pixel + 1]), rest = Sum(1) - u - v;
    for (int64_t c = 0; c < channels; ++c) {
        sums[c] += u * Sum(grad[c]);
        sums[channels + c] += v * Sum(grad[c]);
        sums[2 * channels + c] += rest * Sum(grad[c]);
    }
}

}  // namespace somnia

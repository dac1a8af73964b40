// Silhouettes that pass between two neighbouring pixels, and the blending that makes coverage differentiable: the only place
// these formulas are written. After Laine et al. 2020, "Modular primitives for high-performance differentiable rendering",
// section 3.6: where two neighbours show different triangles and a silhouette edge crosses the line between their centres, the
// pixel in which it crosses is blended with the other in proportion to what the edge cuts off. Ours differs in three ways. The
// edge is searched by walking over the mesh from triangle to triangle along the line between the centres, so that slivers that
// cover no centre do not hide it. Horizontal pairs are blended first and vertical pairs after them, so that an image never leaves
// its range and a corner gets the product of two cuts. And a pair is blended by what an edge cuts off along it only if the edge
// is closer to perpendicular than to parallel, so that no edge counts twice.
//
// Half edge 3 t + k is the edge of triangle t opposite its corner k. Letters as in raster_math.h.
#pragma once

#include "raster_math.h"

namespace somnia {

template <typename T>
struct AntialiasParams {
    const T* image;           // [B, H, W, C]
    const T* clip;            // [B, V, 4]
    const T* depth;           // [B, H, W]
    const int32_t* triangle;  // [B, H, W]
    const int32_t* faces;     // [T, 3]
    const int32_t* edges;     // [T, 3] the other half of each half edge; -1: it has none, -2: more than one
    int8_t* facing;           // [B, T] scratch: sign of each triangle's volume
    int32_t* smooth;          // [B, T, 3] scratch: edges, with -1 at silhouettes
    int32_t* crossing;        // [2, B, H, W] between a pixel and its right, or lower, neighbour: 0 or +-(half edge + 1)
    T* shift;                 // [2, B, H, W] where it crosses, from the owner's centre in pixels, less a half; if it does
    T* out;                   // [B, H, W, C]
    const T* grad_out;        // [B, H, W, C]
    T* grad_image;            // [B, H, W, C] out
    T* grad_clip;             // [B, V, 4] out, zero on entry; or null
    int64_t views, vertices, triangles, height, width, channels;
};

constexpr int kLongestWalk = 24;             // triangles between two pixel centres; beyond, the search is abandoned
constexpr int kNoEdge = -1, kCovered = -2;   // what a walk may find instead of a half edge

template <typename T>
HD const T* clip_of(const AntialiasParams<T>& p, int64_t view) { return p.clip + 4 * p.vertices * view; }

template <typename T>
HD Corner corner_of(const AntialiasParams<T>& p, int64_t view, int64_t triangle, int k) {
    return load_corner(clip_of(p, view), p.faces[3 * triangle + (k >= 3 ? k - 3 : k)]);
}

template <typename T>
HD Line half_edge_line(const AntialiasParams<T>& p, int64_t view, int32_t half_edge) {
    const int64_t t = half_edge / 3;
    const int k = half_edge % 3;
    return line_through(corner_of(p, view, t, k + 1), corner_of(p, view, t, k + 2));
}

template <typename T>
HD void find_facing(const AntialiasParams<T>& p, int64_t n) {
    const int64_t view = n / p.triangles, t = n % p.triangles;
    const double d = volume(corner_of(p, view, t, 0), line_through(corner_of(p, view, t, 1), corner_of(p, view, t, 2)));
    p.facing[n] = int8_t(d > 0 ? 1 : d < 0 ? -1 : 0);
}

// Whether the two triangles at an edge lie on the same side of it, as seen from the eye, or there is no second triangle.
template <typename T>
HD bool is_silhouette(const AntialiasParams<T>& p, int64_t view, int32_t half_edge) {
    const int32_t other = p.edges[half_edge];
    if (other < 0) return true;
    const int32_t t = half_edge / 3, s = other / 3;
    const bool opposed = p.faces[3 * t + (half_edge + 1 - 3 * t) % 3] == p.faces[3 * s + (other + 2 - 3 * s) % 3];
    const int8_t* facing = p.facing + view * p.triangles;
    const int same = facing[t] * facing[s];
    return opposed ? same <= 0 : same >= 0;
}

template <typename T>
HD void find_smooth(const AntialiasParams<T>& p, int64_t n) {
    const int64_t view = n / p.triangles, t = n % p.triangles;
    for (int k = 0; k < 3; ++k) p.smooth[3 * n + k] = is_silhouette(p, view, int32_t(3 * t + k)) ? -1 : p.edges[3 * t + k];
}

struct Point {
    double x, y;
};

template <typename T>
HD Point centre(const AntialiasParams<T>& p, int64_t in_view) {
    return {column_centre(in_view % p.width, p.width), row_centre(in_view / p.width, p.height)};
}

// Walks over the mesh below the line between two pixel centres, from the triangle that is seen at the first until a silhouette
// edge is crossed. kNoEdge: it comes to the triangle that is seen at the second. kCovered: it comes to the second centre in
// another triangle, so what is seen there lies in front.
template <typename T>
HD int32_t walk(const AntialiasParams<T>& p, int64_t view, int32_t t, int32_t goal, const Point& from, const Point& to) {
    const int8_t* facing = p.facing + view * p.triangles;
    const int32_t* smooth = p.smooth + 3 * view * p.triangles;
    int entry = -1;
    for (int step = 0; step < kLongestWalk; ++step) {
        const double sign = facing[t];
        int exit = -1;
        double nearest = INFINITY;
        for (int k = 0; k < 3; ++k) {
            if (k == entry) continue;
            const Line l = line_through(corner_of(p, view, t, k + 1), corner_of(p, view, t, k + 2));
            const double first = sign * at(l, from.x, from.y), second = sign * at(l, to.x, to.y);
            if (!(second <= 0 && first > second)) continue;
            const double where = first / (first - second);
            if (where < nearest) nearest = where, exit = k;
        }
        if (exit < 0) return kCovered;
        const int32_t half_edge = 3 * t + exit;
        const int32_t other = smooth[half_edge];
        if (other < 0) return half_edge;
        t = other / 3;
        entry = other % 3;
        if (t == goal) return kNoEdge;
    }
    return kNoEdge;
}

// Whether an edge that is no silhouette leads from one triangle, whose half edges these are, to triangle s.
HD bool leads_to(const int32_t* smooth, int32_t s) {
    return (uint32_t(smooth[0] - 3 * s) < 3) | (uint32_t(smooth[1] - 3 * s) < 3) | (uint32_t(smooth[2] - 3 * s) < 3);
}

// Whether there may be a silhouette between two triangles. Most neighbours lie on two that share an edge in the middle of a
// surface, and most others on two that share one with a third; this finds them quickly.
template <typename T>
HD bool may_cross(const AntialiasParams<T>& p, int64_t view, int32_t t, int32_t s) {
    if ((t | s) < 0) return t != s;
    const int32_t *all = p.smooth + 3 * view * p.triangles, *smooth = all + 3 * int64_t(t);
    if (t == s || leads_to(smooth, s)) return false;
    bool joined = false;
    for (int k = 0; k < 3; ++k) joined |= smooth[k] >= 0 && leads_to(all + smooth[k] / 3 * 3, s);
    return !joined;
}

// How the line of a silhouette passes between the centre of its owner, the pixel in which its surface is seen, and the other's.
struct Passage {
    double at_owner, at_other;  // values of the line
    HD double shift() const { return clamp_to(at_owner / (at_owner - at_other), 0.0, 1.0) - 0.5; }
};

// Looks for the silhouette between a pixel and its right (axis 0) or lower (axis 1) neighbour, where one may be, and keeps it in
// `crossing` and `shift`.
template <typename T>
HD void find_crossing(const AntialiasParams<T>& p, int64_t view, int64_t in_view, int axis) {
    const int64_t size = p.height * p.width, first = view * size + in_view, step = axis == 0 ? 1 : p.width;
    const int64_t second = first + step, pair = axis * p.views * size + first;
    const int32_t t0 = p.triangle[first], t1 = p.triangle[second];
    bool from_first = t0 >= 0 && (t1 < 0 || p.depth[first] <= p.depth[second]);
    const Point a = centre(p, in_view), b = centre(p, in_view + step);
    int32_t found = from_first ? walk(p, view, t0, t1, a, b) : walk(p, view, t1, t0, b, a);
    if (found == kCovered && t0 >= 0 && t1 >= 0) {
        from_first = !from_first;
        found = from_first ? walk(p, view, t0, t1, a, b) : walk(p, view, t1, t0, b, a);
    }
    if (found < 0) return;
    const Line l = half_edge_line(p, view, found);
    const double along_row = fabs(l.a) * double(p.height), along_column = fabs(l.b) * double(p.width);
    if (axis == 0 ? along_row < along_column : along_row >= along_column) return;
    const double at_first = at(l, a.x, a.y), at_second = at(l, b.x, b.y);
    p.crossing[pair] = from_first ? found + 1 : -(found + 1);
    p.shift[pair] = T((from_first ? Passage{at_first, at_second} : Passage{at_second, at_first}).shift());
}

// A pair of pixels with a silhouette between them: target += shift * (owner - other).
struct Pair {
    int64_t owner, other, target;
    double shift;
};

// The pair of a pixel and the next along an axis, which has a silhouette.
template <typename T>
HD Pair pair_of(const AntialiasParams<T>& p, int axis, int64_t first) {
    const int64_t step = axis == 0 ? 1 : p.width, pair = axis * p.views * p.height * p.width + first;
    const bool from_first = p.crossing[pair] > 0;
    Pair r{from_first ? first : first + step, from_first ? first + step : first, 0, double(p.shift[pair])};
    r.target = r.shift > 0 ? r.other : r.owner;
    return r;
}

// A pixel as a mixture of the one before it along an axis, itself, and the one after it.
struct Mixture {
    int64_t first, step;  // pixels first, first + step and first + 2 step
    double weight[3];
};

// One axis of blending at a pixel: what it becomes; or, transposed, what it gets of the gradients of what became of it and of its
// neighbours.
template <typename T>
HD Mixture mixture(const AntialiasParams<T>& p, int axis, bool transposed, int64_t n) {
    const int64_t step = axis == 0 ? 1 : p.width;
    const int32_t* crossing = p.crossing + axis * p.views * p.height * p.width;
    Mixture m{n - step, step, {0, 1, 0}};
    for (int64_t first = n < step ? n : n - step; first <= n; first += step) {
        if (!crossing[first]) continue;
        const Pair r = pair_of(p, axis, first);
        if (transposed) {
            m.weight[(r.target - m.first) / step] += r.owner == n ? r.shift : -r.shift;
        } else if (r.target == n) {
            m.weight[(r.owner - m.first) / step] += r.shift;
            m.weight[(r.other - m.first) / step] -= r.shift;
        }
    }
    return m;
}

// out[n] from both axes: horizontal pairs act first, so the vertical ones are evaluated first, and their gradients last.
template <typename T>
HD void blend_pixel(const AntialiasParams<T>& p, bool transposed, const T* in, T* out, int64_t n) {
    const int64_t channels = p.channels;
    const int last = transposed ? 0 : 1;
    const Mixture outer = mixture(p, last, transposed, n);
    for (int64_t c = 0; c < channels; ++c) out[n * channels + c] = T(0);
    for (int i = 0; i < 3; ++i) {
        if (outer.weight[i] == 0) continue;
        const Mixture inner = mixture(p, 1 - last, transposed, outer.first + i * outer.step);
        for (int j = 0; j < 3; ++j) {
            const double weight = outer.weight[i] * inner.weight[j];
            if (weight == 0) continue;
            const T* from = in + (inner.first + j * inner.step) * channels;
            for (int64_t c = 0; c < channels; ++c) out[n * channels + c] += T(weight) * from[c];
        }
    }
}

template <typename T>
HD double mixed(const Mixture& m, const T* in, int64_t channels, int64_t c) {
    double value = 0;
    for (int i = 0; i < 3; ++i)
        if (m.weight[i] != 0) value += m.weight[i] * double(in[(m.first + i * m.step) * channels + c]);
    return value;
}

// The gradient of the shift between pixel n and the next along an axis. Horizontal pairs act on the image and have the gradient
// of what the vertical ones made of it; vertical pairs act on what the horizontal ones made of the image.
template <typename T>
HD double shift_gradient(const AntialiasParams<T>& p, int axis, const Pair& r) {
    const Mixture plain{0, 0, {0, 0, 0}};
    const Mixture target = axis == 0 ? mixture(p, 1, true, r.target) : plain;
    const Mixture owner = axis == 1 ? mixture(p, 0, false, r.owner) : plain;
    const Mixture other = axis == 1 ? mixture(p, 0, false, r.other) : plain;
    const int64_t channels = p.channels;
    double gradient = 0;
    for (int64_t c = 0; c < channels; ++c) {
        if (axis == 0) {
            const double difference = double(p.image[r.owner * channels + c]) - double(p.image[r.other * channels + c]);
            gradient += mixed(target, p.grad_out, channels, c) * difference;
        } else {
            const double difference = mixed(owner, p.image, channels, c) - mixed(other, p.image, channels, c);
            gradient += double(p.grad_out[r.target * channels + c]) * difference;
        }
    }
    return gradient;
}

// What the silhouette after pixel n gives to the two ends of its edge: add(vertex, gradient of x, y, z, w).
template <typename T, typename Add>
HD void crossing_backward(const AntialiasParams<T>& p, int axis, int64_t n, const Add& add) {
    const int64_t size = p.height * p.width, view = n / size;
    const int32_t code = p.crossing[axis * p.views * size + n];
    if (!code) return;
    const Pair r = pair_of(p, axis, n);
    const int32_t half_edge = (code > 0 ? code : -code) - 1, t = half_edge / 3, k = half_edge % 3;
    const Line l = half_edge_line(p, view, half_edge);
    const Point a = centre(p, r.owner - view * size), b = centre(p, r.other - view * size);
    const Passage passage{at(l, a.x, a.y), at(l, b.x, b.y)};
    const double inverse = 1.0 / (passage.at_owner - passage.at_other);
    if (!is_finite(inverse)) return;
    const double gradient = shift_gradient(p, axis, r) * inverse * inverse;
    const double to_owner = -gradient * passage.at_other, to_other = gradient * passage.at_owner;
    const Line to_line{to_owner * a.x + to_other * b.x, to_owner * a.y + to_other * b.y, to_owner + to_other};
    const int32_t from = p.faces[3 * t + (k + 1) % 3], to = p.faces[3 * t + (k + 2) % 3];
    double grad_from[4] = {0, 0, 0, 0}, grad_to[4] = {0, 0, 0, 0};
    const T* clip = clip_of(p, view);
    add_through_line(load_corner(clip, from), load_corner(clip, to), to_line, grad_from, grad_to);
    add(from, grad_from);
    add(to, grad_to);
}

}  // namespace somnia

// Where a ray meets a box or a sphere: the only place these formulas are written.
#pragma once

#include "portable.h"

namespace somnia {

template <typename T>
struct NearFarParams {
    const T* origins;     // [N, 3]
    const T* directions;  // [N, 3]
    const T* aabb;        // [6] lowest corner, highest corner
    T* near;              // [N] out; infinity for a miss, NaN for a ray that is not finite
    T* far;               // [N] out
    int64_t num_rays;
    double min_near;
};

template <typename T>
struct SphereParams {
    const T* origins;     // [N, 3]
    const T* directions;  // [N, 3]
    T* coords;            // [N, 2] out: polar angle and azimuth, both scaled to [-1, 1]; NaN for a miss
    int64_t num_rays;
    double radius;
};

// The slab test (Kay and Kajiya 1986).
template <typename T>
HD void near_far_from_aabb(const NearFarParams<T>& p, int64_t n) {
    const Vec3<T> o = load3(p.origins + 3 * n), d = load3(p.directions + 3 * n);
    T near = T(p.min_near), far = T(INFINITY);
    for (int axis = 0; axis < 3; ++axis) {
        const T low = p.aabb[axis], high = p.aabb[3 + axis];
        if (d[axis] == T(0)) {
            if (o[axis] < low || o[axis] > high) far = T(-INFINITY);
            continue;
        }
        const T inverse = T(1) / d[axis], a = (low - o[axis]) * inverse, b = (high - o[axis]) * inverse;
        near = max_of(near, min_of(a, b));
        far = min_of(far, max_of(a, b));
    }
    if (!(near < far)) near = far = T(INFINITY);
    if (!is_finite(dot(o, o) + dot(d, d))) near = far = T(NAN);
    p.near[n] = near;
    p.far[n] = far;
}

template <typename T>
HD void sph_from_ray(const SphereParams<T>& p, int64_t n) {
    const T pi = T(3.14159265358979323846);
    const Vec3<T> o = load3(p.origins + 3 * n), d = load3(p.directions + 3 * n);
    const T a = dot(d, d), b = dot(o, d), c = dot(o, o) - T(p.radius) * T(p.radius);
    const T t = (sqrt(b * b - a * c) - b) / a;  // the far hit
    const Vec3<T> x = o + t * d;
    p.coords[2 * n] = T(2) * atan2(sqrt(x.x * x.x + x.z * x.z), x.y) / pi - T(1);
    p.coords[2 * n + 1] = atan2(x.z, x.x) / pi;
}

// Byte b of the bitfield: bit i says whether grid[8 b + i] lies above the threshold. NaN counts as above, so that
// a field with NaN shows instead of being skipped.
template <typename T>
HD uint8_t pack_byte(const T* grid, T threshold, int64_t b) {
    uint32_t bits = 0;
    for (int i = 0; i < 8; ++i) bits |= uint32_t(!(grid[8 * b + i] <= threshold)) << i;
    return uint8_t(bits);
}

}  // namespace somnia

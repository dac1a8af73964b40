// Every kernel on CUDA. A pixel's nearest triangle is found in two passes over the triangles, a warp for each: the lowest depth,
// as bits that sort like the number, and then the lowest index at that depth; so the image does not depend on the order of the
// threads.
// Gradients of vertices are added up atomically: their last bits differ from run to run.
#include "antialias_math.h"
#include "launch.h"
#include "raster_math.h"

namespace somnia {

constexpr int kWarp = 32;

HD uint64_t sortable(double z) {
    union {
        double number;
        uint64_t bits;
    } both;
    both.number = z;
    return both.bits >> 63 ? ~both.bits : both.bits | (uint64_t(1) << 63);
}

template <typename T>
__device__ Corners corners_of(const RasterParams<T>& p, int64_t view, int64_t triangle) {
    return load_corners(p.clip + 4 * p.vertices * view, p.faces + 3 * triangle);
}

// One lane's share of a triangle; kIndex: the second pass.
template <typename T, bool kIndex>
struct Draw {
    RasterParams<T> p;
    __device__ void operator()(int64_t n) const {
        const int64_t item = n / kWarp, view = item / p.triangles, t = item % p.triangles, size = p.height * p.width;
        const Corners c = corners_of(p, view, t);
        const Shape s = make_shape(c);
        if (!is_drawn(s, p.cull_back)) return;
        const Box box = box_of(project(c.at[0], p.height, p.width), project(c.at[1], p.height, p.width),
                               project(c.at[2], p.height, p.width), p.height, p.width);
        const int64_t columns = box.last_column - box.first_column + 1, rows = box.last_row - box.first_row + 1;
        if (columns <= 0 || rows <= 0) return;
        for (int64_t i = n % kWarp; i < columns * rows; i += kWarp) {
            const int64_t column = box.first_column + i % columns, row = box.first_row + i / columns;
            const double x = column_centre(column, p.width), y = row_centre(row, p.height), z = at(s.depth, x, y);
            if (!inside(s, c, x, y) || !in_depth_range(z)) continue;
            const int64_t pixel = view * size + row * p.width + column;
            auto* nearest = reinterpret_cast<unsigned long long*>(p.nearest + pixel);
            if (!kIndex)
                atomicMin(nearest, static_cast<unsigned long long>(sortable(z)));
            else if (*nearest == sortable(z))
                atomicMin(p.triangle + pixel, int32_t(t));
        }
    }
};

template <typename T>
struct Clear {
    RasterParams<T> p;
    __device__ void operator()(int64_t n) const {
        p.nearest[n] = ~uint64_t(0);
        p.triangle[n] = 2147483647;
    }
};

template <typename T>
struct Resolve {
    RasterParams<T> p;
    __device__ void operator()(int64_t n) const {
        const int64_t size = p.height * p.width, view = n / size, in_view = n % size;
        if (p.triangle[n] == 2147483647) return write_empty(p, n);
        const Shape s = make_shape(corners_of(p, view, p.triangle[n]));
        const double x = column_centre(in_view % p.width, p.width), y = row_centre(in_view / p.width, p.height);
        write_pixel(p, n, at(s.line[0], x, y), at(s.line[1], x, y), at(s.line[2], x, y), at(s.depth, x, y));
    }
};

template <typename T>
struct RasterizeBackward {
    RasterParams<T> p;
    __device__ void operator()(int64_t n) const {
        if (p.triangle[n] < 0) return;
        const int64_t size = p.height * p.width, view = n / size, in_view = n % size;
        const int32_t* f = p.faces + 3 * int64_t(p.triangle[n]);
        const Slopes slopes = make_slopes(corners_of(p, view, p.triangle[n]));
        ShapeGradient gradient{};
        add_pixel(slopes, column_centre(in_view % p.width, p.width), row_centre(in_view / p.width, p.height),
                  double(p.grad_bary[2 * n]), double(p.grad_bary[2 * n + 1]), p.grad_depth ? double(p.grad_depth[n]) : 0.0,
                  gradient);
        double corners[3][4];
        corner_gradients(slopes, gradient, corners);
        for (int k = 0; k < 3; ++k)
            for (int c = 0; c < 4; ++c) atomic_add(p.grad_clip + 4 * (p.vertices * view + f[k]) + c, T(corners[k][c]));
    }
};

template <typename T>
struct Interpolate {
    InterpolateParams<T> p;
    __device__ void operator()(int64_t n) const {
        interpolate_pixel<T, 0>(p, attributes_of(p, n / (p.height * p.width)), n);
    }
};

template <typename T>
struct InterpolateBackward {
    InterpolateParams<T> p;
    __device__ void operator()(int64_t n) const {
        const int64_t view = n / (p.height * p.width), channels = p.channels;
        if (p.triangle[n] < 0) {
            if (p.grad_bary) p.grad_bary[2 * n] = p.grad_bary[2 * n + 1] = T(0);
            return;
        }
        const int32_t* face = p.faces + 3 * int64_t(p.triangle[n]);
        interpolate_pixel_backward<T, 0, T>(p, attributes_of(p, view), face, n, nullptr);
        if (!p.grad_attributes) return;
        const T u = p.bary[2 * n], v = p.bary[2 * n + 1], weight[3] = {u, v, T(1) - u - v};
        T* to = p.grad_attributes + (p.shared ? 0 : view) * p.vertices * channels;
        for (int k = 0; k < 3; ++k)
            for (int64_t c = 0; c < channels; ++c)
                atomic_add(to + face[k] * channels + c, weight[k] * p.grad_out[n * channels + c]);
    }
};

template <typename T>
struct Facing {
    AntialiasParams<T> p;
    __device__ void operator()(int64_t n) const { find_facing(p, n); }
};

template <typename T>
struct Smooth {
    AntialiasParams<T> p;
    __device__ void operator()(int64_t n) const { find_smooth(p, n); }
};

template <typename T>
struct Crossings {
    AntialiasParams<T> p;
    __device__ void operator()(int64_t n) const {
        const int64_t size = p.height * p.width, view = n / size, in_view = n % size;
        const bool inside[2] = {in_view % p.width + 1 < p.width, in_view + p.width < size};
        for (int axis = 0; axis < 2; ++axis) {
            const int64_t next = axis == 0 ? n + 1 : n + p.width;
            const bool possible = inside[axis] && may_cross(p, view, p.triangle[n], p.triangle[next]);
            p.crossing[axis * p.views * size + n] = 0;
            if (possible) find_crossing(p, view, in_view, axis);
        }
    }
};

template <typename T>
struct Blend {
    AntialiasParams<T> p;
    bool transposed;
    const T* in;
    T* out;
    __device__ void operator()(int64_t n) const { blend_pixel(p, transposed, in, out, n); }
};

template <typename T>
struct CrossingsBackward {
    AntialiasParams<T> p;
    __device__ void operator()(int64_t n) const {
        T* to = p.grad_clip + 4 * p.vertices * (n / (p.height * p.width));
        const auto add = [&](int32_t vertex, const double grad[4]) {
            for (int c = 0; c < 4; ++c) atomic_add(to + 4 * int64_t(vertex) + c, T(grad[c]));
        };
        crossing_backward(p, 0, n, add);
        crossing_backward(p, 1, n, add);
    }
};

// Runs kernels one after the other until one fails.
struct Sequence {
    int64_t device;
    void* stream;
    int status = 0;
    template <typename Item>
    Sequence& then(int64_t count, const Item& item) {
        if (status == 0) status = for_each(count, device, stream, item);
        return *this;
    }
};

template <typename T>
int rasterize(const void* params, Sequence run) {
    const auto& p = *static_cast<const RasterParams<T>*>(params);
    const int64_t pixels = p.views * p.height * p.width, lanes = p.views * p.triangles * kWarp;
    run.then(pixels, Clear<T>{p}).then(lanes, Draw<T, false>{p}).then(lanes, Draw<T, true>{p}).then(pixels, Resolve<T>{p});
    return run.status;
}

template <typename T>
int antialias(const void* params, Sequence run) {
    const auto& p = *static_cast<const AntialiasParams<T>*>(params);
    const int64_t pixels = p.views * p.height * p.width;
    run.then(p.views * p.triangles, Facing<T>{p}).then(p.views * p.triangles, Smooth<T>{p});
    run.then(pixels, Crossings<T>{p}).then(pixels, Blend<T>{p, false, p.image, p.out});
    return run.status;
}

template <typename T>
int antialias_backward(const void* params, Sequence run) {
    const auto& p = *static_cast<const AntialiasParams<T>*>(params);
    const int64_t pixels = p.views * p.height * p.width;
    run.then(pixels, Blend<T>{p, true, p.grad_out, p.grad_image});
    if (p.grad_clip) run.then(pixels, CrossingsBackward<T>{p});
    return run.status;
}

template <template <typename> class Item, template <typename> class Params>
int for_pixels(const void* params, int64_t dtype, Sequence run) {
    if (dtype == 0) {
        const auto& p = *static_cast<const Params<float>*>(params);
        return run.then(p.views * p.height * p.width, Item<float>{p}).status;
    }
    const auto& p = *static_cast<const Params<double>*>(params);
    return run.then(p.views * p.height * p.width, Item<double>{p}).status;
}

}  // namespace somnia

// dtype: 0 is float32, 1 is float64.
EXPORT int rasterize_cuda(const void* params, int64_t dtype, int64_t device, void* stream) {
    const somnia::Sequence run{device, stream};
    return dtype == 0 ? somnia::rasterize<float>(params, run) : somnia::rasterize<double>(params, run);
}

EXPORT int rasterize_backward_cuda(const void* params, int64_t dtype, int64_t device, void* stream) {
    return somnia::for_pixels<somnia::RasterizeBackward, somnia::RasterParams>(params, dtype, {device, stream});
}

EXPORT int interpolate_cuda(const void* params, int64_t dtype, int64_t device, void* stream) {
    return somnia::for_pixels<somnia::Interpolate, somnia::InterpolateParams>(params, dtype, {device, stream});
}

EXPORT int interpolate_backward_cuda(const void* params, int64_t dtype, int64_t device, void* stream) {
    return somnia::for_pixels<somnia::InterpolateBackward, somnia::InterpolateParams>(params, dtype, {device, stream});
}

EXPORT int antialias_cuda(const void* params, int64_t dtype, int64_t device, void* stream) {
    const somnia::Sequence run{device, stream};
    return dtype == 0 ? somnia::antialias<float>(params, run) : somnia::antialias<double>(params, run);
}

EXPORT int antialias_backward_cuda(const void* params, int64_t dtype, int64_t device, void* stream) {
    const somnia::Sequence run{device, stream};
    return dtype == 0 ? somnia::antialias_backward<float>(params, run) : somnia::antialias_backward<double>(params, run);
}

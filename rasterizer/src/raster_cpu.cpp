// Rasterisation and interpolation on the CPU: triangles are sorted into bands of rows, and each band is drawn by one
// thread with its own depth buffer.
#include <algorithm>
#include <cmath>
#include <vector>

#include "raster_math.h"
#include "sums.h"

// The drawing exists twice, and the dynamic loader takes the copy for processors with AVX2 where there is one.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define TWO_COPIES __attribute__((target_clones("default", "avx2")))
#else
#define TWO_COPIES
#endif

namespace {

using namespace somnia;

constexpr int64_t kBandRows = 32;  // rows of a band: few enough for its depth buffer to stay in the cache
constexpr int64_t kPiece = 2048;   // vertices or triangles of one task
constexpr int64_t kLanes = 4;      // doubles of an AVX register

// One view's triangles, listed for each band of rows that they may cover, in ascending order.
struct Bins {
    std::vector<Projected> projected;
    std::vector<Box> box;
    std::vector<int64_t> first;  // of each band in `list`, and the end
    std::vector<int32_t> list;
};

template <typename T>
void fill_bins(const RasterParams<T>& p, int64_t view, int64_t bands, int64_t threads, Bins& bins) {
    const T* clip = p.clip + 4 * p.vertices * view;
    bins.projected.resize(size_t(p.vertices));
    bins.box.resize(size_t(p.triangles));
    parallel_for(p.vertices, kPiece, threads, [&](int64_t begin, int64_t end) {
        for (int64_t v = begin; v < end; ++v) bins.projected[size_t(v)] = project(load_corner(clip, v), p.height, p.width);
    });
    parallel_for(p.triangles, kPiece, threads, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
            const int32_t* f = p.faces + 3 * t;
            const Projected* v = bins.projected.data();
            bins.box[size_t(t)] = box_of(v[f[0]], v[f[1]], v[f[2]], p.height, p.width);
        }
    });
    bins.first.assign(size_t(bands) + 2, 0);
    const auto for_bands = [&](const auto& body) {
        for (int64_t t = 0; t < p.triangles; ++t) {
            const Box& b = bins.box[size_t(t)];
            if (b.first_column > b.last_column || b.first_row > b.last_row) continue;
            for (int64_t band = b.first_row / kBandRows; band <= b.last_row / kBandRows; ++band) body(band, int32_t(t));
        }
    };
    for_bands([&](int64_t band, int32_t) { ++bins.first[size_t(band) + 2]; });
    for (int64_t band = 0; band < bands; ++band) bins.first[size_t(band) + 2] += bins.first[size_t(band) + 1];
    bins.list.resize(size_t(bins.first[size_t(bands) + 1]));
    for_bands([&](int64_t band, int32_t t) { bins.list[size_t(bins.first[size_t(band) + 1]++)] = t; });
}

// The NDC of columns and rows; columns go on beyond the image as far as a vector does.
struct Grid {
    std::vector<double> x, y;
    int64_t width;

    Grid(int64_t height, int64_t width_) : x(size_t(width_ + kLanes)), y(static_cast<size_t>(height)), width(width_) {
        for (int64_t i = 0; i < width + kLanes; ++i) x[size_t(i)] = column_centre(i, width);
        for (int64_t i = 0; i < height; ++i) y[size_t(i)] = row_centre(i, height);
    }
};

// What a thread draws a band into; rows are longer than the image's by a vector.
struct Canvas {
    std::vector<double> depth;
    std::vector<int64_t> shape;  // which of `shapes` is seen; -1: none
    std::vector<Shape> shapes;
    std::vector<int32_t> triangle;  // of each shape
    int64_t stride;
};

// One row of a triangle: where to, and the values of its lines and depth at X = 0.
struct Row {
    double* depth;
    int64_t* shape;
    int64_t index;
    double at_zero[3], depth_at_zero, y;
};

// Pixel by pixel, with the rule for edges.
void draw_closely(const Shape& s, const Corners& corners, const Row& row, const double* x, int64_t first, int64_t last) {
    for (int64_t column = first; column <= last; ++column) {
        const double z = s.depth.a * x[column] + row.depth_at_zero;
        if (!(z < row.depth[column]) || z < -1.0 - kDepthSlack || !inside(s, corners, x[column], row.y)) continue;
        row.depth[column] = z;
        row.shape[column] = row.index;
    }
}

#if defined(__GNUC__)
typedef double Reals __attribute__((vector_size(32), aligned(8), may_alias));
typedef int64_t Flags __attribute__((vector_size(32), aligned(8), may_alias));

// Several pixels at a time, where the signs are certain; whether they are everywhere.
HD bool draw_row(const Shape& s, double slack, const Row& row, const double* x, int64_t first, int64_t last) {
    Flags doubt{};
    for (int64_t column = first; column <= last; column += kLanes) {
        const Reals at = *reinterpret_cast<const Reals*>(x + column);
        const Reals v0 = s.line[0].a * at + row.at_zero[0], v1 = s.line[1].a * at + row.at_zero[1],
                    v2 = s.line[2].a * at + row.at_zero[2], z = s.depth.a * at + row.depth_at_zero;
        Reals& depth = *reinterpret_cast<Reals*>(row.depth + column);
        Flags& shape = *reinterpret_cast<Flags*>(row.shape + column);
        const Reals smaller = v0 < v1 ? v0 : v1, least = smaller < v2 ? smaller : v2;
        const Flags inside = least > slack;
        const Flags seen = inside & (z < depth) & (z >= -1.0 - kDepthSlack);
        doubt |= (least >= -slack) & ~inside;
        depth = seen ? z : depth;
        shape = seen ? row.index + Flags{} : shape;
    }
    return (doubt[0] | doubt[1] | doubt[2] | doubt[3]) == 0;
}
#else
inline bool draw_row(const Shape&, double, const Row&, const double*, int64_t, int64_t) { return false; }
#endif

TWO_COPIES void draw(const Shape& s, const Corners& corners, int64_t index, const Box& box, int64_t top, int64_t end,
                     const Grid& grid, Canvas& canvas) {
    const int64_t first = std::max<int64_t>(box.first_row, top), last = std::min<int64_t>(box.last_row, end - 1);
    const double slack = std::max(slack_of(s.line[0]), std::max(slack_of(s.line[1]), slack_of(s.line[2])));
    Row row{canvas.depth.data() + (first - top) * canvas.stride, canvas.shape.data() + (first - top) * canvas.stride, index,
            {0, 0, 0}, 0, 0};
    for (int64_t r = first; r <= last; ++r, row.depth += canvas.stride, row.shape += canvas.stride) {
        row.y = grid.y[size_t(r)];
        for (int k = 0; k < 3; ++k) row.at_zero[k] = s.line[k].b * row.y + s.line[k].c;
        row.depth_at_zero = s.depth.b * row.y + s.depth.c;
        if (!draw_row(s, slack, row, grid.x.data(), box.first_column, box.last_column))
            draw_closely(s, corners, row, grid.x.data(), box.first_column, box.last_column);
    }
}

// From what a row of the canvas shows to the outputs.
template <typename T>
void write_row(const RasterParams<T>& p, int64_t first, double y, const Grid& grid, const Canvas& canvas, int64_t in_band) {
    const double* depth = canvas.depth.data() + in_band * canvas.stride;
    const int64_t* shape = canvas.shape.data() + in_band * canvas.stride;
    for (int64_t column = 0; column < p.width;) {
        const int64_t index = shape[column];
        if (index < 0) {
            write_empty(p, first + column++);
            continue;
        }
        const Line* l = canvas.shapes[size_t(index)].line;
        const double r0 = l[0].b * y + l[0].c, r1 = l[1].b * y + l[1].c, r2 = l[2].b * y + l[2].c;
        for (; column < p.width && shape[column] == index; ++column) {
            const double x = grid.x[size_t(column)];
            write_pixel(p, first + column, l[0].a * x + r0, l[1].a * x + r1, l[2].a * x + r2, depth[column]);
            p.triangle[first + column] = canvas.triangle[size_t(index)];
        }
    }
}

template <typename T>
void draw_band(const RasterParams<T>& p, int64_t view, int64_t band, const Bins& bins, const Grid& grid) {
    static thread_local Canvas canvas;
    const int64_t top = band * kBandRows, end = std::min(p.height, top + kBandRows);
    canvas.stride = p.width + kLanes;
    canvas.depth.assign(size_t((end - top) * canvas.stride), std::nextafter(1.0 + kDepthSlack, 2.0));  // beyond: not drawn
    canvas.shape.assign(size_t((end - top) * canvas.stride), -1);
    canvas.shapes.clear();
    canvas.triangle.clear();
    const T* clip = p.clip + 4 * p.vertices * view;
    for (int64_t i = bins.first[size_t(band)]; i < bins.first[size_t(band) + 1]; ++i) {
        const int32_t t = bins.list[size_t(i)];
        const Corners corners = load_corners(clip, p.faces + 3 * int64_t(t));
        const Shape s = make_shape(corners);
        if (!is_drawn(s, p.cull_back)) continue;
        draw(s, corners, int64_t(canvas.shapes.size()), bins.box[size_t(t)], top, end, grid, canvas);
        canvas.shapes.push_back(s);
        canvas.triangle.push_back(t);
    }
    for (int64_t row = top; row < end; ++row)
        write_row(p, (view * p.height + row) * p.width, grid.y[size_t(row)], grid, canvas, row - top);
}

template <typename T>
int rasterize(const RasterParams<T>& p, int64_t threads) {
    const int64_t bands = (p.height + kBandRows - 1) / kBandRows;
    const Grid grid(p.height, p.width);
    Bins bins;
    for (int64_t view = 0; view < p.views; ++view) {
        fill_bins(p, view, bands, threads, bins);
        parallel_for(bands, 1, threads, [&](int64_t band, int64_t) { draw_band(p, view, band, bins, grid); });
    }
    return 0;
}

struct Share {
    Slopes slopes;
    ShapeGradient gradient;
};

template <typename T>
void rasterize_band_backward(const RasterParams<T>& p, int64_t view, int64_t top, int64_t end, const Grid& grid,
                             VertexSums& sums) {
    const T* clip = p.clip + 4 * p.vertices * view;
    Slots<1> slots(p.triangles);
    static thread_local std::vector<Share> shares;
    shares.clear();
    int32_t before = -1, slot = 0;
    for (int64_t row = top; row < end; ++row)
        for (int64_t column = 0, n = (view * p.height + row) * p.width; column < p.width; ++column, ++n) {
            const int32_t triangle = p.triangle[n];
            if (triangle < 0) continue;
            if (triangle != before)
                slot = slots.of(triangle, [&] {
                    shares.push_back({make_slopes(load_corners(clip, p.faces + 3 * int64_t(triangle))), ShapeGradient{}});
                });
            before = triangle;
            Share& share = shares[size_t(slot)];
            const double grad_z = p.grad_depth ? double(p.grad_depth[n]) : 0.0;
            add_pixel(share.slopes, grid.x[size_t(column)], grid.y[size_t(row)], double(p.grad_bary[2 * n]),
                      double(p.grad_bary[2 * n + 1]), grad_z, share.gradient);
        }
    for (size_t slot = 0; slot < shares.size(); ++slot) {
        double corners[3][4];
        corner_gradients(shares[slot].slopes, shares[slot].gradient, corners);
        for (int k = 0; k < 3; ++k) sums.add(p.faces[3 * int64_t(slots.keys()[slot]) + k], corners[k]);
    }
}

template <typename T>
int rasterize_backward(const RasterParams<T>& p, int64_t threads) {
    const Grid grid(p.height, p.width);
    sum_over_bands(p.views, p.height, p.vertices, 4, false, p.grad_clip, threads,
                   [&](int64_t view, int64_t top, int64_t end, VertexSums& sums) {
        rasterize_band_backward(p, view, top, end, grid, sums);
    });
    return 0;
}

template <typename T, int kChannels>
int interpolate(const InterpolateParams<T>& p, int64_t threads) {
    parallel_for(p.views * p.height, 16, threads, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            const T* attributes = attributes_of(p, row / p.height);
            for (int64_t n = row * p.width; n < (row + 1) * p.width; ++n) interpolate_pixel<T, kChannels>(p, attributes, n);
        }
    });
    return 0;
}

template <typename T, int kChannels>
void interpolate_band_backward(const InterpolateParams<T>& p, int64_t view, int64_t first, int64_t last, VertexSums& sums) {
    const int64_t channels = kChannels ? kChannels : p.channels;
    const T* attributes = attributes_of(p, view);
    Slots<1> slots(p.triangles);
    static thread_local std::vector<double> shares;  // [3, C] of each triangle
    shares.clear();
    int32_t before = -1;
    double* share = nullptr;
    for (int64_t n = first; n < last; ++n) {
        const int32_t triangle = p.triangle[n];
        if (triangle < 0) {
            if (p.grad_bary) p.grad_bary[2 * n] = p.grad_bary[2 * n + 1] = T(0);
            continue;
        }
        if (p.grad_attributes && triangle != before) {
            const int32_t slot = slots.of(triangle, [&] { shares.resize(shares.size() + size_t(3 * channels), 0.0); });
            share = shares.data() + int64_t(slot) * 3 * channels;
            before = triangle;
        }
        interpolate_pixel_backward<T, kChannels>(p, attributes, p.faces + 3 * int64_t(triangle), n, share);
    }
    for (size_t slot = 0; slot < slots.keys().size(); ++slot)
        for (int k = 0; k < 3; ++k)
            sums.add(p.faces[3 * int64_t(slots.keys()[slot]) + k], shares.data() + (3 * int64_t(slot) + k) * channels);
}

template <typename T, int kChannels>
int interpolate_backward(const InterpolateParams<T>& p, int64_t threads) {
    sum_over_bands(p.views, p.height, p.vertices, p.channels, p.shared != 0, p.grad_attributes, threads,
                   [&](int64_t view, int64_t top, int64_t end, VertexSums& sums) {
        const int64_t first = (view * p.height + top) * p.width;
        interpolate_band_backward<T, kChannels>(p, view, first, first + (end - top) * p.width, sums);
    });
    return 0;
}

// Compiled for the usual numbers of channels and for any other.
template <typename T>
int interpolate_any(const void* params, bool backward, int64_t threads) {
    const auto& p = *static_cast<const InterpolateParams<T>*>(params);
    if (p.channels == 3) return backward ? interpolate_backward<T, 3>(p, threads) : interpolate<T, 3>(p, threads);
    if (p.channels == 4) return backward ? interpolate_backward<T, 4>(p, threads) : interpolate<T, 4>(p, threads);
    return backward ? interpolate_backward<T, 0>(p, threads) : interpolate<T, 0>(p, threads);
}

}  // namespace

// dtype: 0 is float32, 1 is float64.
EXPORT int rasterize_cpu(const void* params, int64_t dtype, int64_t threads, void*) {
    if (dtype == 0) return rasterize(*static_cast<const RasterParams<float>*>(params), threads);
    return rasterize(*static_cast<const RasterParams<double>*>(params), threads);
}

EXPORT int rasterize_backward_cpu(const void* params, int64_t dtype, int64_t threads, void*) {
    if (dtype == 0) return rasterize_backward(*static_cast<const RasterParams<float>*>(params), threads);
    return rasterize_backward(*static_cast<const RasterParams<double>*>(params), threads);
}

EXPORT int interpolate_cpu(const void* params, int64_t dtype, int64_t threads, void*) {
    return dtype == 0 ? interpolate_any<float>(params, false, threads) : interpolate_any<double>(params, false, threads);
}

EXPORT int interpolate_backward_cpu(const void* params, int64_t dtype, int64_t threads, void*) {
    return dtype == 0 ? interpolate_any<float>(params, true, threads) : interpolate_any<double>(params, true, threads);
}

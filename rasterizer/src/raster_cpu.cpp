// The CPU rung of rasterisation and interpolation: triangles are sorted into bands of rows, and each band is drawn by one
// thread with its own depth buffer.
#include <algorithm>
#include <limits>
#include <vector>

#include "raster_math.h"
#include "sums.h"

namespace {

using namespace somnia;

constexpr int64_t kBandRows = 16, kPiece = 2048;

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

// What a thread draws a band into.
struct Canvas {
    std::vector<double> depth;
    std::vector<int32_t> shape;  // which of `shapes` is seen; -1: none
    std::vector<Shape> shapes;
    std::vector<int32_t> triangle;  // of each shape
};

struct Grid {
    std::vector<double> x, y;
    int64_t width;
};

void draw(const Shape& s, int32_t index, const Box& box, int64_t top, int64_t end, const Grid& grid, Canvas& canvas) {
    const int64_t first = std::max<int64_t>(box.first_row, top), last = std::min<int64_t>(box.last_row, end - 1);
    for (int64_t row = first; row <= last; ++row) {
        const double y = grid.y[size_t(row)];
        const double r0 = s.line[0].b * y + s.line[0].c, r1 = s.line[1].b * y + s.line[1].c, r2 = s.line[2].b * y + s.line[2].c;
        const double rz = s.depth.b * y + s.depth.c;
        double* depth = canvas.depth.data() + (row - top) * grid.width;
        int32_t* shape = canvas.shape.data() + (row - top) * grid.width;
        for (int64_t column = box.first_column; column <= box.last_column; ++column) {
            const double x = grid.x[size_t(column)];
            const double value[3] = {s.line[0].a * x + r0, s.line[1].a * x + r1, s.line[2].a * x + r2};
            const double z = s.depth.a * x + rz;
            if (!inside(s, value, x, y) || !in_depth_range(z) || !(z < depth[column])) continue;
            depth[column] = z;
            shape[column] = index;
        }
    }
}

template <typename T>
void draw_band(const RasterParams<T>& p, int64_t view, int64_t band, const Bins& bins, const Grid& grid) {
    static thread_local Canvas canvas;
    const int64_t top = band * kBandRows, end = std::min(p.height, top + kBandRows), pixels = (end - top) * p.width;
    canvas.depth.assign(size_t(pixels), std::numeric_limits<double>::infinity());
    canvas.shape.assign(size_t(pixels), -1);
    canvas.shapes.clear();
    canvas.triangle.clear();
    const T* clip = p.clip + 4 * p.vertices * view;
    for (int64_t i = bins.first[size_t(band)]; i < bins.first[size_t(band) + 1]; ++i) {
        const int32_t t = bins.list[size_t(i)];
        const int32_t* f = p.faces + 3 * int64_t(t);
        const Shape s = make_shape(load_corner(clip, f[0]), load_corner(clip, f[1]), load_corner(clip, f[2]));
        if (s.sign == 0) continue;
        canvas.shapes.push_back(s);
        canvas.triangle.push_back(t);
        draw(s, int32_t(canvas.shapes.size()) - 1, bins.box[size_t(t)], top, end, grid, canvas);
    }
    const int64_t first = (view * p.height + top) * p.width;
    for (int64_t i = 0; i < pixels; ++i) {
        const int32_t index = canvas.shape[size_t(i)];
        if (index < 0) {
            write_empty(p, first + i);
            continue;
        }
        p.triangle[first + i] = canvas.triangle[size_t(index)];
        write_pixel(p, first + i, canvas.shapes[size_t(index)], grid.x[size_t(i % p.width)], grid.y[size_t(top + i / p.width)]);
    }
}

Grid make_grid(int64_t height, int64_t width) {
    Grid grid{std::vector<double>(static_cast<size_t>(width)), std::vector<double>(static_cast<size_t>(height)), width};
    for (int64_t i = 0; i < width; ++i) grid.x[size_t(i)] = column_centre(i, width);
    for (int64_t i = 0; i < height; ++i) grid.y[size_t(i)] = row_centre(i, height);
    return grid;
}

template <typename T>
int rasterize(const RasterParams<T>& p, int64_t threads) {
    const int64_t bands = (p.height + kBandRows - 1) / kBandRows;
    const Grid grid = make_grid(p.height, p.width);
    Bins bins;
    for (int64_t view = 0; view < p.views; ++view) {
        fill_bins(p, view, bands, threads, bins);
        parallel_for(bands, 1, threads, [&](int64_t band, int64_t) { draw_band(p, view, band, bins, grid); });
    }
    return 0;
}

// The gradients of one run of pixels that show the same triangle, handed on when it ends.
template <typename T>
struct Run {
    const RasterParams<T>& p;
    const T* clip;
    VertexSums& sums;
    int32_t triangle = -1;
    Slopes slopes{};
    ShapeGradient gradient{};

    void turn_to(int32_t next) {
        if (triangle >= 0) {
            double corners[3][4];
            corner_gradients(slopes, gradient, corners);
            for (int k = 0; k < 3; ++k) {
                double* to = sums.of(p.faces[3 * int64_t(triangle) + k]);
                for (int c = 0; c < 4; ++c) to[c] += corners[k][c];
            }
        }
        triangle = next;
        if (next < 0) return;
        const int32_t* f = p.faces + 3 * int64_t(next);
        slopes = make_slopes(load_corner(clip, f[0]), load_corner(clip, f[1]), load_corner(clip, f[2]));
        gradient = ShapeGradient{};
    }
};

template <typename T>
int rasterize_backward(const RasterParams<T>& p, int64_t threads) {
    const Grid grid = make_grid(p.height, p.width);
    sum_over_bands(p.views, p.height, p.vertices, 4, false, p.grad_clip, threads,
                   [&](int64_t view, int64_t top, int64_t end, VertexSums& sums) {
        Run<T> run{p, p.clip + 4 * p.vertices * view, sums};
        for (int64_t row = top; row < end; ++row)
            for (int64_t column = 0; column < p.width; ++column) {
                const int64_t n = (view * p.height + row) * p.width + column;
                if (p.triangle[n] != run.triangle) run.turn_to(p.triangle[n]);
                if (run.triangle < 0) continue;
                const double grad_z = p.grad_depth ? double(p.grad_depth[n]) : 0.0;
                add_pixel(run.slopes, grid.x[size_t(column)], grid.y[size_t(row)], double(p.grad_bary[2 * n]),
                          double(p.grad_bary[2 * n + 1]), grad_z, run.gradient);
            }
        run.turn_to(-1);
    });
    return 0;
}

template <typename T, int kChannels>
int interpolate(const InterpolateParams<T>& p, int64_t threads) {
    const int64_t size = p.height * p.width;
    parallel_for(p.views * p.height, 16, threads, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin * p.width; n < end * p.width; ++n)
            interpolate_pixel<T, kChannels>(p, attributes_of(p, n / size), n);
    });
    return 0;
}

// Adds one pixel's channels, weighted, to the sums of its triangle's corners, [3, C].
template <typename T, int kChannels>
inline void add_weighted(const InterpolateParams<T>& p, int64_t n, double* sums) {
    const int64_t channels = kChannels ? kChannels : p.channels;
    const T* grad = p.grad_out + n * channels;
    const double u = double(p.bary[2 * n]), v = double(p.bary[2 * n + 1]), rest = 1.0 - u - v;
    for (int64_t c = 0; c < channels; ++c) {
        sums[c] += u * double(grad[c]);
        sums[channels + c] += v * double(grad[c]);
        sums[2 * channels + c] += rest * double(grad[c]);
    }
}

template <typename T, int kChannels>
void interpolate_band_backward(const InterpolateParams<T>& p, int64_t first, int64_t last, VertexSums& sums) {
    const int64_t channels = kChannels ? kChannels : p.channels;
    std::vector<double> run(size_t(3 * channels), 0.0);
    for (int64_t n = first; n < last; ++n) {
        const int32_t triangle = p.triangle[n];
        if (triangle < 0) continue;
        add_weighted<T, kChannels>(p, n, run.data());
        if (n + 1 < last && p.triangle[n + 1] == triangle) continue;
        for (int64_t k = 0; k < 3; ++k) {
            double* to = sums.of(p.faces[3 * int64_t(triangle) + k]);
            for (int64_t c = 0; c < channels; ++c) to[c] += run[size_t(k * channels + c)];
        }
        std::fill(run.begin(), run.end(), 0.0);
    }
}

template <typename T, int kChannels>
int interpolate_backward(const InterpolateParams<T>& p, int64_t threads) {
    if (p.grad_bary)
        parallel_for(p.views * p.height, 16, threads, [&](int64_t begin, int64_t end) {
            for (int64_t n = begin * p.width; n < end * p.width; ++n)
                interpolate_weights_backward<T, kChannels>(p, attributes_of(p, n / (p.height * p.width)), n);
        });
    if (p.grad_attributes)
        sum_over_bands(p.views, p.height, p.vertices, p.channels, p.shared != 0, p.grad_attributes, threads,
                       [&](int64_t view, int64_t top, int64_t end, VertexSums& sums) {
            const int64_t first = (view * p.height + top) * p.width;
            interpolate_band_backward<T, kChannels>(p, first, first + (end - top) * p.width, sums);
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

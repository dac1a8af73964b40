// Grid encoding on the CPU. Levels are the outer loop, so that one level's rows stay in the cache while all points visit
// it; the gradient rows of a level belong to one task (or a fixed range of them to each), so nothing is atomic and any
// number of threads gives the same bits. Scratch is level-major, [L][M][1 + D][F], and transposed in tiles.
#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>

#include "grid_math.h"

namespace {

constexpr int64_t kBlock = 128;      // points located together; their rows and weights fit the L1 cache
constexpr int64_t kChunk = 1 << 17;  // points encoded together; bounds the scratch
constexpr int64_t kTask = 1 << 14;   // points of one forward task
constexpr int64_t kTile = 64;        // points transposed together
constexpr int64_t kLine = 64;        // bytes of a cache line

// Memory that a thread keeps between calls: the system's fresh pages cost more than the arithmetic done on them.
class Workspace {
   public:
    template <typename T>
    T* get(int64_t count) {
        const size_t bytes = size_t(count) * sizeof(T) + kLine;
        if (bytes > size_) {
            data_.reset();
            data_.reset(new char[bytes]);
            size_ = bytes;
        }
        return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(data_.get()) + kLine - 1) / kLine * kLine);
    }

   private:
    std::unique_ptr<char[]> data_;
    size_t size_ = 0;
};

thread_local Workspace unit_space, place_space, level_space;

// The points of one chunk in the unit box, one array an axis.
template <typename S, int D>
struct Points {
    S* unit[D];
    uint8_t* place;
    int64_t first, count;

    Points(int64_t first_point, int64_t points) : first(first_point), count(points) {
        S* memory = unit_space.get<S>(D * points);
        for (int d = 0; d < D; ++d) unit[d] = memory + d * points;
        place = place_space.get<uint8_t>(points);
    }

    void load(const GridParams& p, int64_t from, int64_t to) const {
        const S* x = static_cast<const S*>(p.positions) + first * D;
        for (int64_t n = from; n < to; ++n) {
            S u[D];
            place[n] = enter_box<S, D>(x + n * D, S(p.bound), u);
            for (int d = 0; d < D; ++d) unit[d][n] = u[d];
        }
    }
};

// The cells of up to kBlock points in one level, one array a quantity, so that the compiler vectorises over the points.
template <typename S, int D>
struct Cells {
    S weight[D][kBlock], slope[D][kBlock];
    uint32_t row[1 << D][kBlock];

    void locate(const GridParams& p, int level, const Indexing& by, const Points<S, D>& points, int64_t from, int count) {
        uint32_t lower[D][kBlock], upper[D][kBlock];
        const bool align = p.align_corners != 0, smooth = p.smooth != 0;
        const int32_t resolution = int32_t(p.resolution[level]);
        for (int d = 0; d < D; ++d)
            for (int i = 0; i < count; ++i) {
                const Axis<S> axis = ::place(points.unit[d][from + i], resolution, align, smooth);
                weight[d][i] = axis.weight;
                slope[d][i] = axis.slope;
                lower[d][i] = uint32_t(axis.cell) * by.step[d];
                upper[d][i] = lower[d][i] + by.step[d];
            }
        for (int c = 0; c < 1 << D; ++c)
            for (int i = 0; i < count; ++i) {
                uint32_t low[D], high[D];
                for (int d = 0; d < D; ++d) low[d] = lower[d][i], high[d] = upper[d][i];
                row[c][i] = row_of<D>(low, high, c, by);
            }
    }
};

// All loops for scalar S, D dimensions, W features at a time.
template <typename S, int D, int W>
struct Kernels {
    using V = Row<S, W>;
    const GridParams& p;
    const int64_t threads;
    const int64_t groups = p.features / W;  // vectors a row
    const S per_unit = S(0.5 / p.bound);    // d u / d x

    const V* table(int level) const { return static_cast<const V*>(p.table) + p.first[level] * groups; }
    V* grad_table(int level) const { return static_cast<V*>(p.grad_table) + p.first[level] * groups; }

    // Values (and derivatives) of the points [from, to) at one level, into scratch [M][kParts][F].
    template <bool kJacobian>
    void encode_level(int level, const Points<S, D>& points, int64_t from, int64_t to, V* out) const {
        constexpr int kParts = kJacobian ? 1 + D : 1;
        const V* rows = table(level);
        const Indexing by = indexing_of(p, level);
        Cells<S, D> cells;
        for (int64_t start = from; start < to; start += kBlock) {
            const int count = int(std::min(kBlock, to - start));
            cells.locate(p, level, by, points, start, count);
            for (int i = 0; i < count; ++i) {
                V* result = out + (start + i) * kParts * groups;
                if (points.place[start + i] != kInside) {
                    const S empty = points.place[start + i] == kOutside ? S(0) : std::numeric_limits<S>::quiet_NaN();
                    std::fill_n(&result->v[0], kParts * p.features, empty);
                    continue;
                }
                S weight[D], slope[D];
                for (int d = 0; d < D; ++d) weight[d] = cells.weight[d][i], slope[d] = cells.slope[d][i] * per_unit;
                for (int64_t g = 0; g < groups; ++g) {
                    V corner[1 << D], derivative[D];
                    for (int c = 0; c < 1 << D; ++c) corner[c] = rows[cells.row[c][i] * groups + g];
                    if (kJacobian) blend_with_derivatives<D>(corner, weight, slope, derivative);
                    else blend<D>(corner, weight);
                    result[g] = corner[0];
                    for (int d = 0; d < D && kJacobian; ++d) result[(1 + d) * groups + g] = derivative[d];
                }
            }
        }
    }

    // Add the gradients of all points to the rows [low, high) of one level.
    template <bool kJacobian>
    void scatter_level(int level, const Points<S, D>& points, const V* grad, uint32_t low, uint32_t high) const {
        constexpr int kParts = kJacobian ? 1 + D : 1;
        V* rows = grad_table(level);
        const Indexing by = indexing_of(p, level);
        Cells<S, D> cells;
        for (int64_t start = 0; start < points.count; start += kBlock) {
            const int count = int(std::min(kBlock, points.count - start));
            cells.locate(p, level, by, points, start, count);
            for (int i = 0; i < count; ++i) {
                if (points.place[start + i] != kInside) continue;
                const V* source = grad + (start + i) * kParts * groups;
                S weight[D], slope[D];
                for (int d = 0; d < D; ++d) weight[d] = cells.weight[d][i], slope[d] = cells.slope[d][i] * per_unit;
                for (int64_t g = 0; g < groups; ++g) {
                    V corner[1 << D], derivative[D];
                    corner[0] = source[g];
                    for (int d = 0; d < D && kJacobian; ++d) derivative[d] = source[(1 + d) * groups + g];
                    if (kJacobian) spread_with_derivatives<D>(corner, weight, slope, derivative);
                    else spread<D>(corner, weight);
                    for (int c = 0; c < 1 << D; ++c) {
                        const uint32_t row = cells.row[c][i];
                        if (row - low < high - low) rows[row * groups + g] = rows[row * groups + g] + corner[c];
                    }
                }
            }
        }
    }

    // Scratch [L][M][parts][F] to values [M, L*F] and jacobian [M, D, L*F], or from their gradients to scratch.
    template <bool kToScratch, typename Flat, typename Scratch>
    void transpose(const Points<S, D>& points, Flat* values, Flat* jacobian, Scratch* scratch, int64_t from, int64_t to) const {
        const int parts = jacobian ? 1 + D : 1;
        const int64_t width = p.levels * groups, levels = kToScratch ? p.active : p.levels;
        for (int64_t tile = from; tile < to; tile += kTile)
            for (int64_t level = 0; level < levels; ++level)
                for (int64_t n = tile; n < std::min(tile + kTile, to); ++n)
                    for (int part = 0; part < parts; ++part) {
                        const int64_t point = points.first + n, column = level * groups;
                        Flat* flat = part == 0 ? values + point * width : jacobian + (point * D + part - 1) * width;
                        Scratch* packed = scratch + ((level * points.count + n) * parts + part) * groups;
                        for (int64_t g = 0; g < groups; ++g) move<kToScratch>(flat, column + g, packed + g, level < p.active, values || part);
                    }
    }

    template <bool kToScratch>
    static void move(const V* flat, int64_t column, V* packed, bool, bool given) { *packed = given ? flat[column] : V{}; }
    template <bool kToScratch>
    static void move(V* flat, int64_t column, const V* packed, bool active, bool) { flat[column] = active ? *packed : V{}; }

    // Read a level from end to end before it is read at random: memory streams far faster than it jumps.
    void warm(int64_t level, int64_t count) const {
        const char* begin = reinterpret_cast<const char*>(table(int(level)));
        const int64_t bytes = (p.first[level + 1] - p.first[level]) * groups * int64_t(sizeof(V));
        if (count << D < bytes / kLine) return;
        char sum = 0;
        for (int64_t b = 0; b < bytes; b += kLine) sum = char(sum + begin[b]);
        volatile char sink = sum;
        (void)sink;
    }

    int encode() const {
        V* values = static_cast<V*>(p.values);
        V* jacobian = static_cast<V*>(p.jacobian);
        const int parts = jacobian ? 1 + D : 1;
        for (int64_t first = 0; first < p.num_points; first += kChunk) {
            const Points<S, D> points(first, std::min(kChunk, p.num_points - first));
            V* scratch = level_space.get<V>(p.active * points.count * parts * groups);
            const int64_t tasks = (points.count + kTask - 1) / kTask;
            somnia::parallel_for(points.count, kTask, threads, [&](int64_t from, int64_t to) { points.load(p, from, to); });
            somnia::parallel_for(tasks * p.active, 1, threads, [&](int64_t task, int64_t) {
                const int level = int(task / tasks);
                const int64_t from = task % tasks * kTask, to = std::min(from + kTask, points.count);
                V* out = scratch + level * points.count * parts * groups;
                if (from == 0) warm(level, points.count);
                if (jacobian) encode_level<true>(level, points, from, to, out);
                else encode_level<false>(level, points, from, to, out);
            });
            somnia::parallel_for(points.count, kTask, threads, [&](int64_t from, int64_t to) {
                transpose<false>(points, values, jacobian, static_cast<const V*>(scratch), from, to);
            });
        }
        return 0;
    }

    int encode_backward() const {
        const V* values = static_cast<const V*>(p.grad_values);
        const V* jacobian = static_cast<const V*>(p.grad_jacobian);
        const int64_t size = jacobian ? (1 + D) * groups : groups;
        const int64_t ranges = (threads + p.active - 1) / p.active;  // of rows in a level: more than one if levels are few
        for (int64_t first = 0; first == 0 || first < p.num_points; first += kChunk) {
            const Points<S, D> points(first, std::min(kChunk, p.num_points - first));
            V* scratch = level_space.get<V>(p.active * points.count * size);
            somnia::parallel_for(points.count, kTask, threads, [&](int64_t from, int64_t to) {
                points.load(p, from, to);
                transpose<true>(points, values, jacobian, scratch, from, to);
            });
            somnia::parallel_for(p.levels * ranges, 1, threads, [&](int64_t task, int64_t) {
                const int level = int(p.levels - 1 - task / ranges);  // the largest levels first
                const int64_t rows = p.first[level + 1] - p.first[level], range = task % ranges;
                const int64_t low = rows * range / ranges, high = rows * (range + 1) / ranges;
                if (first == 0) std::fill(grad_table(level) + low * groups, grad_table(level) + high * groups, V{});
                if (level >= p.active) return;
                const V* grad = scratch + level * points.count * size;
                if (jacobian) scatter_level<true>(level, points, grad, uint32_t(low), uint32_t(high));
                else scatter_level<false>(level, points, grad, uint32_t(low), uint32_t(high));
            });
        }
        return 0;
    }
};

// Loops that are not in a training step's hot path: one point after the other.
template <typename S, int D>
struct RareKernels {
    const GridParams& p;
    const int64_t threads;

    const S* table(int64_t level) const { return static_cast<const S*>(p.table) + p.first[level] * p.features; }

    int second_derivatives() const {
        const int64_t stride = p.levels * p.features;
        somnia::parallel_for(p.num_points, kTask, threads, [&](int64_t from, int64_t to) {
            S* grad = static_cast<S*>(p.grad_positions);
            std::fill(grad + from * D, grad + to * D, S(0));
            for (int level = 0; level < p.active; ++level) {
                const Indexing by = indexing_of(p, level);
                for (int64_t n = from; n < to; ++n) {
                    S u[D];
                    if (enter_box<S, D>(static_cast<const S*>(p.positions) + n * D, S(p.bound), u) != kInside) continue;
                    const S* grad_jacobian = static_cast<const S*>(p.grad_jacobian) + n * D * stride + level * p.features;
                    add_second_derivatives(Cell<S, D>(p, level, by, u), table(level), grad_jacobian, stride,
                                           int(p.features), S(0.5 / p.bound), grad + n * D);
                }
            }
        });
        return 0;
    }

    // Calls visit(level, cell) for every point in every active level; a level is one task.
    template <typename Visit>
    void for_each_cell(const Visit& visit) const {
        somnia::parallel_for(p.active, 1, threads, [&](int64_t level, int64_t) {
            const Indexing by = indexing_of(p, int(level));
            for (int64_t n = 0; n < p.num_points; ++n) {
                S u[D];
                if (enter_box<S, D>(static_cast<const S*>(p.positions) + n * D, S(p.bound), u) != kInside) continue;
                visit(level, Cell<S, D>(p, int(level), by, u));
            }
        });
    }

    int total_variation() const {
        std::fill(p.sums, p.sums + p.levels, 0.0);
        for_each_cell([&](int64_t level, const Cell<S, D>& cell) {
            p.sums[level] += double(variation(cell, table(level), int(p.features)));
        });
        return 0;
    }

    int total_variation_backward() const {
        S* grad = static_cast<S*>(p.grad_table);
        std::fill(grad, grad + p.first[p.levels] * p.features, S(0));
        for_each_cell([&](int64_t level, const Cell<S, D>& cell) {
            add_variation_gradient(cell, table(level), int(p.features), grad + p.first[level] * p.features);
        });
        return 0;
    }
};

enum Operation { kEncode, kEncodeBackward, kSecondDerivatives, kTotalVariation, kTotalVariationBackward };

template <typename S, int D>
int run(const GridParams& p, Operation operation, int64_t threads) {
    const RareKernels<S, D> rare{p, threads};
    switch (operation) {
        case kSecondDerivatives: return rare.second_derivatives();
        case kTotalVariation: return rare.total_variation();
        case kTotalVariationBackward: return rare.total_variation_backward();
        case kEncode: return p.features == 1 ? Kernels<S, D, 1>{p, threads}.encode() : Kernels<S, D, 2>{p, threads}.encode();
        case kEncodeBackward:
            return p.features == 1 ? Kernels<S, D, 1>{p, threads}.encode_backward() : Kernels<S, D, 2>{p, threads}.encode_backward();
    }
    return 1;
}

template <typename S>
int by_dims(const GridParams& p, Operation operation, int64_t threads) {
    switch (p.dims) {
        case 2: return run<S, 2>(p, operation, threads);
        case 3: return run<S, 3>(p, operation, threads);
        case 4: return run<S, 4>(p, operation, threads);
    }
    return 1;
}

// scalar_bytes: 4 for float, 8 for double.
int dispatch(const GridParams* p, int64_t scalar_bytes, Operation operation, int64_t threads) {
    if (scalar_bytes == 4) return by_dims<float>(*p, operation, std::max<int64_t>(1, threads));
    if (scalar_bytes == 8) return by_dims<double>(*p, operation, std::max<int64_t>(1, threads));
    return 1;
}

}  // namespace

#define GRID_KERNEL(name, operation)                                                                        \
    EXPORT int name##_cpu(const GridParams* p, int64_t scalar_bytes, int64_t threads, void*) {      \
        return dispatch(p, scalar_bytes, operation, threads);                                                \
    }
GRID_KERNEL(grid_encode, kEncode)
GRID_KERNEL(grid_encode_backward, kEncodeBackward)
GRID_KERNEL(grid_second_derivatives, kSecondDerivatives)
GRID_KERNEL(grid_total_variation, kTotalVariation)
GRID_KERNEL(grid_total_variation_backward, kTotalVariationBackward)

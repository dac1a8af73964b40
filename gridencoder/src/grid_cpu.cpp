// Grid encoding on the CPU. Levels are the outer loop, so that one level's rows stay in the cache while all points
// visit it; the gradient rows of a level belong to one task (or a fixed range of them to each), so nothing is atomic
// and any number of threads gives the same bits. Values are packed level by level, [L][M][F], and transposed in tiles.
#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>

#include "grid_math.h"

// The hot loops exist twice, and the loader takes the copy for processors with AVX2 where there is one (measured: 1.2
// times as fast; AVX-512 adds nothing). Contraction is off, so both give the same bits.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define TWO_COPIES __attribute__((target_clones("default", "avx2")))
#else
#define TWO_COPIES
#endif

#if defined(__GNUC__)
#define APART __attribute__((noinline))
#else
#define APART
#endif

namespace {

constexpr int64_t kBlock = 128;      // points located together; their rows and weights fit the L1 cache
constexpr int64_t kChunk = 1 << 17;  // points encoded together; bounds the scratch
constexpr int64_t kTask = 1 << 14;   // points of one forward task
constexpr int64_t kTile = 64;        // points transposed together
constexpr int64_t kLine = 64;        // bytes of a cache line
constexpr int kAhead = 16;           // points between asking for rows and using them

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

    HD void locate(const GridParams& p, int level, const Indexing& by, const Points<S, D>& points, int64_t from,
                   int count) {
        uint32_t lower[D][kBlock], upper[D][kBlock];
        const Scale<S> scale(p, level);
        for (int d = 0; d < D; ++d)
            for (int i = 0; i < count; ++i) {
                const Axis<S> axis = ::place(points.unit[d][from + i], scale);
                weight[d][i] = axis.weight;
                slope[d][i] = axis.slope;
                lower[d][i] = uint32_t(axis.cell) * by.step[d];
                upper[d][i] = lower[d][i] + by.step[d];
            }
        by.sum ? find_all<true>(lower, upper, by.mask, count) : find_all<false>(lower, upper, by.mask, count);
    }

    template <bool kSum>
    HD void find_all(const uint32_t (&lower)[D][kBlock], const uint32_t (&upper)[D][kBlock], uint32_t mask, int count) {
        for (int c = 0; c < 1 << D; ++c)
            for (int i = 0; i < count; ++i) {
                uint32_t low[D], high[D];
                for (int d = 0; d < D; ++d) low[d] = lower[d][i], high[d] = upper[d][i];
                row[c][i] = row_of<D, kSum>(low, high, c, mask);
            }
    }

    // The same point by point, for loops that need not be fast: what is vectorised takes long to build.
    APART void locate_slowly(const GridParams& p, int level, const Indexing& by, const Points<S, D>& points,
                             int64_t from, int count) {
        for (int i = 0; i < count; ++i) {
            S u[D];
            for (int d = 0; d < D; ++d) u[d] = points.unit[d][from + i];
            const Cell<S, D> cell(p, level, by, u);
            for (int d = 0; d < D; ++d) weight[d][i] = cell.axis[d].weight, slope[d][i] = cell.axis[d].slope;
            for (int c = 0; c < 1 << D; ++c) row[c][i] = cell.row[c];
        }
    }
};

// The loops of a training step for scalar S, D dimensions and rows of F features (kFeatures, or any number if that is
// 0), W of them at a time.
template <typename S, int D, int W, int kFeatures>
struct Kernels {
    using V = Row<S, W>;
    const GridParams& p;
    const int64_t threads;
    const S per_unit = S(0.5 / p.bound);  // d u / d x

    uint32_t groups() const { return uint32_t(kFeatures > 0 ? kFeatures : p.features) / W; }  // vectors a row
    const V* table(int64_t level) const { return static_cast<const V*>(p.table) + p.first[level] * groups(); }
    V* grad_table(int64_t level) const { return static_cast<V*>(p.grad_table) + p.first[level] * groups(); }

    // Ask for the rows of a point that comes up soon; corners 2c and 2c + 1 are neighbours in x, mostly in one cache
    // line.
    template <bool kWrite>
    HD void ask(const Cells<S, D>& cells, const V* rows, int i, int count) const {
#if defined(__GNUC__)
        for (int c = 0; c < 1 << D && i + kAhead < count; c += 2)
            __builtin_prefetch(rows + cells.row[c][i + kAhead] * groups(), kWrite);
#endif
    }

    // Values of the points [from, to) at one level, to packed [M][F], and derivatives, to jacobian [M][D][F].
    template <bool kJacobian>
    HD void encode_level(int level, const Points<S, D>& points, int64_t from, int64_t to, V* packed,
                         V* jacobian) const {
        const V* rows = table(level);
        const Indexing by = indexing_of(p, level);
        Cells<S, D> cells;
        for (int64_t start = from; start < to; start += kBlock) {
            const int count = int(std::min(kBlock, to - start));
            if constexpr (kFeatures > 0) cells.locate(p, level, by, points, start, count);
            else cells.locate_slowly(p, level, by, points, start, count);
            for (int i = 0; i < count; ++i) {
                V* value = packed + (start + i) * groups();
                V* along = kJacobian ? jacobian + (start + i) * D * groups() : nullptr;
                ask<false>(cells, rows, i, count);
                if (points.place[start + i] != kInside) {
                    const S empty = points.place[start + i] == kOutside ? S(0) : std::numeric_limits<S>::quiet_NaN();
                    std::fill_n(reinterpret_cast<S*>(value), W * groups(), empty);
                    if (kJacobian) std::fill_n(reinterpret_cast<S*>(along), D * W * groups(), empty);
                    continue;
                }
                S weight[D], slope[D];
                for (int d = 0; d < D; ++d) weight[d] = cells.weight[d][i], slope[d] = cells.slope[d][i] * per_unit;
                for (uint32_t g = 0; g < groups(); ++g) {
                    const auto load = [&](int corner) { return rows[cells.row[corner][i] * groups() + g]; };
                    if constexpr (kJacobian) {
                        const Jet<V, D> jet = blend_jet<D, V>(load, weight, slope);
                        value[g] = jet.value;
                        for (int d = 0; d < D; ++d) along[d * groups() + g] = jet.along[d];
                    } else {
                        value[g] = blend<D, V>(load, weight);
                    }
                }
            }
        }
    }

    // Add the gradients of all points to the rows [low, high) of one level.
    template <bool kJacobian>
    HD void scatter_level(int level, const Points<S, D>& points, const V* packed, const V* jacobian, uint32_t low,
                          uint32_t high) const {
        V* rows = grad_table(level);
        const Indexing by = indexing_of(p, level);
        Cells<S, D> cells;
        for (int64_t start = 0; start < points.count; start += kBlock) {
            const int count = int(std::min(kBlock, points.count - start));
            if constexpr (kFeatures > 0) cells.locate(p, level, by, points, start, count);
            else cells.locate_slowly(p, level, by, points, start, count);
            for (int i = 0; i < count; ++i) {
                ask<true>(cells, rows, i, count);
                if (points.place[start + i] != kInside) continue;
                const V* value = packed + (start + i) * groups();
                const V* along = kJacobian ? jacobian + (start + i) * D * groups() : nullptr;
                S weight[D], slope[D];
                for (int d = 0; d < D; ++d) weight[d] = cells.weight[d][i], slope[d] = cells.slope[d][i] * per_unit;
                for (uint32_t g = 0; g < groups(); ++g) {
                    const auto add = [&](int corner, const V& share) {
                        const uint32_t row = cells.row[corner][i];
                        if (row - low < high - low) rows[row * groups() + g] = rows[row * groups() + g] + share;
                    };
                    if constexpr (kJacobian) {
                        Jet<V, D> jet;
                        jet.value = value[g];
                        for (int d = 0; d < D; ++d) jet.along[d] = along[d * groups() + g];
                        spread_jet(jet, weight, slope, add);
                    } else {
                        spread<D>(value[g], weight, add);
                    }
                }
            }
        }
    }

    template <bool kJacobian>
    TWO_COPIES void encode_copied(int level, const Points<S, D>& points, int64_t from, int64_t to, V* packed,
                                  V* jacobian) const {
        encode_level<kJacobian>(level, points, from, to, packed, jacobian);
    }

    template <bool kJacobian>
    TWO_COPIES void scatter_copied(int level, const Points<S, D>& points, const V* packed, const V* jacobian,
                                   uint32_t low, uint32_t high) const {
        scatter_level<kJacobian>(level, points, packed, jacobian, low, high);
    }

    // Calls copy(flat, packed) for each vector of the points [from, to) in active levels: flat is its place in an array
    // [M, L*F], packed its place in an array [L][count][F] of the chunk.
    template <typename Copy>
    void transpose(const Points<S, D>& points, int64_t from, int64_t to, const Copy& copy) const {
        const int64_t width = p.levels * groups();
        for (int64_t tile = from; tile < to; tile += kTile)
            for (int64_t level = 0; level < p.active; ++level)
                for (int64_t n = tile; n < std::min(tile + kTile, to); ++n)
                    for (uint32_t g = 0; g < groups(); ++g)
                        copy((points.first + n) * width + level * groups() + g,
                             (level * points.count + n) * groups() + g);
    }

    // Packed values to [M, L*F], and zeros for the levels that are not active.
    void unpack(const Points<S, D>& points, const V* packed, int64_t from, int64_t to) const {
        V* values = static_cast<V*>(p.values);
        const int64_t width = p.levels * groups(), used = p.active * groups();
        transpose(points, from, to, [=](int64_t flat, int64_t place) { values[flat] = packed[place]; });
        for (int64_t n = points.first + from; n < points.first + to && used < width; ++n)
            std::fill(values + n * width + used, values + (n + 1) * width, V{});
    }

    // Gradients of the values, or zeros where there are none, to packed.
    void pack(const Points<S, D>& points, V* packed, int64_t from, int64_t to) const {
        const V* values = static_cast<const V*>(p.grad_values);
        transpose(points, from, to, [=](int64_t flat, int64_t place) { packed[place] = values ? values[flat] : V{}; });
    }

    // Read a level from end to end before it is read at random: memory streams far faster than it jumps.
    void warm(int64_t level, int64_t count) const {
        const char* begin = reinterpret_cast<const char*>(table(level));
        const int64_t bytes = (p.first[level + 1] - p.first[level]) * groups() * int64_t(sizeof(V));
        if (count << D < bytes / kLine) return;
        char sum = 0;
        for (int64_t b = 0; b < bytes; b += kLine) sum = char(sum + begin[b]);
        volatile char sink = sum;
        (void)sink;
    }

    int encode() const {
        V* jacobian = static_cast<V*>(p.jacobian);
        if (jacobian) {
            const int64_t size = p.num_points * D * groups();
            std::fill(jacobian + p.active * size, jacobian + p.levels * size, V{});
        }
        for (int64_t first = 0; first < p.num_points; first += kChunk) {
            const Points<S, D> points(first, std::min(kChunk, p.num_points - first));
            V* scratch = level_space.get<V>(p.active * points.count * groups());
            const int64_t tasks = (points.count + kTask - 1) / kTask;
            somnia::parallel_for(points.count, kTask, threads,
                                 [&](int64_t from, int64_t to) { points.load(p, from, to); });
            somnia::parallel_for(tasks * p.active, 1, threads, [&](int64_t task, int64_t) {
                const int level = int(task / tasks);
                const int64_t from = task % tasks * kTask, to = std::min(from + kTask, points.count);
                V* packed = scratch + level * points.count * groups();
                V* along = jacobian ? jacobian + (level * p.num_points + first) * D * groups() : nullptr;
                if (from == 0) warm(level, points.count);
                if constexpr (kFeatures > 0) {
                    if (jacobian) encode_copied<true>(level, points, from, to, packed, along);
                    else encode_copied<false>(level, points, from, to, packed, along);
                } else {
                    if (jacobian) encode_level<true>(level, points, from, to, packed, along);
                    else encode_level<false>(level, points, from, to, packed, along);
                }
            });
            somnia::parallel_for(points.count, kTask, threads,
                                 [&](int64_t from, int64_t to) { unpack(points, scratch, from, to); });
        }
        return 0;
    }

    int encode_backward() const {
        const V* jacobian = static_cast<const V*>(p.grad_jacobian);
        const int64_t ranges =
            (threads + p.active - 1) / p.active;  // of a level's rows: more than one if levels are few
        for (int64_t first = 0; first == 0 || first < p.num_points; first += kChunk) {
            const Points<S, D> points(first, std::min(kChunk, p.num_points - first));
            V* scratch = level_space.get<V>(p.active * points.count * groups());
            somnia::parallel_for(points.count, kTask, threads, [&](int64_t from, int64_t to) {
                points.load(p, from, to);
                pack(points, scratch, from, to);
            });
            somnia::parallel_for(p.levels * ranges, 1, threads, [&](int64_t task, int64_t) {
                const int level = int(p.levels - 1 - task / ranges);  // the largest levels first
                const int64_t rows = p.first[level + 1] - p.first[level], range = task % ranges;
                const int64_t begin = rows * range / ranges, end = rows * (range + 1) / ranges;
                if (first == 0)
                    std::fill(grad_table(level) + begin * groups(), grad_table(level) + end * groups(), V{});
                if (level >= p.active) return;
                const V* packed = scratch + level * points.count * groups();
                const V* along = jacobian ? jacobian + (level * p.num_points + first) * D * groups() : nullptr;
                const uint32_t low = uint32_t(begin), high = uint32_t(end);
                if constexpr (kFeatures > 0) {
                    if (jacobian) scatter_copied<true>(level, points, packed, along, low, high);
                    else scatter_copied<false>(level, points, packed, along, low, high);
                } else {
                    if (jacobian) scatter_level<true>(level, points, packed, along, low, high);
                    else scatter_level<false>(level, points, packed, along, low, high);
                }
            });
        }
        return 0;
    }
};

// The other loops: contractions, which only stream memory, and what is not in a training step's hot path.
template <typename S, int D>
struct OtherKernels {
    const GridParams& p;
    const int64_t threads;

    const S* table(int64_t level) const { return static_cast<const S*>(p.table) + p.first[level] * p.features; }

    int second_derivatives() const {
        somnia::parallel_for(p.num_points, kTask, threads, [&](int64_t from, int64_t to) {
            S* grad = static_cast<S*>(p.grad_positions);
            std::fill(grad + from * D, grad + to * D, S(0));
            for (int level = 0; level < p.active; ++level) {
                const Indexing by = indexing_of(p, level);
                for (int64_t n = from; n < to; ++n) {
                    S u[D];
                    if (enter_box<S, D>(static_cast<const S*>(p.positions) + n * D, S(p.bound), u) != kInside) continue;
                    const int64_t at = (level * p.num_points + n) * D * p.features;
                    add_second_derivatives(Cell<S, D>(p, level, by, u), table(level),
                                           static_cast<const S*>(p.grad_jacobian) + at, int(p.features),
                                           S(0.5 / p.bound), grad + n * D);
                }
            }
        });
        return 0;
    }

    // Level by level within tiles of points, so that memory is read in order while a tile's sums stay in the cache.
    // F is the number of features, or 0 for any.
    template <int F>
    int contract() const {
        const S *jacobian = static_cast<const S*>(p.known_jacobian), *g = static_cast<const S*>(p.grad_values);
        const int64_t points = p.num_points, levels = p.levels;
        const int features = F > 0 ? F : int(p.features);
        somnia::parallel_for(points, kTile, threads, [=](int64_t from, int64_t to) {
            S sums[kTile * D] = {};
            for (int64_t level = 0; level < levels; ++level)
                for (int64_t n = from; n < to; ++n)
                    contract_one<S, D>(jacobian + (level * points + n) * D * features,
                                       g + (n * levels + level) * features, features, sums + (n - from) * D);
            std::copy(sums, sums + (to - from) * D, static_cast<S*>(p.grad_positions) + from * D);
        });
        return 0;
    }

    template <int F>
    int contract_backward() const {
        const S *jacobian = static_cast<const S*>(p.known_jacobian), *g = static_cast<const S*>(p.grad_values);
        const S* v = static_cast<const S*>(p.grad_contraction);
        S *grad_jacobian = static_cast<S*>(p.jacobian), *grad_g = static_cast<S*>(p.values);
        const int64_t points = p.num_points, levels = p.levels;
        const int features = F > 0 ? F : int(p.features);
        somnia::parallel_for(points, kTile, threads, [=](int64_t from, int64_t to) {
            for (int64_t level = 0; level < levels; ++level)
                for (int64_t n = from; n < to; ++n) {
                    const int64_t first = (level * points + n) * D * features, column = (n * levels + level) * features;
                    S along[D], local[(F > 0 ? F : 8) * D],
                        sums[F > 0 ? F : 8];  // nothing written aliases what is read
                    for (int d = 0; d < D; ++d) along[d] = v[n * D + d];
                    contract_one_backward<S, D>(jacobian + first, g + column, along, features, local, sums);
                    std::copy(local, local + features * D, grad_jacobian + first);
                    std::copy(sums, sums + features, grad_g + column);
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

enum Operation {
    kEncode,
    kEncodeBackward,
    kSecondDerivatives,
    kTotalVariation,
    kTotalVariationBackward,
    kContract,
    kContractBackward
};

template <typename Steps>
int run_step(const Steps& steps, Operation operation) {
    return operation == kEncode ? steps.encode() : steps.encode_backward();
}

template <typename S, int D>
int run(const GridParams& p, Operation operation, int64_t threads) {
    const OtherKernels<S, D> other{p, threads};
    switch (operation) {
        case kSecondDerivatives: return other.second_derivatives();
        case kTotalVariation: return other.total_variation();
        case kTotalVariationBackward: return other.total_variation_backward();
        case kContract: return p.features == 2 ? other.template contract<2>() : other.template contract<0>();
        case kContractBackward:
            return p.features == 2 ? other.template contract_backward<2>() : other.template contract_backward<0>();
        case kEncode:
        case kEncodeBackward:
            if constexpr (D == 3 && sizeof(S) == 4)  // what nearly every training step runs gets code of its own
                if (p.features == 2) return run_step(Kernels<S, D, 2, 2>{p, threads}, operation);
            return run_step(Kernels<S, D, 1, 0>{p, threads}, operation);
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

#define GRID_KERNEL(name, operation)                                                           \
    EXPORT int name##_cpu(const GridParams* p, int64_t scalar_bytes, int64_t threads, void*) { \
        return dispatch(p, scalar_bytes, operation, threads);                                  \
    }
GRID_KERNEL(grid_encode, kEncode)
GRID_KERNEL(grid_encode_backward, kEncodeBackward)
GRID_KERNEL(grid_second_derivatives, kSecondDerivatives)
GRID_KERNEL(grid_total_variation, kTotalVariation)
GRID_KERNEL(grid_total_variation_backward, kTotalVariationBackward)
GRID_KERNEL(grid_contract, kContract)
GRID_KERNEL(grid_contract_backward, kContractBackward)

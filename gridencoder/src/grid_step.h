// The loops of a training step on the CPU, forward and table gradient. Levels are the outer loop, so that one level's
// rows stay in the cache while all points visit it; the gradient rows of a level belong to one task (or a fixed range
// of them to each), so nothing is atomic and any number of threads gives the same bits. Values are packed level by
// level, [L][M][F] with a gap; while a block of points is encoded, the rows of the next are prefetched.
#pragma once
#include <limits>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "grid_points.h"

// The hot loops exist twice, and the dynamic loader takes the copy for processors with AVX-512 where there is one. Contraction
// is off, so both give the same bits.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define COPIES __attribute__((target_clones("default", "avx2", "arch=x86-64-v4")))
#else
#define COPIES
#endif

namespace grid {

// Scalar S, D dimensions and rows of F features (kFeatures, or any number if that is 0), W of them at a time.
template <typename S, int D, int W, int kFeatures>
struct Kernels {
    using V = Row<S, W>;
    using Block = Cells<S, D>;
    const GridParams& p;
    const int64_t threads;
    const S per_unit = S(0.5 / p.bound);  // d u / d x

    uint32_t groups() const { return uint32_t(kFeatures > 0 ? kFeatures : p.features) / W; }  // vectors a row
    const V* table(int64_t level) const { return static_cast<const V*>(p.table) + p.first[level] * groups(); }
    V* grad_table(int64_t level) const { return static_cast<V*>(p.grad_table) + p.first[level] * groups(); }

#if defined(__GNUC__)
    static constexpr bool kPairs = sizeof(V) == sizeof(double);  // two vectors fill a register of 16 bytes
    typedef double Two __attribute__((vector_size(16), aligned(8), may_alias));
    typedef double One __attribute__((may_alias));

    // The rows of two corners that are neighbours in x; each is moved as if it were a double.
    struct Pair {
        S v __attribute__((vector_size(16)));
        HD Pair operator+(const Pair& o) const { return {v + o.v}; }
        HD Pair operator-(const Pair& o) const { return {v - o.v}; }
        HD Pair operator*(S s) const { return {v * s}; }
        HD Pair upper() const { return of(Two(v)[1], Two(v)[1]); }
        HD static Pair of(double lower, double upper) { return {decltype(v)(Two{lower, upper})}; }
    };

    // Interpolate along x last, so that all that comes before is done for two corners at once.
    HD static void blend_pairs(const Block& cells, int i, const V* rows, const S* weight, V* value) {
        const One* doubles = reinterpret_cast<const One*>(rows);
        const auto row = [&](int corner) { return doubles[cells.row[corner][i]]; };
        const auto load = [&](int c) { return Pair::of(row(2 * c), row(2 * c + 1)); };
        const Pair both = blend<D - 1, Pair>(load, weight + 1);
        *reinterpret_cast<One*>(value) = Two((both + (both.upper() - both) * weight[0]).v)[0];
    }

    // target[j][i] = source[i][j] for i, j of 0 and 1, whose rows are `step` vectors apart; kPast: past the caches.
    template <bool kPast>
    static void exchange(const V* source, int64_t source_step, V* target, int64_t target_step) {
        const Two a = *reinterpret_cast<const Two*>(source), b = *reinterpret_cast<const Two*>(source + source_step);
        put<kPast>(target, Two{a[0], b[0]});
        put<kPast>(target + target_step, Two{a[1], b[1]});
    }

    template <bool kPast>
    static void put(V* target, Two value) {
#if defined(__SSE2__)
        if constexpr (kPast) return _mm_stream_pd(reinterpret_cast<double*>(target), value);
#endif
        *reinterpret_cast<Two*>(target) = value;
    }
#else
    static constexpr bool kPairs = false;
    HD static void blend_pairs(const Block&, int, const V*, const S*, V*) {}
    template <bool kPast>
    static void exchange(const V*, int64_t, V*, int64_t) {}
#endif

    HD void locate(Block& cells, int level, const Indexing& by, const Points<S, D>& points, int64_t from) const {
        if constexpr (kFeatures > 0) cells.locate(p, level, by, points, from);
        else cells.locate_slowly(p, level, by, points, from);
    }

    // Whether a level is too large for the level-2 cache.
    HD bool far(int level) const {
        return (p.first[level + 1] - p.first[level]) * groups() * int64_t(sizeof(V)) > kL2;
    }

    // Prefetch the rows of a point that comes up soon, into the level-2 cache, as level 1 is too small to keep them.
    // Corners 2c and 2c + 1 are neighbours in x, mostly in one cache line.
    HD void prefetch(const Block& cells, const V* rows, int i) const {
#if defined(__GNUC__)
        for (int c = 0; c < 1 << D; c += 2) __builtin_prefetch(rows + cells.row[c][i] * groups(), 0, 2);
#endif
    }

    // Weights and slopes of the i-th point of a block.
    HD void read(const Block& cells, int i, S* weight, S* slope) const {
        for (int d = 0; d < D; ++d) weight[d] = cells.weight[d][i], slope[d] = cells.slope[d][i] * per_unit;
    }

    // Values of the points [from, to) at one level, to packed [M][F], and derivatives, to jacobian [M][D][F].
    template <bool kJacobian>
    HD void encode_level(int level, const Points<S, D>& points, int64_t from, int64_t to, V* packed,
                         V* jacobian) const {
        const V* rows = table(level);
        const Indexing by = indexing_of(p, level);
        const bool ahead = far(level);
        Block blocks[2];
        for (int64_t start = from - kBlock, turn = 0; start < to; start += kBlock, turn ^= 1) {
            const Block &cells = blocks[turn], &next = blocks[turn ^ 1];
            locate(blocks[turn ^ 1], level, by, points, start + kBlock);
            const int count = start < from ? 0 : int(std::min(kBlock, to - start));  // the first turn only locates
            for (int i = 0; i < count; ++i) {
                V* value = packed + (start + i) * groups();
                V* along = kJacobian ? jacobian + (start + i) * D * groups() : nullptr;
                if (ahead) prefetch(next, rows, i);
                if (points.place[start + i] != kInside) {
                    const S empty = points.place[start + i] == kOutside ? S(0) : std::numeric_limits<S>::quiet_NaN();
                    std::fill_n(reinterpret_cast<S*>(value), W * groups(), empty);
                    if (kJacobian) std::fill_n(reinterpret_cast<S*>(along), D * W * groups(), empty);
                    continue;
                }
                S weight[D], slope[D];
                read(cells, i, weight, slope);
                for (uint32_t g = 0; g < groups(); ++g) {
                    const auto load = [&](int corner) { return rows[cells.row[corner][i] * groups() + g]; };
                    if constexpr (kJacobian) {
                        const Jet<V, D> jet = blend_jet<D, V>(load, weight, slope);
                        value[g] = jet.value;
                        for (int d = 0; d < D; ++d) along[d * groups() + g] = jet.along[d];
                    } else if constexpr (kPairs && kFeatures == W) {
                        blend_pairs(cells, i, rows, weight, value);
                    } else {
                        value[g] = blend<D, V>(load, weight);
                    }
                }
            }
        }
    }

    // Add the gradients of all points to the rows of one level, or to those in [low, high) if kRange.
    template <bool kJacobian, bool kRange>
    HD void scatter_level(int level, const Points<S, D>& points, const V* packed, const V* jacobian, uint32_t low,
                          uint32_t high) const {
        V* rows = grad_table(level);
        const Indexing by = indexing_of(p, level);
        const bool ahead = far(level);
        Block blocks[2];
        for (int64_t start = -kBlock, turn = 0; start < points.count; start += kBlock, turn ^= 1) {
            const Block &cells = blocks[turn], &next = blocks[turn ^ 1];
            locate(blocks[turn ^ 1], level, by, points, start + kBlock);
            const int count = start < 0 ? 0 : int(std::min(kBlock, points.count - start));
            for (int i = 0; i < count; ++i) {
                if (ahead) prefetch(next, rows, i);
                if (points.place[start + i] != kInside) continue;
                const V* value = packed + (start + i) * groups();
                const V* along = kJacobian ? jacobian + (start + i) * D * groups() : nullptr;
                S weight[D], slope[D];
                read(cells, i, weight, slope);
                for (uint32_t g = 0; g < groups(); ++g) {
                    const auto add = [&](int corner, const V& share) {
                        const uint32_t row = cells.row[corner][i];
                        if (!kRange || row - low < high - low)
                            rows[row * groups() + g] = rows[row * groups() + g] + share;
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

    COPIES void load_copied(const Points<S, D>& points, int64_t from, int64_t to) const { points.load(p, from, to); }

    void load(const Points<S, D>& points, int64_t from, int64_t to) const {
        if constexpr (kFeatures > 0) load_copied(points, from, to);
        else points.load(p, from, to);
    }

    template <bool kJacobian>
    COPIES void encode_copied(int level, const Points<S, D>& points, int64_t from, int64_t to, V* packed,
                              V* jacobian) const {
        encode_level<kJacobian>(level, points, from, to, packed, jacobian);
    }

    template <bool kJacobian>
    COPIES void scatter_copied(int level, const Points<S, D>& points, const V* packed, const V* jacobian) const {
        scatter_level<kJacobian, false>(level, points, packed, jacobian, 0, 0);
    }

    // Calls copy(flat, packed) for each vector of the points [from, to) in active levels: flat is its place in an array
    // [M, L*F], packed its place in the packed array [L][stride][F]. Where two vectors fill a register, squares of
    // two points and two levels are exchanged by copy_square(flat, step, packed, step) instead.
    template <typename Copy, typename CopySquare>
    void transpose(const Points<S, D>& points, int64_t from, int64_t to, const Copy& copy,
                   const CopySquare& copy_square) const {
        const int64_t width = p.levels * groups(), stride = points.stride * groups();
        const bool square = kPairs && groups() == 1;
        for (int64_t n = from, points_here = 2; n < to; n += points_here) {
            points_here = std::min<int64_t>(2, to - n);
            const int64_t level_end = square && points_here == 2 ? p.active / 2 * 2 : 0;
            for (int64_t level = 0; level < level_end; level += 2)
                copy_square((points.first + n) * width + level, width, level * stride + n, stride);
            for (int64_t level = level_end; level < p.active; ++level)
                for (int64_t m = n; m < n + points_here; ++m)
                    for (uint32_t g = 0; g < groups(); ++g)
                        copy((points.first + m) * width + level * groups() + g, level * stride + m * groups() + g);
        }
    }

    // Packed values to [M, L*F], and zeros for the levels that are not active. What would not fit the cache is written
    // past it, or else each line would first be read for nothing.
    void unpack(const Points<S, D>& points, const V* packed, int64_t from, int64_t to) const {
        V* values = static_cast<V*>(p.values);
        const int64_t width = p.levels * groups(), used = p.active * groups();
        const bool aligned = reinterpret_cast<uintptr_t>(values) % 16 == 0 && width % 2 == 0;
        if (kPairs && aligned && p.num_points * width * int64_t(sizeof(V)) > kL3) {
            unpack_active<kPairs>(points, packed, from, to);
#if defined(__SSE2__)
            _mm_sfence();
#endif
        } else {
            unpack_active<false>(points, packed, from, to);
        }
        for (int64_t n = points.first + from; n < points.first + to && used < width; ++n)
            std::fill(values + n * width + used, values + (n + 1) * width, V{});
    }

    template <bool kPast>
    void unpack_active(const Points<S, D>& points, const V* packed, int64_t from, int64_t to) const {
        V* values = static_cast<V*>(p.values);
        transpose(
            points, from, to, [=](int64_t flat, int64_t place) { values[flat] = packed[place]; },
            [=](int64_t flat, int64_t flat_step, int64_t place, int64_t step) {
                exchange<kPast>(packed + place, step, values + flat, flat_step);
            });
    }

    // Gradients of the values, or zeros where there are none, to packed.
    void pack(const Points<S, D>& points, V* packed, int64_t from, int64_t to) const {
        const V* values = static_cast<const V*>(p.grad_values);
        const int64_t stride = points.stride * groups();
        if (!values)
            for (int64_t level = 0; level < p.active; ++level)
                std::fill(packed + level * stride + from * groups(), packed + level * stride + to * groups(), V{});
        else
            transpose(
                points, from, to, [=](int64_t flat, int64_t place) { packed[place] = values[flat]; },
                [=](int64_t flat, int64_t flat_step, int64_t place, int64_t step) {
                    exchange<false>(values + flat, flat_step, packed + place, step);
                });
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
            V* scratch = level_space.get<V>(p.active * points.stride * groups());
            const int64_t tasks = (points.count + kTask - 1) / kTask;
            somnia::parallel_for(points.count, kTask, threads,
                                 [&](int64_t from, int64_t to) { load(points, from, to); });
            somnia::parallel_for(tasks * p.active, 1, threads, [&](int64_t task, int64_t) {
                const int level = int(task / tasks);
                const int64_t from = task % tasks * kTask, to = std::min(from + kTask, points.count);
                V* packed = scratch + level * points.stride * groups();
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
            V* scratch = level_space.get<V>(p.active * points.stride * groups());
            somnia::parallel_for(points.count, kTask, threads, [&](int64_t from, int64_t to) {
                load(points, from, to);
                pack(points, scratch, from, to);
            });
            somnia::parallel_for(p.levels * ranges, 1, threads, [&](int64_t task, int64_t) {
                const int level = int(p.levels - 1 - task / ranges);  // the largest levels first
                const int64_t rows = p.first[level + 1] - p.first[level], range = task % ranges;
                const int64_t begin = rows * range / ranges, end = rows * (range + 1) / ranges;
                if (first == 0)
                    std::fill(grad_table(level) + begin * groups(), grad_table(level) + end * groups(), V{});
                if (level >= p.active) return;
                const V* packed = scratch + level * points.stride * groups();
                const V* along = jacobian ? jacobian + (level * p.num_points + first) * D * groups() : nullptr;
                scatter(level, points, packed, along, uint32_t(begin), uint32_t(end), ranges > 1);
            });
        }
        return 0;
    }

    // scatter_level() for the arguments of the call. Ranges are rare (more threads than levels), and have no
    // copies.
    void scatter(int level, const Points<S, D>& points, const V* packed, const V* jacobian, uint32_t low, uint32_t high,
                 bool range) const {
        if constexpr (kFeatures > 0)
            if (!range) {
                if (jacobian) return scatter_copied<true>(level, points, packed, jacobian);
                return scatter_copied<false>(level, points, packed, jacobian);
            }
        if (jacobian) scatter_level<true, true>(level, points, packed, jacobian, low, high);
        else scatter_level<false, true>(level, points, packed, jacobian, low, high);
    }
};

// A training step of scalars, dimensions and features that have no code of their own; defined in grid_any_cpu.cpp.
int step_of_any_shape(const GridParams& p, int64_t scalar_bytes, bool backward, int64_t threads);

// Forward or backward with loops of one shape.
template <typename Steps>
int run_step(const Steps& steps, bool backward) {
    return backward ? steps.encode_backward() : steps.encode();
}

}  // namespace grid

// What the CPU loops of the grid encoder share: scratch memory, the points of one call, and their cells in one level. S
// is the scalar, D the dimensions.
#pragma once
#include <algorithm>
#include <memory>

#include "grid_math.h"

#if defined(__GNUC__)
#define APART __attribute__((noinline))
#else
#define APART
#endif

namespace grid {

constexpr int64_t kBlock = 32;       // points located together, while those before them are encoded
constexpr int64_t kChunk = 1 << 17;  // points encoded together; bounds the scratch
constexpr int64_t kTask = 1 << 14;   // points of one forward task; a multiple of kBlock
constexpr int64_t kLine = 64;        // bytes of a cache line
constexpr int64_t kL2 = 1 << 20;     // bytes that a level-2 cache is assumed to keep
constexpr int64_t kL3 = 1 << 23;     // bytes that a level-3 cache is assumed to keep
constexpr int64_t kGap = 72;         // points; nine cache lines where a row is 8 bytes

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

inline thread_local Workspace unit_space, place_space, level_space;

// The points of one chunk in the unit box, one array an axis; whole blocks, and one more, may be read.
template <typename S, int D>
struct Points {
    S* unit[D];
    uint8_t* place;
    int64_t first, count;
    int64_t stride;  // between levels of packed values; kGap keeps them out of each other's cache sets

    Points(int64_t first_point, int64_t points) : first(first_point), count(points), stride(points + kGap) {
        const int64_t padded = (points / kBlock + 2) * kBlock;
        S* memory = unit_space.get<S>(D * padded);
        for (int d = 0; d < D; ++d) {
            unit[d] = memory + d * padded;
            std::fill(unit[d] + points, unit[d] + padded, S(0));
        }
        place = place_space.get<uint8_t>(points);
    }

    HD void load(const GridParams& p, int64_t from, int64_t to) const {
        const S* x = static_cast<const S*>(p.positions) + first * D;
        const S bound = S(p.bound);
        S* const memory = unit[0];  // bytes may alias anything, so nothing is read through `this` in the loop
        uint8_t* const places = place;
        const int64_t axis = unit[1] - unit[0];
        for (int64_t n = from; n < to; ++n) {
            S u[D];
            places[n] = enter_box<S, D>(x + n * D, bound, u);
            for (int d = 0; d < D; ++d) memory[d * axis + n] = u[d];
        }
    }
};

// The cells of kBlock points in one level, one array a quantity, so that the compiler vectorises over the points. It is
// always a whole block, because the ends of a vectorised loop cost as much as a short loop.
template <typename S, int D>
struct Cells {
    S weight[D][kBlock], slope[D][kBlock];
    uint32_t row[1 << D][kBlock];

    HD void locate(const GridParams& p, int level, const Indexing& by, const Points<S, D>& points, int64_t from) {
        uint32_t lower[D][kBlock], upper[D][kBlock];
        const Scale<S> scale(p, level);
        for (int d = 0; d < D; ++d)
            for (int i = 0; i < kBlock; ++i) {
                const Axis<S> axis = ::place(points.unit[d][from + i], scale);
                weight[d][i] = axis.weight;
                slope[d][i] = axis.slope;
                lower[d][i] = uint32_t(axis.cell) * by.step[d];
                upper[d][i] = lower[d][i] + by.step[d];
            }
        by.sum ? find_all<true>(lower, upper, by.mask) : find_all<false>(lower, upper, by.mask);
    }

    template <bool kSum>
    HD void find_all(const uint32_t (&lower)[D][kBlock], const uint32_t (&upper)[D][kBlock], uint32_t mask) {
        for (int c = 0; c < 1 << D; ++c)
            for (int i = 0; i < kBlock; ++i) {
                uint32_t low[D], high[D];
                for (int d = 0; d < D; ++d) low[d] = lower[d][i], high[d] = upper[d][i];
                row[c][i] = row_of<D, kSum>(low, high, c, mask);
            }
    }

    // The same point by point, for loops that need not be fast: what is vectorised takes long to build.
    APART void locate_slowly(const GridParams& p, int level, const Indexing& by, const Points<S, D>& points,
                             int64_t from) {
        for (int i = 0; i < kBlock; ++i) {
            S u[D];
            for (int d = 0; d < D; ++d) u[d] = points.unit[d][from + i];
            const Cell<S, D> cell(p, level, by, u);
            for (int d = 0; d < D; ++d) weight[d][i] = cell.axis[d].weight, slope[d][i] = cell.axis[d].slope;
            for (int c = 0; c < 1 << D; ++c) row[c][i] = cell.row[c];
        }
    }
};

template <template <typename, int> class Work, typename S, typename... More>
int by_dims(const GridParams& p, More... more) {
    switch (p.dims) {
        case 2: return Work<S, 2>::run(p, more...);
        case 3: return Work<S, 3>::run(p, more...);
        case 4: return Work<S, 4>::run(p, more...);
    }
    return 1;
}

// Work<S, D>::run(p, more...) with the scalar (of 4 or 8 bytes) and the dimensions of a call.
template <template <typename, int> class Work, typename... More>
int by_shape(const GridParams& p, int64_t scalar_bytes, More... more) {
    if (scalar_bytes == 4) return by_dims<Work, float>(p, more...);
    if (scalar_bytes == 8) return by_dims<Work, double>(p, more...);
    return 1;
}

}  // namespace grid

// Exports a kernel whose file defines the template Work, of which it is one operation.
#define GRID_KERNEL(name, operation)                                                             \
    EXPORT int name##_cpu(const GridParams* p, int64_t scalar_bytes, int64_t threads, void*) {   \
        return grid::by_shape<Work>(*p, scalar_bytes, operation, std::max<int64_t>(1, threads)); \
    }

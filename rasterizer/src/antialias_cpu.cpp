// Antialiasing on the CPU, and the pairing of half edges.
#include <algorithm>
#include <vector>

#include "antialias_math.h"
#include "sums.h"

namespace {

using namespace somnia;

// Calls body(view, first pixel, first pixel within the view) for every row.
template <typename T, typename Body>
void for_rows(const AntialiasParams<T>& p, int64_t threads, const Body& body) {
    parallel_for(p.views * p.height, 16, threads, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) body(row / p.height, row * p.width, row % p.height * p.width);
    });
}

// Lists the pairs of a row that may have a silhouette, without branches that depend on the image, and searches those.
template <typename T>
void find_row(const AntialiasParams<T>& p, int64_t view, int64_t first, int64_t in_view) {
    static thread_local std::vector<int32_t> list;
    list.resize(size_t(2 * p.width) + 1);
    const bool last = in_view / p.width + 1 == p.height;
    const int32_t *here = p.triangle + first, *below = last ? here : here + p.width;
    int64_t differ = 0, count = 0;
    for (int64_t column = 0; column < p.width; ++column) {
        list[size_t(differ)] = int32_t(2 * column);
        differ += column + 1 < p.width && here[column] != here[column + 1];
        list[size_t(differ)] = int32_t(2 * column + 1);
        differ += here[column] != below[column];
    }
    for (int64_t i = 0; i < differ; ++i) {
        const int32_t pair = list[size_t(i)], column = pair / 2;
        list[size_t(count)] = pair;
        count += may_cross(p, view, here[column], pair % 2 ? below[column] : here[column + 1]);
    }
    for (int32_t* row : {p.crossing + first, p.crossing + p.views * p.height * p.width + first})
        std::fill(row, row + p.width, 0);
    for (int64_t i = 0; i < count; ++i) {
        const int32_t pair = list[size_t(i)];
        find_crossing(p, view, in_view + pair / 2, pair % 2);
    }
}

// Rows are copied, and pixels that belong to a pair with a silhouette are blended.
template <typename T>
void blend_row(const AntialiasParams<T>& p, bool transposed, const T* in, T* out, int64_t first) {
    constexpr int64_t kBlock = 16;
    const int64_t end = first + p.width, total = p.views * p.height * p.width;
    const int32_t *right = p.crossing, *down = p.crossing + total;
    std::copy(in + first * p.channels, in + end * p.channels, out + first * p.channels);
    const auto touched = [&](int64_t n) {
        return right[n] | down[n] | (n >= 1 ? right[n - 1] : 0) | (n >= p.width ? down[n - p.width] : 0);
    };
    for (int64_t block = first; block < end; block += kBlock) {
        const int64_t block_end = std::min(end, block + kBlock);
        int32_t any = 0;
        for (int64_t n = block; n < block_end; ++n) any |= touched(n);
        if (!any) continue;
        for (int64_t n = block; n < block_end; ++n)
            if (touched(n)) blend_pixel(p, transposed, in, out, n);
    }
}

template <typename T>
int antialias(const AntialiasParams<T>& p, int64_t threads) {
    parallel_for(p.views * p.triangles, 2048, threads, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n) find_facing(p, n);
    });
    parallel_for(p.views * p.triangles, 2048, threads, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n) find_smooth(p, n);
    });
    for_rows(p, threads, [&](int64_t view, int64_t first, int64_t in_view) { find_row(p, view, first, in_view); });
    for_rows(p, threads, [&](int64_t, int64_t first, int64_t) { blend_row(p, false, p.image, p.out, first); });
    return 0;
}

template <typename T>
int antialias_backward(const AntialiasParams<T>& p, int64_t threads) {
    for_rows(p, threads, [&](int64_t, int64_t first, int64_t) { blend_row(p, true, p.grad_out, p.grad_image, first); });
    if (!p.grad_clip) return 0;
    const int64_t total = p.views * p.height * p.width;
    sum_over_bands(p.views, p.height, p.vertices, 4, false, p.grad_clip, threads,
                   [&](int64_t view, int64_t top, int64_t end, VertexSums& sums) {
        const auto add = [&](int32_t vertex, const double grad[4]) { sums.add(vertex, grad); };
        for (int64_t n = (view * p.height + top) * p.width; n < (view * p.height + end) * p.width; ++n) {
            if (p.crossing[n]) crossing_backward(p, 0, n, add);
            if (p.crossing[total + n]) crossing_backward(p, 1, n, add);
        }
    });
    return 0;
}

struct HalfEdge {
    int32_t high, index;  // the higher of its two vertices; 3 t + k
};

}  // namespace

EXPORT int antialias_cpu(const void* params, int64_t dtype, int64_t threads, void*) {
    if (dtype == 0) return antialias(*static_cast<const AntialiasParams<float>*>(params), threads);
    return antialias(*static_cast<const AntialiasParams<double>*>(params), threads);
}

EXPORT int antialias_backward_cpu(const void* params, int64_t dtype, int64_t threads, void*) {
    if (dtype == 0) return antialias_backward(*static_cast<const AntialiasParams<float>*>(params), threads);
    return antialias_backward(*static_cast<const AntialiasParams<double>*>(params), threads);
}

// edges [T, 3]: the other half of each half edge of faces [T, 3], whose indices are below V; -1 where there is none and -2 where
// there are several. Half edges are listed by their lower vertex and those lists sorted by the higher.
EXPORT int edge_adjacency_cpu(const int32_t* faces, int32_t* edges, int64_t triangles, int64_t vertices, int64_t, void*) {
    const int64_t count = 3 * triangles;
    std::vector<int64_t> first(size_t(vertices) + 2, 0);
    std::vector<HalfEdge> list(static_cast<size_t>(count));
    const auto ends = [&](int64_t h) {
        const int32_t *face = faces + h / 3 * 3, a = face[(h + 1) % 3], b = face[(h + 2) % 3];
        return std::pair<int32_t, int32_t>(std::min(a, b), std::max(a, b));
    };
    for (int64_t h = 0; h < count; ++h) ++first[size_t(ends(h).first) + 2];
    for (int64_t v = 0; v < vertices; ++v) first[size_t(v) + 2] += first[size_t(v) + 1];
    for (int64_t h = 0; h < count; ++h) {
        const auto [low, high] = ends(h);
        list[size_t(first[size_t(low) + 1]++)] = {high, int32_t(h)};
    }
    for (int64_t v = 0; v < vertices; ++v) {
        HalfEdge *at = list.data() + first[size_t(v)], *end = list.data() + first[size_t(v) + 1];
        std::sort(at, end, [](const HalfEdge& a, const HalfEdge& b) {
            return a.high < b.high || (a.high == b.high && a.index < b.index);
        });
        while (at < end) {
            HalfEdge* last = at;
            while (last < end && last->high == at->high) ++last;
            const int64_t alike = last - at;
            for (; at < last; ++at) edges[at->index] = alike == 1 ? -1 : -2;
            if (alike != 2) continue;
            edges[last[-1].index] = last[-2].index;
            edges[last[-2].index] = last[-1].index;
        }
    }
    return 0;
}

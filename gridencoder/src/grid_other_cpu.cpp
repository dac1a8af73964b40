// The grid encoder's other operations on the CPU: second derivatives, contractions, which only stream memory, and the
// total variation. None is in a training step's hot path twice, so each is one plain loop.
#include "grid_points.h"

namespace {

using namespace grid;

constexpr int64_t kTile = 64;  // points contracted together; their sums stay in the cache

template <typename S, int D>
struct Operations {
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

enum Operation { kSecondDerivatives, kTotalVariation, kTotalVariationBackward, kContract, kContractBackward };

template <typename S, int D>
int run(const GridParams& p, Operation operation, int64_t threads) {
    const Operations<S, D> all{p, threads};
    switch (operation) {
        case kSecondDerivatives: return all.second_derivatives();
        case kTotalVariation: return all.total_variation();
        case kTotalVariationBackward: return all.total_variation_backward();
        case kContract: return p.features == 2 ? all.template contract<2>() : all.template contract<0>();
        case kContractBackward:
            return p.features == 2 ? all.template contract_backward<2>() : all.template contract_backward<0>();
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
GRID_KERNEL(grid_second_derivatives, kSecondDerivatives)
GRID_KERNEL(grid_total_variation, kTotalVariation)
GRID_KERNEL(grid_total_variation_backward, kTotalVariationBackward)
GRID_KERNEL(grid_contract, kContract)
GRID_KERNEL(grid_contract_backward, kContractBackward)

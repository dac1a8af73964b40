// Second derivatives and total variation of the grid encoder on the CPU, point by point: neither is in the hot path of
// a training step.
#include "grid_points.h"

namespace {

enum Operation { kSecondDerivatives, kTotalVariation, kTotalVariationBackward };

// S is the scalar, D the dimensions.
template <typename S, int D>
struct Work {
    const GridParams& p;
    const int64_t threads;

    const S* table(int64_t level) const { return static_cast<const S*>(p.table) + p.first[level] * p.features; }

    int second_derivatives() const {
        somnia::parallel_for(p.num_points, grid::kTask, threads, [&](int64_t from, int64_t to) {
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

    static int run(const GridParams& p, Operation operation, int64_t threads) {
        const Work work{p, threads};
        switch (operation) {
            case kSecondDerivatives: return work.second_derivatives();
            case kTotalVariation: return work.total_variation();
            case kTotalVariationBackward: return work.total_variation_backward();
        }
        return 1;
    }
};

}  // namespace

GRID_KERNEL(grid_second_derivatives, kSecondDerivatives)
GRID_KERNEL(grid_total_variation, kTotalVariation)
GRID_KERNEL(grid_total_variation_backward, kTotalVariationBackward)

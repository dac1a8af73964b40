// Contractions of the grid encoder's Jacobian on the CPU. They only stream memory: level by level within tiles of
// points, so that memory is read in order while a tile's sums stay in the cache.
#include "grid_points.h"

namespace {

enum Operation { kContract, kContractBackward };

constexpr int64_t kTile = 64;  // points contracted together

// S is the scalar, D the dimensions.
template <typename S, int D>
struct Work {
    const GridParams& p;
    const int64_t threads;

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

    static int run(const GridParams& p, Operation operation, int64_t threads) {
        const Work work{p, threads};
        switch (operation) {
            case kContract: return p.features == 2 ? work.template contract<2>() : work.template contract<0>();
            case kContractBackward:
                return p.features == 2 ? work.template contract_backward<2>() : work.template contract_backward<0>();
        }
        return 1;
    }
};

}  // namespace

GRID_KERNEL(grid_contract, kContract)
GRID_KERNEL(grid_contract_backward, kContractBackward)

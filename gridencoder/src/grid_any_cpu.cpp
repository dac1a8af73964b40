// Encoding and table gradient on the CPU for every scalar, number of dimensions and number of features.
#include "grid_step.h"

namespace {

template <typename S, int D>
struct Step {
    static int run(const GridParams& p, bool backward, int64_t threads) {
        return grid::run_step(grid::Kernels<S, D, 1, 0>{p, threads}, backward);
    }
};

}  // namespace

int grid::step_of_any_shape(const GridParams& p, int64_t scalar_bytes, bool backward, int64_t threads) {
    return by_shape<Step>(p, scalar_bytes, backward, threads);
}

// Encoding and table gradient on the CPU for every scalar, number of dimensions and number of features.
#include "grid_step.h"

namespace {

template <typename S>
int by_dims(const GridParams& p, bool backward, int64_t threads) {
    switch (p.dims) {
        case 2: return grid::run_step(grid::Kernels<S, 2, 1, 0>{p, threads}, backward);
        case 3: return grid::run_step(grid::Kernels<S, 3, 1, 0>{p, threads}, backward);
        case 4: return grid::run_step(grid::Kernels<S, 4, 1, 0>{p, threads}, backward);
    }
    return 1;
}

}  // namespace

int grid::step_of_any_shape(const GridParams& p, int64_t scalar_bytes, bool backward, int64_t threads) {
    if (scalar_bytes == 4) return by_dims<float>(p, backward, threads);
    if (scalar_bytes == 8) return by_dims<double>(p, backward, threads);
    return 1;
}

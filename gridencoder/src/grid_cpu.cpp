// Encoding and table gradient on the CPU. What nearly every training step runs (float, three dimensions, two features)
// has code of its own here; grid_any_cpu.cpp has the rest, so that the two are built side by side.
#include "grid_step.h"

namespace {

int step(const GridParams& p, int64_t scalar_bytes, bool backward, int64_t threads) {
    threads = std::max<int64_t>(1, threads);
    if (scalar_bytes == 4 && p.dims == 3 && p.features == 2)
        return grid::run_step(grid::Kernels<float, 3, 2, 2>{p, threads}, backward);
    return grid::step_of_any_shape(p, scalar_bytes, backward, threads);
}

}  // namespace

// scalar_bytes: 4 for float, 8 for double.
EXPORT int grid_encode_cpu(const GridParams* p, int64_t scalar_bytes, int64_t threads, void*) {
    return step(*p, scalar_bytes, false, threads);
}

EXPORT int grid_encode_backward_cpu(const GridParams* p, int64_t scalar_bytes, int64_t threads, void*) {
    return step(*p, scalar_bytes, true, threads);
}

// Spherical harmonics on the CPU: a loop over directions.
#include "sh_math.h"

namespace {

constexpr int64_t kTask = 4096;  // directions of one task

template <typename Body>
int run(const ShParams& p, int64_t threads) {
    const Body body{p};
    somnia::parallel_for(p.num_directions, kTask, threads, [&](int64_t from, int64_t to) {
        for (int64_t n = from; n < to; ++n) body(n);
    });
    return 0;
}

}  // namespace

EXPORT int sh_encode_cpu(const ShParams* p, int64_t scalar_bytes, int64_t threads, void*) {
    return scalar_bytes == 4 ? run<ShForward<float>>(*p, threads) : run<ShForward<double>>(*p, threads);
}

EXPORT int sh_encode_backward_cpu(const ShParams* p, int64_t scalar_bytes, int64_t threads, void*) {
    return scalar_bytes == 4 ? run<ShBackward<float>>(*p, threads) : run<ShBackward<double>>(*p, threads);
}

// Frequency encoding on the CPU: a loop over points and their coordinates.
#include "freq_math.h"

namespace {

constexpr int64_t kTask = 1024;  // points of one task

template <typename Body>
int run(const FreqParams& p, int64_t threads) {
    const Body body{p};
    somnia::parallel_for(p.num_points, kTask, threads, [&](int64_t from, int64_t to) {
        for (int64_t n = from; n < to; ++n)
            for (int64_t d = 0; d < p.dims; ++d) body(n, d);
    });
    return 0;
}

}  // namespace

EXPORT int freq_encode_cpu(const FreqParams* p, int64_t scalar_bytes, int64_t threads, void*) {
    return scalar_bytes == 4 ? run<FreqForward<float>>(*p, threads) : run<FreqForward<double>>(*p, threads);
}

EXPORT int freq_encode_backward_cpu(const FreqParams* p, int64_t scalar_bytes, int64_t threads, void*) {
    return scalar_bytes == 4 ? run<FreqBackward<float>>(*p, threads) : run<FreqBackward<double>>(*p, threads);
}

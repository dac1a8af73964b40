// The smallest library: that it builds and loads shows that the CPU backend works here.
#include "portable.h"

// 1 if kernels were compiled with OpenMP.
EXPORT int64_t extension_has_openmp_cpu() {
#if defined(_OPENMP)
    return 1;
#else
    return 0;
#endif
}

// out[i] = in[i] + 1, through the parallel loop that every kernel uses.
EXPORT int extension_increment_cpu(const double* in, double* out, int64_t count, int64_t threads, void*) {
    somnia::parallel_for(count, 64, threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) out[i] = in[i] + 1.0;
    });
    return 0;
}

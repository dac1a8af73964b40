// The smallest CUDA library: that it builds, loads and runs shows that the CUDA backend works here. It also has the texts of
// CUDA's errors.
#include "launch.h"
#include "portable.h"

EXPORT const char* extension_error_text_cuda(int64_t status) { return cudaGetErrorString(cudaError_t(status)); }

namespace {
struct Increment {
    const double* in;  // [count]
    double* out;       // [count]
    __device__ void operator()(int64_t i) const { out[i] = in[i] + 1.0; }
};
}  // namespace

// out[i] = in[i] + 1, through the launch that every kernel uses.
EXPORT int extension_increment_cuda(const double* in, double* out, int64_t count, int64_t device, void* stream) {
    return somnia::for_each(count, device, stream, Increment{in, out});
}

// Frequency encoding on CUDA: one thread a coordinate.
#include "freq_math.h"
#include "launch.h"

namespace {

template <typename Body>
struct EachCoordinate {
    Body body;
    __device__ void operator()(int64_t index) const { body(index / body.p.dims, index % body.p.dims); }
};

template <typename Body>
int run(const FreqParams& p, int64_t device, void* stream) {
    return somnia::for_each(p.num_points * p.dims, device, stream, EachCoordinate<Body>{Body{p}});
}

}  // namespace

EXPORT int freq_encode_cuda(const FreqParams* p, int64_t scalar_bytes, int64_t device, void* stream) {
    return scalar_bytes == 4 ? run<FreqForward<float>>(*p, device, stream) : run<FreqForward<double>>(*p, device, stream);
}

EXPORT int freq_encode_backward_cuda(const FreqParams* p, int64_t scalar_bytes, int64_t device, void* stream) {
    return scalar_bytes == 4 ? run<FreqBackward<float>>(*p, device, stream) : run<FreqBackward<double>>(*p, device, stream);
}

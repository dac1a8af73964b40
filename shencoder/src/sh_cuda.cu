// Spherical harmonics on CUDA: one thread a direction.
#include "launch.h"
#include "sh_math.h"

EXPORT int sh_encode_cuda(const ShParams* p, int64_t scalar_bytes, int64_t device, void* stream) {
    return scalar_bytes == 4 ? somnia::for_each(p->num_directions, device, stream, ShForward<float>{*p})
                             : somnia::for_each(p->num_directions, device, stream, ShForward<double>{*p});
}

EXPORT int sh_encode_backward_cuda(const ShParams* p, int64_t scalar_bytes, int64_t device, void* stream) {
    return scalar_bytes == 4 ? somnia::for_each(p->num_directions, device, stream, ShBackward<float>{*p})
                             : somnia::for_each(p->num_directions, device, stream, ShBackward<double>{*p});
}

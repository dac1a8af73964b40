// The CUDA backend: every kernel with one thread for each of its items.
#include "launch.h"
#include "portable.h"

namespace somnia {

template <typename Item>
inline int loop(int64_t count, int64_t, int64_t device, void* stream, const Item& item) {
    return for_each(count, device, stream, item);
}

}  // namespace somnia

#define SOMNIA_KERNEL(name) name##_cuda
#include "kernels.h"

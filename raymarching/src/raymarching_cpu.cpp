// The CPU rung: every kernel as a parallel loop over its items.
#include "portable.h"

namespace somnia {

template <typename Item>
inline int loop(int64_t count, int64_t grain, int64_t threads, void*, const Item& item) {
    parallel_for(count, grain, threads, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n) item(n);
    });
    return 0;
}

}  // namespace somnia

#define SOMNIA_KERNEL(name) name##_cpu
#include "kernels.h"

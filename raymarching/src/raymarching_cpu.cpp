// The CPU backend: every kernel as a parallel loop over its items.
#include "portable.h"

#include <new>

namespace somnia {

template <typename Item>
inline void run_range(const Item& item, int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) item(n);
}

template <typename Item>
inline int loop(int64_t count, int64_t grain, int64_t threads, void*, const Item& item) {
    parallel_for(count, grain, threads, [&](int64_t begin, int64_t end) { run_range(item, begin, end); });
    return 0;
}

}  // namespace somnia

#define SOMNIA_KERNEL(name) name##_cpu
#include "kernels.h"

namespace somnia {

// A march is one long chain of dependent operations, so a core works on several rays in turn: twice as fast.
template <typename T>
inline void run_range(const MarchCount<T>& item, int64_t begin, int64_t end) {
    constexpr int kLanes = 4;
    const MarchParams<T>& p = item.p;
    int64_t n = begin;
    const auto next_ray = [&]() {
        const int64_t ray = n++;
        return CountRay<T>(p, ray, p.alive ? p.alive[ray] : ray);
    };
    alignas(64) unsigned char storage[kLanes * sizeof(CountRay<T>)];
    CountRay<T>* lanes = reinterpret_cast<CountRay<T>*>(storage);
    int used = 0;
    for (; used < kLanes && n < end; ++used) new (lanes + used) CountRay<T>(next_ray());
    while (used > 0) {
        for (int lane = 0; lane < used; ++lane) {
            if (!lanes[lane].done(p)) {
                lanes[lane].advance(p);
                continue;
            }
            lanes[lane].finish(p);
            lanes[lane] = n < end ? next_ray() : lanes[--used];
        }
    }
}

}  // namespace somnia

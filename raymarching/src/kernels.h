// The C interface of the folder, written once for both backends; the last header that a backend includes.
//
// Before it, the backend defines SOMNIA_KERNEL(name), the exported name, and in namespace somnia
//     template <typename Item> int loop(int64_t count, int64_t grain, int64_t where, void* stream, const Item& item);
// which runs item(n) for n in [0, count) and returns 0 or an error code. `where` is the number of threads on the CPU and the
// device's index on CUDA; `grain` is how many items are worth a task on the CPU. dtype: 0 is float32, 1 is float64.
#pragma once

#include "composite_math.h"
#include "march_math.h"
#include "rays_math.h"

namespace somnia {

// Items of one CPU task, large enough to hide the cost of starting one: cheap items come in larger tasks.
constexpr int64_t kCheapRays = 4096, kMarchRays = 64, kCompositeRays = 256, kCells = 16384;
constexpr int64_t kOneTask = int64_t(1) << 40;  // more than there are items

// ---- One item of each kernel as a function object ----

template <typename T>
struct NearFar {
    NearFarParams<T> p;
    HD void operator()(int64_t n) const { near_far_from_aabb(p, n); }
};

template <typename T>
struct SphFromRay {
    SphereParams<T> p;
    HD void operator()(int64_t n) const { sph_from_ray(p, n); }
};

template <typename T>
struct MarchCoarsen {
    MarchParams<T> p;
    HD void operator()(int64_t n) const { march_coarsen(p, n); }
};

template <typename T>
struct MarchCount {
    MarchParams<T> p;
    HD void operator()(int64_t n) const { march_count(p, n); }
};

template <typename T>
struct MarchWrite {
    MarchParams<T> p;
    HD void operator()(int64_t n) const { march_write(p, n); }
};

template <typename T, int kChannels>
struct CompositeForward {
    CompositeParams<T> p;
    HD void operator()(int64_t n) const { composite_forward<T, kChannels>(p, n); }
};

template <typename T, int kChannels>
struct CompositeBackward {
    CompositeParams<T> p;
    HD void operator()(int64_t n) const { composite_backward<T, kChannels>(p, n); }
};

template <typename T, int kChannels>
struct CompositeAccumulate {
    CompositeParams<T> p;
    HD void operator()(int64_t n) const { composite_accumulate<T, kChannels>(p, n); }
};

struct MortonEncode {
    const int32_t* coords;  // [N, 3]
    int32_t* codes;         // [N]
    HD void operator()(int64_t n) const {
        const int32_t* c = coords + 3 * n;
        codes[n] = int32_t(morton_encode(uint32_t(c[0]), uint32_t(c[1]), uint32_t(c[2])));
    }
};

struct MortonDecode {
    const int32_t* codes;  // [N]
    int32_t* coords;       // [N, 3]
    HD void operator()(int64_t n) const {
        for (int axis = 0; axis < 3; ++axis) coords[3 * n + axis] = int32_t(gather_bits(uint32_t(codes[n]) >> axis));
    }
};

template <typename T>
struct PackBits {
    const T* grid;      // [8 * bytes]
    uint8_t* bitfield;  // [bytes]
    T threshold;
    HD void operator()(int64_t n) const { bitfield[n] = pack_byte(grid, threshold, n); }
};

// ---- From a parameter struct and a dtype to a loop ----

template <template <typename> class Item, template <typename> class Params>
int for_rays(const void* params, int64_t dtype, int64_t grain, int64_t where, void* stream) {
    if (dtype == 0) {
        const auto& p = *static_cast<const Params<float>*>(params);
        return loop(p.num_rays, grain, where, stream, Item<float>{p});
    }
    const auto& p = *static_cast<const Params<double>*>(params);
    return loop(p.num_rays, grain, where, stream, Item<double>{p});
}

// Compositing is compiled for the usual numbers of channels (colour; colour and normal) and for any other.
template <template <typename, int> class Item, typename T>
int for_channels(const void* params, int64_t where, void* stream) {
    const auto& p = *static_cast<const CompositeParams<T>*>(params);
    if (p.channels == 3) return loop(p.num_rays, kCompositeRays, where, stream, Item<T, 3>{p});
    if (p.channels == 6) return loop(p.num_rays, kCompositeRays, where, stream, Item<T, 6>{p});
    return loop(p.num_rays, kCompositeRays, where, stream, Item<T, 0>{p});
}

template <template <typename, int> class Item>
int for_composite(const void* params, int64_t dtype, int64_t where, void* stream) {
    return dtype == 0 ? for_channels<Item, float>(params, where, stream) : for_channels<Item, double>(params, where, stream);
}

}  // namespace somnia

// ---- The exported functions ----

EXPORT int SOMNIA_KERNEL(near_far_from_aabb)(const void* params, int64_t dtype, int64_t where, void* stream) {
    return somnia::for_rays<somnia::NearFar, somnia::NearFarParams>(params, dtype, somnia::kCheapRays, where, stream);
}

EXPORT int SOMNIA_KERNEL(sph_from_ray)(const void* params, int64_t dtype, int64_t where, void* stream) {
    return somnia::for_rays<somnia::SphFromRay, somnia::SphereParams>(params, dtype, somnia::kCheapRays, where, stream);
}

// num_rays is the number of coarse words here; the bitfield does not depend on the dtype. One task: the words share extents.
EXPORT int SOMNIA_KERNEL(march_coarsen)(const void* params, int64_t dtype, int64_t where, void* stream) {
    return somnia::for_rays<somnia::MarchCoarsen, somnia::MarchParams>(params, dtype, somnia::kOneTask, where, stream);
}

EXPORT int SOMNIA_KERNEL(march_count)(const void* params, int64_t dtype, int64_t where, void* stream) {
    return somnia::for_rays<somnia::MarchCount, somnia::MarchParams>(params, dtype, somnia::kMarchRays, where, stream);
}

EXPORT int SOMNIA_KERNEL(march_write)(const void* params, int64_t dtype, int64_t where, void* stream) {
    return somnia::for_rays<somnia::MarchWrite, somnia::MarchParams>(params, dtype, somnia::kMarchRays, where, stream);
}

EXPORT int SOMNIA_KERNEL(composite_forward)(const void* params, int64_t dtype, int64_t where, void* stream) {
    return somnia::for_composite<somnia::CompositeForward>(params, dtype, where, stream);
}

EXPORT int SOMNIA_KERNEL(composite_backward)(const void* params, int64_t dtype, int64_t where, void* stream) {
    return somnia::for_composite<somnia::CompositeBackward>(params, dtype, where, stream);
}

EXPORT int SOMNIA_KERNEL(composite_accumulate)(const void* params, int64_t dtype, int64_t where, void* stream) {
    return somnia::for_composite<somnia::CompositeAccumulate>(params, dtype, where, stream);
}

EXPORT int SOMNIA_KERNEL(morton_encode)(const int32_t* coords, int32_t* codes, int64_t count, int64_t where, void* stream) {
    return somnia::loop(count, somnia::kCells, where, stream, somnia::MortonEncode{coords, codes});
}

EXPORT int SOMNIA_KERNEL(morton_decode)(const int32_t* codes, int32_t* coords, int64_t count, int64_t where, void* stream) {
    return somnia::loop(count, somnia::kCells, where, stream, somnia::MortonDecode{codes, coords});
}

EXPORT int SOMNIA_KERNEL(packbits)(const void* grid, uint8_t* bitfield, double threshold, int64_t bytes, int64_t dtype,
                                   int64_t where, void* stream) {
    using namespace somnia;
    if (dtype == 0) {
        const PackBits<float> item{static_cast<const float*>(grid), bitfield, float(threshold)};
        return loop(bytes, kCells, where, stream, item);
    }
    return loop(bytes, kCells, where, stream, PackBits<double>{static_cast<const double*>(grid), bitfield, threshold});
}

// Macros and small functions that let a header be compiled by a C++ compiler (with or without OpenMP) and by nvcc.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__CUDACC__)
#define HD __host__ __device__ __forceinline__
#elif defined(_MSC_VER)
#define HD inline __forceinline
#else
#define HD inline __attribute__((always_inline))
#endif

#if defined(_WIN32)
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace somnia {

template <typename T>
HD T min_of(T a, T b) { return a < b ? a : b; }

template <typename T>
HD T max_of(T a, T b) { return a > b ? a : b; }

template <typename T>
HD T clamp_to(T x, T low, T high) { return min_of(max_of(x, low), high); }

// Spelled with comparisons, so that no compiler flag that assumes finite numbers is needed or harmful elsewhere.
template <typename T>
HD bool is_nan(T x) { return x != x; }

template <typename T>
HD bool is_finite(T x) { return x - x == T(0); }

template <typename T>
struct Vec3 {
    T x, y, z;
    HD T operator[](int axis) const { return axis == 0 ? x : axis == 1 ? y : z; }
};

template <typename T>
HD Vec3<T> load3(const T* p) { return {p[0], p[1], p[2]}; }

template <typename T>
HD void store3(T* p, const Vec3<T>& v) { p[0] = v.x; p[1] = v.y; p[2] = v.z; }

template <typename T>
HD Vec3<T> operator+(const Vec3<T>& a, const Vec3<T>& b) { return {a.x + b.x, a.y + b.y, a.z + b.z}; }

template <typename T>
HD Vec3<T> operator*(T s, const Vec3<T>& v) { return {s * v.x, s * v.y, s * v.z}; }

template <typename T>
HD T dot(const Vec3<T>& a, const Vec3<T>& b) { return a.x * b.x + a.y * b.y + a.z * b.z; }

// A plain addition on the host, where every kernel owns what it writes; atomic on the device.
template <typename T>
HD void atomic_add(T* address, T value) {
#if defined(__CUDA_ARCH__)
    atomicAdd(address, value);
#else
    *address += value;
#endif
}

HD void atomic_lower(int32_t* address, int32_t value) {
#if defined(__CUDA_ARCH__)
    atomicMin(address, value);
#else
    *address = min_of(*address, value);
#endif
}

HD void atomic_raise(int32_t* address, int32_t value) {
#if defined(__CUDA_ARCH__)
    atomicMax(address, value);
#else
    *address = max_of(*address, value);
#endif
}

#if !defined(__CUDACC__)
// Calls body(begin, end) on consecutive pieces of [0, count) of `grain` items each (the last may be shorter). The pieces do not
// depend on the number of threads, so results that are owned by item or by piece have the same bits for any number.
template <typename Body>
inline void parallel_for(int64_t count, int64_t grain, int64_t threads, const Body& body) {
    const int64_t pieces = (count + grain - 1) / grain;
#if defined(_OPENMP)
#pragma omp parallel for schedule(dynamic, 1) num_threads(int(threads)) if (threads > 1 && pieces > 1)
#endif
    for (int64_t piece = 0; piece < pieces; ++piece) body(piece * grain, min_of(count, (piece + 1) * grain));
}
#endif

}  // namespace somnia

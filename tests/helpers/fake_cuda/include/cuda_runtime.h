// CUDA's runtime for a C++ compiler: a kernel runs on the CPU, one thread of its grid after the other, in a chosen order.
//
// It stands before CUDA's own header on the include path and has only what the project's sources use; the rest does not compile
// and has to be added here. There is one device, number 0, and one stream, whose handle is kFakeStream.
// FAKE_CUDA_ORDER is the order: forward, reversed, shuffled, or threads (neighbours on four threads of the host, side by side).
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <random>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))

// ---- Errors, the device, memory ----

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorInvalidDevice = 101,
    cudaErrorInvalidResourceHandle = 400,
};
typedef struct CUstream_st* cudaStream_t;

constexpr uintptr_t kFakeStream = 0x57ee4;

inline const char* cudaGetErrorString(cudaError_t error) {
    switch (error) {
        case cudaSuccess: return "no error";
        case cudaErrorInvalidValue: return "invalid argument";
        case cudaErrorInvalidConfiguration: return "invalid configuration argument";
        case cudaErrorInvalidDevice: return "invalid device ordinal";
        case cudaErrorInvalidResourceHandle: return "invalid resource handle";
    }
    return "unrecognized error code";
}

namespace fake_cuda {
inline thread_local cudaError_t last_error = cudaSuccess;
}

inline cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return cudaSuccess;
}

inline cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidDevice; }

inline cudaError_t cudaGetLastError() {
    const cudaError_t error = fake_cuda::last_error;
    fake_cuda::last_error = cudaSuccess;
    return error;
}

inline cudaError_t cudaMemsetAsync(void* target, int value, size_t bytes, cudaStream_t stream) {
    if (uintptr_t(stream) != kFakeStream) return cudaErrorInvalidResourceHandle;
    if (bytes > 0) memset(target, value, bytes);
    return cudaSuccess;
}

// ---- What a kernel sees ----

struct uint3 {
    unsigned x, y, z;
};
inline thread_local uint3 blockIdx{}, threadIdx{}, blockDim{1, 1, 1}, gridDim{1, 1, 1};

struct alignas(8) float2 {
    float x, y;
};
inline float2 make_float2(float x, float y) { return {x, y}; }

// Not contracted with what stands around them.
inline double __dmul_rn(double a, double b) {
    volatile double result = a * b;
    return result;
}
inline double __dadd_rn(double a, double b) {
    volatile double result = a + b;
    return result;
}

// Atomics are atomic, so that a race detector finds exactly the accesses that are not. A GPU refuses an address that is not a
// multiple of the size, and so do they.
namespace fake_cuda {

template <size_t kBytes>
struct BitsOf;
template <>
struct BitsOf<4> {
    using type = uint32_t;
};
template <>
struct BitsOf<8> {
    using type = uint64_t;
};

inline void require_aligned(const void* address, size_t bytes) {
    if (uintptr_t(address) % bytes == 0) return;
    fprintf(stderr, "fake CUDA: an atomic operation of %zu bytes at the misaligned address %p\n", bytes, address);
    abort();
}

// Replaces *address by change(*address); returns what was there.
template <typename T, typename Change>
inline T replace(T* address, Change change) {
    using Bits = typename BitsOf<sizeof(T)>::type;
    require_aligned(address, sizeof(T));
    Bits before = __atomic_load_n(reinterpret_cast<Bits*>(address), __ATOMIC_RELAXED), after;
    T old;
    do {
        memcpy(&old, &before, sizeof(T));
        const T next = change(old);
        memcpy(&after, &next, sizeof(T));
    } while (!__atomic_compare_exchange_n(reinterpret_cast<Bits*>(address), &before, after, false, __ATOMIC_RELAXED,
                                          __ATOMIC_RELAXED));
    return old;
}

}  // namespace fake_cuda

inline float atomicAdd(float* address, float value) {
    return fake_cuda::replace(address, [=](float old) { return old + value; });
}
inline double atomicAdd(double* address, double value) {
    return fake_cuda::replace(address, [=](double old) { return old + value; });
}
// Each half is atomic; the pair is not, on a GPU either.
inline float2 atomicAdd(float2* address, float2 value) {
    fake_cuda::require_aligned(address, sizeof(float2));
    return {atomicAdd(&address->x, value.x), atomicAdd(&address->y, value.y)};
}
inline int atomicMin(int* address, int value) {
    return fake_cuda::replace(address, [=](int old) { return std::min(old, value); });
}
inline int atomicMax(int* address, int value) {
    return fake_cuda::replace(address, [=](int old) { return std::max(old, value); });
}
inline unsigned long long atomicMin(unsigned long long* address, unsigned long long value) {
    return fake_cuda::replace(address, [=](unsigned long long old) { return std::min(old, value); });
}

// ---- Launches ----

namespace fake_cuda {

inline int64_t launches = 0;
constexpr int kHostThreads = 4;

enum class Order { kForward, kReversed, kShuffled, kThreads };

inline Order order() {
    const char* name = getenv("FAKE_CUDA_ORDER");
    if (name == nullptr || strcmp(name, "forward") == 0) return Order::kForward;
    if (strcmp(name, "reversed") == 0) return Order::kReversed;
    if (strcmp(name, "shuffled") == 0) return Order::kShuffled;
    if (strcmp(name, "threads") == 0) return Order::kThreads;
    fprintf(stderr, "fake CUDA: FAKE_CUDA_ORDER must be forward, reversed, shuffled or threads, got %s\n", name);
    abort();
}

// What kernel<<<blocks, threads, shared, stream>>>(...) becomes: kernel() once for each thread of the grid. What a GPU refuses
// is refused with its error.
template <typename Kernel>
inline void launch(unsigned blocks, unsigned threads, size_t shared, cudaStream_t stream, const Kernel& kernel) {
    if (uintptr_t(stream) != kFakeStream) {
        last_error = cudaErrorInvalidResourceHandle;
        return;
    }
    if (blocks == 0 || blocks > 2147483647u || threads == 0 || threads > 1024 || shared != 0) {
        last_error = cudaErrorInvalidConfiguration;
        return;
    }
    ++launches;
    const uint64_t total = uint64_t(blocks) * threads;
    const auto run = [&](uint64_t i) {
        blockIdx.x = unsigned(i / threads), threadIdx.x = unsigned(i % threads), blockDim.x = threads, gridDim.x = blocks;
        kernel();
    };
    static const Order chosen = order();
    if (chosen == Order::kForward) {
        for (uint64_t i = 0; i < total; ++i) run(i);
    } else if (chosen == Order::kReversed) {
        for (uint64_t i = total; i-- > 0;) run(i);
    } else if (chosen == Order::kShuffled) {  // another order at every launch, the same ones in every run
        std::vector<uint64_t> order(total);
        for (uint64_t i = 0; i < total; ++i) order[i] = i;
        std::shuffle(order.begin(), order.end(), std::mt19937_64{uint64_t(launches)});
        for (const uint64_t i : order) run(i);
    } else {
        std::vector<std::thread> pool;
        for (int first = 0; first < kHostThreads; ++first)
            pool.emplace_back([&, first] {
                for (uint64_t i = uint64_t(first); i < total; i += kHostThreads) run(i);
            });
        for (std::thread& thread : pool) thread.join();
    }
}

}  // namespace fake_cuda

extern "C" __attribute__((visibility("default"))) int64_t fake_cuda_launches() { return fake_cuda::launches; }

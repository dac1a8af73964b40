// Launching CUDA kernels without a torch header: the device is set for the launch and restored, errors are returned.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

namespace somnia {

// Makes `device` current for its lifetime.
class DeviceGuard {
   public:
    explicit DeviceGuard(int64_t device) {
        status_ = cudaGetDevice(&previous_);
        if (status_ == cudaSuccess && previous_ != int(device)) {
            status_ = cudaSetDevice(int(device));
            changed_ = status_ == cudaSuccess;
        }
    }
    ~DeviceGuard() {
        if (changed_) cudaSetDevice(previous_);
    }
    DeviceGuard(const DeviceGuard&) = delete;
    DeviceGuard& operator=(const DeviceGuard&) = delete;
    cudaError_t status() const { return status_; }

   private:
    int previous_ = 0;
    bool changed_ = false;
    cudaError_t status_ = cudaSuccess;
};

template <typename Body>
__global__ void run_for_each(int64_t count, Body body) {
    const int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (index < count) body(index);
}

// Runs body(index) for every index of [0, count), one thread each; 0 or the CUDA error of the launch.
template <int kThreads = 128, typename Body>
inline int for_each(int64_t count, int64_t device, void* stream, Body body) {
    if (count == 0) return 0;
    const DeviceGuard guard(device);
    if (guard.status() != cudaSuccess) return int(guard.status());
    const int64_t blocks = (count + kThreads - 1) / kThreads;
    if (blocks > 2147483647) return int(cudaErrorInvalidConfiguration);
    run_for_each<<<unsigned(blocks), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(count, body);
    return int(cudaGetLastError());
}

}  // namespace somnia

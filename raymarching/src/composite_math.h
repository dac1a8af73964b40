// Compositing the samples of a ray front to back, and its derivative: the only place these formulas are written.
//
//   weight_i = alpha_i T_i,   T_i = prod_{j<i} (1 - alpha_j)          (Max 1995; NeRF, eq. 3)
//   opacity = sum weight_i,   depth = sum weight_i t_i,   image = sum weight_i value_i
//
// A ray stops before the first sample with T_i < min_transmittance; the samples behind it have weight 0 and gradient 0.
#pragma once

#include "portable.h"

namespace somnia {

constexpr int kMaxChannels = 16;  // so that the sums of a ray fit registers and the stack

template <typename T>
struct CompositeParams {
    const T* alpha;              // [M]    opacity of each sample, in [0, 1]
    const T* values;             // [M, C] what is composited: colour, normal, ...
    const T* t;                  // [M]    distance along the ray
    const int64_t* first;        // [N]    ray n owns samples [first[n], first[n] + count[n])
    const int64_t* count;        // [N]
    T* weights;                  // [M]    forward: out
    T* opacity;                  // [N]    forward: out; accumulate: in, out, indexed by ray
    T* depth;                    // [N]    likewise
    T* image;                    // [N, C] likewise
    const int64_t* alive;        // [N]    accumulate: which ray each group of samples belongs to
    T* transmittance;            // [R]    accumulate: in, out, indexed by ray
    const T* grad_weights;       // [M]    backward: in
    const T* grad_opacity;       // [N]
    const T* grad_depth;         // [N]
    const T* grad_image;         // [N, C]
    T* grad_alpha;               // [M]    backward: out
    T* grad_values;              // [M, C] backward: out
    int64_t num_rays;            // N
    int64_t channels;            // C
    double min_transmittance;
};

template <typename T>
struct Accumulated {
    T transmittance, opacity, depth;
    T image[kMaxChannels];
};

// Composites samples [begin, end) into *sum; weights may be null. A NaN alpha, even behind the early stop, makes the sums NaN.
template <typename T, int kChannels>
HD void composite(const CompositeParams<T>& p, int64_t begin, int64_t end, Accumulated<T>* sum) {
    const int channels = kChannels ? kChannels : int(p.channels);
    const T min_transmittance = T(p.min_transmittance);
    T transmittance = sum->transmittance;
    int64_t i = begin;
    for (; i < end && !(transmittance < min_transmittance); ++i) {
        const T weight = p.alpha[i] * transmittance;
        if (p.weights) p.weights[i] = weight;
        sum->opacity += weight;
        sum->depth += weight * p.t[i];
        for (int c = 0; c < channels; ++c) sum->image[c] += weight * p.values[i * channels + c];
        transmittance *= T(1) - p.alpha[i];
    }
    T nan_sum = T(0);  // of the alphas behind the early stop that are NaN
    for (; i < end; ++i) {
        const T weight = is_nan(p.alpha[i]) ? p.alpha[i] : T(0);
        if (p.weights) p.weights[i] = weight;
        nan_sum += weight;
    }
    if (is_nan(nan_sum)) {
        transmittance = sum->opacity = sum->depth = nan_sum;
        for (int c = 0; c < channels; ++c) sum->image[c] = nan_sum;
    }
    sum->transmittance = transmittance;
}

template <typename T, int kChannels>
HD void composite_forward(const CompositeParams<T>& p, int64_t n) {
    const int channels = kChannels ? kChannels : int(p.channels);
    Accumulated<T> sum;
    sum.transmittance = T(1);
    sum.opacity = sum.depth = T(0);
    for (int c = 0; c < channels; ++c) sum.image[c] = T(0);
    composite<T, kChannels>(p, p.first[n], p.first[n] + p.count[n], &sum);
    p.opacity[n] = sum.opacity;
    p.depth[n] = sum.depth;
    for (int c = 0; c < channels; ++c) p.image[n * channels + c] = sum.image[c];
}

template <typename T, int kChannels>
HD void composite_accumulate(const CompositeParams<T>& p, int64_t n) {
    const int channels = kChannels ? kChannels : int(p.channels);
    const int64_t ray = p.alive[n];
    Accumulated<T> sum;
    sum.transmittance = p.transmittance[ray];
    sum.opacity = p.opacity[ray];
    sum.depth = p.depth[ray];
    for (int c = 0; c < channels; ++c) sum.image[c] = p.image[ray * channels + c];
    composite<T, kChannels>(p, p.first[n], p.first[n] + p.count[n], &sum);
    p.transmittance[ray] = sum.transmittance;
    p.opacity[ray] = sum.opacity;
    p.depth[ray] = sum.depth;
    for (int c = 0; c < channels; ++c) p.image[ray * channels + c] = sum.image[c];
}

// With g_i = dL/dweight_i (direct, and through opacity, depth and image), the derivative is
//   dL/dalpha_i = T_i (g_i - behind_i),   behind_{i-1} = alpha_i g_i + (1 - alpha_i) behind_i,
// evaluated from the last sample to the first: nothing is divided by 1 - alpha_i, so an opaque sample is no special case.
template <typename T, int kChannels>
HD void composite_backward(const CompositeParams<T>& p, int64_t n) {
    const int channels = kChannels ? kChannels : int(p.channels);
    const int64_t begin = p.first[n], end = begin + p.count[n];
    const T min_transmittance = T(p.min_transmittance);
    T grad_image[kMaxChannels];
    for (int c = 0; c < channels; ++c) grad_image[c] = p.grad_image[n * channels + c];
    T remaining = T(1), nan_alpha = T(0);
    int64_t used = begin;
    for (; used < end && !(remaining < min_transmittance); ++used) {
        p.grad_alpha[used] = remaining;  // read again below
        remaining *= T(1) - p.alpha[used];
    }
    for (int64_t i = used; i < end; ++i) {
        nan_alpha = p.grad_alpha[i] = is_nan(p.alpha[i]) ? p.alpha[i] : nan_alpha;
        for (int c = 0; c < channels; ++c) p.grad_values[i * channels + c] = T(0);
    }
    T behind = nan_alpha;
    for (int64_t i = used; i-- > begin;) {
        const T alpha = p.alpha[i], transmittance = p.grad_alpha[i], weight = alpha * transmittance;
        T g = p.grad_weights[i] + p.grad_opacity[n] + p.grad_depth[n] * p.t[i];
        for (int c = 0; c < channels; ++c) {
            g += grad_image[c] * p.values[i * channels + c];
            p.grad_values[i * channels + c] = weight * grad_image[c];
        }
        p.grad_alpha[i] = transmittance * (g - behind);
        behind = alpha * g + (T(1) - alpha) * behind;
    }
}

}  // namespace somnia

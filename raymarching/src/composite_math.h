// Blending the samples of a ray front to back, and its derivative: the only place these formulas are written.
//
//   weight_i = alpha_i T_i,   T_i = prod_{j<i} (1 - alpha_j)          (Max 1995; NeRF, eq. 3)
//   opacity = sum weight_i,   depth = sum weight_i t_i,   image = sum weight_i value_i
//
// A ray stops before the first sample with T_i < min_transmittance; the samples behind it have weight 0 and gradient 0.
#pragma once

#include "portable.h"

namespace somnia {

constexpr int kMaxChannels = 16;

template <typename T>
struct CompositeParams {
    const T* alpha;              // [M]    opacity of each sample, in [0, 1]
    const T* values;             // [M, C] what is blended: colour, normal, ...
    const T* t;                  // [M]    distance along the ray
    const int64_t* first;        // [N]    ray n owns samples [first[n], first[n] + count[n])
    const int64_t* count;        // [N]
    T* weights;                  // [M]    forward: out
    T* opacity;                  // [N]    forward: out; accumulate: in, out, indexed by ray
    T* depth;                    // [N]    likewise
    T* image;                    // [N, C] likewise
    const int64_t* alive;        // [N]    accumulate: which ray each group of samples belongs to
    T* transmittance;            // [R]    accumulate: in, out, what light is left of each ray
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
struct Blend {
    T transmittance, opacity, depth;
    T image[kMaxChannels];
};

// Blends samples [begin, end) into *sum; weights may be null. A NaN alpha, even behind the stop, makes the sums NaN.
template <typename T, int kChannels>
HD void blend(const CompositeParams<T>& p, int64_t begin, int64_t end, Blend<T>* sum) {
    const int channels = kChannels ? kChannels : int(p.channels);
    const T stop = T(p.min_transmittance);
    T light = sum->transmittance;
    int64_t i = begin;
    for (; i < end && !(light < stop); ++i) {
        const T weight = p.alpha[i] * light;
        if (p.weights) p.weights[i] = weight;
        sum->opacity += weight;
        sum->depth += weight * p.t[i];
        for (int c = 0; c < channels; ++c) sum->image[c] += weight * p.values[i * channels + c];
        light *= T(1) - p.alpha[i];
    }
    T poison = T(0);
    for (; i < end; ++i) {
        const T weight = is_nan(p.alpha[i]) ? p.alpha[i] : T(0);
        if (p.weights) p.weights[i] = weight;
        poison += weight;
    }
    if (is_nan(poison)) {
        light = sum->opacity = sum->depth = poison;
        for (int c = 0; c < channels; ++c) sum->image[c] = poison;
    }
    sum->transmittance = light;
}

template <typename T, int kChannels>
HD void composite_forward(const CompositeParams<T>& p, int64_t n) {
    const int channels = kChannels ? kChannels : int(p.channels);
    Blend<T> sum;
    sum.transmittance = T(1);
    sum.opacity = sum.depth = T(0);
    for (int c = 0; c < channels; ++c) sum.image[c] = T(0);
    blend<T, kChannels>(p, p.first[n], p.first[n] + p.count[n], &sum);
    p.opacity[n] = sum.opacity;
    p.depth[n] = sum.depth;
    for (int c = 0; c < channels; ++c) p.image[n * channels + c] = sum.image[c];
}

template <typename T, int kChannels>
HD void composite_accumulate(const CompositeParams<T>& p, int64_t n) {
    const int channels = kChannels ? kChannels : int(p.channels);
    const int64_t ray = p.alive[n];
    Blend<T> sum;
    sum.transmittance = p.transmittance[ray];
    sum.opacity = p.opacity[ray];
    sum.depth = p.depth[ray];
    for (int c = 0; c < channels; ++c) sum.image[c] = p.image[ray * channels + c];
    blend<T, kChannels>(p, p.first[n], p.first[n] + p.count[n], &sum);
    p.transmittance[ray] = sum.transmittance;
    p.opacity[ray] = sum.opacity;
    p.depth[ray] = sum.depth;
    for (int c = 0; c < channels; ++c) p.image[ray * channels + c] = sum.image[c];
}

// With g_i = dL/dweight_i (direct, and through opacity, depth and image), the true derivative is
//   dL/dalpha_i = T_i (g_i - behind_i),   behind_{i-1} = alpha_i g_i + (1 - alpha_i) behind_i,
// swept from the back: nothing is divided by 1 - alpha_i, so an opaque sample is an ordinary one.
template <typename T, int kChannels>
HD void composite_backward(const CompositeParams<T>& p, int64_t n) {
    const int channels = kChannels ? kChannels : int(p.channels);
    const int64_t begin = p.first[n], end = begin + p.count[n];
    const T stop = T(p.min_transmittance);
    T grad_image[kMaxChannels];
    for (int c = 0; c < channels; ++c) grad_image[c] = p.grad_image[n * channels + c];
    T light = T(1), poison = T(0);
    int64_t used = begin;
    for (; used < end && !(light < stop); ++used) {
        p.grad_alpha[used] = light;
        light *= T(1) - p.alpha[used];
    }
    for (int64_t i = used; i < end; ++i) {
        poison = p.grad_alpha[i] = is_nan(p.alpha[i]) ? p.alpha[i] : poison;
        for (int c = 0; c < channels; ++c) p.grad_values[i * channels + c] = T(0);
    }
    T behind = poison;
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

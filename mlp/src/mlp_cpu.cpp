// The narrow network on the CPU. Rows are processed in blocks; parameter gradients are summed per piece of blocks
// and then over the pieces in their order, so any number of threads gives the same bits.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=fast")  // multiply and add in one instruction where the processor can
#endif
#include <algorithm>
#include <cstring>
#include <vector>

#include "mlp_math.h"

// The block functions exist twice, and the dynamic loader takes the copy for processors with AVX and FMA where there is one.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define TWO_COPIES __attribute__((target_clones("default", "fma")))
#else
#define TWO_COPIES
#endif

namespace {

constexpr int64_t kTile = 6;             // rows of a register tile
constexpr int64_t kBlock = 96;           // rows of a block, a multiple of kTile
constexpr int64_t kPiece = 32 * kBlock;  // rows whose parameter gradients are summed together
constexpr int64_t kWidest = 128;         // inputs or units of a layer

int64_t inputs_of(const MlpParams& p, int64_t layer) { return layer == 0 ? p.inputs : p.width; }

// Where the gradients of a layer's weight begin among all parameters; the bias follows, the read-out is last.
int64_t offset_of(const MlpParams& p, int64_t layer) {
    int64_t offset = 0;
    for (int64_t k = 0; k < layer; ++k) offset += p.width * (inputs_of(p, k) + 1);
    return offset;
}

// The weights with inputs as rows, [I or H, H], for products that run over the inputs.
struct Transposed {
    std::vector<float> data[kMaxLayers];

    explicit Transposed(const MlpParams& p) {
        for (int64_t k = 0; k < p.layers; ++k) {
            const int64_t inputs = inputs_of(p, k);
            data[k].resize(size_t(inputs * p.width));
            for (int64_t j = 0; j < p.width; ++j)
                for (int64_t i = 0; i < inputs; ++i) data[k][size_t(i * p.width + j)] = p.weight[k][j * inputs + i];
        }
    }
};

// Rows of one array for one block: in place where the block is full, else a copy that is padded with zeros.
struct Rows {
    float* data;
    float* home;
    int64_t count, width;
    alignas(64) float copy[kBlock * kWidest];

    void open(float* array, int64_t first, int64_t rows, int64_t row_width) {
        home = array + first * row_width, count = rows, width = row_width;
        data = rows == kBlock ? home : copy;
        if (rows == kBlock) return;
        std::memcpy(copy, home, size_t(rows * width) * sizeof(float));
        std::fill(copy + rows * width, copy + kBlock * width, 0.0f);
    }
    void open(const float* array, int64_t first, int64_t rows, int64_t row_width) {
        open(const_cast<float*>(array), first, rows, row_width);
    }
    void close() {
        if (data != home) std::memcpy(home, data, size_t(count * width) * sizeof(float));
    }
};

// What one thread needs for a block.
struct Space {
    Rows x, features, slope, grad_features, grad_slope, grad_x, hidden[kMaxLayers];
    alignas(64) float back[kMaxLayers][kBlock * kWidest];  // s_k
    alignas(64) float bend[kMaxLayers][kBlock * kWidest];  // of a softplus: gradients that reach z_k through the slope
    alignas(64) float a[kBlock * kWidest], b[kBlock * kWidest];
};

// s_k of all layers from the derivatives of their units; back[k] is that of layer k + 1 counted from 1.
HD void slopes_of_layers(const MlpParams& p, Space& s) {
    const int64_t last = p.layers - 1, size = kBlock * p.width;
    for (int64_t r = 0; r < kBlock; ++r)
        times_derivative(p.readout, s.hidden[last].data + r * p.width, s.back[last] + r * p.width, p.width, p.beta);
    for (int64_t k = last; k > 0; --k) {
        product<kTile, false>(s.back[k], p.width, p.weight[k], p.width, s.a, p.width, kBlock, p.width, p.width, false);
        times_derivative(s.a, s.hidden[k - 1].data, s.back[k - 1], size, p.beta);
    }
}

TWO_COPIES void forward_block(const MlpParams& p, const Transposed& w, Space& s) {
    for (int64_t k = 0; k < p.layers; ++k) {
        const int64_t inputs = inputs_of(p, k);
        const float* in = k == 0 ? s.x.data : s.hidden[k - 1].data;
        product<kTile, false>(in, inputs, w.data[k].data(), p.width, s.hidden[k].data, p.width, kBlock, p.width, inputs,
                              false);
        add_bias_and_activate(s.hidden[k].data, p.bias[k], kBlock, p.width, p.beta);
    }
    if (!p.readout) return;
    slopes_of_layers(p, s);
    product<kTile, false>(s.back[0], p.width, p.weight[0], p.inputs, s.slope.data, p.inputs, kBlock, p.inputs, p.width,
                          false);
}

// Gradients that come through the features, and with a softplus those that the slope gave to its units: down the layers.
HD void backward_of_features(const MlpParams& p, Space& s, float* sums) {
    const float* gradient = p.grad_features ? s.grad_features.data : nullptr;
    const bool bends = p.grad_slope && p.beta != 0.0f;
    for (int64_t k = p.layers - 1; k >= 0; --k) {
        const int64_t inputs = inputs_of(p, k);
        const float* in = k == 0 ? s.x.data : s.hidden[k - 1].data;
        float* weight = sums + offset_of(p, k);
        if (gradient)
            times_derivative(gradient, s.hidden[k].data, s.b, kBlock * p.width, p.beta);
        else
            std::fill(s.b, s.b + kBlock * p.width, 0.0f);
        if (bends)
            for (int64_t i = 0; i < kBlock * p.width; ++i) s.b[i] += s.bend[k][i];
        product<4, true>(s.b, p.width, in, inputs, weight, inputs, p.width, inputs, kBlock, true);
        add_columns(s.b, weight + p.width * inputs, kBlock, p.width);
        if (k == 0 && !p.grad_x) return;
        float* out = k == 0 ? s.grad_x.data : s.a;
        product<kTile, false>(s.b, p.width, p.weight[k], inputs, out, inputs, kBlock, inputs, p.width, false);
        gradient = s.a;
    }
}

// Gradients that come through the slope: up the layers. What they give to the inputs of smooth units is kept.
HD void backward_of_slope(const MlpParams& p, const Transposed& w, Space& s, float* sums) {
    slopes_of_layers(p, s);
    const float* gradient = s.grad_slope.data;
    for (int64_t k = 0; k < p.layers; ++k) {
        const int64_t inputs = inputs_of(p, k);
        product<4, true>(s.back[k], p.width, gradient, inputs, sums + offset_of(p, k), inputs, p.width, inputs, kBlock,
                         true);
        product<kTile, false>(gradient, inputs, w.data[k].data(), p.width, s.a, p.width, kBlock, p.width, inputs,
                              false);
        if (p.beta != 0.0f)
            second_derivative(s.a, s.back[k], s.hidden[k].data, s.bend[k], kBlock * p.width, p.beta);
        times_derivative(s.a, s.hidden[k].data, s.b, kBlock * p.width, p.beta);
        gradient = s.b;
    }
    add_columns(gradient, sums + offset_of(p, p.layers), kBlock, p.width);
}

TWO_COPIES void backward_block(const MlpParams& p, const Transposed& w, Space& s, float* sums) {
    if (p.grad_slope) backward_of_slope(p, w, s, sums);
    if (p.grad_features || (p.grad_slope && p.beta != 0.0f)) backward_of_features(p, s, sums);
}

// Calls body(piece, space) for every block of a piece, with the block's rows opened.
template <typename Body>
void for_each_block(const MlpParams& p, int64_t from, int64_t to, Space& s, const Body& body) {
    for (int64_t first = from; first < to; first += kBlock) {
        const int64_t rows = std::min(kBlock, to - first);
        s.x.open(p.x, first, rows, p.inputs);
        for (int64_t k = 0; k < p.layers; ++k) s.hidden[k].open(p.hidden[k], first, rows, p.width);
        if (p.slope) s.slope.open(p.slope, first, rows, p.inputs);
        if (p.grad_features) s.grad_features.open(p.grad_features, first, rows, p.width);
        if (p.grad_slope) s.grad_slope.open(p.grad_slope, first, rows, p.inputs);
        if (p.grad_x) s.grad_x.open(p.grad_x, first, rows, p.inputs);
        body();
    }
}

}  // namespace

EXPORT int mlp_cpu(const MlpParams* params, int64_t threads, void*) {
    const MlpParams& p = *params;
    const Transposed transposed(p);
    somnia::parallel_for(p.rows, kPiece, threads, [&](int64_t from, int64_t to) {
        static thread_local Space s;
        for_each_block(p, from, to, s, [&] {
            forward_block(p, transposed, s);
            for (int64_t k = 0; k < p.layers; ++k) s.hidden[k].close();
            if (p.slope) s.slope.close();
        });
    });
    return 0;
}

EXPORT int mlp_backward_cpu(const MlpParams* params, int64_t threads, void*) {
    const MlpParams& p = *params;
    const Transposed transposed(p);
    const int64_t size = offset_of(p, p.layers) + p.width, pieces = (p.rows + kPiece - 1) / kPiece;
    const bool reaches_x = p.grad_features || (p.grad_slope && p.beta != 0.0f);
    std::vector<float> sums(size_t(size * pieces), 0.0f);
    somnia::parallel_for(p.rows, kPiece, threads, [&](int64_t from, int64_t to) {
        static thread_local Space s;
        for_each_block(p, from, to, s, [&] {
            backward_block(p, transposed, s, sums.data() + from / kPiece * size);
            if (p.grad_x && reaches_x) s.grad_x.close();
        });
    });
    std::fill(p.grad_parameters, p.grad_parameters + size, 0.0f);
    for (int64_t piece = 0; piece < pieces; ++piece)
        for (int64_t i = 0; i < size; ++i) p.grad_parameters[i] += sums[size_t(piece * size + i)];
    if (p.grad_x && !reaches_x) std::fill(p.grad_x, p.grad_x + p.rows * p.inputs, 0.0f);
    return 0;
}

// Grid encoding on CUDA: one thread a point and level. Points are the fast index, so that the threads in flight share
// one level's rows in the cache. Tables are float, double or half; gradients of half tables are summed in float.
#include <cuda_fp16.h>

#include "grid_math.h"
#include "launch.h"

namespace {

template <typename T>
struct ScalarOf {
    using type = T;
};
template <>
struct ScalarOf<__half> {
    using type = float;
};

// W features that are read or written in one access.
template <typename T, int W>
struct alignas(W * sizeof(T)) Pack {
    T v[W];
};

// Features of one corner, widened to the scalar computed in.
template <typename S, int W, typename T>
__device__ Row<S, W> load_row(const T* source) {
    const Pack<T, W> pack = *reinterpret_cast<const Pack<T, W>*>(source);
    Row<S, W> row;
    for (int w = 0; w < W; ++w) row.v[w] = S(pack.v[w]);
    return row;
}

template <typename S, int W, typename T>
__device__ void store_row(T* target, const Row<S, W>& row) {
    Pack<T, W> pack;
    for (int w = 0; w < W; ++w) pack.v[w] = T(row.v[w]);
    *reinterpret_cast<Pack<T, W>*>(target) = pack;
}

template <typename S>
__device__ void add_row(S* target, const Row<S, 1>& row) {
    atomicAdd(target, row.v[0]);
}

template <typename S>
__device__ void add_row(S* target, const Row<S, 2>& row) {
    atomicAdd(target, row.v[0]);
    atomicAdd(target + 1, row.v[1]);
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
__device__ void add_row(float* target, const Row<float, 2>& row) {  // one 8-byte atomic where the hardware has it
    atomicAdd(reinterpret_cast<float2*>(target), make_float2(row.v[0], row.v[1]));
}
#endif

// One point in one level; index = level * M + point.
template <typename T, int D>
struct Visit {
    using S = typename ScalarOf<T>::type;
    int level;
    int64_t point, column;  // column: of this level's first feature in a row of L*F
    S u[D];
    Place place;

    HD Visit(const GridParams& p, int64_t index) {
        level = int(index / p.num_points);
        point = index - level * p.num_points;
        column = level * p.features;
        place = enter_box<S, D>(static_cast<const S*>(p.positions) + point * D, S(p.bound), u);
    }
};

template <typename T, int D, int W>
struct Encode {
    using S = typename ScalarOf<T>::type;
    GridParams p;

    __device__ void operator()(int64_t index) const {
        const Visit<T, D> at(p, index);
        const int64_t width = p.levels * p.features;
        T* values = static_cast<T*>(p.values) + at.point * width + at.column;
        T* jacobian = p.jacobian ? static_cast<T*>(p.jacobian) + index * D * p.features : nullptr;
        if (at.level >= p.active || at.place != kInside) {
            const S empty = at.level >= p.active || at.place == kOutside ? S(0) : S(NAN);
            for (int64_t f = 0; f < p.features; ++f) {
                values[f] = T(empty);
                for (int d = 0; d < D && jacobian; ++d) jacobian[d * p.features + f] = T(empty);
            }
            return;
        }
        const Cell<S, D> cell(p, at.level, indexing_of(p, at.level), at.u);
        const T* table = static_cast<const T*>(p.table) + p.first[at.level] * p.features;
        S weight[D], slope[D];
        for (int d = 0; d < D; ++d) weight[d] = cell.axis[d].weight, slope[d] = cell.axis[d].slope * S(0.5 / p.bound);
        for (int64_t f = 0; f < p.features; f += W) {
            const auto load = [&](int corner) {
                return load_row<S, W>(table + int64_t(cell.row[corner]) * p.features + f);
            };
            if (jacobian) {
                const Jet<Row<S, W>, D> jet = blend_jet<D, Row<S, W>>(load, weight, slope);
                store_row(values + f, jet.value);
                for (int d = 0; d < D; ++d) store_row(jacobian + d * p.features + f, jet.along[d]);
            } else {
                store_row(values + f, blend<D, Row<S, W>>(load, weight));
            }
        }
    }
};

template <typename T, int D, int W>
struct EncodeBackward {
    using S = typename ScalarOf<T>::type;
    GridParams p;

    __device__ void operator()(int64_t index) const {
        const Visit<T, D> at(p, index);
        if (at.place != kInside) return;
        const int64_t width = p.levels * p.features;
        const T* values = p.grad_values ? static_cast<const T*>(p.grad_values) + at.point * width + at.column : nullptr;
        const T* jacobian = p.grad_jacobian ? static_cast<const T*>(p.grad_jacobian) + index * D * p.features : nullptr;
        const Cell<S, D> cell(p, at.level, indexing_of(p, at.level), at.u);
        S* table = static_cast<S*>(p.grad_table) + p.first[at.level] * p.features;
        S weight[D], slope[D];
        for (int d = 0; d < D; ++d) weight[d] = cell.axis[d].weight, slope[d] = cell.axis[d].slope * S(0.5 / p.bound);
        for (int64_t f = 0; f < p.features; f += W) {
            const auto add = [&](int corner, const Row<S, W>& share) {
                add_row(table + int64_t(cell.row[corner]) * p.features + f, share);
            };
            Jet<Row<S, W>, D> jet;
            jet.value = values ? load_row<S, W>(values + f) : Row<S, W>{};
            if (jacobian) {
                for (int d = 0; d < D; ++d) jet.along[d] = load_row<S, W>(jacobian + d * p.features + f);
                spread_jet(jet, weight, slope, add);
            } else {
                spread<D>(jet.value, weight, add);
            }
        }
    }
};

// One point, all levels.
template <typename T, int D>
struct SecondDerivatives {
    using S = typename ScalarOf<T>::type;
    GridParams p;

    __device__ void operator()(int64_t point) const {
        S* grad = static_cast<S*>(p.grad_positions) + point * D;
        S sum[D] = {}, u[D];
        if (enter_box<S, D>(static_cast<const S*>(p.positions) + point * D, S(p.bound), u) == kInside)
            for (int level = 0; level < p.active; ++level) {
                const T* table = static_cast<const T*>(p.table) + p.first[level] * p.features;
                const int64_t at = (level * p.num_points + point) * D * p.features;
                add_second_derivatives(Cell<S, D>(p, level, indexing_of(p, level), u), table,
                                       static_cast<const T*>(p.grad_jacobian) + at, int(p.features), S(0.5 / p.bound),
                                       sum);
            }
        for (int d = 0; d < D; ++d) grad[d] = sum[d];
    }
};

// One point, all levels.
template <typename T, int D>
struct Contract {
    using S = typename ScalarOf<T>::type;
    GridParams p;

    __device__ void operator()(int64_t point) const {
        S sum[D] = {};
        const T* jacobian = static_cast<const T*>(p.known_jacobian) + point * D * p.features;
        const T* g = static_cast<const T*>(p.grad_values) + point * p.levels * p.features;
        for (int64_t level = 0; level < p.levels; ++level)
            contract_one<S, D>(jacobian + level * p.num_points * D * p.features, g + level * p.features,
                               int(p.features), sum);
        for (int d = 0; d < D; ++d) static_cast<S*>(p.grad_positions)[point * D + d] = sum[d];
    }
};

template <typename T, int D>
struct ContractBackward {
    using S = typename ScalarOf<T>::type;
    GridParams p;

    __device__ void operator()(int64_t index) const {
        const int64_t level = index / p.num_points, point = index - level * p.num_points;
        const int64_t first = index * D * p.features, column = (point * p.levels + level) * p.features;
        contract_one_backward<S, D>(static_cast<const T*>(p.known_jacobian) + first,
                                    static_cast<const T*>(p.grad_values) + column,
                                    static_cast<const S*>(p.grad_contraction) + point * D, int(p.features),
                                    static_cast<T*>(p.jacobian) + first, static_cast<T*>(p.values) + column);
    }
};

template <typename T, int D>
struct TotalVariation {
    using S = typename ScalarOf<T>::type;
    GridParams p;

    __device__ void operator()(int64_t index) const {
        const Visit<T, D> at(p, index);
        if (at.place != kInside) return;
        const Cell<S, D> cell(p, at.level, indexing_of(p, at.level), at.u);
        const T* table = static_cast<const T*>(p.table) + p.first[at.level] * p.features;
        atomicAdd(p.sums + at.level, double(variation(cell, table, int(p.features))));
    }
};

template <typename T, int D>
struct TotalVariationBackward {
    using S = typename ScalarOf<T>::type;
    GridParams p;

    __device__ void operator()(int64_t index) const {
        const Visit<T, D> at(p, index);
        if (at.place != kInside) return;
        const Cell<S, D> cell(p, at.level, indexing_of(p, at.level), at.u);
        const int64_t first = p.first[at.level] * p.features;
        add_variation_gradient(cell, static_cast<const T*>(p.table) + first, int(p.features),
                               static_cast<S*>(p.grad_table) + first);
    }
};

enum Operation {
    kEncode,
    kEncodeBackward,
    kSecondDerivatives,
    kTotalVariation,
    kTotalVariationBackward,
    kContract,
    kContractBackward
};

// Zero what a kernel adds to.
template <typename T>
int clear(T* data, int64_t count, int64_t device, void* stream) {
    const somnia::DeviceGuard guard(device);
    if (guard.status() != cudaSuccess) return int(guard.status());
    return int(cudaMemsetAsync(data, 0, size_t(count) * sizeof(T), static_cast<cudaStream_t>(stream)));
}

template <typename T, int D>
int run(const GridParams& p, Operation operation, int64_t device, void* stream) {
    using S = typename ScalarOf<T>::type;
    const int64_t visits = p.active * p.num_points, entries = p.first[p.levels] * p.features;
    int status = 0;
    switch (operation) {
        case kEncode:
            return p.features == 1 ? somnia::for_each(p.levels * p.num_points, device, stream, Encode<T, D, 1>{p})
                                   : somnia::for_each(p.levels * p.num_points, device, stream, Encode<T, D, 2>{p});
        case kEncodeBackward:
            status = clear(static_cast<S*>(p.grad_table), entries, device, stream);
            if (status) return status;
            return p.features == 1 ? somnia::for_each(visits, device, stream, EncodeBackward<T, D, 1>{p})
                                   : somnia::for_each(visits, device, stream, EncodeBackward<T, D, 2>{p});
        case kSecondDerivatives: return somnia::for_each(p.num_points, device, stream, SecondDerivatives<T, D>{p});
        case kContract: return somnia::for_each(p.num_points, device, stream, Contract<T, D>{p});
        case kContractBackward:
            return somnia::for_each(p.levels * p.num_points, device, stream, ContractBackward<T, D>{p});
        case kTotalVariation:
            status = clear(p.sums, p.levels, device, stream);
            return status ? status : somnia::for_each(visits, device, stream, TotalVariation<T, D>{p});
        case kTotalVariationBackward:
            status = clear(static_cast<S*>(p.grad_table), entries, device, stream);
            return status ? status : somnia::for_each(visits, device, stream, TotalVariationBackward<T, D>{p});
    }
    return int(cudaErrorInvalidValue);
}

template <typename T>
int by_dims(const GridParams& p, Operation operation, int64_t device, void* stream) {
    switch (p.dims) {
        case 2: return run<T, 2>(p, operation, device, stream);
        case 3: return run<T, 3>(p, operation, device, stream);
        case 4: return run<T, 4>(p, operation, device, stream);
    }
    return int(cudaErrorInvalidValue);
}

// scalar_bytes: of the table, 2, 4 or 8.
int dispatch(const GridParams* p, int64_t scalar_bytes, Operation operation, int64_t device, void* stream) {
    switch (scalar_bytes) {
        case 2: return by_dims<__half>(*p, operation, device, stream);
        case 4: return by_dims<float>(*p, operation, device, stream);
        case 8: return by_dims<double>(*p, operation, device, stream);
    }
    return int(cudaErrorInvalidValue);
}

}  // namespace

#define GRID_KERNEL(name, operation)                                                                  \
    EXPORT int name##_cuda(const GridParams* p, int64_t scalar_bytes, int64_t device, void* stream) { \
        return dispatch(p, scalar_bytes, operation, device, stream);                                  \
    }
GRID_KERNEL(grid_encode, kEncode)
GRID_KERNEL(grid_encode_backward, kEncodeBackward)
GRID_KERNEL(grid_second_derivatives, kSecondDerivatives)
GRID_KERNEL(grid_total_variation, kTotalVariation)
GRID_KERNEL(grid_total_variation_backward, kTotalVariationBackward)
GRID_KERNEL(grid_contract, kContract)
GRID_KERNEL(grid_contract_backward, kContractBackward)

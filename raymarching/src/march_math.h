// Sampling rays where a bitfield says that something may be: the only place these formulas are written.
//
// Every ray has a lattice of steps that does not depend on the scene: uniform in the "stepping space" of Mueller et al. 2022
// (Instant NGP, appendix E.1), where a step is dt_min long near the camera, grows in proportion to t, and ends at dt_max.
// A sample sits in the middle of each step whose middle lies in an occupied cell. Cells are visited block by block: the
// largest aligned block (16, 4, 2 or 1 cells wide) that is uniformly empty or full is left in one go.
#pragma once

#include "portable.h"

namespace somnia {

template <typename T>
struct MarchParams {
    const T* origins;        // [N, 3]
    const T* directions;     // [N, 3] unit
    const T* near;           // [N]
    const T* far;            // [N]    not above near: no samples
    const T* noise;          // [N]    in [0, 1), where in its stratum each sample lies; null: 0.5, the middle
    const int64_t* alive;    // [A]    which of the N rays to march; null: all, A = N
    int64_t* cursor;         // [N]    in, out: step to go on at, -1 once the ray has ended; null: start at 0
    const uint64_t* cells;   // [C, H^3 / 64] occupancy bits in Morton order: a word is a block of 4^3 cells
    uint64_t* blocks;        // [C, max(1, H^3 / 4096)] one bit for each word of cells: is anything in it
    const int64_t* first;    // [A]    where a ray's samples begin in the outputs
    int64_t* count;          // [A]    out of the counting pass (-1: the ray is not finite), in to the writing pass
    T* positions;            // [M, 3] out: origin + t * direction
    T* t;                    // [M]    out: middle of the step
    T* dt;                   // [M]    out: length of the step
    int64_t* ray_index;      // [M]    out
    int64_t num_rays;        // A
    int64_t cascades;        // C      cascade c covers [-b, b]^3 with b = min(2^c, bound)
    int64_t grid_size;       // H      cells along an axis, a power of two
    int64_t limit;           // most samples of a ray in this call
    double bound;            // half the side of the box, scene units
    double dt_gamma;         // step length per distance; 0: every step is dt_min long
    double dt_min, dt_max;   // scene units
};

// ---- Morton order: bits of x, y, z interleaved, x lowest ----

HD uint32_t spread_bits(uint32_t v) {
    v = (v | (v << 16)) & 0x030000FFu;
    v = (v | (v << 8)) & 0x0300F00Fu;
    v = (v | (v << 4)) & 0x030C30C3u;
    return (v | (v << 2)) & 0x09249249u;
}

HD uint32_t gather_bits(uint32_t v) {
    v &= 0x09249249u;
    v = (v | (v >> 2)) & 0x030C30C3u;
    v = (v | (v >> 4)) & 0x0300F00Fu;
    v = (v | (v >> 8)) & 0x030000FFu;
    return (v | (v >> 16)) & 0x000003FFu;
}

HD uint32_t morton_encode(uint32_t x, uint32_t y, uint32_t z) {
    return spread_bits(x) | (spread_bits(y) << 1) | (spread_bits(z) << 2);
}

// ---- The lattice of steps ----

template <typename T>
struct Lattice {
    T start;                 // t of step 0 (dt_gamma = 0), or its place in stepping space
    T gamma, dt_min, dt_max;
    T t_grow, t_cap;         // steps grow between these two distances
    T log_growth, s_cap;     // stepping space is 0 at t_grow and s_cap at t_cap

    HD Lattice(const MarchParams<T>& p, T near, T noise)
        : gamma(T(p.dt_gamma)), dt_min(T(p.dt_min)), dt_max(T(p.dt_max)), t_grow(0), t_cap(0), log_growth(0), s_cap(0) {
        const T shift = noise - T(0.5);
        if (gamma == T(0)) {
            start = near + shift * dt_min;
            return;
        }
        t_grow = dt_min / gamma;
        t_cap = dt_max / gamma;
        log_growth = log1p(gamma);
        s_cap = log(t_cap / t_grow) / log_growth;
        start = to_steps(near) + shift;
    }

    HD T to_steps(T t) const {
        if (t < t_grow) return (t - t_grow) / dt_min;
        if (t < t_cap) return log(t / t_grow) / log_growth;
        return s_cap + (t - t_cap) / dt_max;
    }

    HD T from_steps(T s) const {
        if (s < T(0)) return t_grow + s * dt_min;
        if (s < s_cap) return t_grow * exp(s * log_growth);
        return t_cap + (s - s_cap) * dt_max;
    }

    // Middle and length of step k.
    HD void step(T k, T* t, T* dt) const {
        if (gamma == T(0)) {
            *t = start + (k + T(0.5)) * dt_min;
            *dt = dt_min;
            return;
        }
        const T begin = from_steps(start + k), end = from_steps(start + k + T(1));
        *t = T(0.5) * (begin + end);
        *dt = end - begin;
    }

    HD T middle(int64_t k) const {
        T t, dt;
        step(T(k), &t, &dt);
        return t;
    }

    // The first step, not before k, whose middle is not before t.
    HD int64_t first_from(int64_t k, T t) const {
        if (gamma == T(0)) return max_of(k, int64_t(ceil((t - start) / dt_min - T(0.5))));
        k = max_of(k, int64_t(floor(to_steps(t) - start)) - 1);
        while (middle(k) < t) ++k;
        return k;
    }

    // The length of a step at distance t, which chooses the cascade.
    HD T length_at(T t) const { return clamp_to(t * gamma, dt_min, dt_max); }
};

// ---- One ray ----

template <typename T>
struct MarchRay {
    Vec3<T> origin, direction, inverse;
    T begin, end;  // the part between near and far and inside the box
    T noise;
    bool finite;

    HD MarchRay(const MarchParams<T>& p, int64_t ray) {
        origin = load3(p.origins + 3 * ray);
        direction = load3(p.directions + 3 * ray);
        begin = p.near[ray];
        end = p.far[ray];
        noise = p.noise ? p.noise[ray] : T(0.5);
        finite = is_finite(dot(origin, origin) + dot(direction, direction) + noise) && begin > T(-INFINITY) && !is_nan(end);
        const T bound = T(p.bound);
        inverse = {T(1) / direction.x, T(1) / direction.y, T(1) / direction.z};
        for (int axis = 0; axis < 3; ++axis) {
            if (direction[axis] == T(0)) {
                if (!(fabs(origin[axis]) <= bound)) end = T(-INFINITY);
                continue;
            }
            const T a = (-bound - origin[axis]) * inverse[axis], b = (bound - origin[axis]) * inverse[axis];
            begin = max_of(begin, min_of(a, b));
            end = min_of(end, max_of(a, b));
        }
    }
};

// An aligned cube of 2^log2_size cells a side of one cascade, all empty or all occupied.
struct Block {
    int32_t x, y, z;  // lowest cell
    int32_t log2_size;
    bool occupied;
};

template <typename T>
HD Block uniform_block(const MarchParams<T>& p, int64_t level, const int32_t cell[3]) {
    const int64_t words = p.grid_size * p.grid_size * p.grid_size / 64;
    const uint32_t code = morton_encode(uint32_t(cell[0]), uint32_t(cell[1]), uint32_t(cell[2]));
    const uint64_t word = p.cells[level * words + (code >> 6)];
    Block block = {0, 0, 0, 2, word != 0};
    if (word == 0) {
        const bool empty = p.blocks[level * max_of(words / 64, int64_t(1)) + (code >> 12)] == 0;
        if (empty) block.log2_size = p.grid_size >= 16 ? 4 : p.grid_size >= 8 ? 3 : 2;
    } else if (~word != 0) {
        const uint32_t byte = uint32_t(word >> (code & 56)) & 255u;
        const bool uniform = byte == 0 || byte == 255u;
        block.log2_size = uniform ? 1 : 0;
        block.occupied = (byte >> (code & 7)) & 1u;
    }
    const int32_t mask = ~((1 << block.log2_size) - 1);
    block.x = cell[0] & mask;
    block.y = cell[1] & mask;
    block.z = cell[2] & mask;
    return block;
}

// Whether the block reaches into the region that the next finer cascade describes.
template <typename T>
HD bool reaches_finer(const Block& block, T inner, T half, T cell_size) {
    const T size = T(1 << block.log2_size) * cell_size;
    const T x = T(block.x) * cell_size - half, y = T(block.y) * cell_size - half, z = T(block.z) * cell_size - half;
    return x < inner && x + size > -inner && y < inner && y + size > -inner && z < inner && z + size > -inner;
}

template <typename T>
HD T exit_distance(const MarchRay<T>& ray, const Block& block, T half, T cell_size) {
    const int32_t low[3] = {block.x, block.y, block.z};
    T leave = ray.end;
    for (int axis = 0; axis < 3; ++axis) {
        const T d = ray.direction[axis];
        if (d == T(0)) continue;
        const T face = T(low[axis] + (d > T(0) ? 1 << block.log2_size : 0)) * cell_size - half;
        leave = min_of(leave, (face - ray.origin[axis]) * ray.inverse[axis]);
    }
    return leave;
}

// Whether the run of steps that starts at step k (middle t) is occupied, and the step at which the run ends.
template <typename T>
HD int64_t run_end(const MarchParams<T>& p, const MarchRay<T>& ray, const Lattice<T>& lattice, int64_t k, T t, bool* occupied) {
    const Vec3<T> x = ray.origin + t * ray.direction;
    const T reach = max_of(fabs(x.x), max_of(fabs(x.y), fabs(x.z)));
    const T step_cells = lattice.length_at(t) * T(p.grid_size) * T(0.5);
    const int64_t top = p.cascades - 1;
    int64_t level = 0;
    T half = T(1);
    bool by_step = true;  // the step length, not the position, asks for this cascade
    for (; level < top && (reach >= half || step_cells >= half); ++level, half *= T(2)) by_step = step_cells >= half;
    const T finer = half * T(0.5), doubled = half * T(2);
    half = min_of(half, T(p.bound));
    const T cell_size = T(2) * half / T(p.grid_size), per_unit = T(p.grid_size) / (T(2) * half);
    const int32_t highest = int32_t(p.grid_size) - 1;
    const int32_t cell[3] = {clamp_to(int32_t((x.x + half) * per_unit), 0, highest),
                             clamp_to(int32_t((x.y + half) * per_unit), 0, highest),
                             clamp_to(int32_t((x.z + half) * per_unit), 0, highest)};
    Block block = uniform_block(p, level, cell);
    *occupied = block.occupied;
    if (level > 0 && !by_step) {
        while (reaches_finer(block, finer, half, cell_size)) {
            if (block.log2_size == 0) return k + 1;
            const int32_t mask = ~((1 << --block.log2_size) - 1);
            block = {cell[0] & mask, cell[1] & mask, cell[2] & mask, block.log2_size, block.occupied};
        }
    }
    T leave = exit_distance(ray, block, half, cell_size);
    if (lattice.gamma > T(0) && level < top) {
        const T coarser = doubled / (T(p.grid_size) * lattice.gamma);  // where steps become too long for this cascade
        if (coarser > t) leave = min_of(leave, coarser);
    }
    return lattice.first_from(k + 1, leave);
}

// Calls emit(lattice, k, steps) for every run of occupied steps, in order, of at most `limit` steps in all.
// Returns the number of steps, -1 if the ray is not finite. *cursor is the step to go on at, -1 if the ray has ended.
template <typename T, typename Emit>
HD int64_t march_ray(const MarchParams<T>& p, int64_t ray_index, int64_t limit, int64_t* cursor, const Emit& emit) {
    const MarchRay<T> ray(p, ray_index);
    if (!ray.finite) return -1;
    int64_t k = *cursor, emitted = 0;
    *cursor = -1;
    if (k < 0 || !(ray.begin < ray.end)) return 0;
    const Lattice<T> lattice(p, p.near[ray_index], ray.noise);
    k = lattice.first_from(k, ray.begin);
    for (T t = lattice.middle(k); t < ray.end; t = lattice.middle(k)) {
        bool occupied;
        int64_t next = run_end(p, ray, lattice, k, t, &occupied);
        if (occupied) {
            next = min_of(next, k + limit - emitted);
            emit(ray, lattice, k, next - k);
            emitted += next - k;
            if (emitted == limit) {
                *cursor = next;
                return emitted;
            }
        }
        k = next;
    }
    return emitted;
}

template <typename T>
struct EmitNothing {
    HD void operator()(const MarchRay<T>&, const Lattice<T>&, int64_t, int64_t) const {}
};

template <typename T>
struct EmitSamples {
    const MarchParams<T>& p;
    int64_t ray_index;
    int64_t* next;  // where the next sample goes

    HD void operator()(const MarchRay<T>& ray, const Lattice<T>& lattice, int64_t k, int64_t steps) const {
        const int64_t base = *next;
        for (int32_t i = 0; i < int32_t(steps); ++i) {
            T t, dt;
            lattice.step(T(k) + T(i), &t, &dt);
            p.t[base + i] = t;
            p.dt[base + i] = dt;
            p.ray_index[base + i] = ray_index;
            store3(p.positions + 3 * (base + i), ray.origin + t * ray.direction);
        }
        *next = base + steps;
    }
};

template <typename T>
HD void march_count(const MarchParams<T>& p, int64_t n) {
    const int64_t ray = p.alive ? p.alive[n] : n;
    int64_t cursor = p.cursor ? p.cursor[ray] : 0;
    p.count[n] = march_ray(p, ray, p.limit, &cursor, EmitNothing<T>());
}

template <typename T>
HD void march_write(const MarchParams<T>& p, int64_t n) {
    const int64_t ray = p.alive ? p.alive[n] : n;
    int64_t cursor = p.cursor ? p.cursor[ray] : 0, next = p.first[n];
    const int64_t end = next + p.count[n];
    // At most what was counted, however the two passes were compiled: nothing is ever written past a ray's own samples.
    if (p.count[n] > 0) march_ray(p, ray, p.count[n], &cursor, EmitSamples<T>{p, ray, &next});
    for (; next < end; ++next) {
        p.t[next] = p.dt[next] = T(0);
        p.ray_index[next] = ray;
        store3(p.positions + 3 * next, load3(p.origins + 3 * ray));
    }
    if (p.cursor) p.cursor[ray] = p.count[n] < p.limit ? -1 : cursor;
}

// Sets word w of the coarse bitfield from the 64 words of cells under it.
template <typename T>
HD void march_coarsen(const MarchParams<T>& p, int64_t w) {
    const int64_t words = p.grid_size * p.grid_size * p.grid_size / 64, under = min_of(words, int64_t(64));
    uint64_t bits = 0;
    for (int64_t i = 0; i < under; ++i) bits |= uint64_t(p.cells[w * under + i] != 0) << i;
    p.blocks[w] = bits;
}

}  // namespace somnia

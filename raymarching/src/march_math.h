// Sampling rays in the occupied cells of a bitfield: the only place these formulas are written.
//
// Every ray has a lattice of steps that does not depend on the scene: uniform in the "stepping space" of Mueller et al. 2022
// (Instant NGP, appendix E.1), where a step is dt_min long near the camera, grows in proportion to t, and ends at dt_max.
// A sample sits in the middle of each step whose middle lies in an occupied cell. Cells are visited block by block: the
// largest aligned block (16, 4, 2 or 1 cells wide) that is uniformly empty or full is left in one step.
#pragma once

#include "portable.h"

namespace somnia {

constexpr int kRuns = 8;               // runs that the counting pass records per ray; a ray with more is marched again
constexpr double kMargin = 0.01;       // cells by which the occupied extent is enlarged, far more than rounding
constexpr double kHugeInverse = 1e30;  // of 0: faces parallel to the ray are then far away, and 0 * inverse is 0

template <typename T>
struct MarchParams {
    const T* origins;        // [N, 3]
    const T* directions;     // [N, 3] unit
    const T* near;           // [N]
    const T* far;            // [N]    not above near: no samples
    const T* noise;          // [N]    in [0, 1), where in its step each sample lies; null: 0.5, the middle
    const int64_t* alive;    // [A]    which of the N rays to march; null: all, A = N
    int64_t* cursor;         // [N]    in, out: step to continue at, -1 once the ray has ended; null: start at 0
    const uint64_t* cells;   // [C, H^3 / 64] occupancy bits in Morton order: a word is a block of 4^3 cells
    uint64_t* blocks;        // [C, max(1, H^3 / 4096)] one bit for each word of cells: whether any is occupied
    int32_t* extent;         // [C, 6] lowest and highest x, y, z of the occupied blocks of 4^3 cells, in blocks
    const int64_t* first;    // [A]    where a ray's samples begin in the outputs
    int64_t* count;          // [A]    out of the counting pass (-1: the ray is not finite), in to the writing pass
    int32_t* runs;           // [A, kRuns, 2] from the counting to the writing pass: first step and number of steps of
                             //        each run of samples, ended by a run of 0 steps; first -1: there were too many
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
HD int64_t floor_of(T x) {
    const int64_t i = int64_t(x);
    return i - int64_t(T(i) > x);
}

template <typename T>
HD int64_t ceil_of(T x) {
    const int64_t i = int64_t(x);
    return i + int64_t(T(i) < x);
}

template <typename T>
struct Lattice {
    T start;                // t of step 0 (dt_gamma = 0), or its place in stepping space
    T gamma, dt_min, dt_max;
    T per_dt_min;
    T t_grow, t_cap;        // steps grow between these two distances
    T log_growth, s_cap;    // stepping space is 0 at t_grow and s_cap at t_cap

    HD Lattice(const MarchParams<T>& p, T near, T noise)
        : gamma(T(p.dt_gamma)), dt_min(T(p.dt_min)), dt_max(T(p.dt_max)), per_dt_min(T(1 / p.dt_min)) {
        const T shift = noise - T(0.5);
        t_grow = t_cap = log_growth = s_cap = T(0);
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
        if (t < t_grow) return (t - t_grow) * per_dt_min;
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
        if (gamma == T(0)) return max_of(k, ceil_of((t - start) * per_dt_min - T(0.5)));
        k = max_of(k, floor_of(to_steps(t) - start) - 1);
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
    T begin, end;  // the part between near and far, inside the box and where anything is occupied
    T noise;
    bool finite;

    HD MarchRay(const MarchParams<T>& p, int64_t ray) {
        origin = load3(p.origins + 3 * ray);
        direction = load3(p.directions + 3 * ray);
        begin = p.near[ray];
        end = p.far[ray];
        noise = p.noise ? p.noise[ray] : T(0.5);
        finite = is_finite(dot(origin, origin) + dot(direction, direction) + noise) && begin > T(-INFINITY) && !is_nan(end);
        for (int axis = 0; axis < 3; ++axis) {
            T low, high;
            occupied_slab(p, axis, &low, &high);
            clip(origin[axis], direction[axis], low, high, &inverse_of(axis));
        }
    }

    HD T& inverse_of(int axis) { return axis == 0 ? inverse.x : axis == 1 ? inverse.y : inverse.z; }

    // The part of the box in which any cascade has an occupied cell, enlarged by kMargin; low > high if there is none.
    HD void occupied_slab(const MarchParams<T>& p, int axis, T* low, T* high) const {
        const T bound = T(p.bound);
        *low = bound;
        *high = -bound;
        for (int32_t level = 0; level < p.cascades; ++level) {
            const int32_t* extent = p.extent + 6 * level;
            const T half = min_of(T(int64_t(1) << level), bound), cell_size = T(2) * half / T(p.grid_size);
            *low = min_of(*low, T(4 * extent[axis] - T(kMargin)) * cell_size - half);
            *high = max_of(*high, T(4 * extent[3 + axis] + T(4 + kMargin)) * cell_size - half);
        }
        *low = max_of(*low, -bound);
        *high = min_of(*high, bound);
    }

    // Shortens [begin, end] to one slab. The inverse of 0 is a huge number: faces parallel to the ray are far away.
    HD void clip(T o, T d, T low, T high, T* inverse_out) {
        if (!(low < high)) end = T(-INFINITY);
        if (d == T(0)) {
            *inverse_out = T(kHugeInverse);
            if (!(o >= low && o <= high)) end = T(-INFINITY);
            return;
        }
        const T inv = T(1) / d, a = (low - o) * inv, b = (high - o) * inv;
        *inverse_out = inv;
        begin = max_of(begin, min_of(a, b));
        end = min_of(end, max_of(a, b));
    }
};

// An aligned cube of 2^log2_size cells a side of one cascade, all empty or all occupied.
struct Block {
    int32_t log2_size;
    bool occupied;
};

// The geometry of one cascade.
template <typename T>
struct Cascade {
    const uint64_t* cells;
    const uint64_t* blocks;
    T half, cell_size, per_unit;
    T coarser;        // where along a ray steps become too long for this cascade
    int32_t level;
    int32_t highest;  // H - 1
    int32_t widest;   // log2 of the cells along a block of the coarse bitfield

    HD Cascade(const MarchParams<T>& p, T gamma, int32_t new_level) : level(new_level) {
        const int64_t words = p.grid_size * p.grid_size * p.grid_size / 64;
        const T size = T(p.grid_size);
        cells = p.cells + level * words;
        blocks = p.blocks + level * max_of(words / 64, int64_t(1));
        half = min_of(T(int64_t(1) << level), T(p.bound));
        cell_size = T(2) * half / size;
        per_unit = size / (T(2) * half);
        const bool grows = gamma > T(0) && level < p.cascades - 1;
        coarser = grows ? T(int64_t(2) << level) / (size * gamma) : T(INFINITY);
        highest = int32_t(p.grid_size) - 1;
        widest = p.grid_size >= 16 ? 4 : p.grid_size >= 8 ? 3 : 2;
    }

    HD int32_t cell_of(T x) const { return clamp_to(int32_t((x + half) * per_unit), 0, highest); }

    // The largest block of the hierarchy that is uniform round a cell; without branches, which could not be predicted.
    HD Block block_of(const int32_t cell[3]) const {
        const uint32_t code = morton_encode(uint32_t(cell[0]), uint32_t(cell[1]), uint32_t(cell[2]));
        const uint64_t word = cells[code >> 6];
        const uint32_t byte = uint32_t(word >> (code & 56)) & 255u;
        const int32_t by_byte = int32_t(byte == 0) | int32_t(byte == 255u), by_word = int32_t(word == 0) | int32_t(~word == 0);
        const int32_t by_block = int32_t(blocks[code >> 12] == 0) * (widest - 2);
        return {by_byte + by_word + by_block, ((byte >> (code & 7)) & 1u) != 0};
    }

    // Whether a block reaches into the region that the next finer cascade describes.
    HD bool reaches_finer(const int32_t cell[3], int32_t log2_size) const {
        const T inner = T(int64_t(1) << level) * T(0.5), width = T(1 << log2_size) * cell_size;
        bool reaches = true;
        for (int axis = 0; axis < 3; ++axis) {
            const T low = T((cell[axis] >> log2_size) << log2_size) * cell_size - half;
            reaches = reaches && low < inner && low + width > -inner;
        }
        return reaches;
    }

    // Where a ray leaves a block through the faces across one axis.
    HD T leave(int32_t cell, int32_t log2_size, T d, T o, T inverse) const {
        const int32_t up = int32_t(d >= T(0)) << log2_size;
        return (T(((cell >> log2_size) << log2_size) + up) * cell_size - half - o) * inverse;
    }
};

// A ray in progress. Its lattice is split into runs of steps, each inside one block: advance() processes the next run.
template <typename T>
struct March {
    MarchRay<T> ray;
    Lattice<T> lattice;
    Cascade<T> cascade;
    int64_t k;      // step at which the next run begins
    T t;            // its middle

    HD March(const MarchParams<T>& p, int64_t index, int64_t cursor)
        : ray(p, index), lattice(p, p.near[index], ray.noise), cascade(p, T(p.dt_gamma), 0), k(-1), t(T(INFINITY)) {
        if (!ray.finite || cursor < 0 || !(ray.begin < ray.end)) return;
        k = lattice.first_from(cursor, ray.begin);
        t = lattice.middle(k);
    }

    HD bool ended() const { return !(t < ray.end); }

    // Calls emit(k, steps) if the next run is occupied, and goes past it; steps is at most `limit`.
    template <typename Emit>
    HD void advance(const MarchParams<T>& p, int64_t limit, const Emit& emit) {
        const Vec3<T> x = ray.origin + t * ray.direction;
        const bool by_step = p.cascades == 1 || choose_cascade(p, x);
        const int32_t cell[3] = {cascade.cell_of(x.x), cascade.cell_of(x.y), cascade.cell_of(x.z)};
        const Block block = cascade.block_of(cell);
        int64_t next = run_end(cell, block.log2_size, by_step);
        if (block.occupied) {
            next = min_of(next, k + limit);
            emit(k, next - k);
        }
        k = next;
        t = lattice.middle(k);
    }

   private:
    // Makes `cascade` the one for position x; returns whether the step's length, and not the position, decides it.
    HD bool choose_cascade(const MarchParams<T>& p, const Vec3<T>& x) {
        const T reach = max_of(fabs(x.x), max_of(fabs(x.y), fabs(x.z)));
        const T step = lattice.length_at(t) * T(p.grid_size) * T(0.5);
        const int32_t top = int32_t(p.cascades) - 1;
        int32_t level = 0;
        bool by_step = true;
        for (T edge = T(1); level < top && (reach >= edge || step >= edge); ++level, edge *= T(2)) by_step = step >= edge;
        if (level != cascade.level) cascade = Cascade<T>(p, lattice.gamma, level);
        return by_step;
    }

    // The step at which the run ends that begins in a cell of a uniform block.
    HD int64_t run_end(const int32_t cell[3], int32_t log2_size, bool by_step) const {
        if (!by_step) {
            while (cascade.reaches_finer(cell, log2_size)) {
                if (log2_size-- == 0) return k + 1;
            }
        }
        T leave = cascade.leave(cell[0], log2_size, ray.direction.x, ray.origin.x, ray.inverse.x);
        leave = min_of(leave, cascade.leave(cell[1], log2_size, ray.direction.y, ray.origin.y, ray.inverse.y));
        leave = min_of(leave, cascade.leave(cell[2], log2_size, ray.direction.z, ray.origin.z, ray.inverse.z));
        leave = min_of(leave, ray.end);
        if (cascade.coarser > t) leave = min_of(leave, cascade.coarser);
        return lattice.first_from(k + 1, leave);
    }
};

// Records the runs of a ray, joining adjacent ones, for the writing pass.
struct RecordRuns {
    int32_t* runs;  // [kRuns, 2]
    int64_t count = 0;
    int32_t used = 0, end = -1;

    HD void operator()(int64_t k, int64_t steps) {
        count += steps;
        used += int32_t(end != int32_t(k));
        if (used <= kRuns) {
            int32_t* run = runs + 2 * (used - 1);
            run[0] = end != int32_t(k) ? int32_t(k) : run[0];
            run[1] = int32_t(k + steps) - run[0];
        }
        end = int32_t(k + steps);
    }

    HD void close() {
        if (used < kRuns) runs[2 * used + 1] = 0;
        if (used > kRuns) runs[0] = -1;
    }
};

// Writes the samples of a run.
template <typename T>
struct EmitSamples {
    const MarchParams<T>& p;
    const MarchRay<T>& ray;
    const Lattice<T>& lattice;
    int64_t ray_index;
    int64_t* next;  // in, out: where the next sample goes

    HD void operator()(int64_t k, int64_t steps) const {
        const int64_t base = *next;
        T *out_t = p.t + base, *out_dt = p.dt + base, *out_x = p.positions + 3 * base;
        int64_t* out_ray = p.ray_index + base;
        const Vec3<T> origin = ray.origin, direction = ray.direction;
        const Lattice<T> steps_of = lattice;
        const int32_t n = int32_t(steps);
        for (int32_t i = 0; i < n; ++i) {
            T t, dt;
            steps_of.step(T(k) + T(i), &t, &dt);
            out_t[i] = t;
            out_dt[i] = dt;
            out_ray[i] = ray_index;
            store3(out_x + 3 * i, origin + t * direction);
        }
        *next = base + steps;
    }
};

// The counting pass of one ray, in pieces that may be interleaved with other rays'.
template <typename T>
struct CountRay {
    int64_t n;
    March<T> march;
    RecordRuns record;

    HD CountRay(const MarchParams<T>& p, int64_t item, int64_t index)
        : n(item), march(p, index, p.cursor ? p.cursor[index] : 0), record{p.runs + item * 2 * kRuns} {}

    HD bool done(const MarchParams<T>& p) const { return march.ended() || record.count == p.limit; }

    HD void advance(const MarchParams<T>& p) {
        march.advance(p, p.limit - record.count, [&](int64_t k, int64_t steps) { record(k, steps); });
    }

    HD void finish(const MarchParams<T>& p) {
        record.close();
        p.count[n] = march.ray.finite ? record.count : -1;
    }
};

template <typename T>
HD void march_count(const MarchParams<T>& p, int64_t n) {
    CountRay<T> ray(p, n, p.alive ? p.alive[n] : n);
    while (!ray.done(p)) ray.advance(p);
    ray.finish(p);
}

template <typename T>
HD void march_write(const MarchParams<T>& p, int64_t n) {
    const int64_t index = p.alive ? p.alive[n] : n, count = p.count[n], end = p.first[n] + count;
    int64_t cursor = p.cursor ? p.cursor[index] : 0, next = p.first[n];
    if (count > 0) {
        March<T> march(p, index, cursor);
        const EmitSamples<T> write{p, march.ray, march.lattice, index, &next};
        const auto emit = [&](int64_t k, int64_t steps) {
            steps = min_of(steps, end - next);  // not one more than was counted, however the two passes were compiled
            write(k, steps);
            cursor = k + steps;
        };
        const int32_t* runs = p.runs + n * 2 * kRuns;
        if (runs[0] < 0) {
            while (next < end && !march.ended()) march.advance(p, end - next, emit);
        } else {
            for (int r = 0; r < kRuns && runs[2 * r + 1] > 0 && next < end; ++r) emit(runs[2 * r], runs[2 * r + 1]);
        }
        for (; next < end; ++next) {
            p.t[next] = p.dt[next] = T(0);
            p.ray_index[next] = index;
            store3(p.positions + 3 * next, march.ray.origin);
        }
    }
    if (p.cursor) p.cursor[index] = count < p.limit ? -1 : cursor;
}

// Sets word w of the coarse bitfield from the 64 words of cells under it, and widens the extent of its cascade.
template <typename T>
HD void march_coarsen(const MarchParams<T>& p, int64_t w) {
    const int64_t words = p.grid_size * p.grid_size * p.grid_size / 64, under = min_of(words, int64_t(64));
    uint64_t bits = 0;
    for (int64_t i = 0; i < under; ++i) bits |= uint64_t(p.cells[w * under + i] != 0) << i;
    p.blocks[w] = bits;
    if (bits == 0) return;
    const int64_t of_cascade = max_of(words / 64, int64_t(1));
    int32_t* extent = p.extent + 6 * (w / of_cascade);
    const uint32_t corner = uint32_t(w % of_cascade) * 64;  // Morton code of the word's first block
    // Which of a word's blocks have x = 0; shifted by 1, 8 and 9 they have x = 1, 2, 3; likewise by 2 and 4 for y and z.
    const uint64_t lowest[3] = {0x0055005500550055u, 0x0000333300003333u, 0x000000000F0F0F0Fu};
    for (int axis = 0; axis < 3; ++axis) {
        const int32_t base = int32_t(gather_bits(corner >> axis));
        for (int32_t i = 0; i < 4; ++i) {
            const int shift = ((i & 1) << axis) + ((i >> 1) << (3 + axis));
            if ((bits & (lowest[axis] << shift)) == 0) continue;
            atomic_lower(extent + axis, base + i);
            atomic_raise(extent + 3 + axis, base + i);
        }
    }
}

}  // namespace somnia

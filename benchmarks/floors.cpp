// The memory-bound limit of a grid encoding on this machine, without any of its arithmetic: random reads, and random
// additions, of pairs of floats, level by level, each level read or cleared from end to end first as the encoder does.
#include <stdint.h>
#include <string.h>

namespace {

inline uint32_t next(uint32_t& state) {  // a linear congruential step; its upper bits are random enough
    state = state * 1664525u + 1013904223u;
    return state >> 8;
}

// A row in [0, rows) without a division.
inline uint64_t pick(uint32_t random24, uint64_t rows) { return (uint64_t(random24) * rows) >> 24; }

}  // namespace

extern "C" double random_reads(const float* table, const int64_t* first, int64_t levels, int64_t per_level) {
    double total = 0;
    uint32_t state = 1;
    for (int64_t level = 0; level < levels; ++level) {
        const float* rows = table + 2 * first[level];
        const int64_t count = first[level + 1] - first[level];
        float a = 0, b = 0;
        for (int64_t i = 0; i < 2 * count; i += 16) a += rows[i];
        for (int64_t i = 0; i < per_level; ++i) {
            const float* row = rows + 2 * pick(next(state), uint64_t(count));
            a += row[0], b += row[1];
        }
        total += a + b;
    }
    return total;
}

extern "C" void random_additions(float* table, const int64_t* first, int64_t levels, int64_t per_level) {
    uint32_t state = 1;
    for (int64_t level = 0; level < levels; ++level) {
        float* rows = table + 2 * first[level];
        const int64_t count = first[level + 1] - first[level];
        memset(rows, 0, size_t(count) * 2 * sizeof(float));
        for (int64_t i = 0; i < per_level; ++i) {
            float* row = rows + 2 * pick(next(state), uint64_t(count));
            row[0] += 1, row[1] += 1;
        }
    }
}

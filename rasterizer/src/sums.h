// Sums that several pieces of work contribute to on the CPU: each piece adds to a list of its own, and the lists are added up in
// the order of the pieces, so the result has the same bits for any number of threads.
#pragma once

#include <vector>

#include "portable.h"

namespace somnia {

// Numbers the keys that come up, from 0 in the order in which they do. The table is the thread's, one for each kTag, so one
// object of a tag is open on a thread at a time.
template <int kTag>
class Slots {
   public:
    explicit Slots(int64_t keys) : table_(table()) {
        if (int64_t(table_.size()) < keys) table_.resize(size_t(keys), -1);
    }
    ~Slots() {
        for (const int32_t key : keys_) table_[size_t(key)] = -1;
    }
    Slots(const Slots&) = delete;
    Slots& operator=(const Slots&) = delete;

    // The number of a key; calls begin() first where it is new.
    template <typename Begin>
    int32_t of(int32_t key, const Begin& begin) {
        int32_t& slot = table_[size_t(key)];
        if (slot >= 0) return slot;
        slot = int32_t(keys_.size());
        keys_.push_back(key);
        begin();
        return slot;
    }
    const std::vector<int32_t>& keys() const { return keys_; }

   private:
    static std::vector<int32_t>& table() {
        static thread_local std::vector<int32_t> of_thread;
        return of_thread;
    }
    std::vector<int32_t>& table_;
    std::vector<int32_t> keys_;
};

// What one piece adds to vertices, `width` numbers each.
class VertexSums {
   public:
    VertexSums(int64_t vertices, int64_t width) : slots_(vertices), width_(width) {}

    // The sums of a vertex, zero at first; valid until the next call.
    double* of(int32_t vertex) {
        const int32_t slot = slots_.of(vertex, [&] { sums_.resize(sums_.size() + size_t(width_), 0.0); });
        return sums_.data() + int64_t(slot) * width_;
    }
    void add(int32_t vertex, const double* values) {
        double* to = of(vertex);
        for (int64_t c = 0; c < width_; ++c) to[c] += values[c];
    }

   private:
    friend struct Piece;
    Slots<0> slots_;
    int64_t width_;
    std::vector<double> sums_;
};

// The sums of a piece that is done.
struct Piece {
    std::vector<int32_t> vertices;
    std::vector<double> sums;

    Piece() = default;
    explicit Piece(VertexSums&& from) : vertices(from.slots_.keys()), sums(std::move(from.sums_)) {}

    template <typename T>
    void add_to(T* out, int64_t width) const {
        const double* from = sums.data();
        for (const int32_t vertex : vertices)
            for (int64_t c = 0; c < width; ++c) out[vertex * width + c] += T(*from++);
    }
};

// Calls body(view, first row, last row + 1, sums) for bands of rows, and adds each band's sums to out + view * vertices * width
// (to `out` itself where views share it).
template <typename T, typename Body>
void sum_over_bands(int64_t views, int64_t height, int64_t vertices, int64_t width, bool shared, T* out, int64_t threads,
                    const Body& body) {
    constexpr int64_t kRows = 32;  // of a band; fixed, so that the order of the sums does not depend on the threads
    const int64_t bands = (height + kRows - 1) / kRows;
    std::vector<Piece> pieces(static_cast<size_t>(views * bands));
    parallel_for(views * bands, 1, threads, [&](int64_t begin, int64_t) {
        const int64_t view = begin / bands, row = begin % bands * kRows;
        VertexSums sums(vertices, width);
        body(view, row, min_of(height, row + kRows), sums);
        pieces[size_t(begin)] = Piece(std::move(sums));
    });
    for (int64_t i = 0; i < views * bands; ++i)
        pieces[size_t(i)].add_to(out + (shared ? 0 : i / bands) * vertices * width, width);
}

}  // namespace somnia

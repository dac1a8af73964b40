// Sums over vertices that several pieces of work contribute to on the CPU: each piece adds to its own list, and the lists are
// added up in the order of the pieces, so the result has the same bits for any number of threads.
#pragma once

#include <vector>

#include "portable.h"

namespace somnia {

class VertexSums {
   public:
    // Sums of `width` numbers for each vertex below `vertices` that is touched. One is open on a thread at a time.
    void open(int64_t vertices, int64_t width) {
        width_ = width;
        if (int64_t(slots().size()) < vertices) slots().resize(size_t(vertices), -1);
    }
    // The sums of a vertex, zero at first; valid until the next call.
    double* of(int32_t vertex) {
        int32_t& slot = slots()[size_t(vertex)];
        if (slot < 0) {
            slot = int32_t(touched_.size());
            touched_.push_back(vertex);
            sums_.resize(sums_.size() + size_t(width_), 0.0);
        }
        return sums_.data() + int64_t(slot) * width_;
    }
    // Ends the piece; `of` must not be called after it.
    void close() {
        for (const int32_t vertex : touched_) slots()[size_t(vertex)] = -1;
    }
    template <typename T>
    void add_to(T* out) const {
        const double* from = sums_.data();
        for (const int32_t vertex : touched_)
            for (int64_t c = 0; c < width_; ++c) out[vertex * width_ + c] += T(*from++);
    }

   private:
    static std::vector<int32_t>& slots() {
        static thread_local std::vector<int32_t> of_thread;
        return of_thread;
    }
    int64_t width_ = 0;
    std::vector<int32_t> touched_;
    std::vector<double> sums_;
};

// Calls body(view, first row, last row + 1, sums) for bands of rows, and adds each band's sums to out + view * vertices * width
// (to `out` itself where views share it).
template <typename T, typename Body>
void sum_over_bands(int64_t views, int64_t height, int64_t vertices, int64_t width, bool shared, T* out, int64_t threads,
                    const Body& body) {
    constexpr int64_t kRows = 32;
    const int64_t bands = (height + kRows - 1) / kRows;
    std::vector<VertexSums> sums(static_cast<size_t>(views * bands));
    parallel_for(views * bands, 1, threads, [&](int64_t begin, int64_t) {
        const int64_t view = begin / bands, row = begin % bands * kRows;
        VertexSums& own = sums[size_t(begin)];
        own.open(vertices, width);
        body(view, row, min_of(height, row + kRows), own);
        own.close();
    });
    for (int64_t i = 0; i < views * bands; ++i) sums[size_t(i)].add_to(out + (shared ? 0 : i / bands) * vertices * width);
}

}  // namespace somnia

// What the native bodies of the ops share: vectors (vector.h), and rows shared out to threads.
//
// Tensors are float32 or bfloat16, arithmetic is float32. A function that Python calls takes addresses, int64_t and
// float, and last the number of threads; each thread's share is fixed by that number, so that results are the same bits
// run after run. Python has checked dtypes and sizes against native/functions.py; numbers in tensors that say where to read or
// write are checked here. The function returns null, or why it did nothing.

#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <type_traits>
#include <vector>

#include <omp.h>

#include "vector.h"

namespace leyden {

// Why a function did nothing, in words, or null.
typedef const char *Fault;

// The fault for which Python raises MemoryError.
constexpr Fault NO_MEMORY = "there is not enough memory";

// What a function of Python's runs in: an exception would end the process.
template <class F> Fault guarded(F &&work) {
    try {
        return work();
    } catch (const std::bad_alloc &) {
        return NO_MEMORY;
    }
}

// work(rank, size) on each thread of a team. One whose memory does not suffice is heard after the others.
template <class F> void team(int64_t threads, F &&work) {
    std::atomic<bool> failed{false};
#pragma omp parallel num_threads((int)threads)
    try {
        work(omp_get_thread_num(), omp_get_num_threads());
    } catch (const std::bad_alloc &) {
        failed = true;
    }
    if (failed) throw std::bad_alloc();
}

// work(begin, end, rank) on each thread's share of `count` rows.
template <class F> void share(int64_t count, int64_t threads, F &&work) {
    team(threads, [&](int64_t rank, int64_t size) {
        work(count * rank / size, count * (rank + 1) / size, (int)rank);
    });
}

// Whether low <= index[i] < high for all of them.
template <class I> bool within(const I *index, int64_t count, int64_t low, int64_t high) {
    bool fit = true;
    for (int64_t i = 0; i < count; i++) fit &= index[i] >= low && index[i] < high;
    return fit;
}

// Whether bounds [count + 1] rise from 0 or more to `end` at most.
inline bool rise(const int64_t *bounds, int64_t count, int64_t end) {
    bool fit = bounds[0] >= 0 && bounds[count] <= end;
    for (int64_t i = 0; i < count; i++) fit &= bounds[i] <= bounds[i + 1];
    return fit;
}

// What is wrong with slots, each of which one sequence writes.
inline Fault apart_from_each_other(const int64_t *slots, int64_t count, int64_t places) {
    if (!within(slots, count, 0, places)) return "a slot is none of the states'";
    return guarded([&]() -> Fault {
        std::vector<int64_t> sorted(slots, slots + count);
        std::sort(sorted.begin(), sorted.end());
        const bool twice = std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end();
        return twice ? "two sequences have one slot" : nullptr;
    });
}

// total[i] = the sum over rows of what work(begin, end, part) adds to part[i]. Blocks of rows are summed by themselves
// first: fewer terms a sum, smaller errors.
template <class F> void sum_over_rows(int64_t rows, int64_t width, int64_t threads, float *total, F &&work) {
    constexpr int64_t BLOCK = 64;
    std::vector<float> totals(threads * width);
    share(rows, threads, [&](int64_t begin, int64_t end, int rank) {
        std::vector<float> part(width);
        for (int64_t first = begin; first < end; first += BLOCK) {
            std::fill(part.begin(), part.end(), 0.0f);
            work(first, std::min(first + BLOCK, end), part.data());
            for (int64_t i = 0; i < width; i++) totals[rank * width + i] += part[i];
        }
    });
    std::fill(total, total + width, 0.0f);
    for (int64_t rank = 0; rank < threads; rank++)
        for (int64_t i = 0; i < width; i++) total[i] += totals[rank * width + i];
}

// work(T{}) for the dtype that Python named.
template <class F> Fault with_dtype(int64_t bfloat16, F &&work) {
    return guarded([&]() -> Fault {
        if (bfloat16)
            work(BFloat16{});
        else
            work(float{});
        return nullptr;
    });
}

}  // namespace leyden

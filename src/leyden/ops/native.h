// What the native bodies of the ops share: vectors of 16 floats, bfloat16, the exponential, and rows shared out to
// threads.
//
// Tensors are float32 or bfloat16, arithmetic is float32. Vectors are the compilers' own vector types, which every
// compiler turns into what the processor has. A function that Python calls takes addresses, int64_t and float, and
// last the number of threads; each thread's share is fixed by that number, so that results are the same bits run after
// run. Python has checked dtypes and sizes against native/functions.py; numbers in tensors that say where to read or
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

#ifdef __AVX512F__
#include <immintrin.h>
#endif
#include <omp.h>

namespace leyden {

constexpr int LANES = 16;

typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));

struct BFloat16 {
    uint16_t bits;
};

// To the nearest, ties to even; a NaN stays one. The processor's own instruction takes denormals for zero.
inline Halves narrow(Vector v) {
#ifdef __AVX512BF16__
    return (Halves)_mm512_cvtneps_pbh((__m512)v);
#else
    const Words bits = (Words)v;
    const Words rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return __builtin_convertvector(v == v ? rounded : bits >> 16 | 0x40, Halves);
#endif
}

inline Vector widen(Halves halves) {
#ifdef __AVX512F__
    return (Vector)(_mm512_cvtepu16_epi32((__m256i)halves) << 16);
#else
    return (Vector)(__builtin_convertvector(halves, Words) << 16);
#endif
}

// The first `count` of 16 elements; the other lanes hold `rest`. Whole vectors where `count` is known to be 16.
inline Vector load(const float *p, int count = LANES, float rest = 0) {
    Vector v = Vector{} + rest;
    std::memcpy(&v, p, count * sizeof *p);
    return v;
}

inline Vector load(const BFloat16 *p, int count = LANES, float rest = 0) {
    Halves halves = narrow(Vector{} + rest);
    std::memcpy(&halves, p, count * sizeof *p);
    return widen(halves);
}

inline void store(float *p, Vector v, int count = LANES) { std::memcpy(p, &v, count * sizeof *p); }

inline void store(BFloat16 *p, Vector v, int count = LANES) {
    const Halves halves = narrow(v);
    std::memcpy(p, &halves, count * sizeof *p);
}

// work(i, count) for every 16 of n elements, and for the rest; inlined twice, so that whole vectors stay whole.
template <class F> inline __attribute__((always_inline)) void vectors(int64_t n, F &&work) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) work(i, LANES);
    if (i < n) work(i, (int)(n - i));
}

typedef float Eight __attribute__((vector_size(32)));
typedef float Four __attribute__((vector_size(16)));

// The lanes of a vector meet half by half: 16, 8, 4, 2, 1.
template <class F> inline __attribute__((always_inline)) float meet(Vector v, F &&both) {
    Eight eight[2];
    std::memcpy(eight, &v, sizeof v);
    const Eight e = both(eight[0], eight[1]);
    Four four[2];
    std::memcpy(four, &e, sizeof e);
    const Four f = both(four[0], four[1]);
    return both(both(f[0], f[2]), both(f[1], f[3]));
}

inline float sum(Vector v) {
    return meet(v, [](auto a, auto b) { return a + b; });
}

inline float largest(Vector v) {
    return meet(v, [](auto a, auto b) { return a > b ? a : b; });
}

// x between bounds; a NaN stays one.
inline Vector clamp(Vector x, float low, float high) {
#ifdef __AVX512F__
    return (Vector)_mm512_min_ps(_mm512_set1_ps(high), _mm512_max_ps(_mm512_set1_ps(low), (__m512)x));
#else
    x = x < low ? Vector{} + low : x;
    return x > high ? Vector{} + high : x;
#endif
}

constexpr float POINT = 12582912.0f;  // 1.5 * 2^23: a sum with it has no bits behind the point

// x 2^n for a whole n, which may reach beyond the exponents of float32 on both sides.
inline Vector times_power(Vector x, Vector n) {
#ifdef __AVX512F__
    return (Vector)_mm512_scalef_ps((__m512)x, (__m512)n);
#else
    const Ints power = (Ints)(n + POINT) - (Ints)(Vector{} + POINT), half = power >> 1;
    return x * (Vector)((half + 127) << 23) * (Vector)((power - half + 127) << 23);
#endif
}

// e^x to within 2e-7 of itself: x = n ln 2 + r, and a polynomial in r (the coefficients of Cephes' expf).
inline Vector exp(Vector x) {
    x = clamp(x, -104.0f, 89.0f);  // to zero, to infinity
    const Vector n = x * 1.44269504f + POINT - POINT;
    const Vector r = x - n * 0.693359375f - n * -2.12194440e-4f;
    Vector p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    return times_power(p * (r * r) + (r + 1.0f), n);
}

inline Vector sigmoid(Vector x) { return 1.0f / (1.0f + exp(-x)); }

// Why a function did nothing, in words, or null.
typedef const char *Fault;

// What a function of Python's runs in: an exception would end the process.
template <class F> Fault guarded(F &&work) {
    try {
        return work();
    } catch (const std::bad_alloc &) {
        return "there is not enough memory";
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

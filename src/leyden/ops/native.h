// What the native bodies of the ops share: vectors of 16 floats, bfloat16, the exponential, and rows shared out to
// threads.
//
// Tensors are float32 or bfloat16, arithmetic is float32. Vectors are the compilers' own vector types, which every
// compiler turns into what the processor has. A function that Python calls takes addresses, int64_t and float, and
// last the number of threads; each thread's share is fixed by that number, so that results are the same bits run after
// run.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
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

inline float sum(Vector v) {
    float total = 0;
    for (int i = 0; i < LANES; i++) total += v[i];
    return total;
}

inline float largest(Vector v) {
    float found = v[0];
    for (int i = 1; i < LANES; i++) found = std::max(found, v[i]);
    return found;
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

// work(begin, end, rank) on each thread's share of `count` rows.
template <class F> void share(int64_t count, int threads, F &&work) {
#pragma omp parallel num_threads(threads)
    {
        const int64_t rank = omp_get_thread_num(), size = omp_get_num_threads();
        work(count * rank / size, count * (rank + 1) / size, (int)rank);
    }
}

// work(T{}) for the dtype that Python named.
template <class F> void with_dtype(int64_t bfloat16, F &&work) {
    if (bfloat16)
        work(BFloat16{});
    else
        work(float{});
}

}  // namespace leyden

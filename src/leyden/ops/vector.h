// Vectors of 16 floats on any processor.
//
// Where the processor has vectors of 16 floats (AVX-512), this is the compiler's own vector type. Elsewhere it is two or
// four of the processor's: compilers take vectors wider than the processor's apart too, but by way of memory, which costs
// up to ten times.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined __AVX2__ || defined __AVX512F__
// GCC 12 warns of its own header, where a vector that is to be undefined is initialised by itself (GCC's bug 105593).
#if defined __GNUC__ && !defined __clang__
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#if defined __GNUC__ && !defined __clang__
#pragma GCC diagnostic pop
#endif
#endif

namespace leyden {

constexpr int LANES = 16;

struct BFloat16 {
    uint16_t bits;
};

struct Int8 {
    int8_t value;
};

constexpr float POINT = 12582912.0f;  // 1.5 * 2^23: a sum with it has no bits behind the point

typedef float Four __attribute__((vector_size(16)));
typedef float Eight __attribute__((vector_size(32)));

// x > y ? x : y, so that of a NaN and a number the second is taken.
inline float larger(float x, float y) { return x > y ? x : y; }
inline Four larger(Four x, Four y) { return x > y ? x : y; }

#ifdef __AVX512F__

constexpr int SUMS = 24;  // vectors that stay in registers beside what is added to them

typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));

inline Eight larger(Eight x, Eight y) { return x > y ? x : y; }
inline Vector larger(Vector x, Vector y) { return x > y ? x : y; }
inline Vector spread(float x) { return Vector{} + x; }

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

inline Vector widen(Halves halves) { return (Vector)(_mm512_cvtepu16_epi32((__m256i)halves) << 16); }

template <class V> inline V take(const float *p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

template <class V> inline V take(const BFloat16 *p) {
    Halves halves;
    std::memcpy(&halves, p, sizeof halves);
    return widen(halves);
}

template <class V> inline V take(const Int8 *p) {
    return (V)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}

inline void put(float *p, Vector v) { std::memcpy(p, &v, sizeof v); }

inline void put(BFloat16 *p, Vector v) {
    const Halves halves = narrow(v);
    std::memcpy(p, &halves, sizeof halves);
}

// x between bounds; a NaN stays one.
inline Vector clamp(Vector x, float low, float high) {
    return (Vector)_mm512_min_ps(_mm512_set1_ps(high), _mm512_max_ps(_mm512_set1_ps(low), (__m512)x));
}

// x 2^n for a whole n, which may reach beyond the exponents of float32 on both sides.
inline Vector times_power(Vector x, Vector n) { return (Vector)_mm512_scalef_ps((__m512)x, (__m512)n); }

// The lanes of a vector meet half by half, from 16 to 4.
template <class F> inline Four fours_meet(Vector v, F &&both) {
    const Eight e = both((Eight)_mm512_castps512_ps256((__m512)v),
                         (Eight)_mm256_castpd_ps(_mm512_extractf64x4_pd((__m512d)v, 1)));
    return both((Four)_mm256_castps256_ps128((__m256)e), (Four)_mm256_extractf128_ps((__m256)e, 1));
}

#else

#ifdef __AVX2__
constexpr int WIDE = 8, SUMS = 6;
#else
constexpr int WIDE = 4, SUMS = 3;
#endif

// One of the processor's own vectors.
typedef float Part __attribute__((vector_size(4 * WIDE)));
typedef int32_t PartInts __attribute__((vector_size(4 * WIDE)));
typedef uint32_t PartWords __attribute__((vector_size(4 * WIDE)));
typedef uint16_t PartHalves __attribute__((vector_size(2 * WIDE)));
typedef int8_t PartBytes __attribute__((vector_size(WIDE)));

template <class H> struct Two {
    H low, high;
};

template <class H> constexpr int WIDTH = WIDE;
template <class H> constexpr int WIDTH<Two<H>> = 2 * WIDTH<H>;

template <class H> inline Two<H> operator+(Two<H> x, Two<H> y) { return {x.low + y.low, x.high + y.high}; }
template <class H> inline Two<H> operator-(Two<H> x, Two<H> y) { return {x.low - y.low, x.high - y.high}; }
template <class H> inline Two<H> operator*(Two<H> x, Two<H> y) { return {x.low * y.low, x.high * y.high}; }
template <class H> inline Two<H> operator/(Two<H> x, Two<H> y) { return {x.low / y.low, x.high / y.high}; }
template <class H> inline Two<H> operator+(Two<H> x, float y) { return {x.low + y, x.high + y}; }
template <class H> inline Two<H> operator-(Two<H> x, float y) { return {x.low - y, x.high - y}; }
template <class H> inline Two<H> operator*(Two<H> x, float y) { return {x.low * y, x.high * y}; }
template <class H> inline Two<H> operator/(Two<H> x, float y) { return {x.low / y, x.high / y}; }
template <class H> inline Two<H> operator+(float x, Two<H> y) { return {x + y.low, x + y.high}; }
template <class H> inline Two<H> operator-(float x, Two<H> y) { return {x - y.low, x - y.high}; }
template <class H> inline Two<H> operator*(float x, Two<H> y) { return {x * y.low, x * y.high}; }
template <class H> inline Two<H> operator/(float x, Two<H> y) { return {x / y.low, x / y.high}; }
template <class H> inline Two<H> operator-(Two<H> x) { return {-x.low, -x.high}; }
template <class H, class Y> inline Two<H> &operator+=(Two<H> &x, Y y) { return x = x + y; }
template <class H, class Y> inline Two<H> &operator*=(Two<H> &x, Y y) { return x = x * y; }

#ifdef __AVX2__
using Vector = Two<Part>;

inline Part larger(Part x, Part y) { return x > y ? x : y; }
inline Vector spread(float x) { return {Part{} + x, Part{} + x}; }
#else
using Vector = Two<Two<Part>>;

inline Vector spread(float x) {
    const Two<Part> two{Part{} + x, Part{} + x};
    return {two, two};
}
#endif

template <class H> inline Two<H> larger(Two<H> x, Two<H> y) {
    return {larger(x.low, y.low), larger(x.high, y.high)};
}

// A vector from memory, part by part.
template <class V> struct Taken {
    static V from(const float *p) {
        V v;
        std::memcpy(&v, p, sizeof v);
        return v;
    }
    static V from(const BFloat16 *p) {
        PartHalves halves;
        std::memcpy(&halves, p, sizeof halves);
        return (V)(__builtin_convertvector(halves, PartWords) << 16);
    }
    static V from(const Int8 *p) {
#ifdef __AVX2__
        return (V)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
#else
        PartBytes bytes;
        std::memcpy(&bytes, p, sizeof bytes);
        return __builtin_convertvector(__builtin_convertvector(bytes, PartInts), V);
#endif
    }
};

template <class H> struct Taken<Two<H>> {
    template <class T> static Two<H> from(const T *p) { return {Taken<H>::from(p), Taken<H>::from(p + WIDTH<H>)}; }
};

template <class V, class T> inline V take(const T *p) { return Taken<V>::from(p); }

inline void put(float *p, Part v) { std::memcpy(p, &v, sizeof v); }

// To the nearest, ties to even; a NaN stays one.
inline void put(BFloat16 *p, Part v) {
    const PartWords bits = (PartWords)v;
    const PartWords rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    const PartWords word = v == v ? rounded : bits >> 16 | 0x40;
#ifdef __AVX2__
    const __m256i words = (__m256i)word;
    const __m128i halves = _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
#else
    const PartHalves halves = __builtin_convertvector(word, PartHalves);
#endif
    std::memcpy(p, &halves, sizeof halves);
}

template <class T, class H> inline void put(T *p, Two<H> v) { put(p, v.low), put(p + WIDTH<H>, v.high); }

inline Part clamp(Part x, float low, float high) {
    x = x < low ? Part{} + low : x;
    return x > high ? Part{} + high : x;
}

// x between bounds; a NaN stays one.
template <class H> inline Two<H> clamp(Two<H> x, float low, float high) {
    return {clamp(x.low, low, high), clamp(x.high, low, high)};
}

inline Part times_power(Part x, Part n) {
    const PartInts power = (PartInts)(n + POINT) - (PartInts)(Part{} + POINT), half = power >> 1;
    return x * (Part)((half + 127) << 23) * (Part)((power - half + 127) << 23);
}

// x 2^n for a whole n, which may reach beyond the exponents of float32 on both sides.
template <class H> inline Two<H> times_power(Two<H> x, Two<H> n) {
    return {times_power(x.low, n.low), times_power(x.high, n.high)};
}

template <class F> inline Four fours_meet(Four v, F &&) { return v; }

#ifdef __AVX2__
template <class F> inline Four fours_meet(Eight v, F &&both) {
    return both((Four)_mm256_castps256_ps128((__m256)v), (Four)_mm256_extractf128_ps((__m256)v, 1));
}
#endif

// The lanes of a vector meet half by half, from 16 to 4.
template <class H, class F> inline Four fours_meet(Two<H> v, F &&both) { return fours_meet(both(v.low, v.high), both); }

#endif

// The first `count` of 16 elements; the other lanes hold `rest`. Whole vectors where `count` is known to be 16.
template <class T>
inline __attribute__((always_inline)) Vector load(const T *p, int count = LANES, float rest = 0) {
    if (count == LANES) return take<Vector>(p);
    T some[LANES] = {};
    if constexpr (!std::is_same<T, Int8>::value) put(some, spread(rest));
    std::memcpy(some, p, count * sizeof *p);
    return take<Vector>(some);
}

inline float read(const float *p) { return *p; }

inline float read(const BFloat16 *p) {
    const uint32_t bits = (uint32_t)p->bits << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

template <class T> inline __attribute__((always_inline)) void store(T *p, Vector v, int count = LANES) {
    if (count == LANES) return put(p, v);
    T all[LANES];
    put(all, v);
    std::memcpy(p, all, count * sizeof *p);
}

// work(i, count) for every 16 of n elements, and for the rest; inlined twice, so that whole vectors stay whole.
template <class F> inline __attribute__((always_inline)) void vectors(int64_t n, F &&work) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) work(i, LANES);
    if (i < n) work(i, (int)(n - i));
}

// The lanes of a vector meet half by half: 16, 8, 4, 2, 1.
template <class F> inline __attribute__((always_inline)) float meet(Vector v, F &&both) {
    const Four f = fours_meet(v, both);
    return both(both(f[0], f[2]), both(f[1], f[3]));
}

inline float sum(Vector v) {
    return meet(v, [](auto a, auto b) { return a + b; });
}

inline float largest(Vector v) {
    return meet(v, [](auto a, auto b) { return larger(a, b); });
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

}  // namespace leyden

// How products lie in registers: four rows of one factor in the quarters of a vector, and a quarter of a vector's worth of
// the other factor's row in all four of them. What products.h has its loops from.

#pragma once

#include "vector.h"

namespace leyden {

// What the inputs of products are held in where the model computes in T.
#ifdef __AVX512BF16__
template <class T> using Input = T;
#else
template <class T> using Input = float;
#endif

// A quarter of a vector: how many elements it holds, how one is spread, how two vectors are multiplied into sums.
template <class X> struct Quarter;

template <> struct Quarter<float> {
    static constexpr int SIZE = 4;
    typedef Vector Whole;
    static Whole spread(const float *p) {
#ifdef __AVX512F__
        return (Vector)_mm512_broadcast_f32x4(_mm_loadu_ps(p));
#elif defined __AVX2__
        const Part two = (Part)_mm256_broadcast_ps((const __m128 *)p);
        return {two, two};
#else
        const Four one = take<Four>(p);
        return {{one, one}, {one, one}};
#endif
    }
    static Whole whole(const float *p) { return load(p); }
    static Vector multiply(Vector total, Whole w, Whole x) { return total + w * x; }
};

#ifdef __AVX512BF16__
template <> struct Quarter<BFloat16> {
    static constexpr int SIZE = 8;
    typedef __m512bh Whole;
    static Whole spread(const BFloat16 *p) {
        return (Whole)_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)p));
    }
    static Whole whole(const BFloat16 *p) { return (Whole)_mm512_loadu_si512(p); }
    static Vector multiply(Vector total, Whole w, Whole x) { return (Vector)_mm512_dpbf16_ps((__m512)total, w, x); }
};
#endif

// The four lanes of each quarter meet, of four vectors at once: lane 4 i + j is the sum of quarter i of vector j.
inline Vector meet(const Vector *v) {
#ifdef __AVX512F__
    const auto halve = [](Vector a, Vector b) {
        return _mm512_add_ps(_mm512_unpacklo_ps((__m512)a, (__m512)b), _mm512_unpackhi_ps((__m512)a, (__m512)b));
    };
    const __m512d a = (__m512d)halve(v[0], v[1]), b = (__m512d)halve(v[2], v[3]);
    return (Vector)_mm512_unpacklo_pd(a, b) + (Vector)_mm512_unpackhi_pd(a, b);
#elif defined __AVX2__
    const auto meet = [](Part a, Part b, Part c, Part d) {
        return (Part)_mm256_hadd_ps(_mm256_hadd_ps((__m256)a, (__m256)b), _mm256_hadd_ps((__m256)c, (__m256)d));
    };
    return {meet(v[0].low, v[1].low, v[2].low, v[3].low), meet(v[0].high, v[1].high, v[2].high, v[3].high)};
#else
    const auto meet = [](Four a, Four b, Four c, Four d) {
        const Four first{a[0], b[0], c[0], d[0]}, second{a[1], b[1], c[1], d[1]};
        const Four third{a[2], b[2], c[2], d[2]}, last{a[3], b[3], c[3], d[3]};
        return (first + second) + (third + last);
    };
    return {{meet(v[0].low.low, v[1].low.low, v[2].low.low, v[3].low.low),
             meet(v[0].low.high, v[1].low.high, v[2].low.high, v[3].low.high)},
            {meet(v[0].high.low, v[1].high.low, v[2].high.low, v[3].high.low),
             meet(v[0].high.high, v[1].high.high, v[2].high.high, v[3].high.high)}};
#endif
}

// Keeps a vector in registers. Compilers would load it again for each product: eight loads for eight products, which is
// more than a processor with AVX2 has the ports for.
template <class V> inline void keep(V &v) {
#if defined __AVX2__ && !defined __AVX512F__
    asm("" : "+x"(v.low), "+x"(v.high));
#else
    (void)v;
#endif
}

// n weights as products take them. Every int8 is a bfloat16: those hold whole numbers up to 256.
template <class W, class X> inline void convert(const W *w, int n, X *to) {
    for (int i = 0; i < n; i += LANES) store(to + i, load(w + i));
}

#ifdef __AVX512BF16__
template <> inline void convert(const Int8 *w, int n, BFloat16 *to) {
    int i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES)
        _mm512_storeu_si512(to + i, (__m512i)_mm512_cvtne2ps_pbh((__m512)load(w + i + LANES), (__m512)load(w + i)));
    if (i < n) store(to + i, load(w + i));
}
#endif

#ifdef __AVX512F__
// to[k] has the k-th quarter of each of four vectors.
template <class V> inline void regroup(__m512i a, __m512i b, __m512i c, __m512i d, V *to) {
    const __m512i ab = _mm512_shuffle_i32x4(a, b, 0x44), cd = _mm512_shuffle_i32x4(c, d, 0x44);
    const __m512i ab2 = _mm512_shuffle_i32x4(a, b, 0xee), cd2 = _mm512_shuffle_i32x4(c, d, 0xee);
    to[0] = (V)_mm512_shuffle_i32x4(ab, cd, 0x88), to[1] = (V)_mm512_shuffle_i32x4(ab, cd, 0xdd);
    to[2] = (V)_mm512_shuffle_i32x4(ab2, cd2, 0x88), to[3] = (V)_mm512_shuffle_i32x4(ab2, cd2, 0xdd);
}
#endif

// T columns of one row of results.
template <int T> struct Columns {
    typedef float Part __attribute__((vector_size(4 * T)));
};

// Rows of T columns from vectors whose quarters are four columns of each row.
template <int T> inline void transpose(const Vector *v, typename Columns<T>::Part *rows) {
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < T / 4; k++) std::memcpy((float *)(rows + i) + 4 * k, (const float *)(v + k) + 4 * i, 16);
}

#ifndef __AVX512F__
template <> inline void transpose<4>(const Vector *v, Four *rows) {
#ifdef __AVX2__
    rows[0] = (Four)_mm256_castps256_ps128((__m256)v->low), rows[1] = (Four)_mm256_extractf128_ps((__m256)v->low, 1);
    rows[2] = (Four)_mm256_castps256_ps128((__m256)v->high), rows[3] = (Four)_mm256_extractf128_ps((__m256)v->high, 1);
#else
    rows[0] = v->low.low, rows[1] = v->low.high, rows[2] = v->high.low, rows[3] = v->high.high;
#endif
}
#endif

#ifdef __AVX512F__
template <> inline void transpose<8>(const Vector *v, Columns<8>::Part *rows) {
    const __m512d a = (__m512d)v[0], b = (__m512d)v[1];
    const __m512d first = _mm512_permutex2var_pd(a, _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), b);
    const __m512d last = _mm512_permutex2var_pd(a, _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15), b);
    rows[0] = (Eight)_mm512_castpd512_pd256(first), rows[1] = (Eight)_mm512_extractf64x4_pd(first, 1);
    rows[2] = (Eight)_mm512_castpd512_pd256(last), rows[3] = (Eight)_mm512_extractf64x4_pd(last, 1);
}

template <> inline void transpose<16>(const Vector *v, Vector *rows) {
    regroup((__m512i)v[0], (__m512i)v[1], (__m512i)v[2], (__m512i)v[3], rows);
}
#endif

}  // namespace leyden

// Products of a matrix with many rows at once, such that a row's result never depends on the rows beside it.
//
// Four rows of the weights meet four rows of the input in registers: 16 sums, each a vector whose lanes run along the
// width and meet at the end. A sum has the same terms in the same order in whatever tile it lands, so that its bits are
// the same for every batch and every number of threads.
//
// The input is float32, or bfloat16 where the model computes in bfloat16 and the processor multiplies pairs of it
// (AVX512_BF16): inputs of products are then rounded as the model's own modules round them; sums are float32 always.

#pragma once

#include "native.h"

namespace leyden {

struct Int8 {
    int8_t value;
};

// What the inputs of products are held in where the model computes in T.
#ifdef __AVX512BF16__
template <class T> using Input = T;
#else
template <class T> using Input = float;
#endif

constexpr int TILE = 4;           // rows of weights, and rows of input, that meet at once
constexpr int AHEAD = 2 * TILE;   // rows of weights fetched before their turn: the caches would wait at every page

inline Vector load(const Int8 *p) {
#ifdef __AVX512F__
    return (Vector)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
#else
    Vector v;
    for (int i = 0; i < LANES; i++) v[i] = p[i].value;
    return v;
#endif
}

// One step along the width: what is loaded of a row, `COUNT` elements of it, and how two of them are multiplied into a
// sum.
template <class X> struct Step {
    static constexpr int WIDTH = LANES;
    typedef Vector Part;
    template <int COUNT, class W> static Part part(const W *p) { return load(p); }
    static Vector multiply(Vector total, Part w, Part x) { return total + w * x; }
};

#ifdef __AVX512BF16__
template <> struct Step<BFloat16> {
    static constexpr int WIDTH = 2 * LANES;
    typedef __m512bh Part;
    template <int COUNT> static Part part(const BFloat16 *p) {
        if (COUNT == WIDTH) return (Part)_mm512_loadu_si512(p);
        return (Part)_mm512_zextsi256_si512(_mm256_loadu_si256((const __m256i *)p));
    }
    template <int COUNT> static Part part(const Int8 *p) {  // exact: bfloat16 holds whole numbers up to 256
        return _mm512_cvtne2ps_pbh((__m512)(COUNT == WIDTH ? load(p + LANES) : Vector{}), (__m512)load(p));
    }
    static Vector multiply(Vector total, Part w, Part x) { return (Vector)_mm512_dpbf16_ps((__m512)total, w, x); }
};
#endif

// sums[b][j] = the sum of the lanes of total[j * TILE + b], each as sum() adds them.
inline __attribute__((always_inline)) void sum_tile(const Vector *total, Four *sums) {
#ifdef __AVX512F__
    __m512 four[TILE];
#pragma GCC unroll 4
    for (int j = 0; j < TILE; j++) {
        const __m512 *t = (const __m512 *)total + j * TILE;
        const __m512 a = _mm512_add_ps(_mm512_shuffle_f32x4(t[0], t[1], 0x44), _mm512_shuffle_f32x4(t[0], t[1], 0xee));
        const __m512 b = _mm512_add_ps(_mm512_shuffle_f32x4(t[2], t[3], 0x44), _mm512_shuffle_f32x4(t[2], t[3], 0xee));
        four[j] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
    }
    const auto halve = [](__m512 a, __m512 b) {
        return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
    };
    const __m512 a = halve(four[0], four[1]), b = halve(four[2], four[3]);
    _mm512_storeu_ps(sums, _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd)));
#else
    for (int j = 0; j < TILE; j++)
        for (int b = 0; b < TILE; b++) sums[b][j] = sum(total[j * TILE + b]);
#endif
}

// Rows of input: row i is at x + stride * (index ? index[i] : i).
template <class X> struct Rows {
    const X *x;
    int64_t stride;
    int count;
    const int32_t *index = nullptr;

    const X *operator[](int i) const { return x + stride * (index ? index[i] : i); }
};

// sums[b][j] = w[j] . x[b] for B rows of input; `ahead` elements behind, weights are fetched.
template <int B, bool FETCH, class W, class X>
inline void tile(const W *const *w, const X *const *x, int n, int64_t ahead, Four *sums) {
    using S = Step<X>;
    Vector total[TILE * TILE];
#pragma GCC unroll 16
    for (int k = 0; k < TILE * TILE; k++) total[k] = Vector{};
    const auto step = [&](int i, auto count) __attribute__((always_inline)) {
        typename S::Part part[TILE];
#pragma GCC unroll 4
        for (int j = 0; j < TILE; j++) {
            if (FETCH) __builtin_prefetch(w[j] + ahead + i);
            part[j] = S::template part<count>(w[j] + i);
        }
#pragma GCC unroll 4
        for (int b = 0; b < B; b++) {
            const typename S::Part xb = S::template part<count>(x[b] + i);
#pragma GCC unroll 4
            for (int j = 0; j < TILE; j++) total[j * TILE + b] = S::multiply(total[j * TILE + b], part[j], xb);
        }
    };
    int i = 0;
    for (; i + S::WIDTH <= n; i += S::WIDTH) step(i, std::integral_constant<int, S::WIDTH>{});
    if (i < n) step(i, std::integral_constant<int, LANES>{});
    sum_tile(total, sums);
}

// sums[b][j] of up to TILE rows of input.
template <bool FETCH, class W, class X>
inline void tile(int count, const W *const *w, const X *const *x, int n, int64_t ahead, Four *sums) {
    if (count == 4) tile<4, FETCH>(w, x, n, ahead, sums);
    else if (count == 3) tile<3, FETCH>(w, x, n, ahead, sums);
    else if (count == 2) tile<2, FETCH>(w, x, n, ahead, sums);
    else tile<1, FETCH>(w, x, n, ahead, sums);
}

// y[b][r] = scale[r] * (w[r] . x[b]) for weight rows r from begin to end and all rows of input; n is a multiple of 16.
// A null scale is 1. Results leave in whole lines of the cache: rows of y lie powers of two apart, and would push each
// other out of it line by line.
template <class W, class X>
void product(const W *w, int64_t stride, const float *scale, int n, int begin, int end, Rows<X> x, float *y,
             int64_t y_stride) {
    constexpr int BLOCK = 32;  // rows of input
    alignas(64) float block[BLOCK][LANES];
    for (int r = begin; r < end; r += LANES) {
        const int columns = std::min(LANES, end - r);
        for (int first = 0; first < x.count; first += BLOCK) {
            const int rows = std::min(BLOCK, x.count - first);
            for (int column = 0; column < columns; column += TILE) {
                const int valid = std::min(TILE, columns - column);
                const W *weights[TILE];
                Four scales = Four{} + 1;
                for (int j = 0; j < TILE; j++) weights[j] = w + stride * (r + column + std::min(j, valid - 1));
                if (scale) std::memcpy(&scales, scale + r + column, valid * sizeof(float));
                for (int b = 0; b < rows; b += TILE) {
                    const int count = std::min(TILE, rows - b);
                    const X *inputs[TILE];
                    Four sums[TILE];
                    for (int k = 0; k < count; k++) inputs[k] = x[first + b + k];
                    if (first + b == 0) tile<true>(count, weights, inputs, n, AHEAD * stride, sums);
                    else tile<false>(count, weights, inputs, n, 0, sums);
                    for (int k = 0; k < count; k++) {
                        const Four scaled = sums[k] * scales;
                        std::memcpy(&block[b + k][column], &scaled, sizeof scaled);
                    }
                }
            }
            for (int b = 0; b < rows; b++) store(y + (first + b) * y_stride + r, load(block[b]), columns);
        }
    }
}

}  // namespace leyden

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

inline Vector load(const Int8 *p, int count = LANES) {
    typedef int8_t Bytes __attribute__((vector_size(LANES)));
    Bytes bytes = {};
    std::memcpy(&bytes, p, count);
    return __builtin_convertvector(bytes, Vector);
}

// One step along the width: what is loaded of a row, and how two of them are multiplied into a sum.
template <class X> struct Step {
    static constexpr int WIDTH = LANES;
    typedef Vector Part;
    template <class W> static Part part(const W *p, int) { return load(p); }
    static void multiply(Vector &total, Part w, Part x) { total += w * x; }
};

#ifdef __AVX512BF16__
template <> struct Step<BFloat16> {
    static constexpr int WIDTH = 2 * LANES;
    typedef __m512bh Part;
    // `count` elements, 16 or 32; zeros behind them.
    static Part part(const BFloat16 *p, int count) {
        if (count == WIDTH) return (Part)_mm512_loadu_si512(p);
        return (Part)_mm512_zextsi256_si512(_mm256_loadu_si256((const __m256i *)p));
    }
    static Part part(const Int8 *p, int count) {  // exact: whole numbers up to 256 are
        const Vector low = load(p), high = count == WIDTH ? load(p + LANES) : Vector{};
        return _mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
    }
    static void multiply(Vector &total, Part w, Part x) { total = (Vector)_mm512_dpbf16_ps((__m512)total, w, x); }
};
#endif

// sums[b * TILE + j] = the sum of the lanes of total[j * TILE + b], each as sum() adds them.
inline void sum_tile(const Vector *total, float *sums) {
#ifdef __AVX512F__
    __m512 four[TILE];
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
        for (int b = 0; b < TILE; b++) sums[b * TILE + j] = sum(total[j * TILE + b]);
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

// sums[b * TILE + j] = w[j] . x[b] for B rows of input; `ahead` elements behind, weights are fetched.
template <int B, class W, class X>
inline void tile(const W *const *w, const X *const *x, int n, int64_t ahead, float *sums) {
    using S = Step<X>;
    Vector total[TILE * TILE] = {};
    const auto step = [&](int i, int count) __attribute__((always_inline)) {
        typename S::Part part[TILE];
        for (int j = 0; j < TILE; j++) part[j] = S::part(w[j] + i, count);
        for (int b = 0; b < B; b++) {
            const typename S::Part xb = S::part(x[b] + i, count);
            for (int j = 0; j < TILE; j++) S::multiply(total[j * TILE + b], part[j], xb);
        }
    };
    int i = 0;
    for (; i + S::WIDTH <= n; i += S::WIDTH) {
        if (ahead)
            for (int j = 0; j < TILE; j++) __builtin_prefetch(w[j] + ahead + i);
        step(i, S::WIDTH);
    }
    if (i < n) step(i, LANES);
    sum_tile(total, sums);
}

// y[b][r] = scale[r] * (w[r] . x[b]) for weight rows r from begin to end and all rows of input; n is a multiple of 16.
template <class W, class X>
void product(const W *w, int64_t stride, const float *scale, int n, int begin, int end, Rows<X> x, float *y,
             int64_t y_stride) {
    // What is not of the input's type is turned into it once where it meets more than one tile.
    const bool turn = !std::is_same<W, X>::value && x.count > TILE;
    thread_local std::vector<X> turned;
    if (turn && (int64_t)turned.size() < TILE * n) turned.resize(TILE * n);
    for (int r = begin; r < end; r += TILE) {
        const int rows = std::min(TILE, end - r);
        const W *weights[TILE];
        for (int j = 0; j < TILE; j++) weights[j] = w + stride * (r + std::min(j, rows - 1));
        const auto meet = [&](auto *const *from, int b, int64_t ahead) {
            const X *inputs[TILE];
            const int count = std::min(TILE, x.count - b);
            for (int k = 0; k < count; k++) inputs[k] = x[b + k];
            float sums[TILE * TILE];
            if (count == 4) tile<4>(from, inputs, n, ahead, sums);
            else if (count == 3) tile<3>(from, inputs, n, ahead, sums);
            else if (count == 2) tile<2>(from, inputs, n, ahead, sums);
            else tile<1>(from, inputs, n, ahead, sums);
            for (int k = 0; k < count; k++)
                for (int j = 0; j < rows; j++)
                    y[(b + k) * y_stride + r + j] = scale ? sums[k * TILE + j] * scale[r + j] : sums[k * TILE + j];
        };
        if (!turn) {
            for (int b = 0; b < x.count; b += TILE) meet(weights, b, b ? 0 : AHEAD * stride);
            continue;
        }
        const X *copies[TILE];
        for (int j = 0; j < TILE; j++) {
            for (int i = 0; i < n; i += LANES) {
                __builtin_prefetch(weights[j] + AHEAD * stride + i);
                store(turned.data() + j * n + i, load(weights[j] + i));
            }
            copies[j] = turned.data() + j * n;
        }
        for (int b = 0; b < x.count; b += TILE) meet(copies, b, 0);
    }
}

}  // namespace leyden

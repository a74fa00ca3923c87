// Products of a matrix with many rows at once, such that a row's result never depends on the rows beside it.
//
// Four rows of the input lie in a vector together, a quarter of its lanes each; a quarter of a vector's worth of one
// row of the weights is spread over all four quarters and multiplied with them. One or two rows are spread themselves,
// and four rows of the weights share a vector. Either way a sum is four partial sums, each in the order of the width,
// that meet at the end: its bits are the same for every batch and every number of threads.
//
// The input is float32, or bfloat16 where the model computes in bfloat16 and the processor multiplies pairs of it
// (AVX512_BF16): inputs of products are then rounded as the model's own modules round them; sums are float32 always.

#pragma once

#include "native.h"
#include "quarters.h"
#include "upcoming.h"

namespace leyden {

constexpr int AHEAD = 2;  // tiles whose weights are fetched before their turn: the caches would wait at every page

// What meets in registers: rows of weights, and fours of input rows. Where there is one four, more of the weights.
#ifdef __AVX512F__
constexpr int TILE = 8, FOURS = 3, TALL = 16;
#else
constexpr int TILE = 4, FOURS = 1, TALL = 4;
#endif

// Rows of input: row i is at x + stride * (index ? index[i] : i).
template <class X> struct Rows {
    const X *x;
    int64_t stride;
    int count;
    const int32_t *index = nullptr;

    const X *operator[](int i) const { return x + stride * (index ? index[i] : i); }
};

// Rows of input by fours, whose quarters of vectors follow each other; behind the last row are zeros.
template <class X> inline const X *pack(Rows<X> x, int first, int count, int n) {
    constexpr int SIZE = Quarter<X>::SIZE;
    thread_local std::vector<Vector> kept;
    kept.resize((count + 3) / 4 * n / SIZE);
    X *packed = (X *)kept.data();
    for (int row = 0; row < (count + 3) / 4 * 4; row++) {
        X *to = packed + row / 4 * 4 * n + row % 4 * SIZE;
        const X *from = row < count ? x[first + row] : nullptr;
        for (int i = 0; i < n; i += SIZE)
            if (from) std::memcpy((void *)(to + 4 * i), from + i, 16);
            else std::memset((void *)(to + 4 * i), 0, 16);
    }
    return packed;
}

// Where results go: row b to y + stride * b, of `rows` rows and `columns` columns, times the scales of the columns.
struct Results {
    float *y;
    int64_t stride;
    int rows, columns;
    const float *scale;  // or null
};

// results = the products of T rows of weights, as far as there are columns, with F fours of input rows.
template <int T, int F, bool FETCH, class W, class X>
inline void tile(const X *const *w, const X *x, int n, Fetch<W> next, const Results &to) {
    using Q = Quarter<X>;
    constexpr int LINE = 64 / sizeof(X);
    Vector total[F][T];
#pragma GCC unroll 32
    for (int k = 0; k < F * T; k++) total[k / T][k % T] = Vector{};
    const auto step = [&](int i) __attribute__((always_inline)) {
        typename Q::Whole part[F];
#pragma GCC unroll 4
        for (int f = 0; f < F; f++) part[f] = Q::whole(x + 4 * (f * n + i)), keep(part[f]);
#pragma GCC unroll 16
        for (int j = 0; j < T; j++) {
            const typename Q::Whole weight = Q::spread(w[j] + i);
#pragma GCC unroll 4
            for (int f = 0; f < F; f++) total[f][j] = Q::multiply(total[f][j], weight, part[f]);
        }
    };
    int i = 0;
    for (; i + LINE <= n; i += LINE) {
        if (FETCH) {
#pragma GCC unroll 16
            for (int j = 0; j < T; j++) fetch_soon(next.row + j * next.stride + i);
        }
#pragma GCC unroll 4
        for (int q = 0; q < LINE; q += Q::SIZE) step(i + q);
    }
    for (; i < n; i += Q::SIZE) step(i);
    typedef typename Columns<T>::Part Part;
    const int columns = std::min(T, to.columns);
    Part scale = Part{} + 1;
    if (to.scale) std::memcpy(&scale, to.scale, 4 * columns);
#pragma GCC unroll 4
    for (int f = 0; f < F; f++) {
        Vector sums[T / 4];
        Part rows[4];
#pragma GCC unroll 4
        for (int k = 0; k < T / 4; k++) sums[k] = meet(total[f] + 4 * k);
        transpose<T>(sums, rows);
        float *y = to.y + 4 * f * to.stride;
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            if (4 * f + i >= to.rows) break;
            const Part row = rows[i] * scale;
            if (columns == T) std::memcpy(y + i * to.stride, &row, sizeof row);
            else std::memcpy(y + i * to.stride, &row, 4 * columns);
        }
    }
}

// Of how many rows of input at most w is interleaved, as far as the processor goes.
template <class W, class X> constexpr int INTERLEAVED = 0;

#ifdef __AVX512F__
template <class X> constexpr int INTERLEAVED<X, X> = 2;

// A line of four rows of weights: part[k] has the k-th quarter of each.
template <class X> inline void interleave(const X *const *w, int i, typename Quarter<X>::Whole *part) {
    const auto row = [&](int j) { return _mm512_loadu_si512(w[j] + i); };
    regroup(row(0), row(1), row(2), row(3), part);
}
#endif

#if defined __AVX2__ && !defined __AVX512F__
template <class W> constexpr int INTERLEAVED<W, float> = 1;

template <class W> inline void interleave(const W *const *w, int i, Vector *part) {
    for (int k = 0; k < 4; k += 2, i += 8) {
        const auto row = [&](int j) { return (__m256)take<Part>(w[j] + i); };
        const __m256 a = row(0), b = row(1), c = row(2), d = row(3);
        const auto two = [](__m256 x, __m256 y, auto which) { return (Part)_mm256_permute2f128_ps(x, y, which); };
        constexpr std::integral_constant<int, 0x20> low{};
        constexpr std::integral_constant<int, 0x31> high{};
        part[k] = {two(a, b, low), two(c, d, low)}, part[k + 1] = {two(a, b, high), two(c, d, high)};
    }
}
#endif

#ifdef __AVX512BF16__
template <> inline constexpr int INTERLEAVED<Int8, BFloat16> = 2;

inline void interleave(const Int8 *const *w, int i, __m512bh *part) {
    const auto row = [&](int j) { return _mm256_loadu_si256((const __m256i *)(w[j] + i)); };
    const auto wide = [](__m128i bytes) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)); };
    const auto convert = [&](__m256i v) {
        return _mm512_cvtne2ps_pbh(wide(_mm256_extracti128_si256(v, 1)), wide(_mm256_castsi256_si128(v)));
    };
    const auto first = [&](__m256i a, __m256i b) { return convert(_mm256_permute2x128_si256(a, b, 0x20)); };
    const auto last = [&](__m256i a, __m256i b) { return convert(_mm256_permute2x128_si256(a, b, 0x31)); };
    const __m256i ab = _mm256_unpacklo_epi64(row(0), row(1)), cd = _mm256_unpacklo_epi64(row(2), row(3));
    const __m256i ab2 = _mm256_unpackhi_epi64(row(0), row(1)), cd2 = _mm256_unpackhi_epi64(row(2), row(3));
    part[0] = first(ab, cd), part[1] = first(ab2, cd2), part[2] = last(ab, cd), part[3] = last(ab2, cd2);
}
#endif

// block[b][j] = w[j] . x[b] for `columns` rows of weights, 16 at most, and B of input; n is a multiple of a line.
template <int B, class W, class X>
void multiply_few(const W *w, int64_t stride, int n, int columns, const X *const *x, Fetch<W> next,
                  float (*block)[LANES]) {
    using Q = Quarter<X>;
    Vector total[B][4] = {};  // of four rows of weights that lie four apart
    const W *rows[4][4];
    for (int j = 0; j < LANES; j++) rows[j % 4][j / 4] = w + stride * std::min(j, columns - 1);
    for (int i = 0; i < n; i += 4 * Q::SIZE)
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++) {
            typename Q::Whole part[4];
            for (int j = 0; j < 4; j++) fetch_soon(next.row + (4 * j + k) * next.stride + i);
            interleave(rows[k], i, part);
#pragma GCC unroll 4
            for (int b = 0; b < B; b++)
#pragma GCC unroll 4
                for (int q = 0; q < 4; q++)
                    total[b][k] = Q::multiply(total[b][k], part[q], Q::spread(x[b] + i + q * Q::SIZE));
        }
    for (int b = 0; b < B; b++) store(block[b], meet(total[b]));
}

// work(number) for a number from LEAST to MOST, which is then known to the compiler.
template <int LEAST, int MOST, class F> inline void with_number(int number, F &&work) {
    if constexpr (MOST > LEAST)
        if (number < MOST) return with_number<LEAST, MOST - 1>(number, work);
    work(std::integral_constant<int, MOST>{});
}

// to = the products of rows of weights, T at a time, with all fours of input rows, F at a time.
template <int T, int F, class W, class X>
void multiply(const W *w, int64_t stride, int n, const X *x, const Results &to, Upcoming *upcoming) {
    thread_local std::vector<X> converted;
    if (!std::is_same<W, X>::value) converted.resize(T * n);
    const int fours = (to.rows + 3) / 4;
    for (int column = 0; column < to.columns; column += T) {
        const X *weights[T];
        for (int j = 0; j < T; j++) {
            const W *row = w + stride * std::min(column + j, to.columns - 1);
            if constexpr (std::is_same<W, X>::value)
                weights[j] = row;
            else
                convert(row, n, converted.data() + j * n), weights[j] = converted.data() + j * n;
        }
        for (int four = 0, met; four < fours; four += met) {
            const int left = fours - four;
            met = left == F + 1 ? (left + 1) / 2 : std::min(F, left);  // two and two rather than three and one
            with_number<std::min(2, F), F>(met, [&](auto count) {
                const Results part{to.y + 4 * four * to.stride + column, to.stride, to.rows - 4 * four,
                                   to.columns - column, to.scale ? to.scale + column : nullptr};
                Fetch<W> next{w + stride * (column + AHEAD * T), stride};
                if (four || column + AHEAD * T >= to.columns) next = Fetch<W>::of(upcoming, T, n);
                if (next.row) tile<T, count, true>(weights, x + four * 4 * n, n, next, part);
                else tile<T, count, false>(weights, x + four * 4 * n, n, next, part);
            });
        }
    }
}

// From one row of y to the next: rows that lie powers of two apart push each other out of the caches.
inline int64_t apart(int64_t width) { return width + LANES; }

// y[b][r] = scale[r] * (w[r] . x[b]) for weight rows r from begin to end and all rows of input; n is a multiple of 16.
// A null scale is 1. Of `upcoming`, which may be null, the caches are told meanwhile.
template <class W, class X>
void product(const W *w, int64_t stride, const float *scale, int n, int begin, int end, Rows<X> x, float *y,
             int64_t y_stride, Upcoming *upcoming = nullptr) {
    constexpr int BLOCK = 48;  // rows of input, which stay in a near cache; for more of them weights are read again
    constexpr int FEW = INTERLEAVED<W, X>;
    for (int first = 0; first < x.count; first += BLOCK) {
        const int rows = std::min(BLOCK, x.count - first);
        float *to = y + first * y_stride;
        if constexpr (FEW > 0)
            if (rows <= FEW && n % (4 * Quarter<X>::SIZE) == 0) {
                const X *single[] = {x[first], x[first + rows - 1]};
                with_number<1, FEW>(rows, [&](auto B) {
                    for (int r = begin; r < end; r += LANES) {
                        const int columns = std::min(LANES, end - r);
                        alignas(64) float block[B][LANES];
                        Fetch<W> next{w + stride * (r + LANES), stride};
                        if (r + LANES >= end) next = Fetch<W>::of(upcoming, LANES, n);
                        if (!next.row) next = {w + stride * r, stride};  // known to the caches
                        multiply_few<B>(w + stride * r, stride, n, columns, single, next, block);
                        const Vector scales = scale ? load(scale + r, columns) : spread(1);
                        for (int b = 0; b < B; b++) store(to + b * y_stride + r, load(block[b]) * scales, columns);
                    }
                });
                continue;
            }
        const X *packed = pack(x, first, rows, n);
        const Results results{to + begin, y_stride, rows, end - begin, scale ? scale + begin : nullptr};
        if (rows <= 4) multiply<TALL, 1>(w + stride * begin, stride, n, packed, results, upcoming);
        else multiply<TILE, FOURS>(w + stride * begin, stride, n, packed, results, upcoming);
    }
}

}  // namespace leyden

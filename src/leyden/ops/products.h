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

namespace leyden {

// The second cache is told of memory that is read soon. The first one waits for few lines at once, so that asking it
// brings them at a third of the speed at which memory gives them.
inline void fetch_soon(const void *p) { __builtin_prefetch(p, 0, 2); }

// What the inputs of products are held in where the model computes in T.
#ifdef __AVX512BF16__
template <class T> using Input = T;
#else
template <class T> using Input = float;
#endif

constexpr int AHEAD = 2;  // tiles whose weights are fetched before their turn: the caches would wait at every page

// What meets in registers: rows of weights, and fours of input rows. Where there is one four, more of the weights.
#ifdef __AVX512F__
constexpr int TILE = 8, FOURS = 3, TALL = 16;
#else
constexpr int TILE = 4, FOURS = 1, TALL = 4;
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

// What a thread is about to read, part by part: the caches are told of it where memory would rest.
class Upcoming {
  public:
    void clear() { parts.clear(), current = next = 0; }
    void add(const void *begin, int64_t bytes) { parts.push_back({(const char *)begin, (const char *)begin + bytes}); }
    void enter() { next = std::max(next, ++current); }  // the next part is read from now on

    // So many bytes behind those taken, or null where nothing is left.
    const void *take(int64_t bytes) {
        while (next < parts.size() && parts[next].begin >= parts[next].end) next++;
        if (next == parts.size()) return nullptr;
        const char *taken = parts[next].begin;
        parts[next].begin += bytes;
        return taken;
    }

  private:
    struct Part {
        const char *begin, *end;
    };
    std::vector<Part> parts;
    size_t current = 0, next = 0;
};

// Rows of memory of which the caches are told, or null.
template <class W> struct Fetch {
    const W *row;
    int64_t stride;

    // So many rows of n of what comes up.
    static Fetch of(Upcoming *upcoming, int rows, int n) {
        return {upcoming ? (const W *)upcoming->take((int64_t)rows * n * sizeof(W)) : nullptr, n};
    }
};

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

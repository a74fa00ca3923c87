// Products of matrices that are both large, in bfloat16 with float32 sums, for the backwards of training.
//
// One factor is packed in panels of 64 columns, in which two rows that follow each other alternate as the processor's
// products of pairs take them. Six rows of the other meet a panel in registers. A row of results never depends on the
// rows beside it, and every sum has the order of the depth.

#pragma once

#include "products.h"

#ifdef __AVX512BF16__

namespace leyden {

typedef uint32_t Pair;  // two bfloat16 that follow each other in the depth

constexpr int PANEL = 64, ACROSS = PANEL / LANES, MEET = 6;

// Elements of a factor of `depth` by `columns` once it is packed.
inline int64_t packed_size(int64_t depth, int64_t columns) { return (depth + depth % 2) * ((columns + PANEL - 1) / PANEL * PANEL); }

// Where the elements of two rows of 32 columns go so that they alternate: the lower 16 columns, the higher ones.
struct Alternation {
    uint16_t low[32] = {}, high[32] = {};

    constexpr Alternation() {
        for (int i = 0; i < 16; i++)
            low[2 * i] = i, low[2 * i + 1] = 32 + i, high[2 * i] = 16 + i, high[2 * i + 1] = 48 + i;
    }
};

alignas(64) inline constexpr Alternation ALTERNATION;

inline void alternate(__m512i a, __m512i b, Pair *to) {
    _mm512_storeu_si512(to, _mm512_permutex2var_epi16(a, _mm512_loadu_si512(ALTERNATION.low), b));
    _mm512_storeu_si512(to + LANES, _mm512_permutex2var_epi16(a, _mm512_loadu_si512(ALTERNATION.high), b));
}

// Up to 32 columns of a row; zeros behind them.
inline __m512i some_columns(const BFloat16 *row, int64_t columns) {
    if (columns >= 32) return _mm512_loadu_si512(row);
    return _mm512_maskz_loadu_epi16((1u << columns) - 1, row);
}

// Columns of the rows row(0), ..., row(depth - 1) to one block [(depth + 1) / 2, width] of pairs; width is a multiple of
// 32 and not less than the columns. Behind the last row and the last column are zeros.
template <class F>
inline void pack_block(F &&row, int64_t depth, int64_t columns, int64_t width, Pair *to) {
    for (int64_t k = 0; k < depth; k += 2, to += width) {
        const BFloat16 *a = row(k), *b = k + 1 < depth ? row(k + 1) : nullptr;
        for (int64_t i = 0; i < width; i += 32) {
            const int64_t left = std::max<int64_t>(columns - i, 0);
            alternate(some_columns(a + i, left), b ? some_columns(b + i, left) : _mm512_setzero_si512(), to + i);
        }
    }
}

// The same in panels.
template <class F> inline void pack_panels(F &&row, int64_t depth, int64_t columns, Pair *to) {
    for (int64_t i = 0; i < columns; i += PANEL, to += (depth + 1) / 2 * PANEL)
        pack_block([&](int64_t k) { return row(k) + i; }, depth, std::min<int64_t>(PANEL, columns - i), PANEL, to);
}

// Where the products of a block go: to float32, added to what is there or not, or to bfloat16.
template <class Y> struct Into {
    Y *y;
    int64_t stride;
    bool add = false;
};

template <int R, int V, class Y>
inline void meet_panel(const Pair *a, int64_t a_row, int64_t a_pair, const Pair *panel, int64_t pairs, int columns,
                       Into<Y> to) {
    __m512 total[R][V];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) total[r][v] = _mm512_setzero_ps();
    for (int64_t k = 0; k < pairs; k++) {
        __m512bh across[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) across[v] = (__m512bh)_mm512_loadu_si512(panel + k * PANEL + v * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const __m512bh one = (__m512bh)_mm512_set1_epi32((int)a[r * a_row + k * a_pair]);
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) total[r][v] = _mm512_dpbf16_ps(total[r][v], one, across[v]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) {
            Y *at = to.y + r * to.stride + v * LANES;
            const int count = std::min(LANES, columns - v * LANES);
            if (count <= 0) break;
            Vector sum = (Vector)total[r][v];
            if (to.add) sum += load(at, count);
            store(at, sum, count);
        }
}

// y = a b: a of `rows` rows, `a_row` pairs apart, whose pairs lie `a_pair` apart; b in panels of `columns` columns.
template <class Y>
void matmul(const Pair *a, int64_t a_row, int64_t a_pair, int64_t rows, const Pair *panels, int64_t depth,
            int64_t columns, Into<Y> to) {
    const int64_t pairs = (depth + 1) / 2;
    for (int64_t i = 0; i < columns; i += PANEL, panels += pairs * PANEL) {
        const int across = (int)std::min<int64_t>(PANEL, columns - i);
        with_number<1, ACROSS>((across + LANES - 1) / LANES, [&](auto V) {
            for (int64_t row = 0; row < rows; row += MEET)
                with_number<1, MEET>((int)std::min<int64_t>(MEET, rows - row), [&](auto R) {
                    meet_panel<R, V>(a + row * a_row, a_row, a_pair, panels, pairs, across,
                                     Into<Y>{to.y + row * to.stride + i, to.stride, to.add});
                });
        });
    }
}

constexpr int64_t DEEP = 512, STRIP = 96;  // what of the depth and of the rows is packed at once, for a core's caches

// y [rows, columns] = a^T b: rows of a are a_row(0), ..., a_row(depth - 1), and those of b likewise.
template <class A, class B>
void matmul_of_transposed(A &&a_row, B &&b_row, int64_t depth, int64_t rows, int64_t columns, Into<float> to) {
    thread_local std::vector<Pair> panels, strip;
    panels.resize(packed_size(DEEP, columns) / 2), strip.resize(DEEP / 2 * STRIP);
    for (int64_t k = 0; k < depth; k += DEEP, to.add = true) {
        const int64_t deep = std::min(DEEP, depth - k);
        pack_panels([&](int64_t i) { return b_row(k + i); }, deep, columns, panels.data());
        for (int64_t row = 0; row < rows; row += STRIP) {
            const int64_t some = std::min(STRIP, rows - row);
            pack_block([&](int64_t i) { return a_row(k + i) + row; }, deep, some, STRIP, strip.data());
            matmul(strip.data(), 1, STRIP, some, panels.data(), deep, columns,
                   Into<float>{to.y + row * to.stride, to.stride, to.add});
        }
    }
}

// work(i) for every i below `count`, by whichever thread is free.
template <class F> void as_they_come(int64_t count, int64_t threads, F &&work) {
    std::atomic<int64_t> next{0};
    team(threads, [&](int64_t, int64_t) {
        for (int64_t i; (i = next++) < count;) work(i);
    });
}

constexpr int64_t TALL_BLOCK = 512, WIDE_BLOCK = 256;  // of a gradient of a matrix, for a core's caches

// work(row, column) for the first of every block of a matrix.
template <class F> void by_blocks(int64_t rows, int64_t columns, F &&work) {
    for (int64_t row = 0; row < rows; row += TALL_BLOCK)
        for (int64_t column = 0; column < columns; column += WIDE_BLOCK) work(row, column);
}

}  // namespace leyden

#endif

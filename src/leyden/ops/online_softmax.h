// Softmax over keys that come block by block: scores become weights in units that grow where they must, and what was
// summed before is brought to the new unit (Milakov and Gimelshein, arXiv 1805.02867; Dao et al., arXiv 2205.14135).

#pragma once

#include "products.h"

namespace leyden {

constexpr int KEYS = 256;                     // most keys of a block, whose scores of one head lie so far from the next's
constexpr int VALUES = SUMS / 4 < 4 ? 1 : 4;  // vectors of values at once, for up to four heads

// Memory that is read soon: `bytes` of each of two places for a key that is met now, or nothing where there is none.
struct Soon {
    const char *keys, *values;
    int64_t bytes;

    // A part of them, so many bytes from `at` on, while key s is met.
    void fetch(int64_t s, int64_t at, int64_t part) const {
        if (!keys) return;
        for (int64_t i = s * bytes + at; i < s * bytes + at + part; i += 64)
            fetch_soon(keys + i), fetch_soon(values + i);
    }
};

// out[h] += weight[h] v for `count` keys and H heads, V vectors of each; weights of two heads lie KEYS apart.
template <int H, int V, class T>
inline void add_values(const T *values, int64_t stride, int count, const float *weight, float *out,
                       int64_t out_stride, const Soon &soon, int64_t at) {
    Vector total[H][V];
    for (int h = 0; h < H; h++)
        for (int j = 0; j < V; j++) total[h][j] = load(out + h * out_stride + j * LANES);
    for (int s = 0; s < count; s++) {
        Vector value[V];
        for (int j = 0; j < V; j++) value[j] = load(values + s * stride + j * LANES);
        soon.fetch(s, at, V * LANES * sizeof(T));
        for (int h = 0; h < H; h++)
            for (int j = 0; j < V; j++) total[h][j] += weight[h * KEYS + s] * value[j];
    }
    for (int h = 0; h < H; h++)
        for (int j = 0; j < V; j++) store(out + h * out_stride + j * LANES, total[h][j]);
}

template <int V, class T>
inline void add_vectors(int heads, const T *values, int64_t stride, int count, const float *weight, float *out,
                        int64_t out_stride, const Soon &soon, int64_t at) {
    constexpr int MOST = 4;
    for (int h = 0; h < heads; h += MOST) {
        const float *w = weight + h * KEYS;
        float *o = out + h * out_stride;
        with_number<1, MOST>(heads - h, [&](auto left) {
            add_values<left, V>(values, stride, count, w, o, out_stride, h ? Soon{} : soon, at);
        });
    }
}

// Scores of one head over one block become weights, in units of e^largest, which grows where it must;
// what was summed before is brought to the new unit.
inline void online_softmax(float *scores, int count, float scale, int width, float *largest, float *total, float *out) {
    Vector top = spread(-INFINITY);
    vectors(count, [&](int64_t i, int n) {
        const Vector s = load(scores + i, n, -INFINITY);
        top = larger(s, top);
    });
    const float block_largest = leyden::largest(top) * scale;
    if (block_largest > *largest) {
        const float shrink = std::exp(*largest - block_largest);
        for (int j = 0; j < width; j += LANES) store(out + j, load(out + j) * shrink);
        *total *= shrink, *largest = block_largest;
    }
    Vector sums = {};
    vectors(count, [&](int64_t i, int n) {
        const Vector w = exp(load(scores + i, n, -INFINITY) * scale - *largest);
        store(scores + i, w, n);
        sums += w;
    });
    *total += sum(sums);
}

// out[h] += weight[h] v for `count` keys and as many heads as there are, of K elements each.
template <class T>
void add_values(int heads, const T *values, int64_t stride, int count, const float *weight, int K, float *out,
                int64_t out_stride, const Soon &soon = {}) {
    const auto some = [&](auto V, int j) {
        add_vectors<V>(heads, values + j, stride, count, weight, out + j, out_stride, soon, j * (int64_t)sizeof(T));
    };
    int j = 0;
    for (; j + VALUES * LANES <= K; j += VALUES * LANES) some(std::integral_constant<int, VALUES>{}, j);
    if constexpr (VALUES > 2)
        for (; j + 2 * LANES <= K; j += 2 * LANES) some(std::integral_constant<int, 2>{}, j);
    for (; j < K; j += LANES) some(std::integral_constant<int, 1>{}, j);
}

}  // namespace leyden

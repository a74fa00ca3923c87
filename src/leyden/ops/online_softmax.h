// Softmax over keys that come block by block: scores become weights in units that grow where they must, and what was
// summed before is brought to the new unit (Milakov and Gimelshein, arXiv 1805.02867; Dao et al., arXiv 2205.14135).

#pragma once

#include "products.h"

namespace leyden {

constexpr int KEYS = 256;                     // most keys of a block, whose scores of one head lie so far from the next's
constexpr int VALUES = SUMS / 4 < 4 ? 1 : 4;  // vectors of values at once, for up to four heads

// out[h] += weight[h] v for `count` keys and H heads, V vectors of each; weights of two heads lie KEYS apart.
template <int H, int V, class T>
inline void add_values(const T *values, int64_t stride, int count, const float *weight, float *out,
                       int64_t out_stride) {
    Vector total[H][V];
    for (int h = 0; h < H; h++)
        for (int j = 0; j < V; j++) total[h][j] = load(out + h * out_stride + j * LANES);
    for (int s = 0; s < count; s++) {
        Vector value[V];
        for (int j = 0; j < V; j++) value[j] = load(values + s * stride + j * LANES);
        for (int h = 0; h < H; h++)
            for (int j = 0; j < V; j++) total[h][j] += weight[h * KEYS + s] * value[j];
    }
    for (int h = 0; h < H; h++)
        for (int j = 0; j < V; j++) store(out + h * out_stride + j * LANES, total[h][j]);
}

template <int V, class T>
inline void add_vectors(int heads, const T *values, int64_t stride, int count, const float *weight, float *out,
                        int64_t out_stride) {
    constexpr int MOST = 4;
    for (int h = 0; h < heads; h += MOST) {
        const float *w = weight + h * KEYS;
        float *o = out + h * out_stride;
        with_number<1, MOST>(
            heads - h, [&](auto left) { add_values<left, V>(values, stride, count, w, o, out_stride); });
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
                int64_t out_stride) {
    int j = 0;
    for (; j + VALUES * LANES <= K; j += VALUES * LANES)
        add_vectors<VALUES>(heads, values + j, stride, count, weight, out + j, out_stride);
    for (; j < K; j += LANES) add_vectors<1>(heads, values + j, stride, count, weight, out + j, out_stride);
}

}  // namespace leyden

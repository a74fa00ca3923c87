// Softmax attention of one token's queries over the keys and values of its sequence, which lie in pages.
//
// A long context is cut into pieces that any thread may take; how many there are and where they end follows from the
// length alone, and they are joined in order.

#pragma once

#include "products.h"

namespace leyden {

constexpr int PAGE = 256;   // tokens of a page
constexpr int VALUES = SUMS / 4 < 4 ? 1 : 4;  // vectors of values at once, for up to four heads
constexpr int PIECES = 64;  // at most, of a context: what they yield has to be kept until they are joined

// The pieces of a context of so many tokens.
struct Pieces {
    int64_t length, pages, each, count;

    explicit Pieces(int64_t length)
        : length(length), pages((length + PAGE - 1) / PAGE), each((pages + PIECES - 1) / PIECES),
          count((pages + each - 1) / each) {}
};

// out[h] += weight[h] v for `count` keys and H heads, V vectors of each; weights lie PAGE apart.
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
            for (int j = 0; j < V; j++) total[h][j] += weight[h * PAGE + s] * value[j];
    }
    for (int h = 0; h < H; h++)
        for (int j = 0; j < V; j++) store(out + h * out_stride + j * LANES, total[h][j]);
}

template <int V, class T>
inline void add_values(int heads, const T *values, int64_t stride, int count, const float *weight, float *out,
                       int64_t out_stride) {
    constexpr int MOST = 4;
    for (int h = 0; h < heads; h += MOST) {
        const float *w = weight + h * PAGE;
        float *o = out + h * out_stride;
        with_number<1, MOST>(
            heads - h, [&](auto left) { add_values<left, V>(values, stride, count, w, o, out_stride); });
    }
}

// Scores of one head over one page become weights, in units of e^largest, which grows where it must; what was summed
// before is brought to the new unit.
inline void weigh(float *scores, int count, float scale, int width, float *largest, float *total, float *out) {
    Vector top = spread(-INFINITY);
    vectors(count, [&](int64_t i, int n) {
        const Vector s = load(scores + i, n, -INFINITY);
        top = larger(s, top);
    });
    const float page_largest = leyden::largest(top) * scale;
    if (page_largest > *largest) {
        const float shrink = std::exp(*largest - page_largest);
        for (int j = 0; j < width; j += LANES) store(out + j, load(out + j) * shrink);
        *total *= shrink, *largest = page_largest;
    }
    Vector sums = {};
    vectors(count, [&](int64_t i, int n) {
        const Vector w = exp(load(scores + i, n, -INFINITY) * scale - *largest);
        store(scores + i, w, n);
        sums += w;
    });
    *total += sum(sums);
}

// One piece for the `heads` queries [heads, K] that share a key head. keys, values: of that head in page 0, from which
// rows lie `stride` apart. parts: of the piece and the first head [heads, K + 2]: the sum, its unit's exponent, the
// total of the weights.
template <class T, class X>
void attend_piece(const T *keys, const T *values, int64_t stride, const int32_t *table, const Pieces &pieces,
                  int64_t piece, const X *queries, int heads, int K, float *parts) {
    const int64_t width = K + 2;
    for (int h = 0; h < heads; h++) {
        std::fill(parts + h * width, parts + (h + 1) * width, 0.0f);
        parts[h * width + K] = -INFINITY;
    }
    thread_local std::vector<float> scores;
    scores.resize(heads * PAGE);
    const float scale = 1 / std::sqrt((float)K);
    const int64_t last = std::min(pieces.pages, (piece + 1) * pieces.each);
    for (int64_t page = piece * pieces.each; page < last; page++) {
        const int count = (int)std::min<int64_t>(PAGE, pieces.length - page * PAGE);
        const int64_t place = (int64_t)table[page] * PAGE * stride;
        product(keys + place, stride, (const float *)nullptr, K, 0, count, Rows<X>{queries, K, heads}, scores.data(),
                PAGE);
        for (int h = 0; h < heads; h++) {
            float *part = parts + h * width;
            weigh(scores.data() + h * PAGE, count, scale, K, part + K, part + K + 1, part);
        }
        int j = 0;
        for (; j + VALUES * LANES <= K; j += VALUES * LANES)
            add_values<VALUES>(heads, values + place + j, stride, count, scores.data(), parts + j, width);
        for (; j < K; j += LANES)
            add_values<1>(heads, values + place + j, stride, count, scores.data(), parts + j, width);
    }
}

// The attention of one head, of its parts of all pieces, which lie `stride` apart.
template <class X> void join_pieces(const float *parts, int64_t stride, int64_t count, int K, X *out) {
    float top = -INFINITY, total = 0;
    for (int64_t p = 0; p < count; p++) top = std::max(top, parts[p * stride + K]);
    for (int64_t p = 0; p < count; p++) total += std::exp(parts[p * stride + K] - top) * parts[p * stride + K + 1];
    for (int j = 0; j < K; j += LANES) {
        Vector v = {};
        for (int64_t p = 0; p < count; p++)
            v += std::exp(parts[p * stride + K] - top) * load(parts + p * stride + j);
        store(out + j, v / total);
    }
}

}  // namespace leyden

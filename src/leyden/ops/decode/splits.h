// Softmax attention of one token's queries over the keys and values of its sequence, which lie in pages.
//
// A long context is cut into splits that any thread may take, as in FlashDecoding. How many there are and where they end
// follows from the length alone, and they are combined in order, so that a token's bits depend on nothing else.

#pragma once

#include "model.h"
#include "online_softmax.h"

namespace leyden::decode {

constexpr int MOST_SPLITS = 64;  // of a context: their partial results have to be kept
static_assert(PAGE == KEYS, "a page is a block of keys");

// The splits of a context of so many tokens.
struct Splits {
    int64_t length, pages, pages_each, count;

    explicit Splits(int64_t length)
        : length(length), pages((length + PAGE - 1) / PAGE), pages_each((pages + MOST_SPLITS - 1) / MOST_SPLITS),
          count((pages + pages_each - 1) / pages_each) {}
};

// What one or more blocks of a context yield for one head, [K + 2]: the weighted sum of values, the exponent of its unit,
// the total of the weights.
inline void begin_partial(float *partial, int K) {
    std::fill(partial, partial + K + 2, 0.0f);
    partial[K] = -INFINITY;
}

// A block of at most PAGE keys and values, which lie `stride` apart, for the `heads` queries [heads, K] that share a key
// head; partial: of the first of these heads.
template <class T, class X>
void attend_block(const T *keys, const T *values, int64_t stride, int count, const X *queries, int heads, int K,
                  float *partial, const Soon &soon = {}) {
    thread_local std::vector<float> scores;
    scores.resize(heads * PAGE);
    const float scale = 1 / std::sqrt((float)K);
    const int64_t width = K + 2;
    product(keys, stride, (const float *)nullptr, K, 0, count, Rows<X>{queries, K, heads}, scores.data(), PAGE);
    for (int h = 0; h < heads; h++) {
        float *of_head = partial + h * width;
        online_softmax(scores.data() + h * PAGE, count, scale, K, of_head + K, of_head + K + 1, of_head);
    }
    add_values(heads, values, stride, count, scores.data(), K, partial, width, soon);
}

// One split, for the queries [key_heads, heads, K] of some key heads, of which each is read by `heads`. keys, values: of
// the first of these key heads in page 0, from which tokens lie `stride` apart. partial: of the split and the first head.
// All of a page goes through them before the next, which is fetched meanwhile: a head alone reads short runs of memory.
template <class T, class X>
void attend_split(const T *keys, const T *values, int64_t stride, const int32_t *page_table, const Splits &splits,
                  int64_t split, const X *queries, int key_heads, int heads, int K, float *partial) {
    const int64_t each = heads * (K + 2), share = K * (int64_t)sizeof(T);
    for (int h = 0; h < key_heads * heads; h++) begin_partial(partial + h * (K + 2), K);
    const int64_t last = std::min(splits.pages, (split + 1) * splits.pages_each);
    const auto place = [&](int64_t page) { return (int64_t)page_table[page] * PAGE * stride; };
    for (int64_t page = split * splits.pages_each; page < last; page++) {
        const int count = (int)std::min<int64_t>(PAGE, splits.length - page * PAGE);
        for (int g = 0; g < key_heads; g++) {
            Soon soon{};
            if (page + 1 < last && key_heads * K == stride)
                soon = {(const char *)(keys + place(page + 1)) + g * PAGE * share,
                        (const char *)(values + place(page + 1)) + g * PAGE * share, share};
            attend_block(keys + place(page) + g * K, values + place(page) + g * K, stride, count,
                         queries + g * heads * K, heads, K, partial + g * each, soon);
        }
    }
}

// The attention of one head, from its partial results of all splits, which lie `stride` apart.
template <class X> void combine_splits(const float *partial, int64_t stride, int64_t count, int K, X *out) {
    float top = -INFINITY, total = 0;
    for (int64_t s = 0; s < count; s++) top = std::max(top, partial[s * stride + K]);
    for (int64_t s = 0; s < count; s++)
        total += std::exp(partial[s * stride + K] - top) * partial[s * stride + K + 1];
    for (int j = 0; j < K; j += LANES) {
        Vector v = {};
        for (int64_t s = 0; s < count; s++)
            v += std::exp(partial[s * stride + K] - top) * load(partial + s * stride + j);
        store(out + j, v / total);
    }
}

}  // namespace leyden::decode

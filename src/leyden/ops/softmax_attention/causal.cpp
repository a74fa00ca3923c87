// Causal softmax attention over keys and values where they lie, in one tensor or in the pages of a sequence.
//
// Queries that share a key head meet its keys a block at a time (Dao et al., arXiv 2205.14135): the scores of a block stay
// in a core's cache, and nothing grows with the context. A token's bits depend on its queries and on the keys and values
// of its document up to its own alone: blocks begin at fixed positions of a document, and a token adds zeros for what it
// does not see. So a text has the same bits in training, whole, in parts, and beside others.

#include "matmul.h"
#include "online_softmax.h"

using namespace leyden;

namespace {

constexpr int64_t ROWS = 96;  // queries that meet a block of keys at once, as far as the heads that share one allow

// One head's keys and values of a block lie `stride` apart; scores of a query become its weights in place.
template <class T> struct Weighted {
    static void add(const T *values, int64_t stride, int count, const float *weights, int rows, int K, float *out) {
        add_values(rows, values, stride, count, weights, K, out, K);
    }
};

#ifdef __AVX512BF16__
// Weights are rounded for the products of pairs, which are twice as fast; their total is of what they were before.
template <> struct Weighted<BFloat16> {
    static void add(const BFloat16 *values, int64_t stride, int count, const float *weights, int rows, int K,
                    float *out) {
        constexpr int64_t APART = KEYS + 2 * LANES;
        thread_local std::vector<Pair> panels, rounded;
        panels.resize(packed_size(KEYS, K) / 2), rounded.resize(rows * APART / 2);
        pack_panels([&](int64_t s) { return values + s * stride; }, count, K, panels.data());
        for (int row = 0; row < rows; row++) {
            BFloat16 *to = (BFloat16 *)rounded.data() + row * APART;
            vectors(count, [&](int64_t i, int n) { store(to + i, load(weights + row * KEYS + i, n), n); });
            if (count % 2) to[count] = BFloat16{};
        }
        matmul(rounded.data(), APART / 2, 1, rows, panels.data(), count, K, Into<float>{out, K, true});
    }
};
#endif

// A position's first key head; heads lie `head` apart.
template <class T> struct Tensor {
    const T *at;
    int64_t row, head;
};

// Where keys and values are. Position p is row p, or, with a table, row p % page of its page.
template <class T> struct Context {
    Tensor<T> keys, values;
    const int32_t *table;
    int64_t page, K;

    int64_t row(int64_t position) const {
        return table ? table[position / page] * page + position % page : position;
    }

    // How far the block reaches that begins at a position: as far as its page goes, at most.
    int64_t block(int64_t position) const {
        return table ? std::min<int64_t>(KEYS, page - position % page) : KEYS;
    }

    // Queries [count, group, K] of key head g, those of the positions from `first` on, in a document that begins at `begin`.
    void attend(Tensor<T> q, int64_t begin, int64_t first, int64_t count, int64_t g, int64_t group, T *out,
                int64_t out_row) const {
        using X = Input<T>;
        thread_local std::vector<X> queries;
        thread_local std::vector<float> weights, sums, tops, totals;
        const int rows = (int)(count * group);
        queries.resize(rows * K), weights.resize(rows * KEYS);
        sums.assign(rows * K, 0.0f), tops.assign(rows, -INFINITY), totals.assign(rows, 0.0f);
        for (int64_t row = 0; row < rows; row++)
            for (int64_t i = 0; i < K; i += LANES)
                store(&queries[row * K + i], load(q.at + row / group * q.row + row % group * q.head + i));
        const float scale = 1 / std::sqrt((float)K);
        for (int64_t end; begin < first + count; begin = end) {
            end = std::min(begin + block(begin), first + count);
            const T *k = keys.at + row(begin) * keys.row + g * keys.head;
            const T *v = values.at + row(begin) * values.row + g * values.head;
            const int width = (int)(end - begin);
            product(k, keys.row, (const float *)nullptr, (int)K, 0, width, Rows<X>{queries.data(), K, rows},
                    weights.data(), KEYS);
            for (int64_t row = 0; row < rows; row++) {
                float *of_row = &weights[row * KEYS];
                const int seen = (int)std::clamp<int64_t>(first + row / group + 1 - begin, 0, width);
                if (seen) online_softmax(of_row, seen, scale, (int)K, &tops[row], &totals[row], &sums[row * K]);
                std::fill(of_row + seen, of_row + width, 0.0f);
            }
            Weighted<T>::add(v, values.row, width, weights.data(), rows, (int)K, sums.data());
        }
        for (int64_t row = 0; row < rows; row++)
            for (int64_t i = 0; i < K; i += LANES)
                store(out + row / group * out_row + row % group * K + i, load(&sums[row * K + i]) / totals[row]);
    }
};

// Some queries of a document, by their positions.
struct Block {
    int64_t document, begin, end;
};

// Those that see the most first: threads take them as they come.
std::vector<Block> cut(const int64_t *bounds, int64_t documents, int64_t first, int64_t most) {
    std::vector<Block> blocks;
    for (int64_t d = 0; d < documents; d++)
        for (int64_t at = std::max(bounds[d], first); at < bounds[d + 1]; at += most)
            blocks.push_back({bounds[d], at, std::min(at + most, bounds[d + 1])});
    std::stable_sort(blocks.begin(), blocks.end(), [](const Block &a, const Block &b) {
        return a.end - a.document > b.end - b.document;
    });
    return blocks;
}

}  // namespace

// q: of the last `tokens` positions; keys, values: [places, kv_heads, K], in pages of `page` places where there is a table
// of them, in order; bounds: of documents, from 0; none sees another. out: [tokens, heads, K]. K is a multiple of 16.
extern "C" Fault leyden_causal_attention(int64_t bfloat16, const void *q, int64_t q_row, int64_t q_head,
                                        const void *keys, int64_t keys_row, int64_t keys_head, const void *values,
                                        int64_t values_row, int64_t values_head, const int32_t *table,
                                        const int64_t *bounds, int64_t tokens, int64_t heads, int64_t K, int64_t places,
                                        int64_t kv_heads, int64_t page, int64_t used, int64_t last, void *out,
                                        int64_t threads) {
    if (K % LANES) return "16 does not divide the head dims";
    if (!kv_heads || heads % kv_heads) return "the key heads do not divide the heads";
    if (!last || bounds[0] || !rise(bounds, last - 1, table && page ? used * page : places))
        return "the documents are not those of the keys";
    const int64_t length = bounds[last - 1];
    if (tokens > length) return "there are more queries than keys";
    if (table && (!page || !within(table, used, 0, places / page))) return "a page is none of the pool's";
    return with_dtype(bfloat16, [&](auto type) {
        using T = decltype(type);
        const Context<T> context{{(const T *)keys, keys_row, keys_head}, {(const T *)values, values_row, values_head},
                                 table, page, K};
        const int64_t group = heads / kv_heads, first = length - tokens;
        const std::vector<Block> blocks = cut(bounds, last - 1, first, std::max<int64_t>(1, ROWS / group));
        std::atomic<int64_t> next{0};
        team(threads, [&](int64_t, int64_t) {
            for (int64_t item; (item = next.fetch_add(1)) < (int64_t)blocks.size() * kv_heads;) {
                const Block &some = blocks[item / kv_heads];
                const int64_t token = some.begin - first, g = item % kv_heads;
                const Tensor<T> queries{(const T *)q + token * q_row + g * group * q_head, q_row, q_head};
                context.attend(queries, some.document, some.begin, some.end - some.begin, g, group,
                               (T *)out + (token * heads + g * group) * K, heads * K);
            }
        });
    });
}

// Lightning attention of a ragged batch whose states lie in a pool: chunks of portable.py, one head after another.
//
// A chunk of a head stays in a core's nearest caches from its tokens to its outputs. Sums are float32, each in one
// order whatever else is computed beside it; what a token yields depends on its sequence up to it alone.

#include "lightning_attention/decay.h"
#include "native.h"

using namespace leyden;

namespace {

constexpr int CHUNK = 64, SCORES = CHUNK / LANES;
constexpr int TALL = 6;  // rows of a product that meet in registers, with as many vectors across as these hold

// total[r] += a[r, j] b[j] for j below `depth`, R rows and V vectors across.
template <int R, int V>
inline __attribute__((always_inline)) void add(const float *a, int64_t a_row, int64_t a_column, const float *b,
                                               int64_t b_row, int depth, Vector (&total)[R][V]) {
    constexpr int TOGETHER = std::min(V, SUMS / R >= 4 ? 4 : SUMS / R >= 2 ? 2 : 1);
    for (int first = 0; first < V; first += TOGETHER) {
        Vector sums[R][TOGETHER];
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 4
            for (int v = 0; v < TOGETHER; v++) sums[r][v] = total[r][first + v];
        for (int j = 0; j < depth; j++) {
            Vector across[TOGETHER];
#pragma GCC unroll 4
            for (int v = 0; v < TOGETHER; v++) across[v] = load(b + j * b_row + (first + v) * LANES);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++)
#pragma GCC unroll 4
                for (int v = 0; v < TOGETHER; v++) sums[r][v] += a[r * a_row + j * a_column] * across[v];
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 4
            for (int v = 0; v < TOGETHER; v++) total[r][first + v] = sums[r][v];
    }
}

// What is left of a contribution after so many tokens; none for less than none.
struct Decays {
    float passed[CHUNK + 1], within[2 * CHUNK];

    explicit Decays(float slope) {
        for (int i = 0; i <= CHUNK; i++) passed[i] = std::exp(-slope * i);
        for (int i = 0; i < 2 * CHUNK; i++) within[i] = i < CHUNK ? passed[CHUNK - 1 - i] : 0;
    }

    // From tokens j, j + 1, ... of a chunk to its token i.
    Vector to(int i, int j) const { return load(within + CHUNK - 1 - i + j); }
};

// One head, with V vectors across of its values.
template <class T, int V> class Head {
  public:
    Head(int K, float slope)
        : K(K), slope(slope), decays(slope), queries(CHUNK * K), keys(CHUNK * K), turned(K * CHUNK), values(CHUNK * V * LANES),
          scores(CHUNK * CHUNK) {}

    // Tokens of q lie `q_row` elements apart, and so on.
    void run(const T *q, int64_t q_row, const T *k, int64_t k_row, const T *v, int64_t v_row, int64_t count, float *state,
             int64_t state_row, T *out, int64_t out_row) {
        for (int64_t first = 0; first < count; first += CHUNK) {
            const int n = (int)std::min<int64_t>(CHUNK, count - first);
            take(q + first * q_row, q_row, n, K, queries);
            take(k + first * k_row, k_row, n, K, keys);
            take(v + first * v_row, v_row, n, V * LANES, values);
            std::fill(values.begin() + n * V * LANES, values.end(), 0.0f);
            for (int j = 0; j < CHUNK; j++)
                for (int d = 0; d < K; d++) turned[d * CHUNK + j] = j < n ? keys[j * K + d] : 0;
            by_rows(n, [&](int i, auto rows) {
                attend<rows>(i, state, state_row, out + (first + i) * out_row, out_row);
            });
            for (int j = 0; j < n; j++)
                vectors(K, [&](int64_t d, int lanes) {
                    store(&keys[j * K + d], load(&keys[j * K + d], lanes) * decays.passed[n - 1 - j], lanes);
                });
            const Decay across(slope * n);
            by_rows(K, [&](int d, auto rows) {
                Vector total[rows][V] = {};  // of the chunk alone, whose terms are small beside a long past's
                float *at = state + d * state_row;
                add<rows, V>(&keys[d], 1, K, values.data(), V * LANES, n, total);
                for (int r = 0; r < rows; r++)
                    for (int i = 0; i < V; i++) {
                        float *const to = at + r * state_row + i * LANES;
                        store(to, across(load(to), total[r][i]));
                    }
            });
        }
    }

  private:
    const int K;
    const float slope;
    const Decays decays;
    std::vector<float> queries, keys, turned, values, scores;  // [C, K], [C, K], [K, C], [C, V], [C, C]

    static void take(const T *x, int64_t stride, int count, int width, std::vector<float> &to) {
        for (int i = 0; i < count; i++)
            vectors(width, [&](int64_t d, int lanes) {
                store(&to[i * width + d], load(x + i * stride + d, lanes), lanes);
            });
    }

    // work(first, rows) for all of `count` rows, TALL at a time.
    template <class F> static void by_rows(int count, F &&work) {
        int i = 0;
        for (; i + TALL <= count; i += TALL) work(i, std::integral_constant<int, TALL>{});
        for (; i < count; i++) work(i, std::integral_constant<int, 1>{});
    }

    // Tokens i to i + R of the chunk: what the state says, decayed, and what the chunk's own tokens do.
    template <int R> void attend(int i, const float *state, int64_t state_row, T *out, int64_t out_row) {
        Vector products[R][SCORES] = {}, total[R][V] = {};
        add<R, SCORES>(&queries[i * K], K, 1, turned.data(), CHUNK, K, products);
        for (int r = 0; r < R; r++)
            for (int j = 0; j < SCORES; j++)
                store(&scores[(i + r) * CHUNK + j * LANES], products[r][j] * decays.to(i + r, j * LANES));
        add<R, V>(&queries[i * K], K, 1, state, state_row, K, total);
        for (int r = 0; r < R; r++)
            for (int j = 0; j < V; j++) total[r][j] *= decays.passed[i + r + 1];
        add<R, V>(&scores[i * CHUNK], CHUNK, 1, values.data(), V * LANES, i + R, total);
        for (int r = 0; r < R; r++)
            for (int j = 0; j < V; j++) store(out + r * out_row + j * LANES, total[r][j]);
    }
};

}  // namespace

// q, k: [T, heads, K], tokens and heads as far apart as said; v: [T, heads, V], V a multiple of 16;
// states: [places, heads, K, V], changed in place; slots: [sequences] among them, each once; bounds: [sequences + 1]
// among the tokens; out: [T, heads, V]. Where `reversed`, time runs from the last token of each sequence to its first.
extern "C" Fault leyden_lightning_prefill(int64_t bfloat16, const void *q, int64_t q_row, int64_t q_head, const void *k,
                                          int64_t k_row, int64_t k_head, const void *v, int64_t v_row, int64_t v_head,
                                          const float *slopes, float *states, const int64_t *slots,
                                          const int64_t *bounds, int64_t tokens, int64_t heads, int64_t K, int64_t V,
                                          int64_t places, int64_t sequences, int64_t last,
                                          int64_t reversed, void *out, int64_t threads) {
    if (V % LANES) return "16 does not divide the value dims";
    if (last != sequences + 1 || !rise(bounds, sequences, tokens)) return "the bounds do not rise among the tokens";
    if (const Fault fault = apart_from_each_other(slots, sequences, places)) return fault;
    return with_dtype(bfloat16, [&](auto type) {
        using T = decltype(type);
        // Values of a head are columns by themselves: where there are few heads, more threads share one.
        const bool whole = V % (4 * LANES) == 0 && sequences * heads * (V / (4 * LANES)) >= threads;
        const int64_t width = whole ? 4 * LANES : LANES, parts = V / width;
        const auto run = [&](int64_t item, auto vectors_across) {
            const int64_t n = item / (heads * parts), h = item / parts % heads, column = item % parts * width;
            const int64_t count = bounds[n + 1] - bounds[n], first = reversed ? bounds[n + 1] - 1 : bounds[n];
            const int64_t on = reversed ? -1 : 1;
            if (!count) return;
            Head<T, vectors_across>((int)K, slopes[h])
                .run((const T *)q + first * q_row + h * q_head, on * q_row,
                     (const T *)k + first * k_row + h * k_head, on * k_row,
                     (const T *)v + first * v_row + h * v_head + column, on * v_row, count,
                     states + (slots[n] * heads + h) * K * V + column, V,
                     (T *)out + (first * heads + h) * V + column, on * heads * V);
        };
        std::atomic<int64_t> next{0};
        team(threads, [&](int64_t, int64_t) {
            for (int64_t item; (item = next++) < sequences * heads * parts;)
                if (whole) run(item, std::integral_constant<int, 4>{});
                else run(item, std::integral_constant<int, 1>{});
        });
    });
}

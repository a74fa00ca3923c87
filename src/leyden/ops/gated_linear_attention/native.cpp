// Gated linear attention as its recurrence, token by token: a state of a head fits a core's nearest caches, and every
// token of a row costs as many products as it would in chunks, whose decays would have to be formed pair by pair.
//
// Sums are float32, each in one order, so that a sequence yields the same bits in whatever parts it is computed.

#include "native.h"

using namespace leyden;

namespace {

constexpr int CHUNK = 32;   // tokens whose states a backward has at once
constexpr int ACROSS = 4;   // vectors of a row that are worked on together

// e^x - 1 for x from -1/2 to 0.
inline Vector less_one(Vector x) {
    Vector series = x * (1 / 40320.0f) + 1 / 5040.0f;
    for (const float factor : {1 / 720.0f, 1 / 120.0f, 1 / 24.0f, 1 / 6.0f, 1 / 2.0f, 1.0f}) series = series * x + factor;
    return series * x;
}

// exp(g) of K numbers as whole numbers and rests, as in lightning_attention/decay.h: what is near 1 must not be rounded.
struct Decays {
    std::vector<float> whole, rest, small;

    explicit Decays(int64_t size) : whole(size), rest(size), small(size) {}

    void take(const float *g, int64_t K, int64_t at) {
        vectors(K, [&](int64_t d, int lanes) {
            const Vector x = load(g + d, lanes);
            store(&rest[at + d], exp(x), lanes), store(&small[at + d], less_one(x), lanes);
        });
        for (int64_t d = 0; d < K; d++) {
            const bool slow = g[d] > -0.5f;
            whole[at + d] = slow, rest[at + d] = slow ? small[at + d] : rest[at + d];
        }
    }
};

template <class T> void widen(const T *from, int64_t count, float *to) {
    vectors(count, [&](int64_t d, int lanes) { store(to + d, load(from + d, lanes), lanes); });
}

// V vectors across of the values of one head of one sequence; the state is [K, ..] with rows `state_row` apart.
template <class T, int V>
void forward(const T *q, int64_t q_row, const T *k, int64_t k_row, const T *v, int64_t v_row, const float *g,
             int64_t g_row, int64_t count, int64_t K, float *state, int64_t state_row, T *out, int64_t out_row) {
    std::vector<float> queries(K), keys(K);
    Decays decays(K);
    for (int64_t t = 0; t < count; t++) {
        widen(q + t * q_row, K, queries.data()), widen(k + t * k_row, K, keys.data());
        decays.take(g + t * g_row, K, 0);
        Vector values[V], total[V] = {};
        for (int i = 0; i < V; i++) values[i] = load(v + t * v_row + i * LANES);
        for (int64_t d = 0; d < K; d++) {
            float *const row = state + d * state_row;
            for (int i = 0; i < V; i++) {
                Vector s = load(row + i * LANES);
                s = s * decays.whole[d] + (s * decays.rest[d] + values[i] * keys[d]);
                store(row + i * LANES, s);
                total[i] += s * queries[d];
            }
        }
        for (int i = 0; i < V; i++) store(out + t * out_row + i * LANES, total[i]);
    }
}

// One head of one sequence, backwards. Here states are [V, K], so that decays, queries and keys lie along a row.
template <class T> class Backward {
  public:
    Backward(int64_t K, int64_t V)
        : K(K), V(V), decays(CHUNK * K), queries(CHUNK * K), keys(CHUNK * K), values(CHUNK * V), douts(CHUNK * V),
          dvalues(CHUNK * V), dqueries(CHUNK * K), dkeys(CHUNK * K), state(K * V), dstate(K * V),
          past(CHUNK * V * ACROSS * LANES), whole(K), rest(K) {}

    struct Rows {
        const T *q, *k, *v, *dout;
        const float *g;
        T *dq, *dk, *dv;
        float *dg;
        int64_t q_row, k_row, v_row, key_row, value_row;  // from token to token; the last two where heads lie densely
    };

    // initial, dfinal: [K, V] or null; dinitial: [K, V], written.
    void run(const Rows &rows, int64_t count, const float *initial, const float *dfinal, float *dinitial) {
        turn(initial, state), turn(dfinal, dstate);
        std::fill(whole.begin(), whole.end(), 1.0f), std::fill(rest.begin(), rest.end(), 0.0f);
        const int64_t chunks = (count + CHUNK - 1) / CHUNK;
        std::vector<float> starts(chunks * K * V);
        for (int64_t c = 0; c < chunks; c++) {
            std::copy(state.begin(), state.end(), starts.begin() + c * K * V);
            if (c + 1 == chunks) break;
            const int n = take(rows, c * CHUNK, count);
            for (int t = 0; t < n; t++) by_columns([&](int64_t d, auto across) { advance<across>(t, d); });
        }
        for (int64_t c = chunks; c-- > 0;) {
            std::copy(starts.begin() + c * K * V, starts.begin() + (c + 1) * K * V, state.begin());
            const int n = take(rows, c * CHUNK, count);
            std::fill(dvalues.begin(), dvalues.end(), 0.0f);
            by_columns([&](int64_t d, auto across) {
                for (int t = 0; t < n; t++) remember<across>(t, d);
                for (int t = n; t-- > 0;) retreat<across>(t, d, rows.dg + (c * CHUNK + t) * rows.key_row + d);
            });
            for (int t = 0; t < n; t++) {
                const int64_t at = c * CHUNK + t;
                narrow(&dqueries[t * K], K, rows.dq + at * rows.key_row);
                narrow(&dkeys[t * K], K, rows.dk + at * rows.key_row);
                narrow(&dvalues[t * V], V, rows.dv + at * rows.value_row);
            }
        }
        for (int64_t v = 0; v < V; v++)
            for (int64_t d = 0; d < K; d++) {
                const float s = dstate[v * K + d];
                dinitial[d * V + v] = s * whole[d] + s * rest[d];
            }
    }

  private:
    const int64_t K, V;
    Decays decays;                                                   // [C, K]
    std::vector<float> queries, keys, values, douts, dvalues;        // [C, K], [C, K], [C, V], [C, V], [C, V]
    std::vector<float> dqueries, dkeys, state, dstate, past;         // [C, K], [C, K], [V, K], [V, K], [C, V, columns]
    std::vector<float> whole, rest;                                  // [K], the decays that dstate has not met yet

    void turn(const float *from, std::vector<float> &to) {
        for (int64_t v = 0; v < V; v++)
            for (int64_t d = 0; d < K; d++) to[v * K + d] = from ? from[d * V + v] : 0;
    }

    static void narrow(const float *from, int64_t count, T *to) {
        vectors(count, [&](int64_t d, int lanes) { store(to + d, load(from + d, lanes), lanes); });
    }

    int take(const Rows &rows, int64_t first, int64_t count) {
        const int n = (int)std::min<int64_t>(CHUNK, count - first);
        for (int t = 0; t < n; t++) {
            const int64_t at = first + t;
            widen(rows.q + at * rows.q_row, K, &queries[t * K]), widen(rows.k + at * rows.k_row, K, &keys[t * K]);
            widen(rows.v + at * rows.v_row, V, &values[t * V]);
            widen(rows.dout + at * rows.value_row, V, &douts[t * V]);
            decays.take(rows.g + at * rows.key_row, K, t * K);
        }
        return n;
    }

    // work(first, vectors) for all columns of a state.
    template <class F> void by_columns(F &&work) {
        int64_t d = 0;
        for (; d + ACROSS * LANES <= K; d += ACROSS * LANES) work(d, std::integral_constant<int, ACROSS>{});
        for (; d < K; d += LANES) work(d, std::integral_constant<int, 1>{});
    }

    template <int N> static void read(const std::vector<float> &from, int64_t at, Vector (&to)[N]) {
        for (int i = 0; i < N; i++) to[i] = load(&from[at + i * LANES]);
    }

    template <int N> void advance(int t, int64_t d) {
        Vector whole[N], rest[N], key[N];
        read(decays.whole, t * K + d, whole), read(decays.rest, t * K + d, rest), read(keys, t * K + d, key);
        for (int64_t v = 0; v < V; v++)
            for (int i = 0; i < N; i++) {
                float *const at = &state[v * K + d + i * LANES];
                const Vector s = load(at);
                store(at, s * whole[i] + (s * rest[i] + key[i] * values[t * V + v]));
            }
    }

    // As advance, with the gradient of the queries, and what is left of the state before in `past`.
    template <int N> void remember(int t, int64_t d) {
        Vector whole[N], rest[N], key[N], dquery[N] = {};
        read(decays.whole, t * K + d, whole), read(decays.rest, t * K + d, rest), read(keys, t * K + d, key);
        for (int64_t v = 0; v < V; v++)
            for (int i = 0; i < N; i++) {
                float *const at = &state[v * K + d + i * LANES];
                Vector s = load(at);
                store(&past[((t * V + v) * N + i) * LANES], s * whole[i] + s * rest[i]);
                s = s * whole[i] + (s * rest[i] + key[i] * values[t * V + v]);
                store(at, s);
                dquery[i] += s * douts[t * V + v];
            }
        for (int i = 0; i < N; i++) store(&dqueries[t * K + d + i * LANES], dquery[i]);
    }

    template <int N> void retreat(int t, int64_t d, float *dg) {
        Vector whole[N], rest[N], key[N], query[N], dkey[N] = {}, ddecay[N] = {};
        read(this->whole, d, whole), read(this->rest, d, rest);
        read(keys, t * K + d, key), read(queries, t * K + d, query);
        for (int64_t v = 0; v < V; v++) {
            Vector dvalue = {};
            for (int i = 0; i < N; i++) {
                float *const at = &dstate[v * K + d + i * LANES];
                Vector s = load(at);
                s = s * whole[i] + (s * rest[i] + query[i] * douts[t * V + v]);
                store(at, s);
                dkey[i] += s * values[t * V + v];
                ddecay[i] += s * load(&past[((t * V + v) * N + i) * LANES]);
                dvalue += s * key[i];
            }
            dvalues[t * V + v] += sum(dvalue);
        }
        for (int i = 0; i < N; i++) {
            const int64_t at = d + i * LANES;
            store(&dkeys[t * K + at], dkey[i]), store(dg + i * LANES, ddecay[i]);
            store(&this->whole[at], load(&decays.whole[t * K + at]));
            store(&this->rest[at], load(&decays.rest[t * K + at]));
        }
    }
};

}  // namespace

// q, k: [T, heads, K], tokens and heads as far apart as said; v: [T, heads, V], V a multiple of 16; log_decay: [T, heads,
// K]; states: [places, heads, K, V], changed in place; slots: [sequences] among them, each once; bounds: [sequences + 1]
// among the tokens; out: [T, heads, V].
extern "C" Fault leyden_gated_attention(int64_t bfloat16, const void *q, int64_t q_row, int64_t q_head, const void *k,
                                        int64_t k_row, int64_t k_head, const void *v, int64_t v_row, int64_t v_head,
                                        const float *log_decay, float *states, const int64_t *slots,
                                        const int64_t *bounds, int64_t tokens, int64_t heads, int64_t K, int64_t V,
                                        int64_t places, int64_t sequences, int64_t last, void *out, int64_t threads) {
    if (V % LANES) return "16 does not divide the value dims";
    if (last != sequences + 1 || !rise(bounds, sequences, tokens)) return "the bounds do not rise among the tokens";
    if (const Fault fault = apart_from_each_other(slots, sequences, places)) return fault;
    return with_dtype(bfloat16, [&](auto type) {
        using T = decltype(type);
        // Values of a head are columns by themselves: where there are few heads, more threads share one.
        const bool whole = V % (ACROSS * LANES) == 0 && sequences * heads * (V / (ACROSS * LANES)) >= threads;
        const int64_t width = whole ? ACROSS * LANES : LANES, parts = V / width;
        const auto run = [&](int64_t item, auto across) {
            const int64_t n = item / (heads * parts), h = item / parts % heads, column = item % parts * width;
            const int64_t first = bounds[n];
            forward<T, across>((const T *)q + first * q_row + h * q_head, q_row,
                               (const T *)k + first * k_row + h * k_head, k_row,
                               (const T *)v + first * v_row + h * v_head + column, v_row,
                               log_decay + (first * heads + h) * K, heads * K, bounds[n + 1] - first, K,
                               states + (slots[n] * heads + h) * K * V + column, V,
                               (T *)out + (first * heads + h) * V + column, heads * V);
        };
        std::atomic<int64_t> next{0};
        team(threads, [&](int64_t, int64_t) {
            for (int64_t item; (item = next++) < sequences * heads * parts;)
                if (whole) run(item, std::integral_constant<int, ACROSS>{});
                else run(item, std::integral_constant<int, 1>{});
        });
    });
}

// dout: [T, heads, V]; dfinal, initial, dinitial: [sequences, heads, K, V], the first two null for zeros; K a multiple of
// 16; all gradients are written.
extern "C" Fault leyden_gated_attention_backward(
    int64_t bfloat16, const void *dout, const float *dfinal, const void *q, int64_t q_row, int64_t q_head, const void *k,
    int64_t k_row, int64_t k_head, const void *v, int64_t v_row, int64_t v_head, const float *log_decay,
    const float *initial, const int64_t *bounds, int64_t tokens, int64_t heads, int64_t K, int64_t V, int64_t sequences,
    int64_t last, void *dq, void *dk, void *dv, float *dlog_decay, float *dinitial, int64_t threads) {
    if (K % LANES) return "16 does not divide the key dims";
    if (last != sequences + 1 || !rise(bounds, sequences, tokens)) return "the bounds do not rise among the tokens";
    return with_dtype(bfloat16, [&](auto type) {
        using T = decltype(type);
        std::atomic<int64_t> next{0};
        team(threads, [&](int64_t, int64_t) {
            Backward<T> backward(K, V);
            for (int64_t item; (item = next++) < sequences * heads;) {
                const int64_t h = item % heads, n = item / heads, first = bounds[n], state = item * K * V;
                const int64_t key = (first * heads + h) * K, value = (first * heads + h) * V;
                const typename Backward<T>::Rows rows = {
                    (const T *)q + first * q_row + h * q_head, (const T *)k + first * k_row + h * k_head,
                    (const T *)v + first * v_row + h * v_head, (const T *)dout + value, log_decay + key,
                    (T *)dq + key, (T *)dk + key, (T *)dv + value, dlog_decay + key,
                    q_row, k_row, v_row, heads * K, heads * V};
                backward.run(rows, bounds[n + 1] - first, initial ? initial + state : nullptr,
                             dfinal ? dfinal + state : nullptr, dinitial + state);
            }
        });
    });
}

// The next tokens of many sequences through the whole hybrid language model, on a CPU.
//
// A decoding step reads every active weight once, whatever the number of rows (one row is one token), and for few rows
// it is bound by that. What an eager framework adds is a dispatch for each of some 300 small operations. Here a team of
// threads walks through the layers together: each takes a share of the rows of every matrix and computes it for all
// rows of the batch (products.h), and a barrier stands wherever one result needs all of the one before.
//
// A row's bits depend on its own sequence alone: sums have one order for every batch and every number of threads.
// Between the products everything is float32: the residual stream, norms, gates, states, softmax.

#include <atomic>
#include <cstdlib>
#include <memory>

#include "attention.h"
#include "lightning_attention/decay.h"
#include "products.h"

extern "C" {

// The mirror of the structures in __init__.py.

enum Kind : int64_t { FLOAT32, BFLOAT16, INT8 };

enum Mixer : int32_t { LIGHTNING = 1, SOFTMAX = 2 };

// Row-major [out, in]; of int8, w = value * scale of its row.
struct Matrix {
    const void *weight;
    const float *scale;  // [out], or null
    int64_t kind;
};

struct Layer {
    int32_t mixer;                        // a Mixer
    float attention_alpha, attention_beta, mlp_alpha, mlp_beta;
    const float *input_norm, *post_norm;  // [D]
    Matrix first, second, third;          // lightning: qkv [3HK, D], gate [HK, D]; softmax: q [HK, D], k, v [GK, D]
    Matrix out;                           // [D, HK]
    const float *head_norm, *slopes;      // lightning: [HK], [H]
    float *states;                        // lightning: [slots, H, K, K]
    void *keys, *values;                  // softmax: [pages, PAGE, G, K]
    const float *router;                  // [E, D]
    Matrix gate, up, down;                // [F, D], [F, D], [D, F] of expert 0
    Matrix shared_gate, shared_up, shared_down;  // of the expert that takes every row; a dense layer has no other
    const float *shared_coefficient;             // [D], or null where the shared expert has weight 1
};

struct Model {
    int32_t bfloat16;  // of activations, keys and values; weights have each a kind of their own
    int32_t hidden, heads, kv_heads, head_dim, rotary_dim, intermediate, experts, top_k, shared, vocab, layers;
    int32_t postnorm;
    float eps, head_eps;
    int32_t expert_rows;             // of gate and up, from one expert to the next
    const double *frequencies;       // [rotary_dim / 2]
    Matrix embedding;                // [vocab, D]
    const float *final_norm;         // [D]
    Matrix head;                     // [vocab, D]
    const Layer *layer;
    int64_t num_slots, num_pages;    // of the pools
};

// One token. Rows of a sequence follow each other in the order of their positions.
struct Row {
    int64_t token, position;
    int64_t before, after;  // slots of the state
    int64_t table;          // where the sequence's pages begin in `pages`
};

struct Batch {
    int64_t num_rows, num_sequences, num_wanted;
    const Row *rows;
    const int64_t *bounds;  // [num_sequences + 1], of their rows
    const int64_t *wanted;  // [num_wanted], rows whose logits are asked for
    const int32_t *pages;  // [num_pages]
    int64_t num_pages;
};
}

namespace {

using namespace leyden;

// Memory kept between steps, whose contents are whatever they were.
template <class T> class Buffer {
  public:
    void fit(int64_t count) {
        if (count <= size) return;
        size = 0;
        memory.reset((T *)std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64));
        if (!memory) throw std::bad_alloc();
        size = count;
    }
    T *operator+(int64_t i) const { return memory.get() + i; }
    T &operator[](int64_t i) const { return memory.get()[i]; }

  private:
    struct Free {
        void operator()(T *p) const { std::free(p); }
    };
    std::unique_ptr<T, Free> memory;
    int64_t size = 0;
};

constexpr int NEVER = INT32_MAX;

// Thrown by a thread that goes no further, since the memory of another did not suffice.
struct Stopped {};

// What all threads read and write, each in its own rows or columns. B rows, A = B * top_k assignments to experts.
template <class X> struct Shared {
    Buffer<float> x, normed;                  // [B, D]
    Buffer<X> input;                          // [B, D], normed
    Buffer<float> cosine, sine;               // [B, rotary_dim / 2]
    Buffer<float> projected;                  // [B, 4HK] or [B, HK + 2GK], rows apart() as those of all products
    Buffer<float> attended;                   // [B, HK]
    Buffer<X> inner;                          // [B, HK]: queries, then what the heads yield
    Buffer<float> parts;                      // [pieces of all rows, H, K + 2]
    Buffer<float> share;                      // [A]
    Buffer<float> coefficient;                // [B], of the shared expert
    Buffer<int32_t> chosen;                   // [A]
    Buffer<float> gate, up;                   // [A, F] and behind it [B, shared F]
    Buffer<X> active;                         // the same
    Buffer<float> added;                      // [A, D] and behind it [B, D]
    std::vector<int64_t> first_piece;         // [B + 1]
    std::atomic<int64_t> next{0};             // of the items that threads take as they come
    std::atomic<int> failed{NEVER};           // the number of the barrier before which a thread's memory did not suffice

    void fit(const Model &m, const Batch &batch) {
        const int64_t B = batch.num_rows, A = B * m.top_k, width = m.heads * m.head_dim;
        x.fit(B * m.hidden), normed.fit(B * m.hidden), input.fit(B * m.hidden);
        cosine.fit(B * m.rotary_dim / 2), sine.fit(B * m.rotary_dim / 2);
        projected.fit(B * apart(std::max<int64_t>(4 * width, width + 2 * m.kv_heads * m.head_dim)));
        attended.fit(B * width), inner.fit(B * width);
        share.fit(A), chosen.fit(A), coefficient.fit(B);
        const int64_t hidden = A * apart(m.intermediate) + B * apart(m.shared);
        gate.fit(hidden), up.fit(hidden), active.fit(hidden), added.fit((A + B) * apart(m.hidden));
        first_piece.assign(1, 0);
        for (int64_t b = 0; b < B; b++)
            first_piece.push_back(first_piece[b] + Pieces(batch.rows[b].position + 1).count);
        parts.fit(first_piece[B] * m.heads * (m.head_dim + 2));
        next = 0, failed = NEVER;
    }
};

constexpr int ACROSS = SUMS / 3 < 4 ? SUMS / 3 : 4;  // vectors of a state's row at once, with their values and sums

// S' = exp(-slope) S + k v^T;  o = S'^T q, for V vectors of columns. `from` may be `to`, or null for zeros.
template <int V>
inline void recur(const float *from, float *to, Decay decay, const float *q, const float *k, const float *v, int K,
                  float *out) {
    Vector value[V], total[V] = {};
    for (int j = 0; j < V; j++) value[j] = load(v + j * LANES);
    for (int i = 0; i < K; i++)
        for (int j = 0; j < V; j++) {
            Vector s = k[i] * value[j];
            if (from) s = decay(load(from + i * K + j * LANES), s);
            store(to + i * K + j * LANES, s);
            total[j] += q[i] * s;
        }
    for (int j = 0; j < V; j++) store(out + j * LANES, total[j]);
}

// One thread of the team.
template <class T> class Worker {
  public:
    using X = Input<T>;

    Worker(const Model &model, const Batch &batch, Shared<X> &shared, int rank, int size)
        : m(model), batch(batch), at(shared), B((int)batch.num_rows), K(m.head_dim), width(m.heads * m.head_dim),
          rank(rank), size(size) {}

    // An exception must not leave a thread, and the other threads wait for this one at their next barrier.
    void run(float *logits, int64_t logits_stride) {
        try {
            walk(logits, logits_stride);
        } catch (const Stopped &) {
        } catch (const std::bad_alloc &) {
            at.failed = barriers;
#pragma omp barrier
        }
    }

  private:
    const Model &m;
    const Batch &batch;
    Shared<X> &at;
    const int B, K, width, rank, size;
    int barriers = 0;                          // that this thread has passed
    std::vector<int32_t> first, order, place;  // of the assignments sorted by expert
    Upcoming upcoming;

    void walk(float *logits, int64_t logits_stride) {
        first.resize(m.experts + 1), order.resize(B * m.top_k), place.resize(B * m.top_k);
        of_rows(B, [&](int b) { embed(b); });
        barrier();
        for (int i = 0; i < m.layers; i++) {
            const Layer &layer = m.layer[i];
            of_rows(B, [&](int b) { norm(layer.input_norm, b, b); });
            barrier();
            layer.mixer == LIGHTNING ? lightning(layer) : softmax(layer);
            barrier();
            of_rows(B, [&](int b) {
                norm(layer.post_norm, b, b);
                if (m.experts) route(layer, b);
                if (layer.shared_coefficient)
                    at.coefficient[b] = sigmoid(at.normed + b * m.hidden, layer.shared_coefficient, m.hidden);
            });
            barrier();
            feed_forward(layer);
            barrier();
        }
        const int R = (int)batch.num_wanted;
        of_rows(R, [&](int r) { norm(m.final_norm, (int)batch.wanted[r], r); });
        barrier();
        upcoming.clear();
        project(m.head, m.hidden, m.vocab, {at.input + 0, m.hidden, R}, logits, logits_stride);
        barrier();
    }

    // Behind a barrier that a failed thread came to, no thread goes on. One that has gone on to the next part of the work
    // may have failed there meanwhile, of which this barrier must not yet speak: all meet again at the next.
    void barrier() {
#pragma omp barrier
        if (at.failed <= barriers++) throw Stopped{};
    }

    template <class F> void of_rows(int count, F &&work) const {
        for (int i = rank * count / size; i < (rank + 1) * count / size; i++) work(i);
    }

    // This thread's columns, in whole vectors where the last thread does not take a rest.
    std::pair<int, int> mine(int count) const {
        const int64_t vectors = count / LANES;
        const int64_t begin = vectors * rank / size * LANES, end = vectors * (rank + 1) / size * LANES;
        return {(int)begin, rank == size - 1 ? count : (int)end};
    }

    // work(i) for every item, by whichever thread comes first; ends with a barrier.
    template <class F> void of_items(int64_t count, F &&work) {
        for (int64_t i; (i = at.next.fetch_add(1, std::memory_order_relaxed)) < count;) work(i);
        barrier();
        if (rank == 0) at.next = 0;
    }

    // y = x w^T for this thread's columns of y, for w of any kind.
    void project(const Matrix &w, int n, int out, Rows<X> x, float *y, int64_t y_stride, int64_t row = 0) {
        const auto [begin, end] = mine(out);
        upcoming.enter();
        if (begin < end) multiply(w, n, row, begin, end, x, y, y_stride);
    }

    // This thread's rows of w are a part of what it reads.
    void announce(const Matrix &w, int n, int out, int64_t row = 0) {
        const auto [begin, end] = mine(out);
        const int64_t bytes = n * (w.kind == INT8 ? 1 : w.kind == BFLOAT16 ? 2 : 4);
        upcoming.add((const char *)w.weight + (row + begin) * bytes, (end - begin) * bytes);
    }

    // Of the matrix that begins `row` rows behind w.
    void multiply(const Matrix &w, int n, int64_t row, int begin, int end, Rows<X> x, float *y, int64_t stride) {
        const float *scale = w.scale ? w.scale + row : nullptr;
        if (w.kind == INT8)
            product((const Int8 *)w.weight + row * n, n, scale, n, begin, end, x, y, stride, &upcoming);
        else if (w.kind == BFLOAT16)
            product((const BFloat16 *)w.weight + row * n, n, scale, n, begin, end, x, y, stride, &upcoming);
        else if constexpr (std::is_same<X, float>::value)
            product((const float *)w.weight + row * n, n, scale, n, begin, end, x, y, stride, &upcoming);
    }

    void embed(int b) {
        const Matrix &w = m.embedding;
        const int64_t token = batch.rows[b].token, begin = token * m.hidden;
        const float scale = w.scale ? w.scale[token] : 1;
        const auto copy = [&](auto *from) {
            for (int i = 0; i < m.hidden; i += LANES) store(at.x + b * m.hidden + i, load(from + begin + i) * scale);
        };
        if (w.kind == INT8) copy((const Int8 *)w.weight);
        else if (w.kind == BFLOAT16) copy((const BFloat16 *)w.weight);
        else copy((const float *)w.weight);
        const int half = m.rotary_dim / 2;
        for (int i = 0; i < half; i++) {
            const double angle = batch.rows[b].position * m.frequencies[i];
            at.cosine[b * half + i] = std::cos(angle), at.sine[b * half + i] = std::sin(angle);
        }
    }

    static float dot(const float *a, const float *b, int n) {
        Vector total = {};
        for (int i = 0; i < n; i += LANES) total += load(a + i) * load(b + i);
        return sum(total);
    }

    static float sigmoid(const float *x, const float *w, int n) { return 1 / (1 + std::exp(-dot(x, w, n))); }

    static float rms(const float *x, int n, float eps) { return 1 / std::sqrt(dot(x, x, n) / n + eps); }

    void norm(const float *weight, int b, int to) const {
        const float *x = at.x + b * m.hidden, scale = rms(x, m.hidden, m.eps);
        for (int i = 0; i < m.hidden; i += LANES) {
            const Vector y = load(x + i) * scale * load(weight + i);
            store(at.normed + to * m.hidden + i, y);
            store(at.input + to * m.hidden + i, y);
        }
    }

    Rows<X> inputs() const { return {at.input + 0, m.hidden, B}; }

    // x = kept * alpha + y * beta in this thread's columns; y: [B, D] in `added`.
    void residual(float alpha, float beta) const {
        const Buffer<float> &kept = m.postnorm ? at.normed : at.x;
        const auto [begin, end] = mine(m.hidden);
        for (int b = 0; b < B; b++)
            for (int i = begin; i < end; i += LANES)
                store(at.x + b * m.hidden + i,
                      load(kept + b * m.hidden + i) * alpha + load(at.added + b * apart(m.hidden) + i) * beta);
    }

    // From the heads to the residual stream.
    void attended(const Layer &layer) {
        upcoming.clear(), announce(layer.out, width, m.hidden);
        barrier();
        project(layer.out, width, m.hidden, {at.inner + 0, width, B}, at.added + 0, apart(m.hidden));
        residual(layer.attention_alpha, layer.attention_beta);
    }

    void lightning(const Layer &layer) {
        const int64_t stride = apart(4 * width);
        upcoming.clear();
        announce(layer.first, m.hidden, 3 * width), announce(layer.second, m.hidden, width);
        of_rows((int)batch.num_sequences, [&](int i) {
            upcoming.add(state(layer, batch.rows[batch.bounds[i]].before, 0), m.heads * K * K * sizeof(float));
        });
        project(layer.first, m.hidden, 3 * width, inputs(), at.projected + 0, stride);
        project(layer.second, m.hidden, width, inputs(), at.projected + 3 * width, stride);
        const auto [begin, end] = mine(3 * width);
        const auto [gate_begin, gate_end] = mine(width);
        for (int b = 0; b < B; b++) {
            float *qkv = at.projected + b * stride, *gate = qkv + 3 * width;
            for (int i = begin; i < end; i += LANES) {
                const Vector v = load(qkv + i);
                store(qkv + i, v * leyden::sigmoid(v));
            }
            for (int i = gate_begin; i < gate_end; i += LANES) store(gate + i, leyden::sigmoid(load(gate + i)));
        }
        barrier();
        of_rows((int)batch.num_sequences * m.heads, [&](int item) {
            const int sequence = item / m.heads, h = item % m.heads;
            for (int64_t b = batch.bounds[sequence]; b < batch.bounds[sequence + 1]; b++) recur(layer, b, h);
        });
        barrier();
        of_rows(B, [&](int b) {
            const float *x = at.attended + b * width, *gate = at.projected + b * stride + 3 * width;
            const float scale = rms(x, width, m.head_eps);
            for (int i = 0; i < width; i += LANES)
                store(at.inner + b * width + i, load(x + i) * scale * load(layer.head_norm + i) * load(gate + i));
        });
        attended(layer);
    }

    float *state(const Layer &layer, int64_t slot, int64_t h) const {
        return layer.states + (slot * m.heads + h) * K * K;
    }

    // One row of one head, whose q, k and v follow each other.
    void recur(const Layer &layer, int64_t b, int64_t h) const {
        const Row &row = batch.rows[b];
        const float *q = at.projected + b * apart(4 * width) + 3 * h * K, *k = q + K, *v = k + K;
        const float *from = row.position ? state(layer, row.before, h) : nullptr;
        float *to = state(layer, row.after, h), *out = at.attended + b * width + h * K;
        const Decay decay(layer.slopes[h]);
        int j = 0;
        for (; j + ACROSS * LANES <= K; j += ACROSS * LANES)
            ::recur<ACROSS>(from ? from + j : from, to + j, decay, q, k, v + j, K, out + j);
        for (; j < K; j += LANES) ::recur<1>(from ? from + j : from, to + j, decay, q, k, v + j, K, out + j);
    }

    void softmax(const Layer &layer) {
        const int G = m.kv_heads, group = m.heads / G, half = m.rotary_dim / 2;
        const int64_t narrow = G * K, stride = apart(width + 2 * narrow), part = K + 2;
        float *projected = at.projected + 0;
        upcoming.clear(), announce(layer.first, m.hidden, width);
        announce(layer.second, m.hidden, narrow), announce(layer.third, m.hidden, narrow);
        project(layer.first, m.hidden, width, inputs(), projected, stride);
        project(layer.second, m.hidden, narrow, inputs(), projected + width, stride);
        project(layer.third, m.hidden, narrow, inputs(), projected + width + narrow, stride);
        barrier();
        of_rows(B, [&](int b) {
            const Row &row = batch.rows[b];
            float *q = projected + b * stride, *k = q + width, *v = k + narrow;
            for (int h = 0; h < m.heads + G; h++) turn(q + h * K, at.cosine + b * half, at.sine + b * half);
            for (int i = 0; i < width; i += LANES) store(at.inner + b * width + i, load(q + i));
            const int64_t place = (batch.pages[row.table + row.position / PAGE] * (int64_t)PAGE + row.position % PAGE);
            for (int i = 0; i < narrow; i += LANES) {
                store((T *)layer.keys + place * narrow + i, load(k + i));
                store((T *)layer.values + place * narrow + i, load(v + i));
            }
        });
        barrier();
        of_items(at.first_piece[B] * G, [&](int64_t item) {
            const int64_t piece = item / G, g = item % G;
            const int64_t b = std::upper_bound(at.first_piece.begin(), at.first_piece.end(), piece) -
                              at.first_piece.begin() - 1;
            attend_piece((const T *)layer.keys + g * K, (const T *)layer.values + g * K, narrow,
                         batch.pages + batch.rows[b].table, Pieces(batch.rows[b].position + 1),
                         piece - at.first_piece[b], at.inner + b * width + g * group * K, group, K,
                         at.parts + (piece * m.heads + g * group) * part);
        });
        of_rows(B * m.heads, [&](int i) {
            const int64_t b = i / m.heads, h = i % m.heads, begin = at.first_piece[b];
            join_pieces(at.parts + (begin * m.heads + h) * part, m.heads * part, at.first_piece[b + 1] - begin, K,
                        at.inner + b * width + h * K);
        });
        attended(layer);
    }

    // Rotates the first dims of one head.
    void turn(float *head, const float *cosine, const float *sine) const {
        const int half = m.rotary_dim / 2;
        vectors(half, [&](int64_t i, int n) {
            const Vector a = load(head + i, n), b = load(head + half + i, n);
            const Vector c = load(cosine + i, n), s = load(sine + i, n);
            store(head + i, a * c - b * s, n);
            store(head + half + i, b * c + a * s, n);
        });
    }

    // The top k of the router's softmax, with weights that sum to 1.
    void route(const Layer &layer, int b) const {
        std::vector<float> scores(m.experts);
        product(layer.router, m.hidden, nullptr, m.hidden, 0, m.experts,
                Rows<float>{at.normed + b * m.hidden, m.hidden, 1}, scores.data(), m.experts);
        const float largest = *std::max_element(scores.begin(), scores.end());
        float total = 0, *share = at.share + b * m.top_k;
        for (int j = 0; j < m.top_k; j++) {
            const auto best = std::max_element(scores.begin(), scores.end());
            at.chosen[b * m.top_k + j] = (int)(best - scores.begin());
            total += share[j] = std::exp(*best - largest);
            *best = -INFINITY;
        }
        for (int j = 0; j < m.top_k; j++) share[j] /= total;
    }

    // order: the assignments sorted by expert; place: its inverse; first[e]: where those of expert e begin.
    void sort() {
        const int A = m.experts ? B * m.top_k : 0;
        std::fill(first.begin(), first.end(), 0);
        for (int a = 0; a < A; a++) first[at.chosen[a] + 1]++;
        for (int e = 0; e < m.experts; e++) first[e + 1] += first[e];
        std::vector<int32_t> next(first.begin(), first.end());
        for (int a = 0; a < A; a++) {
            place[a] = next[at.chosen[a]]++;
            order[place[a]] = a / m.top_k;
        }
    }

    // active = silu(gate) * up in this thread's columns of rows of width n.
    void activate(const float *gate, const float *up, int count, int n, X *active) const {
        const auto [begin, end] = mine(n);
        for (int64_t a = 0; a < count; a++)
            for (int64_t i = a * apart(n) + begin; i < a * apart(n) + end; i += LANES) {
                const Vector g = load(gate + i);
                store(active + i, g * leyden::sigmoid(g) * load(up + i));
            }
    }

    // The assignments to experts lie sorted in the buffers; behind them all rows, which the shared expert takes.
    void feed_forward(const Layer &layer) {
        const int F = m.intermediate, E = m.experts, A = E ? B * m.top_k : 0, D = m.hidden;
        const int64_t inner = apart(F), outer = apart(D), shared = apart(m.shared), behind = A * inner;
        sort();
        upcoming.clear();
        for (int e = 0; e < E; e++)
            if (first[e] < first[e + 1]) {
                const int64_t row = (int64_t)e * m.expert_rows;
                announce(layer.gate, D, F, row), announce(layer.up, D, F, row);
            }
        if (m.shared) announce(layer.shared_gate, D, m.shared), announce(layer.shared_up, D, m.shared);
        for (int e = 0; e < E; e++)
            if (first[e] < first[e + 1]) announce(layer.down, F, D, (int64_t)e * D);
        if (m.shared) announce(layer.shared_down, m.shared, D);
        for (int e = 0; e < E; e++) {
            if (first[e] == first[e + 1]) continue;
            const Rows<X> x{at.input + 0, D, first[e + 1] - first[e], &order[first[e]]};
            const int64_t offset = first[e] * inner, row = (int64_t)e * m.expert_rows;
            project(layer.gate, D, F, x, at.gate + offset, inner, row);
            project(layer.up, D, F, x, at.up + offset, inner, row);
        }
        activate(at.gate + 0, at.up + 0, A, F, at.active + 0);
        if (m.shared) {
            project(layer.shared_gate, D, m.shared, inputs(), at.gate + behind, shared);
            project(layer.shared_up, D, m.shared, inputs(), at.up + behind, shared);
            activate(at.gate + behind, at.up + behind, B, m.shared, at.active + behind);
        }
        barrier();
        for (int e = 0; e < E; e++) {
            if (first[e] == first[e + 1]) continue;
            const Rows<X> x{at.active + first[e] * inner, inner, first[e + 1] - first[e]};
            project(layer.down, F, D, x, at.added + first[e] * outer, outer, (int64_t)e * D);
        }
        if (m.shared)
            project(layer.shared_down, m.shared, D, {at.active + behind, shared, B}, at.added + A * outer, outer);
        const auto [begin, end] = mine(D);
        for (int b = 0; b < B; b++) mix(layer, b, begin, end, A);
    }

    // Columns of one row: the experts by their shares, the shared expert, the residual.
    void mix(const Layer &layer, int b, int begin, int end, int64_t A) const {
        const float *kept = (m.postnorm ? at.normed : at.x) + b * m.hidden;
        const float c = layer.shared_coefficient ? at.coefficient[b] : m.experts ? 0 : 1;
        for (int i = begin; i < end; i += LANES) {
            Vector y = {};
            for (int j = b * m.top_k; m.experts && j < (b + 1) * m.top_k; j++)
                y += at.share[j] * load(at.added + place[j] * apart(m.hidden) + i);
            if (m.shared) y = y * (1 - c) + load(at.added + (A + b) * apart(m.hidden) + i) * c;
            store(at.x + b * m.hidden + i, load(kept + i) * layer.mlp_alpha + y * layer.mlp_beta);
        }
    }
};

template <class T> void step(const Model &model, const Batch &batch, int threads, float *logits, int64_t stride) {
    static thread_local Shared<Input<T>> kept;
    Shared<Input<T>> &shared = kept;  // of this thread, for all of its team
    shared.fit(model, batch);
#pragma omp parallel num_threads(threads)
    Worker<T>(model, batch, shared, omp_get_thread_num(), omp_get_num_threads()).run(logits, stride);
    if (shared.failed != NEVER) throw std::bad_alloc();
}

// What would be read or written outside of the model and its pools.
Fault check(const Model &m, const Batch &batch) {
    const int64_t B = batch.num_rows, N = batch.num_sequences;
    if (B > INT32_MAX / std::max(1, m.top_k)) return "a step has too many tokens";
    if (N < 0 || !rise(batch.bounds, N, B) || batch.bounds[0] || batch.bounds[N] != B)
        return "the bounds of the sequences do not rise among the tokens";
    if (!within(batch.wanted, batch.num_wanted, 0, B)) return "a wanted token is not in the batch";
    bool paged = false;
    for (int i = 0; i < m.layers; i++) {
        if (m.layer[i].mixer != LIGHTNING && m.layer[i].mixer != SOFTMAX)
            return "a layer's mixer is none that this step has a body for";
        paged |= m.layer[i].mixer == SOFTMAX;
    }
    if (paged && !within(batch.pages, batch.num_pages, 0, m.num_pages)) return "a page is none of the pool's";
    for (int64_t b = 0; b < B; b++) {
        const Row &row = batch.rows[b];
        if (row.token < 0 || row.token >= m.vocab) return "a token's id is not in the vocabulary";
        if (row.before < 0 || row.after < 0 || std::max(row.before, row.after) >= m.num_slots)
            return "a slot is none of the pool's";
        if (row.position < 0 || (paged && (row.table < 0 || row.position / PAGE >= batch.num_pages - row.table)))
            return "a position lies behind the sequence's pages";
    }
    return nullptr;
}

}  // namespace

// The sizes are those that Python has for the structures. logits: [num_wanted, vocab], rows `stride` apart.
extern "C" Fault leyden_decode(const Model *model, const Batch *batch, int64_t model_bytes,
                               int64_t layer_bytes, int64_t batch_bytes, float *logits, int64_t stride,
                               int64_t threads) {
    if (model_bytes != sizeof(Model) || layer_bytes != sizeof(Layer) || batch_bytes != sizeof(Batch))
        return "the structures are laid out otherwise here than in Python";
    if (const Fault fault = check(*model, *batch)) return fault;
    return with_dtype(model->bfloat16,
                      [&](auto type) { step<decltype(type)>(*model, *batch, (int)threads, logits, stride); });
}

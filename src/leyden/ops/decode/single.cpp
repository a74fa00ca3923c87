// One token through the whole hybrid language model, on a CPU.
//
// A decoding step reads every active weight once and does little with it, so it is bound by memory; what an eager
// framework adds is a dispatch for each of some 300 small operations, and matrix-vector products that run far below
// the memory's rate. Here a team of threads walks through the layers together: each thread takes a share of the rows
// of every matrix, and a barrier stands wherever one result needs all rows of the one before. What is small (norms,
// the router) every thread computes for itself, which is cheaper than another barrier.
//
// Weights are float32 or bfloat16; all arithmetic and every activation are float32. Vectors have 16 lanes by the
// compilers' own vector types, so that the widths must be multiples of 16.

#include "native.h"

extern "C" {

// The mirror of the structures in __init__.py; matrices are row-major [out, in].
struct Layer {
    int32_t lightning;
    float attention_alpha, attention_beta, mlp_alpha, mlp_beta;
    const float *input_norm, *post_norm;  // [D]
    const void *first, *second, *third;   // lightning: qkv [3HK, D], gate [HK, D]; softmax: q [HK, D], k, v [GK, D]
    const void *out;                      // [D, HK]
    const float *head_norm, *slopes;      // lightning: [HK], [H]
    float *state;                         // lightning: [H, K, K], changed in place
    void *keys, *values;                  // softmax: [G, capacity, K], written at `position`
    int64_t capacity;
    const float *router;                  // [E, D]
    const void *gate, *up, *down;         // [F, D], [F, D], [D, F] of expert 0
    int64_t up_stride, down_stride;       // elements from one expert to the next
};

struct Model {
    int32_t bfloat16, hidden, heads, kv_heads, head_dim, rotary_dim, intermediate, experts, top_k, vocab, layers;
    int32_t postnorm;
    float eps, head_eps;
    double theta;
    const void *embedding;    // [vocab, D]
    const float *final_norm;  // [D]
    const void *head;         // [vocab, D]
    const Layer *layer;
};
}

namespace {

using namespace leyden;

constexpr int ROWS = 4;          // rows of a matrix read together
constexpr int AHEAD = 2 * ROWS;  // rows fetched before their turn: the caches would otherwise wait at every page

template <class W> inline float dot(const W *w, const float *x, int n) {
    Vector total = {};
    for (int i = 0; i < n; i += LANES) total += load(w + i) * load(x + i);
    return sum(total);
}

// y[r] = w[r] . x for r from begin to end; ROWS rows at once keep enough loads in flight.
template <class W> void product(const W *w, const float *x, int n, int begin, int end, float *y) {
    int r = begin;
    for (; r + ROWS <= end; r += ROWS) {
        const W *rows = w + (int64_t)r * n;
        Vector total[ROWS] = {};
        for (int i = 0; i < n; i += LANES) {
            const Vector xi = load(x + i);
            for (int j = 0; j < ROWS; j++) {
                __builtin_prefetch(rows + (int64_t)(j + AHEAD) * n + i);
                total[j] += load(rows + (int64_t)j * n + i) * xi;
            }
        }
        for (int j = 0; j < ROWS; j++) y[r + j] = sum(total[j]);
    }
    for (; r < end; r++) y[r] = dot(w + (int64_t)r * n, x, n);
}

inline float sigmoid(float x) { return 1 / (1 + std::exp(-x)); }

void rms_norm(const float *x, const float *weight, float eps, int n, float *y) {
    const float scale = 1 / std::sqrt(dot(x, x, n) / n + eps);
    for (int i = 0; i < n; i++) y[i] = x[i] * scale * weight[i];
}

// What one thread does; the members named shared are written by all, each thread in its own rows.
template <class W> class Worker {
  public:
    struct Shared {
        std::vector<float> x, projected, attended, active;
    };

    Worker(const Model &model, Shared &shared, int64_t position, int rank, int size)
        : m(model), shared(shared), position(position), rank(rank), size(size), normed(m.hidden),
          gated(m.heads * m.head_dim), scores(std::max(m.experts, 1)), chosen(m.top_k), share(m.top_k),
          cosine(m.rotary_dim / 2), sine(m.rotary_dim / 2) {
        for (int i = 0; i < m.rotary_dim / 2; i++) {
            const double angle = position * std::pow(m.theta, -2.0 * i / m.rotary_dim);
            cosine[i] = std::cos(angle), sine[i] = std::sin(angle);
        }
    }

    void run(int64_t token, float *logits) {
        const W *row = (const W *)m.embedding + token * m.hidden;
        if (rank == 0)
            for (int i = 0; i < m.hidden; i += LANES) store(&shared.x[i], load(row + i));
        barrier();
        for (int i = 0; i < m.layers; i++) {
            const Layer &layer = m.layer[i];
            rms_norm(shared.x.data(), layer.input_norm, m.eps, m.hidden, normed.data());
            layer.lightning ? lightning(layer) : softmax(layer);
            barrier();
            rms_norm(shared.x.data(), layer.post_norm, m.eps, m.hidden, normed.data());
            feed_forward(layer);
            barrier();
        }
        rms_norm(shared.x.data(), m.final_norm, m.eps, m.hidden, normed.data());
        mine(m.vocab, [&](int begin, int end) {
            product((const W *)m.head, normed.data(), m.hidden, begin, end, logits);
        });
    }

  private:
    const Model &m;
    Shared &shared;
    const int64_t position;
    const int rank, size;
    std::vector<float> normed, gated, scores;
    std::vector<int> chosen;
    std::vector<float> share, cosine, sine;

    static void barrier() {
#pragma omp barrier
    }

    // This thread's share of `count` rows, in whole groups of ROWS where that goes evenly.
    template <class F> void mine(int count, F &&work) const {
        const int each = (count / size + ROWS - 1) / ROWS * ROWS;
        const int begin = std::min(count, rank * each);
        work(begin, rank == size - 1 ? count : std::min(count, begin + each));
    }

    // x = kept * alpha + (w y) * beta, the residual of every half layer.
    template <class F> void residual(float alpha, float beta, F &&added) {
        const float *kept = m.postnorm ? normed.data() : shared.x.data();
        mine(m.hidden, [&](int begin, int end) {
            float *y = shared.attended.data() + m.heads * m.head_dim;
            added(begin, end, y);
            for (int r = begin; r < end; r++) shared.x[r] = kept[r] * alpha + y[r] * beta;
        });
    }

    void lightning(const Layer &layer) {
        const int K = m.head_dim, width = m.heads * K;
        float *qkv = shared.projected.data(), *gate = qkv + 3 * width;
        mine(3 * width, [&](int begin, int end) {
            product((const W *)layer.first, normed.data(), m.hidden, begin, end, qkv);
            for (int r = begin; r < end; r++) qkv[r] *= sigmoid(qkv[r]);
        });
        mine(width, [&](int begin, int end) {
            product((const W *)layer.second, normed.data(), m.hidden, begin, end, gate);
            for (int r = begin; r < end; r++) gate[r] = sigmoid(gate[r]);
        });
        barrier();
        for (int h = rank; h < m.heads; h += size) recur(layer, h, qkv + 3 * h * K);
        barrier();
        const float *attended = shared.attended.data();
        rms_norm(attended, layer.head_norm, m.head_eps, width, gated.data());
        for (int i = 0; i < width; i++) gated[i] *= gate[i];
        residual(layer.attention_alpha, layer.attention_beta, [&](int begin, int end, float *y) {
            product((const W *)layer.out, gated.data(), width, begin, end, y);
        });
    }

    // S = exp(-slope) S + k v^T;  o = S^T q, for one head whose q, k and v follow each other.
    void recur(const Layer &layer, int h, const float *qkv) {
        const int K = m.head_dim;
        const float *q = qkv, *k = qkv + K, *v = qkv + 2 * K;
        const float decay = std::exp(-layer.slopes[h]);
        float *state = layer.state + (int64_t)h * K * K, *out = shared.attended.data() + h * K;
        std::fill(out, out + K, 0.0f);
        for (int i = 0; i < K; i++)
            for (int j = 0; j < K; j += LANES) {
                const Vector s = load(state + i * K + j) * decay + k[i] * load(v + j);
                store(state + i * K + j, s);
                store(out + j, load(out + j) + q[i] * s);
            }
    }

    void softmax(const Layer &layer) {
        const int K = m.head_dim, width = m.heads * K, narrow = m.kv_heads * K;
        float *q = shared.projected.data(), *k = q + width, *v = k + narrow;
        const auto project = [&](const void *w, int rows, float *y) {
            mine(rows, [&](int begin, int end) { product((const W *)w, normed.data(), m.hidden, begin, end, y); });
        };
        project(layer.first, width, q), project(layer.second, narrow, k), project(layer.third, narrow, v);
        barrier();
        for (int g = rank; g < m.kv_heads; g += size) {
            turn(k + g * K);
            const int64_t place = (g * layer.capacity + position) * K;
            for (int i = 0; i < K; i += LANES) {
                store((W *)layer.keys + place + i, load(k + g * K + i));
                store((W *)layer.values + place + i, load(v + g * K + i));
            }
        }
        barrier();
        for (int h = rank; h < m.heads; h += size) {
            turn(q + h * K);
            attend(layer, h, q + h * K);
        }
        barrier();
        residual(layer.attention_alpha, layer.attention_beta, [&](int begin, int end, float *y) {
            product((const W *)layer.out, shared.attended.data(), width, begin, end, y);
        });
    }

    void turn(float *head) const {
        const int half = m.rotary_dim / 2;
        for (int i = 0; i < half; i++) {
            const float a = head[i], b = head[i + half];
            head[i] = a * cosine[i] - b * sine[i];
            head[i + half] = b * cosine[i] + a * sine[i];
        }
    }

    // softmax(q k^T / sqrt(K)) v over all positions up to this one, a block of keys at a time.
    void attend(const Layer &layer, int h, const float *q) {
        constexpr int BLOCK = 64;
        const int K = m.head_dim;
        const int64_t offset = h / (m.heads / m.kv_heads) * layer.capacity * K;
        const W *keys = (const W *)layer.keys + offset, *values = (const W *)layer.values + offset;
        float *out = shared.attended.data() + h * K;
        std::fill(out, out + K, 0.0f);
        const float scale = 1 / std::sqrt((float)K);
        float largest = -INFINITY, total = 0, weight[BLOCK];
        for (int64_t start = 0; start <= position; start += BLOCK) {
            const int count = (int)std::min<int64_t>(BLOCK, position + 1 - start);
            product(keys + start * K, q, K, 0, count, weight);
            const float block_largest = *std::max_element(weight, weight + count) * scale;
            if (block_largest > largest) {
                const float shrink = std::exp(largest - block_largest);
                for (int j = 0; j < K; j++) out[j] *= shrink;
                total *= shrink, largest = block_largest;
            }
            for (int s = 0; s < count; s++) {
                const float w = std::exp(weight[s] * scale - largest);
                total += w;
                const W *value = values + (start + s) * K;
                for (int j = 0; j < K; j += LANES) store(out + j, load(out + j) + w * load(value + j));
            }
        }
        for (int j = 0; j < K; j++) out[j] /= total;
    }

    // The top k of the router's softmax with weights that sum to 1; a dense layer is one expert of weight 1.
    void route(const Layer &layer) {
        if (m.experts == 0) {
            chosen[0] = 0, share[0] = 1;
            return;
        }
        product(layer.router, normed.data(), m.hidden, 0, m.experts, scores.data());
        const float largest = *std::max_element(scores.begin(), scores.end());
        float total = 0;
        for (int j = 0; j < m.top_k; j++) {
            chosen[j] = (int)(std::max_element(scores.begin(), scores.end()) - scores.begin());
            total += share[j] = std::exp(scores[chosen[j]] - largest);
            scores[chosen[j]] = -INFINITY;
        }
        for (float &s : share) s /= total;
    }

    void feed_forward(const Layer &layer) {
        const int F = m.intermediate;
        route(layer);
        mine(m.top_k * F, [&](int begin, int end) {
            for (int j = begin / F; j * F < end; j++) {  // the rows of expert j among those of this thread
                const int first = std::max(begin - j * F, 0), last = std::min(end - j * F, F);
                float *up = shared.projected.data() + j * F, *active = shared.active.data() + j * F;
                const int64_t expert = chosen[j] * layer.up_stride;
                product((const W *)layer.gate + expert, normed.data(), m.hidden, first, last, active);
                product((const W *)layer.up + expert, normed.data(), m.hidden, first, last, up);
                for (int r = first; r < last; r++) active[r] *= sigmoid(active[r]) * up[r] * share[j];
            }
        });
        barrier();
        residual(layer.mlp_alpha, layer.mlp_beta, [&](int begin, int end, float *y) {
            std::fill(y + begin, y + end, 0.0f);
            for (int j = 0; j < m.top_k; j++) {
                const W *down = (const W *)layer.down + chosen[j] * layer.down_stride;
                float *part = shared.projected.data();
                product(down, shared.active.data() + j * F, F, begin, end, part);
                for (int r = begin; r < end; r++) y[r] += part[r];
            }
        });
    }
};

template <class W> void step(const Model &m, int64_t token, int64_t position, int threads, float *logits) {
    const int width = m.heads * m.head_dim;
    typename Worker<W>::Shared shared;
    shared.x.resize(m.hidden);
    const int softmax_width = width + 2 * m.kv_heads * m.head_dim;
    shared.projected.resize(std::max({4 * width, softmax_width, m.top_k * m.intermediate, m.hidden}));
    shared.attended.resize(width + m.hidden);
    shared.active.resize(m.top_k * m.intermediate);
#pragma omp parallel num_threads(threads)
    Worker<W>(m, shared, position, omp_get_thread_num(), omp_get_num_threads()).run(token, logits);
}

}  // namespace

extern "C" void leyden_decode_single(const Model *model, int64_t token, int64_t position, int64_t threads, float *logits) {
    if (model->bfloat16)
        step<BFloat16>(*model, token, position, threads, logits);
    else
        step<float>(*model, token, position, threads, logits);
}

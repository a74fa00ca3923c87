// The softmax of the router, and the shares of the best experts.

#include "native.h"

using namespace leyden;

namespace {

// The softmax of one row, its k largest entries (the first of equals, each once) and their shares of 1.
void best(const float *logits, int64_t num_experts, int64_t top_k, float *p, float *weights, int64_t *chosen) {
    const float top = *std::max_element(logits, logits + num_experts);
    vectors(num_experts, [&](int64_t i, int n) { store(p + i, exp(load(logits + i, n) - top), n); });
    float total = 0;
    for (int64_t e = 0; e < num_experts; e++) total += p[e];
    for (int64_t e = 0; e < num_experts; e++) p[e] /= total;
    float share = 0;
    for (int64_t j = 0; j < top_k; j++) {
        int64_t found = -1;
        for (int64_t e = 0; e < num_experts; e++)
            if (std::find(chosen, chosen + j, e) == chosen + j && (found < 0 || p[e] > p[found])) found = e;
        chosen[j] = found;
        share += weights[j] = p[found];
    }
    for (int64_t j = 0; j < top_k; j++) weights[j] /= share;
}

// Through w_j = p_j / sum of the chosen p, then through p = softmax(logits). The gradients of w and p may be null.
void best_backward(const float *p, const float *weights, const int64_t *chosen, const float *dweights, const float *dp,
                   int64_t num_experts, int64_t top_k, float *dlogits) {
    for (int64_t e = 0; e < num_experts; e++) dlogits[e] = dp ? dp[e] : 0;
    if (dweights) {
        float share = 0, mean = 0;
        for (int64_t j = 0; j < top_k; j++) share += p[chosen[j]], mean += dweights[j] * weights[j];
        for (int64_t j = 0; j < top_k; j++) dlogits[chosen[j]] += (dweights[j] - mean) / share;
    }
    float mean = 0;
    for (int64_t e = 0; e < num_experts; e++) mean += dlogits[e] * p[e];
    for (int64_t e = 0; e < num_experts; e++) dlogits[e] = p[e] * (dlogits[e] - mean);
}

}  // namespace

// logits, probabilities: [rows, experts]; weights, chosen: [rows, k].
extern "C" Fault leyden_route(const float *logits, int64_t rows, int64_t num_experts, int64_t top_k,
                              float *probabilities, float *weights, int64_t *chosen, int64_t threads) {
    if (top_k > num_experts) return "there are fewer experts than top_k";
    return guarded([&]() -> Fault {
        share(rows, threads, [&](int64_t begin, int64_t end, int) {
            for (int64_t row = begin; row < end; row++)
                best(logits + row * num_experts, num_experts, top_k, probabilities + row * num_experts,
                     weights + row * top_k, chosen + row * top_k);
        });
        return nullptr;
    });
}

extern "C" Fault leyden_route_backward(const float *probabilities, const float *weights, const int64_t *chosen,
                                       const float *dweights, const float *dprobabilities, int64_t rows,
                                       int64_t num_experts, int64_t top_k, float *dlogits, int64_t threads) {
    if (!within(chosen, rows * top_k, 0, num_experts)) return "a chosen expert is none of the experts";
    return guarded([&]() -> Fault {
        share(rows, threads, [&](int64_t begin, int64_t end, int) {
            for (int64_t row = begin; row < end; row++)
                best_backward(probabilities + row * num_experts, weights + row * top_k, chosen + row * top_k,
                              dweights ? dweights + row * top_k : nullptr,
                              dprobabilities ? dprobabilities + row * num_experts : nullptr, num_experts, top_k,
                              dlogits + row * num_experts);
        });
        return nullptr;
    });
}

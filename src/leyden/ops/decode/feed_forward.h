// A layer's feed-forward in a decoding step: routed experts, an expert that every token shares, or both.

#pragma once

#include "worker.h"

namespace leyden::decode {

// Where the largest of some scores is, the first of equals; it is taken out.
inline int take_largest(float *scores, int count) {
    float *best = std::max_element(scores, scores + count);
    *best = -INFINITY;
    return (int)(best - scores);
}

// Scores of experts outside of the groups that a token may use become -infinity. Groups are chosen by the sum of their
// best scores.
inline void limit_to_groups(const Model &model, float *scores, int num_experts) {
    const int count = model.num_groups, size = num_experts / count;
    if (model.chosen_groups >= count) return;
    std::vector<float> of_group(count, 0.0f), rest(scores, scores + num_experts);
    for (int g = 0; g < count; g++)
        for (int j = 0; j < std::min(model.group_best, size); j++)
            of_group[g] += scores[g * size + take_largest(&rest[g * size], size)];
    std::vector<char> chosen(count, 0);
    for (int j = 0; j < model.chosen_groups; j++) chosen[take_largest(of_group.data(), count)] = 1;
    for (int e = 0; e < num_experts; e++)
        if (!chosen[e / size]) scores[e] = -INFINITY;
}

// A token's experts by sigmoids and a bias that chooses alone, with the sigmoids' shares as weights.
template <class T>
void choose_by_sigmoids(const Worker<T> &worker, const Layer &layer, int b, std::vector<float> &scores) {
    const Model &model = worker.model;
    const int E = layer.num_experts, top_k = model.top_k;
    std::vector<float> biased(E);
    for (int e = 0; e < E; e++) {
        scores[e] = 1 / (1 + std::exp(-scores[e]));
        biased[e] = scores[e] + layer.expert_bias[e];
    }
    limit_to_groups(model, biased.data(), E);
    float total = 0, *weight = worker.work.expert_weight + b * top_k;
    for (int j = 0; j < top_k; j++) {
        const int best = worker.work.expert_of[b * top_k + j] = take_largest(biased.data(), E);
        total += weight[j] = scores[best];
    }
    const float scale = model.weights_scale / (model.weights_normed ? total + 1e-20f : 1);
    for (int j = 0; j < top_k; j++) weight[j] *= scale;
}

// A token's experts: the top k of the router's softmax, with weights that sum to 1; or those of its sigmoids.
template <class T> void route(const Worker<T> &worker, const Layer &layer, int b) {
    const Model &model = worker.model;
    const int D = model.hidden_size, E = layer.num_experts, top_k = model.top_k;
    std::vector<float> scores(E);
    product(layer.router, D, nullptr, D, 0, E, Rows<float>{worker.work.normed + b * D, D, 1}, scores.data(), E);
    if (layer.expert_bias) return choose_by_sigmoids(worker, layer, b, scores);
    const float largest = *std::max_element(scores.begin(), scores.end());
    float total = 0, *weight = worker.work.expert_weight + b * top_k;
    for (int j = 0; j < top_k; j++) {
        const auto best = std::max_element(scores.begin(), scores.end());
        worker.work.expert_of[b * top_k + j] = (int)(best - scores.begin());
        total += weight[j] = std::exp(*best - largest);
        *best = -INFINITY;
    }
    for (int j = 0; j < top_k; j++) weight[j] /= total;
}

// The weight of the shared expert's output for one token.
template <class T> void weigh_shared_expert(const Worker<T> &worker, const Layer &layer, int b) {
    const int D = worker.model.hidden_size;
    const float logit = dot(worker.work.normed + b * D, layer.shared_coefficient, D);
    worker.work.shared_coefficient[b] = 1 / (1 + std::exp(-logit));
}

// The assignments of tokens to experts, sorted by expert. Every thread sorts them for itself.
struct SortedAssignments {
    std::vector<int32_t> first;  // [E + 1], where those of each expert begin
    std::vector<int32_t> token;  // [A], of each place
    std::vector<int32_t> place;  // [A], of each assignment

    SortedAssignments(int num_experts, int most) : first(num_experts + 1), token(most), place(most) {}

    void sort(const Buffer<int32_t> &expert_of, int count, int top_k) {
        std::fill(first.begin(), first.end(), 0);
        for (int a = 0; a < count; a++) first[expert_of[a] + 1]++;
        for (size_t e = 1; e < first.size(); e++) first[e] += first[e - 1];
        std::vector<int32_t> next(first.begin(), first.end());
        for (int a = 0; a < count; a++) {
            place[a] = next[expert_of[a]]++;
            token[place[a]] = a / top_k;
        }
    }

    int count(int expert) const { return first[expert + 1] - first[expert]; }
};

// Where the hidden activations and the outputs lie in the workspace: those of the assignments, sorted by expert, and
// behind them those of the shared expert.
struct FeedForwardRows {
    int64_t hidden_stride, output_stride, shared_stride;
    int64_t shared_hidden, shared_output;

    FeedForwardRows(const Model &model, const Layer &layer, int64_t num_assignments)
        : hidden_stride(apart(model.expert_width)), output_stride(apart(model.hidden_size)),
          shared_stride(apart(layer.shared_width)), shared_hidden(num_assignments * hidden_stride),
          shared_output(num_assignments * output_stride) {}
};

// activated = silu(gate) * up in this thread's columns of `count` rows of `width`.
template <class T> void activate(const Worker<T> &worker, int64_t begin_at, int64_t count, int width) {
    const auto [begin, end] = worker.columns(width);
    const auto &work = worker.work;
    for (int64_t row = 0; row < count; row++)
        for (int64_t i = begin_at + row * apart(width) + begin; i < begin_at + row * apart(width) + end; i += LANES) {
            const Vector gate = load(work.gate + i);
            store(work.activated + i, gate * sigmoid(gate) * load(work.up + i));
        }
}

// What the feed-forward reads, in the order in which it does.
template <class T>
void prefetch_feed_forward(Worker<T> &worker, const Layer &layer, const SortedAssignments &sorted) {
    const Model &model = worker.model;
    const int D = model.hidden_size, E = layer.num_experts, F = model.expert_width, shared = layer.shared_width;
    worker.prefetch_nothing();
    for (int e = 0; e < E; e++)
        if (sorted.count(e)) {
            const int64_t row = (int64_t)e * model.expert_rows;
            worker.prefetch(layer.gate_proj, D, F, row), worker.prefetch(layer.up_proj, D, F, row);
        }
    if (shared) worker.prefetch(layer.shared_gate_proj, D, shared), worker.prefetch(layer.shared_up_proj, D, shared);
    for (int e = 0; e < E; e++)
        if (sorted.count(e)) worker.prefetch(layer.down_proj, F, D, (int64_t)e * D);
    if (shared) worker.prefetch(layer.shared_down_proj, shared, D);
}

// silu(gate_proj(x)) * up_proj(x), in this thread's columns, of every expert.
template <class T> void gate_and_up(Worker<T> &worker, const Layer &layer, const SortedAssignments &sorted) {
    const Model &model = worker.model;
    auto &work = worker.work;
    const int D = model.hidden_size, E = layer.num_experts, F = model.expert_width, shared = layer.shared_width;
    const FeedForwardRows rows(model, layer, sorted.first[E]);
    for (int e = 0; e < E; e++) {
        if (!sorted.count(e)) continue;
        const Rows<typename Worker<T>::X> x{work.input + 0, D, sorted.count(e), &sorted.token[sorted.first[e]]};
        const int64_t at = sorted.first[e] * rows.hidden_stride, row = (int64_t)e * model.expert_rows;
        worker.project(layer.gate_proj, D, F, x, work.gate + at, rows.hidden_stride, row);
        worker.project(layer.up_proj, D, F, x, work.up + at, rows.hidden_stride, row);
    }
    activate(worker, 0, sorted.first[E], F);
    if (!shared) return;
    float *gate = work.gate + rows.shared_hidden, *up = work.up + rows.shared_hidden;
    worker.project(layer.shared_gate_proj, D, shared, worker.inputs(), gate, rows.shared_stride);
    worker.project(layer.shared_up_proj, D, shared, worker.inputs(), up, rows.shared_stride);
    activate(worker, rows.shared_hidden, worker.B, shared);
}

// down_proj of what is activated, in this thread's columns, of every expert.
template <class T> void down(Worker<T> &worker, const Layer &layer, const SortedAssignments &sorted) {
    const Model &model = worker.model;
    auto &work = worker.work;
    const int D = model.hidden_size, E = layer.num_experts, F = model.expert_width, shared = layer.shared_width;
    const FeedForwardRows rows(model, layer, sorted.first[E]);
    for (int e = 0; e < E; e++) {
        if (!sorted.count(e)) continue;
        const int64_t hidden = sorted.first[e] * rows.hidden_stride, output = sorted.first[e] * rows.output_stride;
        worker.project(layer.down_proj, F, D, {work.activated + hidden, rows.hidden_stride, sorted.count(e)},
                       work.output + output, rows.output_stride, (int64_t)e * D);
    }
    if (shared)
        worker.project(layer.shared_down_proj, shared, D,
                       {work.activated + rows.shared_hidden, rows.shared_stride, worker.B},
                       work.output + rows.shared_output, rows.output_stride);
}

// The residual stream of one token in this thread's columns: its experts by their weights, the shared expert, and what
// the residual connection keeps.
template <class T>
void combine_experts(Worker<T> &worker, const Layer &layer, const SortedAssignments &sorted, int b) {
    const Model &model = worker.model;
    const auto &work = worker.work;
    const int D = model.hidden_size, E = layer.num_experts, top_k = model.top_k;
    const FeedForwardRows rows(model, layer, sorted.first[E]);
    const float *kept = worker.kept(b);
    const float c = layer.shared_coefficient ? work.shared_coefficient[b] : E && !layer.shared_added ? 0 : 1;
    const float of_experts = layer.shared_added ? 1 : 1 - c;
    const auto [begin, end] = worker.columns(D);
    for (int i = begin; i < end; i += LANES) {
        Vector y = {};
        for (int a = b * top_k; E && a < (b + 1) * top_k; a++)
            y += work.expert_weight[a] * load(work.output + sorted.place[a] * rows.output_stride + i);
        if (layer.shared_width)
            y = y * of_experts + load(work.output + rows.shared_output + b * rows.output_stride + i) * c;
        store(work.residual + b * D + i, load(kept + i) * layer.mlp_alpha + y * layer.mlp_beta);
    }
}

template <class T> void feed_forward(Worker<T> &worker, const Layer &layer, SortedAssignments &sorted) {
    const Model &model = worker.model;
    sorted.sort(worker.work.expert_of, layer.num_experts ? worker.B * model.top_k : 0, model.top_k);
    prefetch_feed_forward(worker, layer, sorted);
    gate_and_up(worker, layer, sorted);
    worker.barrier();
    down(worker, layer, sorted);
    for (int b = 0; b < worker.B; b++) combine_experts(worker, layer, sorted, b);
}

}  // namespace leyden::decode

// The next tokens of many sequences through the whole hybrid language model, on a CPU.
//
// A decoding step reads every active weight once, whatever the number of tokens, and for few tokens it is bound by that.
// What an eager framework adds is a dispatch for each of some 300 small operations. Here a team of threads walks through
// the layers together: each takes a share of the columns of every product and computes them for all tokens of the batch
// (products.h), and a barrier stands wherever one result needs all of the one before.
//
// A token's bits depend on its own sequence alone: sums have one order for every batch and every number of threads.
// Between the products everything is float32: the residual stream, norms, gates, states, softmax.
//
// model.h has what Python hands over, workspace.h what the threads share, worker.h one thread. The parts of a layer are in
// linear.h, softmax.h (with splits.h) and feed_forward.h.

#include "feed_forward.h"
#include "linear.h"
#include "softmax.h"

namespace {

using namespace leyden;
using namespace leyden::decode;

// The residual stream and the rotary angles of one token.
template <class T> void embed(const Worker<T> &worker, int b) {
    const Model &model = worker.model;
    const Token &token = worker.batch.tokens[b];
    const auto &work = worker.work;
    const Matrix &w = model.embedding;
    const int D = model.hidden_size;
    const float scale = (w.scale ? w.scale[token.id] : 1) * model.embedding_scale;
    const auto copy = [&](const auto *weight) {
        for (int i = 0; i < D; i += LANES) store(work.residual + b * D + i, load(weight + token.id * D + i) * scale);
    };
    if (w.kind == INT8) copy((const Int8 *)w.weight);
    else if (w.kind == BFLOAT16) copy((const BFloat16 *)w.weight);
    else copy((const float *)w.weight);
    const auto turn = [&](const double *frequencies, int half, float *cosine, float *sine) {
        for (int i = 0; i < half; i++) {
            const double angle = token.position * frequencies[i];
            cosine[i] = std::cos(angle), sine[i] = std::sin(angle);
        }
    };
    int half = model.rotary_dim / 2;
    turn(model.inverse_frequencies, half, work.cosine + b * half, work.sine + b * half);
    half = model.lightning_rotary_dim / 2;
    turn(model.lightning_frequencies, half, work.lightning_cosine + b * half, work.lightning_sine + b * half);
    half = model.head_dim / 2;
    if (model.turning_frequencies)
        turn(model.turning_frequencies, half, work.turning_cosine + b * half, work.turning_sine + b * half);
}

// All layers, from the tokens' ids to the logits of those wanted.
template <class T> void walk(Worker<T> &worker, float *logits, int64_t logits_stride) {
    const Model &model = worker.model;
    const auto &work = worker.work;
    const int B = worker.B, D = model.hidden_size, num_wanted = (int)worker.batch.num_wanted;
    SortedAssignments sorted(model.most_experts, B * model.top_k);
    worker.static_for(B, [&](int b) { embed(worker, b); });
    worker.barrier();
    for (int i = 0; i < model.num_layers; i++) {
        const Layer &layer = model.layers[i];
        worker.static_for(B, [&](int b) { worker.norm(layer.input_norm, b, b); });
        worker.barrier();
        if (layer.mixer == SOFTMAX) softmax_attention(worker, layer);
        else if (layer.mixer == SLIDING_WINDOW) sliding_window_attention(worker, layer);
        else linear_attention(worker, layer);
        worker.barrier();
        worker.static_for(B, [&](int b) {
            worker.norm(layer.post_attention_norm, b, b);
            if (layer.num_experts) route(worker, layer, b);
            if (layer.shared_coefficient) weigh_shared_expert(worker, layer, b);
        });
        worker.barrier();
        feed_forward(worker, layer, sorted);
        worker.barrier();
    }
    worker.static_for(num_wanted, [&](int r) { worker.norm(model.final_norm, (int)worker.batch.wanted[r], r); });
    worker.barrier();
    worker.prefetch_nothing();
    worker.project(model.lm_head, D, model.vocab_size, {work.input + 0, D, num_wanted}, logits, logits_stride);
    worker.barrier();
}

template <class T> void step(const Model &model, const Batch &batch, int threads, float *logits, int64_t stride) {
    static thread_local Workspace<Input<T>> kept;
    Workspace<Input<T>> &work = kept;  // of this thread, for all of its team
    work.fit(model, batch);
#pragma omp parallel num_threads(threads)
    Worker<T>(model, batch, work, omp_get_thread_num(), omp_get_num_threads()).run([&](Worker<T> &worker) {
        walk(worker, logits, stride);
    });
    if (work.failed != NEVER) throw std::bad_alloc();
}

}  // namespace

// The sizes are those that Python has for the structures. logits: [num_wanted, vocab_size], rows `stride` apart.
extern "C" Fault leyden_decode(const Model *model, const Batch *batch, int64_t model_bytes, int64_t layer_bytes,
                               int64_t batch_bytes, float *logits, int64_t stride, int64_t threads) {
    if (model_bytes != sizeof(Model) || layer_bytes != sizeof(Layer) || batch_bytes != sizeof(Batch))
        return "the structures are laid out otherwise here than in Python";
    if (const Fault fault = check(*model, *batch)) return fault;
    return with_dtype(model->bfloat16,
                      [&](auto type) { step<decltype(type)>(*model, *batch, (int)threads, logits, stride); });
}

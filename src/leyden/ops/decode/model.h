// What Python hands to a decoding step: the model's weights and pools, and the tokens of one step.
//
// The structures mirror those of __init__.py field by field. The sizes that comments name, here and in the other files:
//   B tokens of the step        D hidden size        K head dim                 F width of an expert
//   H heads                     G key-value heads    E experts
//   W tokens of a window        A = B top_k assignments of tokens to experts

#pragma once

#include "native.h"

namespace leyden::decode {

constexpr int PAGE = 256;  // tokens of a page

enum Kind : int64_t { FLOAT32, BFLOAT16, INT8 };

enum Mixer : int32_t { LIGHTNING = 1, SOFTMAX = 2, SLIDING_WINDOW = 3, COSFORMER2 = 4, HGRN2 = 5 };

extern "C" {

// Row-major [out, in]; of int8, the value is weight * scale of its row.
struct Matrix {
    const void *weight;
    const float *scale;  // [out], or null
    int64_t kind;
};

struct Layer {
    int32_t mixer;                                    // a Mixer
    int32_t window;                                   // W, of a sliding window
    int32_t num_experts, shared_width;                // of the feed-forward; 0 for none
    int32_t shared_added;                             // whether the shared expert is added, and not mixed in
    float attention_alpha, attention_beta, mlp_alpha, mlp_beta;  // of the residual connections
    float lower_bound, above_bound;                   // of HGRN2's forget gates: b and 1 - b
    const float *input_norm, *post_attention_norm;    // [D]

    // Linear attention. HGRN2 has no output gate and no slopes, and its keys are the logits of its forget gates.
    Matrix qkv_proj;                                  // [3HK, D]; q, k and v of a head follow each other
    Matrix output_gate;                               // [HK, D]; of softmax attention too, or of null weights
    const float *q_norm, *k_norm;                     // [K], of queries and keys of any heads; or null
    const float *output_norm, *slopes;                // [HK], [H]
    float *states;                                    // [slots, H, K, K]

    // Softmax attention, over all keys or those within a window.
    Matrix q_proj, k_proj, v_proj;                    // [HK, D], [GK, D], [GK, D]
    void *keys, *values;                              // [pages, PAGE, G, K], or [slots, W, G, K]

    Matrix out_proj;                                  // [D, HK]

    // The feed-forward. A dense one is a shared expert alone.
    const float *router;                              // [E, D]
    const float *expert_bias;                         // [E], of a router of sigmoids; null where it is a softmax
    Matrix gate_proj, up_proj, down_proj;             // of expert 0: [F, D], [F, D], [D, F]
    Matrix shared_gate_proj, shared_up_proj, shared_down_proj;  // of the expert that takes every token
    const float *shared_coefficient;                  // [D], or null where the shared expert has weight 1
};

struct Model {
    int32_t bfloat16;  // of activations, keys and values; weights have each a kind of their own
    int32_t hidden_size, num_heads, num_kv_heads, head_dim, rotary_dim;
    int32_t lightning_silu, lightning_rotary_dim;     // of lightning heads: whether q, k and v go through silu; RoPE's dims
    float lightning_scale;                            // of lightning queries
    int32_t norm_groups;                              // in which linear attention's heads are normed
    float embedding_scale;
    int32_t expert_width, top_k, most_experts, widest_shared, vocab_size, num_layers;  // of all layers
    int32_t num_groups, chosen_groups, group_best;    // of a router of sigmoids; a group's score is of its best experts
    int32_t weights_normed;                           // of one, whether the weights of a token's experts are made to
    float weights_scale;                              // sum to this, or are multiplied by it
    int32_t postnorm;
    float norm_eps, output_norm_eps;
    float rotary_scale;                               // of queries and keys
    int32_t expert_rows;                              // of gate_proj and up_proj, from one expert to the next
    const double *inverse_frequencies;                // [rotary_dim / 2]
    const double *lightning_frequencies;              // [lightning_rotary_dim / 2]; null where lightning heads do not turn
    const double *turning_frequencies;                // [K / 2], of cosFormer2; null where no layer is of that kind
    Matrix embedding;                                 // [vocab_size, D]
    const float *final_norm;                          // [D]
    Matrix lm_head;                                   // [vocab_size, D]
    const Layer *layers;                              // [num_layers]
    int64_t num_slots, num_pages;                     // of the pools
};

// Tokens of a sequence follow each other in the order of their positions.
struct Token {
    int64_t id, position;
    int64_t slot_before, slot_after;                  // of the sequence's state
    int64_t page_table;                               // where the sequence's pages begin among all
};

struct Batch {
    int64_t num_tokens, num_sequences, num_wanted;
    const Token *tokens;                              // [num_tokens]
    const int64_t *cu_seqlens;                        // [num_sequences + 1], among the tokens
    const int64_t *wanted;                            // [num_wanted], tokens whose logits are asked for
    const int32_t *page_tables;                       // [num_pages], those of all sequences
    int64_t num_pages;
};

}  // extern "C"

// Why a step would read or write outside of the model and its pools, or null.
inline Fault check(const Model &model, const Batch &batch) {
    const int64_t B = batch.num_tokens, N = batch.num_sequences;
    if (B > INT32_MAX / std::max(1, model.top_k)) return "a step has too many tokens";
    if (N < 0 || !rise(batch.cu_seqlens, N, B) || batch.cu_seqlens[0] || batch.cu_seqlens[N] != B)
        return "the bounds of the sequences do not rise among the tokens";
    if (!within(batch.wanted, batch.num_wanted, 0, B)) return "a wanted token is not in the batch";
    bool paged = false;
    for (int i = 0; i < model.num_layers; i++) {
        const int32_t mixer = model.layers[i].mixer;
        if (mixer < LIGHTNING || mixer > HGRN2) return "a layer's mixer is none that this step has a body for";
        if (model.norm_groups < 1 || model.num_heads % model.norm_groups) return "heads do not form equal groups";
        if (mixer == COSFORMER2 && !model.turning_frequencies) return "a layer turns, and nothing says how fast";
        if (mixer == SLIDING_WINDOW && model.layers[i].window < 1) return "a window has no place for a token";
        if (model.layers[i].num_experts > model.most_experts || model.layers[i].shared_width > model.widest_shared)
            return "a layer's feed-forward is larger than is said of all";
        if (model.layers[i].expert_bias && (model.num_groups < 1 || model.layers[i].num_experts % model.num_groups))
            return "a layer's experts do not lie in groups of one size";
        paged |= mixer == SOFTMAX;
    }
    if (paged && !within(batch.page_tables, batch.num_pages, 0, model.num_pages))
        return "a page is none of the pool's";
    for (int64_t b = 0; b < B; b++) {
        const Token &token = batch.tokens[b];
        if (token.id < 0 || token.id >= model.vocab_size) return "a token's id is not in the vocabulary";
        if (token.slot_before < 0 || token.slot_after < 0 ||
            std::max(token.slot_before, token.slot_after) >= model.num_slots)
            return "a slot is none of the pool's";
        if (token.position < 0 || (paged && (token.page_table < 0 ||
                                             token.position / PAGE >= batch.num_pages - token.page_table)))
            return "a position lies behind the sequence's pages";
    }
    return nullptr;
}

}  // namespace leyden::decode

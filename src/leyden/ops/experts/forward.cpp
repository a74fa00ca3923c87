// The experts of a layer in one pass.
//
// A block of one expert's rows goes all the way through it while it lies in a core's cache; threads take blocks as they
// come. Nothing is filled up and no kernel is prepared, as matrix libraries do for every number of rows. A row's bits
// depend on its token alone.

#include "products.h"

using namespace leyden;

namespace {

constexpr int64_t LEAST = 4 * FOURS, MOST = 4 * LEAST;  // rows of a block: whole tiles

struct Block {
    int64_t expert, begin, end;
};

// The rows of each expert, from spans[e] to spans[e + 1], in blocks, a few for each thread.
std::vector<Block> cut(const int64_t *spans, int64_t experts, int64_t threads) {
    const int64_t even = spans[experts] / (4 * threads), size = std::min(MOST, even / LEAST * LEAST + LEAST);
    std::vector<Block> blocks;
    for (int64_t e = 0; e < experts; e++)
        for (int64_t begin = spans[e]; begin < spans[e + 1]; begin += size)
            blocks.push_back({e, begin, std::min(begin + size, spans[e + 1])});
    return blocks;
}

// What a backward needs of the projections of a block; a row that only fills up gets zeros.
template <class T>
void keep(const Block &block, const int32_t *assignment, const float *projected, int64_t width, T *kept) {
    for (int64_t row = block.begin; row < block.end; row++, projected += apart(width))
        for (int64_t i = 0; i < width; i += LANES)
            store(kept + row * width + i, assignment[row] < 0 ? Vector{} : load(projected + i));
}

template <class W, class X>
void pass(const Block &block, const X *x, const int32_t *assignment, int64_t top_k, const W *gate_up,
          const float *gate_up_scale, const W *down, const float *down_scale, int64_t dim, int64_t width, X *kept,
          float *y) {
    thread_local std::vector<float> projected;
    thread_local std::vector<X> hidden;
    thread_local std::vector<int32_t> tokens;
    const int64_t count = block.end - block.begin, stride = apart(2 * width);
    projected.resize(count * stride), hidden.resize(count * width), tokens.resize(count);
    for (int64_t row = 0; row < count; row++)
        tokens[row] = std::max(assignment[block.begin + row], 0) / (int32_t)top_k;
    const int64_t first = block.expert * 2 * width, last = block.expert * dim;
    product(gate_up + first * dim, dim, gate_up_scale ? gate_up_scale + first : nullptr, (int)dim, 0, (int)(2 * width),
            Rows<X>{x, dim, (int)count, tokens.data()}, projected.data(), stride);
    if (kept) keep(block, assignment, projected.data(), 2 * width, kept);
    for (int64_t row = 0; row < count; row++) {
        const float *gate = projected.data() + row * stride, *up = gate + width;
        for (int64_t i = 0; i < width; i += LANES) {
            const Vector g = load(gate + i);
            store(hidden.data() + row * width + i, g * sigmoid(g) * load(up + i));
        }
    }
    product(down + last * width, width, down_scale ? down_scale + last : nullptr, (int)width, 0, (int)dim,
            Rows<X>{hidden.data(), width, (int)count}, y + block.begin * apart(dim), apart(dim));
}

// Of matrices of W: T, or Int8 with scales of their rows.
template <class T, class W>
void forward(const T *x, const W *gate_up, const float *gate_up_scale, const W *down, const float *down_scale,
             const int32_t *assignment, const int32_t *row, const int64_t *spans, const float *weights, int64_t experts,
             int64_t top_k, int64_t tokens, int64_t dim, int64_t width, float *y, T *projected, T *out,
             int64_t threads) {
    const std::vector<Block> blocks = cut(spans, experts, threads);
    std::atomic<size_t> next{0};
    team(threads, [&](int64_t, int64_t) {
        for (size_t i; (i = next++) < blocks.size();)
            pass(blocks[i], x, assignment, top_k, gate_up, gate_up_scale, down, down_scale, dim, width, projected, y);
    });
    share(tokens, threads, [&](int64_t begin, int64_t end, int) {
        for (int64_t n = begin; n < end; n++)
            for (int64_t i = 0; i < dim; i += LANES) {
                Vector total = {};
                for (int64_t a = n * top_k; a < (n + 1) * top_k; a++)
                    if (row[a] >= 0) total += load(y + row[a] * apart(dim) + i) * weights[a];
                store(out + n * dim + i, total);
            }
    });
}

}  // namespace

// Whether leyden_experts_forward is the faster way here: not beside a processor's own matrix unit.
extern "C" int64_t leyden_experts_forward_pays([[maybe_unused]] int64_t bfloat16) {
#if defined __AVX512BF16__ && !defined __AMX_BF16__
    return true;
#elif defined __AVX512F__
    return !bfloat16;
#else
    return false;
#endif
}

// x, out: [tokens, dim]; gate_up: [experts, 2 width, dim], down: [experts, dim, width], in the dtype of x, or of int8
// where they have scales [experts, 2 width] and [experts, dim]. assignment, row, spans: of leyden_experts_sort; y: [rows,
// stride] to work in; projected: [rows, 2 width], for a backward, or null. dim and width are multiples of 16.
extern "C" Fault leyden_experts_forward(int64_t bfloat16, const void *x, const void *gate_up, const void *down,
                                        const int8_t *gate_up_bytes, const float *gate_up_scale,
                                        const int8_t *down_bytes, const float *down_scale, const int32_t *assignment,
                                        const int32_t *row, const int64_t *spans, const float *weights,
                                        int64_t experts, int64_t last, int64_t top_k, int64_t tokens, int64_t rows,
                                        int64_t dim, int64_t width, int64_t stride, float *y, void *projected,
                                        void *out, int64_t threads) {
    if (dim % LANES || width % LANES || stride != apart(dim)) return "16 does not divide the widths";
    if (last != experts + 1 || !rise(spans, experts, rows) || !within(assignment, rows, INT32_MIN, tokens * top_k) ||
        !within(row, tokens * top_k, INT32_MIN, rows))
        return "the assignments are not sorted by the experts";
    const bool whole = gate_up && down, bytes = gate_up_bytes && gate_up_scale && down_bytes && down_scale;
    if (whole == bytes) return "both matrices in the dtype of x, or both in int8 with scales, are wanted";
    Fault fault = nullptr;
    const Fault memory = with_dtype(bfloat16, [&](auto type) {
        using T = decltype(type);
        if constexpr (std::is_same<T, Input<T>>::value) {
            const auto run = [&](auto *first, auto *second) {
                forward((const T *)x, first, gate_up_scale, second, down_scale, assignment, row, spans, weights,
                        experts, top_k, tokens, dim, width, y, (T *)projected, (T *)out, threads);
            };
            if (bytes) run((const Int8 *)gate_up_bytes, (const Int8 *)down_bytes);
            else run((const T *)gate_up, (const T *)down);
        } else
            fault = "this processor does not multiply bfloat16";
    });
    return memory ? memory : fault;
}

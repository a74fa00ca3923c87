// The gradients of the experts of a layer, in two passes over some experts at a time.
//
// First a block of an expert's rows goes from the gradient of its outputs to that of its tokens while it lies in a
// core's cache; then blocks of the gradients of the expert's matrices are formed. Threads take blocks as they come.

#include "experts/activation.h"
#include "matmul.h"

using namespace leyden;

#ifdef __AVX512BF16__

namespace {

constexpr int64_t ROWS = 96;  // of a block

struct Experts {
    const BFloat16 *x, *dy, *gate_up, *down, *projected;
    const int32_t *assignment;
    const int64_t *spans;
    const float *weights;
    int64_t experts, top_k, dim, width, room;
    Pair *gate_up_panels, *down_panels;
    BFloat16 *hidden, *dprojected, *drows, *dgate_up, *ddown;
    float *dweights;

    int64_t gate_up_size() const { return packed_size(2 * width, dim) / 2; }
    int64_t down_size() const { return packed_size(dim, width) / 2; }

    // A row's token in x or dy.
    const BFloat16 *at(const BFloat16 *tokens, int64_t row) const { return tokens + assignment[row] / top_k * dim; }
};

void pack_matrices(const Experts &e, int64_t threads) {
    as_they_come(2 * e.experts, threads, [&](int64_t item) {
        const int64_t expert = item / 2;
        const BFloat16 *gate_up = e.gate_up + expert * 2 * e.width * e.dim, *down = e.down + expert * e.dim * e.width;
        if (item % 2)
            pack_panels([&](int64_t k) { return gate_up + k * e.dim; }, 2 * e.width, e.dim,
                        e.gate_up_panels + expert * e.gate_up_size());
        else
            pack_panels([&](int64_t k) { return down + k * e.width; }, e.dim, e.width,
                        e.down_panels + expert * e.down_size());
    });
}

// Rows from begin to end of one expert; hidden and dprojected begin with the row `base`.
void of_rows(const Experts &e, int64_t expert, int64_t begin, int64_t end, int64_t base) {
    thread_local std::vector<BFloat16> gathered;
    gathered.resize(ROWS * e.dim);
    for (int64_t row = begin; row < end; row++)
        std::memcpy((void *)(gathered.data() + (row - begin) * e.dim), e.at(e.dy, row), e.dim * sizeof(BFloat16));
    BFloat16 *hidden = e.hidden + (begin - base) * e.width, *dprojected = e.dprojected + (begin - base) * 2 * e.width;
    matmul((const Pair *)gathered.data(), e.dim / 2, 1, end - begin, e.down_panels + expert * e.down_size(), e.dim,
           e.width, Into<BFloat16>{hidden, e.width});
    for (int64_t row = begin; row < end; row++) {
        const BFloat16 *gate = e.projected + row * 2 * e.width;
        BFloat16 *dgate = dprojected + (row - begin) * 2 * e.width;
        const int32_t m = e.assignment[row];
        e.dweights[m] = activate_backward(gate, gate + e.width, e.weights[m], e.width,
                                          hidden + (row - begin) * e.width, dgate, dgate + e.width);
    }
    matmul((const Pair *)dprojected, e.width, 1, end - begin, e.gate_up_panels + expert * e.gate_up_size(), 2 * e.width,
           e.dim, Into<BFloat16>{e.drows + begin * e.dim, e.dim});
}

// A block of the gradient of a matrix, y = a^T b over the rows of an expert.
template <class A, class B>
void of_matrix(A &&a_row, B &&b_row, int64_t depth, int64_t rows, int64_t columns, BFloat16 *y, int64_t stride) {
    thread_local std::vector<float> sums;
    sums.resize(rows * columns);
    if (!depth) std::fill(sums.begin(), sums.end(), 0.0f);
    matmul_of_transposed(a_row, b_row, depth, rows, columns, Into<float>{sums.data(), columns});
    for (int64_t row = 0; row < rows; row++)
        vectors(columns, [&](int64_t i, int n) { store(y + row * stride + i, load(&sums[row * columns + i], n), n); });
}

struct Tile {
    int64_t expert, row, column;
    bool down;
};

void of_tile(const Experts &e, const Tile &tile, int64_t base) {
    const int64_t first = e.spans[tile.expert], depth = e.spans[tile.expert + 1] - first;
    const int64_t tall = tile.down ? e.dim : 2 * e.width, wide = tile.down ? e.width : e.dim;
    const int64_t rows = std::min(TALL_BLOCK, tall - tile.row), columns = std::min(WIDE_BLOCK, wide - tile.column);
    BFloat16 *y = (tile.down ? e.ddown : e.dgate_up) + (tile.expert * tall + tile.row) * wide + tile.column;
    const BFloat16 *hidden = e.hidden + (first - base) * e.width;
    const BFloat16 *dprojected = e.dprojected + (first - base) * 2 * e.width;
    if (tile.down)
        of_matrix([&](int64_t k) { return e.at(e.dy, first + k) + tile.row; },
                  [&](int64_t k) { return hidden + k * e.width + tile.column; }, depth, rows, columns, y, wide);
    else
        of_matrix([&](int64_t k) { return dprojected + k * 2 * e.width + tile.row; },
                  [&](int64_t k) { return e.at(e.x, first + k) + tile.column; }, depth, rows, columns, y, wide);
}

// Experts from begin to end, whose rows have room at once.
void of_some(const Experts &e, int64_t begin, int64_t end, int64_t threads) {
    struct Block {
        int64_t expert, begin, end;
    };
    std::vector<Block> blocks;
    std::vector<Tile> tiles;
    for (int64_t expert = begin; expert < end; expert++) {
        for (int64_t row = e.spans[expert]; row < e.spans[expert + 1]; row += ROWS)
            blocks.push_back({expert, row, std::min(row + ROWS, e.spans[expert + 1])});
        for (const bool down : {false, true})
            by_blocks(down ? e.dim : 2 * e.width, down ? e.width : e.dim,
                      [&](int64_t row, int64_t column) { tiles.push_back({expert, row, column, down}); });
    }
    const int64_t base = e.spans[begin];
    as_they_come(blocks.size(), threads, [&](int64_t i) {
        of_rows(e, blocks[i].expert, blocks[i].begin, blocks[i].end, base);
    });
    as_they_come(tiles.size(), threads, [&](int64_t i) { of_tile(e, tiles[i], base); });
}

}  // namespace

#endif

// As leyden_experts_forward, without rows that only fill up. dy: [tokens, dim]; hidden: [room, width] and dprojected:
// [room, 2 width] to work in, with room for the rows of every single expert; packed: [experts, packed] to work in.
// Results: drows: [rows, dim], the gradient of each row's token; dgate_up, ddown: of the matrices; dweights: of the
// assignments that have a row.
extern "C" Fault leyden_experts_backward(int64_t bfloat16, const void *x, const void *dy, const void *gate_up,
                                         const void *down, const void *projected, const int32_t *assignment,
                                         const int64_t *spans, const float *weights, int64_t experts, int64_t last,
                                         int64_t top_k, int64_t tokens, int64_t rows, int64_t dim, int64_t width,
                                         int64_t room, int64_t packed, void *to_pack, void *hidden, void *dprojected,
                                         void *drows, void *dgate_up, void *ddown, float *dweights, int64_t threads) {
#ifdef __AVX512BF16__
    if (!bfloat16) return "float32 is not multiplied in pairs";
    if (dim % LANES || width % LANES) return "16 does not divide the widths";
    if (packed != packed_size(2 * width, dim) + packed_size(dim, width)) return "the packed matrices have another size";
    if (last != experts + 1 || !rise(spans, experts, rows) || !within(assignment, rows, 0, tokens * top_k))
        return "the assignments are not sorted by the experts";
    for (int64_t e = 0; e < experts; e++)
        if (spans[e + 1] - spans[e] > room) return "there is no room for the rows of an expert";
    return guarded([&]() -> Fault {
        Pair *panels = (Pair *)to_pack;
        const Experts all{
            (const BFloat16 *)x, (const BFloat16 *)dy, (const BFloat16 *)gate_up, (const BFloat16 *)down,
            (const BFloat16 *)projected, assignment, spans, weights, experts, top_k, dim, width, room, panels,
            panels + experts * packed_size(2 * width, dim) / 2, (BFloat16 *)hidden, (BFloat16 *)dprojected,
            (BFloat16 *)drows, (BFloat16 *)dgate_up, (BFloat16 *)ddown, dweights};
        pack_matrices(all, threads);
        for (int64_t begin = 0, end; begin < experts; begin = end) {
            for (end = begin + 1; end < experts && spans[end + 1] - spans[begin] <= room;) end++;
            of_some(all, begin, end, threads);
        }
        return nullptr;
    });
#else
    (void)bfloat16, (void)x, (void)dy, (void)gate_up, (void)down, (void)projected, (void)assignment, (void)spans;
    (void)weights, (void)experts, (void)last, (void)top_k, (void)tokens, (void)rows, (void)dim, (void)width;
    (void)room, (void)packed, (void)to_pack, (void)hidden, (void)dprojected, (void)drows, (void)dgate_up, (void)ddown;
    (void)dweights, (void)threads;
    return "this processor does not multiply bfloat16";
#endif
}

// Products of matrices that are both large, for Python: matmul.h.

#include "matmul.h"

using namespace leyden;

// Whether these products run here, and are the faster way: not beside a processor's own matrix unit.
extern "C" int64_t leyden_matmul_pays([[maybe_unused]] int64_t bfloat16) {
#if defined __AVX512BF16__ && !defined __AMX_BF16__
    return bfloat16;
#else
    return false;
#endif
}

// y [rows, columns] += a^T b: a [depth, rows], b [depth, columns].
extern "C" Fault leyden_add_product(int64_t bfloat16, const void *a, const void *b, int64_t depth, int64_t rows,
                                    int64_t columns, float *y, int64_t threads) {
#ifdef __AVX512BF16__
    if (!bfloat16) return "float32 is not multiplied in pairs";
    return guarded([&]() -> Fault {
        struct Block {
            int64_t row, column;
        };
        std::vector<Block> blocks;
        by_blocks(rows, columns, [&](int64_t row, int64_t column) { blocks.push_back({row, column}); });
        as_they_come(blocks.size(), threads, [&](int64_t i) {
            const auto [row, column] = blocks[i];
            const BFloat16 *left = (const BFloat16 *)a + row, *right = (const BFloat16 *)b + column;
            matmul_of_transposed([=](int64_t k) { return left + k * rows; },
                                 [=](int64_t k) { return right + k * columns; }, depth,
                                 std::min(TALL_BLOCK, rows - row), std::min(WIDE_BLOCK, columns - column),
                                 Into<float>{y + row * columns + column, columns, true});
        });
        return nullptr;
    });
#else
    (void)bfloat16, (void)a, (void)b, (void)depth, (void)rows, (void)columns, (void)y, (void)threads;
    return "this processor does not multiply bfloat16";
#endif
}

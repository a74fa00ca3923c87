// Rotary position embedding in one pass.

#include "native.h"

using namespace leyden;

// x, y: [tokens, heads, dim], where token n stands at row n % positions of cos and sin [positions, half]. `sign` is 1,
// or -1 to turn back; the whole head is multiplied by `scale`.
extern "C" Fault leyden_rotary(int64_t bfloat16, const void *x, const float *cos, const float *sin, float sign,
                              float scale, int64_t tokens, int64_t positions, int64_t heads, int64_t dim, int64_t half, void *y,
                              int64_t threads) {
    if (2 * half > dim || (tokens && !positions)) return "cos and sin have other widths or positions than x";
    return with_dtype(bfloat16, [&](auto type) {
        using T = decltype(type);
        share(tokens * heads, threads, [&](int64_t begin, int64_t end, int) {
            for (int64_t row = begin; row < end; row++) {
                const T *from = (const T *)x + row * dim;
                T *to = (T *)y + row * dim;
                const int64_t angles = row / heads % positions * half;
                vectors(half, [&](int64_t i, int n) {
                    const Vector a = load(from + i, n), b = load(from + half + i, n);
                    const Vector c = load(cos + angles + i, n), s = load(sin + angles + i, n) * sign;
                    store(to + i, (a * c - b * s) * scale, n);
                    store(to + half + i, (b * c + a * s) * scale, n);
                });
                vectors(dim - 2 * half, [&](int64_t i, int n) {
                    store(to + 2 * half + i, load(from + 2 * half + i, n) * scale, n);
                });
            }
        });
    });
}

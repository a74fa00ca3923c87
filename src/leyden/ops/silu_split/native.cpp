// SiLU, each direction in one pass.

#include "native.h"

using namespace leyden;

// x, y: [count].
extern "C" Fault leyden_silu(int64_t bfloat16, const void *x, int64_t count, void *y, int64_t threads) {
    return with_dtype(bfloat16, [&](auto type) {
        using T = decltype(type);
        const T *from = (const T *)x;
        T *to = (T *)y;
        share(count / LANES + 1, threads, [&](int64_t begin, int64_t end, int) {
            const int64_t first = begin * LANES;
            vectors(std::min(end * LANES, count) - first, [&](int64_t i, int n) {
                const Vector v = load(from + first + i, n);
                store(to + first + i, v * sigmoid(v), n);
            });
        });
    });
}

// d(x s)/dx = s + x s (1 - s) for s = sigmoid(x). dy, x, dx: [count].
extern "C" Fault leyden_silu_backward(int64_t bfloat16, const void *dy, const void *x, int64_t count, void *dx,
                                     int64_t threads) {
    return with_dtype(bfloat16, [&](auto type) {
        using T = decltype(type);
        share(count / LANES + 1, threads, [&](int64_t begin, int64_t end, int) {
            const int64_t first = begin * LANES;
            vectors(std::min(end * LANES, count) - first, [&](int64_t i, int n) {
                const Vector v = load((const T *)x + first + i, n), s = sigmoid(v);
                store((T *)dx + first + i, load((const T *)dy + first + i, n) * s * (1.0f + v * (1.0f - s)), n);
            });
        });
    });
}

// The softmax of a block of scores, and its backward, in place.

#include "native.h"

using namespace leyden;

namespace {

// softmax(scale * scores) of one row; `wide` has room for it.
template <class T> void softmax(T *scores, int64_t width, float scale, float *wide) {
    Vector most = Vector{} - INFINITY, sums = {};
    vectors(width, [&](int64_t i, int n) {
        const Vector v = load(scores + i, n, -INFINITY);
        most = v > most ? v : most;
    });
    const float top = largest(most);
    vectors(width, [&](int64_t i, int n) {
        const Vector e = exp((load(scores + i, n, -INFINITY) - top) * scale);
        store(wide + i, e, n);
        sums += e;
    });
    const float share = 1 / sum(sums);
    vectors(width, [&](int64_t i, int n) { store(scores + i, load(wide + i, n) * share, n); });
}

}  // namespace

// scores: [rows, width], the probabilities on return. Row r sees the keys from seen[r % period] up to
// seen[period + r % period]; the others get zero.
extern "C" void leyden_softmax(int64_t bfloat16, void *scores, const int32_t *seen, float scale, int64_t rows,
                               int64_t period, int64_t width, int64_t threads) {
    with_dtype(bfloat16, [&](auto type) {
        using T = decltype(type);
        share(rows, threads, [&](int64_t begin, int64_t end, int) {
            std::vector<float> wide(width);
            for (int64_t row = begin; row < end; row++) {
                T *at = (T *)scores + row * width;
                const int64_t first = seen[row % period], last = seen[period + row % period];
                std::fill(at, at + first, T{});
                softmax(at + first, last - first, scale, wide.data());
                std::fill(at + last, at + width, T{});
            }
        });
    });
}

// dp: [rows, width], (dp - delta) p scale on return; delta: [rows].
extern "C" void leyden_softmax_backward(int64_t bfloat16, void *dp, const void *p, const float *delta, float scale,
                                        int64_t rows, int64_t width, int64_t threads) {
    with_dtype(bfloat16, [&](auto type) {
        using T = decltype(type);
        share(rows, threads, [&](int64_t begin, int64_t end, int) {
            for (int64_t row = begin; row < end; row++)
                vectors(width, [&](int64_t i, int n) {
                    T *at = (T *)dp + row * width + i;
                    store(at, (load(at, n) - delta[row]) * load((const T *)p + row * width + i, n) * scale, n);
                });
        });
    });
}

// Rows of 8-bit integers become floats.

#include "native.h"

using namespace leyden;

namespace {

template <class T>
void widen_row(const int8_t *weight, float scale, int64_t dim, T *out) {
    vectors(dim, [&](int64_t i, int n) {
        store(out + i, load((const Int8 *)weight + i, n) * scale, n);
    });
}

}  // namespace

// out [rows, dim] = weight [rows, dim] * scale [rows].
extern "C" Fault leyden_int8_widen(int64_t bfloat16, const int8_t *weight, const float *scale, int64_t rows, int64_t dim,
                                  void *out, int64_t threads) {
    return with_dtype(bfloat16, [&](auto type) {
        auto *to = static_cast<decltype(type) *>(out);
        share(rows, threads, [&](int64_t begin, int64_t end, int) {
            for (int64_t row = begin; row < end; row++)
                widen_row(weight + row * dim, scale[row], dim, to + row * dim);
        });
    });
}

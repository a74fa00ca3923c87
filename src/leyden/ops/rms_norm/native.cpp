// The norms of portable.py, each direction in one pass over the rows.

#include "native.h"

using namespace leyden;

namespace {

template <class T>
void forward(const T *x, const T *gate, const float *weight, float eps, int64_t begin, int64_t end, int64_t dim, T *y,
             float *rstd) {
    for (int64_t row = begin; row < end; row++) {
        const int64_t at = row * dim;
        Vector squares = {};
        vectors(dim, [&](int64_t i, int n) {
            const Vector v = load(x + at + i, n);
            squares += v * v;
        });
        const float r = rstd[row] = 1 / std::sqrt(sum(squares) / dim + eps);
        vectors(dim, [&](int64_t i, int n) {
            Vector v = load(x + at + i, n) * r * load(weight + i, n);
            if (gate) v *= sigmoid(load(gate + at + i, n));
            store(y + at + i, v, n);
        });
    }
}

// Adds the rows' dweight to `dweight`; `opened` has room for one row of dy times the gate.
template <class T>
void backward(const T *dy, const T *x, const T *gate, const float *weight, const float *rstd, int64_t begin,
              int64_t end, int64_t dim, T *dx, T *dgate, float *dweight, float *opened) {
    for (int64_t row = begin; row < end; row++) {
        const int64_t at = row * dim;
        const float r = rstd[row];
        Vector products = {};
        vectors(dim, [&](int64_t i, int n) {
            const Vector normed = load(x + at + i, n) * r, w = load(weight + i, n);
            Vector d = load(dy + at + i, n);
            if (gate) {
                const Vector s = sigmoid(load(gate + at + i, n));
                store(dgate + at + i, normed * d * w * s * (1.0f - s), n);
                d *= s;
            }
            store(opened + i, d, n);
            store(dweight + i, load(dweight + i, n) + normed * d, n);
            products += normed * d * w;
        });
        const float mean = sum(products) / dim;
        vectors(dim, [&](int64_t i, int n) {
            const Vector normed = load(x + at + i, n) * r;
            store(dx + at + i, (load(opened + i, n) * load(weight + i, n) - normed * mean) * r, n);
        });
    }
}

}  // namespace

// x, gate, y: [rows, dim]; weight: [dim] and rstd: [rows], float32. gate may be null.
extern "C" Fault leyden_rms_norm(int64_t bfloat16, const void *x, const void *gate, const float *weight, float eps,
                                int64_t rows, int64_t dim, void *y, float *rstd, int64_t threads) {
    return with_dtype(bfloat16, [&](auto type) {
        using T = decltype(type);
        share(rows, threads, [&](int64_t begin, int64_t end, int) {
            forward((const T *)x, (const T *)gate, weight, eps, begin, end, dim, (T *)y, rstd);
        });
    });
}

// dweight: [dim] float32, written.
extern "C" Fault leyden_rms_norm_backward(int64_t bfloat16, const void *dy, const void *x, const void *gate,
                                         const float *weight, const float *rstd, int64_t rows, int64_t dim, void *dx,
                                         void *dgate, float *dweight, int64_t threads) {
    if (!gate != !dgate) return "a gate and its gradient go together";
    return with_dtype(bfloat16, [&](auto type) {
        using T = decltype(type);
        sum_over_rows(rows, dim, threads, dweight, [&](int64_t begin, int64_t end, float *part) {
            std::vector<float> opened(dim);
            backward((const T *)dy, (const T *)x, (const T *)gate, weight, rstd, begin, end, dim, (T *)dx, (T *)dgate,
                     part, opened.data());
        });
    });
}

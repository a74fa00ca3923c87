// The probabilities of a block of queries, and the gradients of its scores. Scores are float32 from the products on:
// rounded to bfloat16, one of size s would be off by s / 512, and its probability by that share of itself.

#include "products.h"

using namespace leyden;

namespace {

// p = softmax(scale * scores) of one row of scores, which become the same in float32.
template <class T> void softmax(float *scores, int64_t width, float scale, T *p) {
    Vector most = spread(-INFINITY), sums = {};
    vectors(width, [&](int64_t i, int n) {
        const Vector v = load(scores + i, n, -INFINITY);
        most = larger(v, most);
    });
    const float top = largest(most);
    vectors(width, [&](int64_t i, int n) {
        const Vector e = exp((load(scores + i, n, -INFINITY) - top) * scale);
        store(scores + i, e, n);
        sums += e;
    });
    const float share = 1 / sum(sums);
    vectors(width, [&](int64_t i, int n) {
        const Vector v = load(scores + i, n) * share;
        store(scores + i, v, n), store(p + i, v, n);
    });
}

// ds = p (dp - p . dp) scale of one row. The sum is of these very numbers, so that a key whose probability is 1 gets
// nothing: the output times its gradient is the same sum, but of what was rounded.
template <class T> void differentiate(const float *dp, const float *p, float scale, int64_t width, T *ds) {
    Vector sums = {};
    vectors(width, [&](int64_t i, int n) { sums += load(dp + i, n) * load(p + i, n); });
    const float delta = sum(sums);
    vectors(width, [&](int64_t i, int n) { store(ds + i, (load(dp + i, n) - delta) * load(p + i, n) * scale, n); });
}

// Row r of a block of queries sees the keys from seen[r % period] up to seen[period + r % period].
struct Seen {
    const int32_t *seen;
    int64_t period;

    int64_t first(int64_t row) const { return seen[row % period]; }
    int64_t last(int64_t row) const { return seen[period + row % period]; }

    // What is wrong with it, for so many rows of queries and keys.
    Fault check(int64_t rows, int64_t width) const {
        if (rows && !period) return "nothing says what the rows see";
        for (int64_t r = 0; r < period; r++)
            if (first(r) < 0 || first(r) > last(r) || last(r) > width) return "a row sees keys that are none";
        return nullptr;
    }
};

// Zeros where a row does not see, which is from `first` up to `last` of `width`.
template <class T> void clear_unseen(T *to, int64_t first, int64_t last, int64_t width) {
    std::fill(to, to + first, T{});
    std::fill(to + last, to + width, T{});
}

// A row of scores becomes its probabilities, which p has too, and zeros where the row does not see.
template <class T> void finish(const Seen &of, int64_t row, int64_t width, float scale, float *scores, T *p) {
    const int64_t first = of.first(row), last = of.last(row);
    softmax(scores + first, last - first, scale, p + first);
    clear_unseen(p, first, last, width);
}

// Behind it, the gradients of the scores.
template <class T>
void finish_gradients(const Seen &of, int64_t row, int64_t width, float scale, const float *p, const float *dp,
                      T *ds) {
    const int64_t first = of.first(row), last = of.last(row);
    differentiate(dp + first, p + first, scale, last - first, ds + first);
    clear_unseen(ds, first, last, width);
}

constexpr int64_t ROWS = 16 * FOURS;  // whole blocks of products

// work(begin, end, lowest, highest) for a few rows of queries and the keys that one of them sees, by whichever thread
// comes first: later queries see more.
template <class F> void of_queries(int64_t rows, Seen seen, int64_t threads, F &&work) {
    std::atomic<int64_t> next{0};
    team(threads, [&](int64_t, int64_t) {
        for (int64_t begin; (begin = next.fetch_add(ROWS)) < rows;) {
            const int64_t end = std::min(begin + ROWS, rows);
            int64_t lowest = seen.first(begin), highest = seen.last(begin);
            for (int64_t row = begin; row < end; row++)
                lowest = std::min(lowest, seen.first(row)), highest = std::max(highest, seen.last(row));
            work(begin, end, lowest, highest);
        }
    });
}

// y[row - begin][key] = x[row] . w[key] for the keys from `lowest` to `highest`; rows of y are apart(width).
template <class X>
float *products(const X *x, const X *w, int64_t begin, int64_t end, int64_t lowest, int64_t highest, int64_t width,
                int64_t dim, std::vector<float> &y) {
    y.resize((end - begin) * apart(width));
    product(w, dim, nullptr, (int)dim, (int)lowest, (int)highest, Rows<X>{x + begin * dim, dim, (int)(end - begin)},
            y.data(), apart(width));
    return y.data();
}

}  // namespace

// Whether leyden_attention_* take tensors of this dtype, and are faster than a matrix library's float32 products.
extern "C" int64_t leyden_attention_pays([[maybe_unused]] int64_t bfloat16) {
#if defined __AVX512BF16__
    return true;
#elif defined __AVX512F__
    return !bfloat16;
#else
    return false;
#endif
}

// q: [rows, dim]; k: [width, dim]; p: [rows, width], zero where a row does not see. dim is a multiple of 16.
extern "C" Fault leyden_attention_probabilities(int64_t bfloat16, const void *q, const void *k, const int32_t *seen,
                                               float scale, int64_t rows, int64_t period, int64_t width, int64_t dim,
                                               void *p, int64_t threads) {
    if (dim % LANES) return "16 does not divide the head dims";
    if (bfloat16 && !std::is_same<BFloat16, Input<BFloat16>>::value) return "this processor does not multiply bfloat16";
    const Seen of{seen, period};
    if (const Fault fault = of.check(rows, width)) return fault;
    return with_dtype(bfloat16, [&](auto type) {
        using T = decltype(type);
        if constexpr (std::is_same<T, Input<T>>::value) {
            of_queries(rows, of, threads, [&](int64_t begin, int64_t end, int64_t lowest, int64_t highest) {
                thread_local std::vector<float> kept;
                float *scores = products((const T *)q, (const T *)k, begin, end, lowest, highest, width, dim, kept);
                for (int64_t row = begin; row < end; row++, scores += apart(width)) {
                    finish<T>(of, row, width, scale, scores, (T *)p + row * width);
                }
            });
        }
    });
}

// As above, and v: [width, dim]; dout: [rows, dim]; ds: [rows, width], p (dp - p . dp) scale with dp = dout v^T.
extern "C" Fault leyden_attention_gradients(int64_t bfloat16, const void *q, const void *k, const void *dout,
                                           const void *v, const int32_t *seen, float scale, int64_t rows,
                                           int64_t period, int64_t width, int64_t dim, void *p, void *ds,
                                           int64_t threads) {
    if (dim % LANES) return "16 does not divide the head dims";
    if (bfloat16 && !std::is_same<BFloat16, Input<BFloat16>>::value) return "this processor does not multiply bfloat16";
    const Seen of{seen, period};
    if (const Fault fault = of.check(rows, width)) return fault;
    return with_dtype(bfloat16, [&](auto type) {
        using T = decltype(type);
        if constexpr (std::is_same<T, Input<T>>::value) {
            of_queries(rows, of, threads, [&](int64_t begin, int64_t end, int64_t lowest, int64_t highest) {
                thread_local std::vector<float> kept, kept_too;
                float *scores = products((const T *)q, (const T *)k, begin, end, lowest, highest, width, dim, kept);
                float *dp = products((const T *)dout, (const T *)v, begin, end, lowest, highest, width, dim, kept_too);
                for (int64_t row = begin; row < end; row++, scores += apart(width), dp += apart(width)) {
                    finish<T>(of, row, width, scale, scores, (T *)p + row * width);
                    finish_gradients<T>(of, row, width, scale, scores, dp, (T *)ds + row * width);
                }
            });
        }
    });
}

// scores: [rows, width] float32, the probabilities on return; p: the same in the dtype named, zero where a row does
// not see. dp: null, or [rows, width] float32, and then ds as above.
extern "C" Fault leyden_softmax(int64_t bfloat16, float *scores, const float *dp, const int32_t *seen, float scale,
                               int64_t rows, int64_t period, int64_t width, void *p, void *ds, int64_t threads) {
    if (!dp != !ds) return "dp and ds go together";
    const Seen of{seen, period};
    if (const Fault fault = of.check(rows, width)) return fault;
    return with_dtype(bfloat16, [&](auto type) {
        using T = decltype(type);
        share(rows, threads, [&](int64_t begin, int64_t end, int) {
            for (int64_t row = begin; row < end; row++) {
                const int64_t at = row * width;
                finish<T>(of, row, width, scale, scores + at, (T *)p + at);
                if (dp) finish_gradients<T>(of, row, width, scale, scores + at, dp + at, (T *)ds + at);
            }
        });
    });
}

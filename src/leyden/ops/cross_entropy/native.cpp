// The loss of rows of logits and, in their place, its gradient.

#include "native.h"

using namespace leyden;

namespace {

// The largest logit, and the sum of exp(logit - largest).
template <class T> void summarise(const T *logits, int64_t vocab, float &top, float &total) {
    Vector most = spread(-INFINITY), sums = {};
    vectors(vocab, [&](int64_t i, int n) {
        const Vector v = load(logits + i, n, -INFINITY);
        most = larger(v, most);
    });
    top = largest(most);
    vectors(vocab, [&](int64_t i, int n) { sums += exp(load(logits + i, n, -INFINITY) - top); });
    total = sum(sums);
}

}  // namespace

// logits: [rows, vocab]; where `differentiate`, on return their gradient of the sum over rows of
//     dnll * (nll + z_loss * z^2) + dlog_z * z.
// labels: [rows], a negative one carries no loss. dnll, dlog_z: [rows]; null: ones, zeros. nll, z: [rows], the loss and
// logsumexp of each row, zero without a label.
extern "C" Fault leyden_token_nll(int64_t bfloat16, void *logits, const int64_t *labels, const float *dnll,
                                  const float *dlog_z, int64_t rows, int64_t vocab, float z_loss,
                                  int64_t differentiate, float *nll, float *z, int64_t threads) {
    if (!within(labels, rows, INT64_MIN, vocab)) return "a label is not in the vocabulary";
    return with_dtype(bfloat16, [&](auto type) {
        using T = decltype(type);
        share(rows, threads, [&](int64_t begin, int64_t end, int) {
            for (int64_t row = begin; row < end; row++) {
                T *at = (T *)logits + row * vocab;
                const int64_t label = labels[row];
                nll[row] = z[row] = 0;
                if (label < 0) {
                    if (differentiate) std::memset(at, 0, vocab * sizeof(T));
                    continue;
                }
                float top, total;
                summarise(at, vocab, top, total);
                // From the distance to the largest logit: the label's probability may underflow.
                nll[row] = top - read(at + label) + std::log(total);
                z[row] = top + std::log(total);
                if (!differentiate) continue;
                // d nll / d logits = p - onehot;  d z / d logits = p;  d z^2 / d logits = 2 z p
                const float of_nll = dnll ? dnll[row] : 1, of_z = dlog_z ? dlog_z[row] : 0;
                const float scale = (of_nll * (1 + 2 * z_loss * z[row]) + of_z) / total;
                const float at_label = std::exp(read(at + label) - top) * scale - of_nll;
                vectors(vocab, [&](int64_t i, int n) { store(at + i, exp(load(at + i, n) - top) * scale, n); });
                store(at + label, spread(at_label), 1);
            }
        });
    });
}

// Tokens drawn from rows of logits: the filters of sampling, and the inverse of the distribution function.

#include <functional>

#include "native.h"

using namespace leyden;

namespace {

// How a row is drawn from; the columns of Python's table.
struct Filters {
    double temperature, top_k, top_p, min_p, top_n_sigma, uniform;
};

// The standard deviation of those logits that are finite.
double deviation(const float *logits, int64_t vocab) {
    double total = 0, squares = 0;
    int64_t count = 0;
    for (int64_t i = 0; i < vocab; i++)
        if (std::isfinite(logits[i])) total += logits[i], count++;
    const double mean = total / count;
    for (int64_t i = 0; i < vocab; i++)
        if (std::isfinite(logits[i])) squares += (logits[i] - mean) * (logits[i] - mean);
    return std::sqrt(squares / count);
}

// What a row's work is done in.
struct Scratch {
    std::vector<float> weights, head;
    std::vector<double> sums;  // of the weights whose first 16 bits are a number, which is then their order
};

inline int64_t first_bits(float weight) {
    uint32_t bits;
    std::memcpy(&bits, &weight, sizeof bits);
    return bits >> 16;
}

// Leaves those of the weights in `head` among which, in falling order, the sum of amount(weight) reaches `wanted`, and
// with `larger` also all larger ones; otherwise `below` grows by the sum of these. It compares no weight with another.
template <class F>
void narrow_down(std::vector<float> &head, F &&amount, double wanted, bool larger, double &below,
                 std::vector<double> &sums) {
    const auto [least, most] = std::minmax_element(head.begin(), head.end());
    const int64_t low = first_bits(*least), high = first_bits(*most);
    if ((int64_t)head.size() <= high - low) return;  // to put them in order costs no more
    sums.assign(high - low + 1, 0.0);
    for (const float weight : head) sums[first_bits(weight) - low] += amount(weight);
    int64_t reached = high;
    double total = below;
    for (; reached > low && total + sums[reached - low] < wanted; reached--) total += sums[reached - low];
    if (!larger) below = total;
    size_t kept = 0;
    for (const float weight : head)
        if (first_bits(weight) == reached || (larger && first_bits(weight) > reached)) head[kept++] = weight;
    head.resize(kept);
}

// The smallest weight that top_k and top_p keep: they keep the head of the weights in falling order. Only as much of
// that order is made as they ask for.
float smallest_of_head(int64_t vocab, const Filters &filters, Scratch &scratch) {
    const float *weights = scratch.weights.data();
    std::vector<float> &head = scratch.head;
    const auto falling = std::greater<float>();
    const bool first_ones = filters.top_k < vocab;
    double whole = 0;
    if (!first_ones)
        for (int64_t i = 0; i < vocab; i++) whole += weights[i];
    // All tokens up to this weight together have less than 1 - p, so none of them is kept.
    const double bound = first_ones ? -1 : (1 - filters.top_p) * whole / (2 * vocab);
    head.clear();
    for (int64_t i = 0; i < vocab; i++)
        if (weights[i] > bound) head.push_back(weights[i]);
    if (head.empty()) return 0;  // the logits are not all numbers
    double below = 0;
    int64_t count = head.size();
    if (first_ones && filters.top_k < count) {
        count = (int64_t)filters.top_k;
        narrow_down(head, [](float) { return 1.0; }, (double)count, true, below, scratch.sums);
        std::nth_element(head.begin(), head.begin() + count, head.end(), falling);
    }
    if (filters.top_p >= 1) return *std::min_element(head.begin(), head.begin() + count);
    if (first_ones) {
        std::sort(head.begin(), head.begin() + count, falling);
        for (int64_t i = 0; i < count; i++) whole += head[i];
    }
    int64_t begin = 0;
    if (!first_ones) {
        const auto itself = [](float weight) { return (double)weight; };
        narrow_down(head, itself, filters.top_p * whole, false, below, scratch.sums);
        count = head.size();
    }
    for (int64_t size = 64; begin < count; size *= 8) {
        const int64_t end = std::min(begin + size, count);
        if (!first_ones) {
            if (end < count)
                std::nth_element(head.begin() + begin, head.begin() + end, head.begin() + count, falling);
            std::sort(head.begin() + begin, head.begin() + end, falling);
        }
        for (; begin < end; begin++)
            if ((below += head[begin]) >= filters.top_p * whole) return head[begin];
    }
    return head[count - 1];
}

// The first of the largest logits.
int64_t first_largest(const float *logits, int64_t vocab) {
    Vector most = spread(-INFINITY);
    vectors(vocab, [&](int64_t i, int n) { most = larger(load(logits + i, n, -INFINITY), most); });
    const float top = largest(most);
    for (int64_t i = 0; i < vocab; i++)
        if (logits[i] == top) return i;
    return 0;
}

int64_t sampled(const float *logits, int64_t vocab, const Filters &filters, Scratch &scratch) {
    if (filters.temperature == 0) return first_largest(logits, vocab);
    Vector most = spread(-INFINITY);
    vectors(vocab, [&](int64_t i, int n) { most = larger(load(logits + i, n, -INFINITY), most); });
    const float top = largest(most), temperature = (float)filters.temperature;
    std::vector<float> &weights = scratch.weights;
    weights.resize(vocab);
    vectors(vocab, [&](int64_t i, int n) {
        store(&weights[i], exp((load(logits + i, n) - top) / temperature), n);
    });
    double smallest = filters.min_p;
    if (std::isfinite(filters.top_n_sigma)) {
        const double sigma = deviation(logits, vocab);
        smallest = std::max(smallest, std::exp(-filters.top_n_sigma * sigma / filters.temperature));
    }
    if (filters.top_k < vocab || filters.top_p < 1)
        smallest = std::max(smallest, (double)smallest_of_head(vocab, filters, scratch));
    double total = 0, below = 0;
    for (int64_t i = 0; i < vocab; i++) total += weights[i] < smallest ? weights[i] = 0 : weights[i];
    // Where none of the others exceeds it, it is the last token, also if rounding makes the product the whole sum.
    for (int64_t i = 0; i < vocab - 1; i++)
        if ((below += weights[i]) > filters.uniform * total) return i;
    return vocab - 1;
}

}  // namespace

// logits: [rows, vocab]. filters: [rows] of the struct above; a top_k of vocab or more, a top_p of 1, a min_p of 0 and
// an infinite top_n_sigma keep all, and a temperature of 0 takes the first of the largest. tokens: [rows]. Each row is
// one thread's, so that it has the same token beside any others.
extern "C" Fault leyden_sample(const float *logits, int64_t logits_row, const double *filters, int64_t rows,
                               int64_t vocab, int64_t columns, int64_t *tokens, int64_t threads) {
    if (columns != (int64_t)(sizeof(Filters) / sizeof(double))) return "a row of filters has other columns";
    if (vocab < 1) return "a token is drawn from a vocabulary of one or more";
    return guarded([&]() -> Fault {
        share(rows, std::min(threads, rows), [&](int64_t begin, int64_t end, int) {
            Scratch scratch;
            for (int64_t row = begin; row < end; row++)
                tokens[row] = sampled(logits + row * logits_row, vocab, ((const Filters *)filters)[row], scratch);
        });
        return nullptr;
    });
}

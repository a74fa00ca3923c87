// What lies between the matrix products of the experts.
//
// N tokens have k assignments each. Sorted by expert they become rows; a row whose assignment is -1 fills up the last
// rows of an expert and holds zeros. An assignment whose row is -1 was dropped.

#include "experts/activation.h"

using namespace leyden;

namespace {

template <class T>
void gather(const T *x, const int32_t *assignment, int64_t top_k, int64_t dim, int64_t begin, int64_t end, T *rows) {
    for (int64_t row = begin; row < end; row++) {
        if (assignment[row] < 0)
            std::memset(rows + row * dim, 0, dim * sizeof(T));
        else
            std::memcpy(rows + row * dim, x + assignment[row] / top_k * dim, dim * sizeof(T));
    }
}

template <class T>
void sum_by_token(const T *rows, const int32_t *row, int64_t top_k, int64_t dim, int64_t begin, int64_t end, T *out) {
    for (int64_t token = begin; token < end; token++)
        vectors(dim, [&](int64_t i, int n) {
            Vector total = {};
            for (int64_t j = token * top_k; j < (token + 1) * top_k; j++)
                if (row[j] >= 0) total += load(rows + row[j] * dim + i, n);
            store(out + token * dim + i, total, n);
        });
}

}  // namespace

// Sort M assignments to E experts: expert e gets the rows from spans[e] to spans[e + 1], as many as a multiple of
// `alignment`. row: [M], and assignment: [spans[E]] of `capacity`, are each other's inverse. kept may be null.
extern "C" Fault leyden_experts_sort(const int64_t *experts, const uint8_t *kept, int64_t count, int64_t num_experts,
                                     int64_t alignment, int64_t capacity, int32_t *row, int32_t *assignment,
                                     int64_t *spans, int64_t last, int64_t) {
    if (!within(experts, count, 0, num_experts)) return "an assignment's expert is none of the experts";
    if (last != num_experts + 1 || !alignment || capacity > INT32_MAX) return "there are too many assignments";
    return guarded([&]() -> Fault {
        std::vector<int64_t> next(num_experts);
        for (int64_t m = 0; m < count; m++)
            if (!kept || kept[m]) next[experts[m]]++;
        spans[0] = 0;
        for (int64_t e = 0; e < num_experts; e++) {
            spans[e + 1] = spans[e] + (next[e] + alignment - 1) / alignment * alignment;
            next[e] = spans[e];
        }
        if (spans[num_experts] > capacity) return "there is no room for all assignments";
        std::fill(assignment, assignment + spans[num_experts], -1);
        for (int64_t m = 0; m < count; m++) {
            row[m] = -1;
            if (kept && !kept[m]) continue;
            row[m] = next[experts[m]]++;
            assignment[row[m]] = m;
        }
        return nullptr;
    });
}

// x: [tokens, dim] to rows: [count, dim].
extern "C" Fault leyden_experts_gather(int64_t bfloat16, const void *x, const int32_t *assignment, int64_t top_k,
                                       int64_t dim, int64_t tokens, int64_t count, void *rows, int64_t threads) {
    if (!within(assignment, count, INT32_MIN, tokens * top_k)) return "a row's assignment is none of the assignments";
    return with_dtype(bfloat16, [&](auto type) {
        using T = decltype(type);
        share(count, threads, [&](int64_t begin, int64_t end, int) {
            gather((const T *)x, assignment, top_k, dim, begin, end, (T *)rows);
        });
    });
}

// rows: [count, dim] to out: [tokens, dim].
extern "C" Fault leyden_experts_sum(int64_t bfloat16, const void *rows, const int32_t *row, int64_t top_k, int64_t dim,
                                    int64_t count, int64_t tokens, void *out, int64_t threads) {
    if (!within(row, tokens * top_k, INT32_MIN, count)) return "an assignment's row is none of the rows";
    return with_dtype(bfloat16, [&](auto type) {
        using T = decltype(type);
        share(tokens, threads, [&](int64_t begin, int64_t end, int) {
            sum_by_token((const T *)rows, row, top_k, dim, begin, end, (T *)out);
        });
    });
}

// projected: [count, 2 width], gate before up; weights: [assignments]; hidden: [count, width].
extern "C" Fault leyden_experts_activate(int64_t bfloat16, const void *projected, const int32_t *assignment,
                                         const float *weights, int64_t width, int64_t count, int64_t assignments,
                                         void *hidden, int64_t threads) {
    if (!within(assignment, count, INT32_MIN, assignments)) return "a row's assignment is none of the assignments";
    return with_dtype(bfloat16, [&](auto type) {
        using T = decltype(type);
        share(count, threads, [&](int64_t begin, int64_t end, int) {
            for (int64_t row = begin; row < end; row++) {
                const T *gate = (const T *)projected + row * 2 * width;
                const float weight = assignment[row] < 0 ? 0 : weights[assignment[row]];
                activate(gate, gate + width, weight, width, (T *)hidden + row * width);
            }
        });
    });
}

// hidden: [count, width], the gradient on entry, the activation on return; dweights by assignment.
extern "C" Fault leyden_experts_activate_backward(int64_t bfloat16, const void *projected, const int32_t *assignment,
                                                  const float *weights, int64_t width, int64_t count,
                                                  int64_t assignments, void *hidden, void *dprojected, float *dweights,
                                                  int64_t threads) {
    if (!within(assignment, count, INT32_MIN, assignments)) return "a row's assignment is none of the assignments";
    return with_dtype(bfloat16, [&](auto type) {
        using T = decltype(type);
        share(count, threads, [&](int64_t begin, int64_t end, int) {
            for (int64_t row = begin; row < end; row++) {
                const T *gate = (const T *)projected + row * 2 * width;
                T *dgate = (T *)dprojected + row * 2 * width, *active = (T *)hidden + row * width;
                const int64_t m = assignment[row];
                const float weight = m < 0 ? 0 : weights[m];
                const float d = activate_backward(gate, gate + width, weight, width, active, dgate, dgate + width);
                if (m >= 0) dweights[m] = d;
            }
        });
    });
}

// The activation between the two products of an expert, and its gradient.

#pragma once

#include "native.h"

namespace leyden {

// hidden = weight * silu(gate) * up
template <class T>
inline void activate(const T *gate, const T *up, float weight, int64_t width, T *hidden) {
    vectors(width, [&](int64_t i, int n) {
        const Vector g = load(gate + i, n);
        store(hidden + i, g * sigmoid(g) * load(up + i, n) * weight, n);
    });
}

// Overwrites the gradient of hidden with hidden itself, for the product that follows; returns the gradient of weight.
template <class T>
inline float activate_backward(const T *gate, const T *up, float weight, int64_t width, T *hidden, T *dgate, T *dup) {
    Vector dweight = {};
    vectors(width, [&](int64_t i, int n) {
        const Vector g = load(gate + i, n), u = load(up + i, n), d = load(hidden + i, n);
        const Vector s = sigmoid(g), silu = g * s, scaled = d * weight;
        dweight += d * silu * u;
        store(hidden + i, silu * u * weight, n);
        store(dgate + i, scaled * u * (s + silu * (1.0f - s)), n);
        store(dup + i, scaled * silu, n);
    });
    return sum(dweight);
}

}  // namespace leyden

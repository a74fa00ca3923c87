// What is left of a state after some tokens.

#pragma once

#include "vector.h"

namespace leyden {

// exp(-x) for an x of 0 or more, as a whole number and the rest. The decay of a slow head is so near to 1 that rounding
// it would change what the head forgets, at every token alike; the rest alone is as exact as a float.
struct Decay {
    float whole, rest;

    Decay(float whole, float rest) : whole(whole), rest(rest) {}
    explicit Decay(float x) : whole(x < 0.5f), rest(x < 0.5f ? std::expm1(-x) : std::exp(-x)) {}

    // state exp(-x) + added, rounded as a sum once.
    Vector operator()(Vector state, Vector added) const { return state * whole + (state * rest + added); }
};

}  // namespace leyden

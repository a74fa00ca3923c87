// What the caches are told of before it is read, so that memory does not rest while products compute.

#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace leyden {

// The second cache is told of memory that is read soon. The first one waits for few lines at once, so that asking it
// brings them at a third of the speed at which memory gives them.
inline void fetch_soon(const void *p) { __builtin_prefetch(p, 0, 2); }

// What a thread is about to read, part by part: the caches are told of it where memory would rest.
class Upcoming {
  public:
    void clear() { parts.clear(), current = next = 0; }
    void add(const void *begin, int64_t bytes) { parts.push_back({(const char *)begin, (const char *)begin + bytes}); }
    void enter() { next = std::max(next, ++current); }  // the next part is read from now on

    // So many bytes behind those taken, or null where nothing is left.
    const void *take(int64_t bytes) {
        while (next < parts.size() && parts[next].begin >= parts[next].end) next++;
        if (next == parts.size()) return nullptr;
        const char *taken = parts[next].begin;
        parts[next].begin += bytes;
        return taken;
    }

  private:
    struct Part {
        const char *begin, *end;
    };
    std::vector<Part> parts;
    size_t current = 0, next = 0;
};

// Rows of memory of which the caches are told, or null.
template <class W> struct Fetch {
    const W *row;
    int64_t stride;

    // So many rows of n of what comes up.
    static Fetch of(Upcoming *upcoming, int rows, int n) {
        return {upcoming ? (const W *)upcoming->take((int64_t)rows * n * sizeof(W)) : nullptr, n};
    }
};

}  // namespace leyden

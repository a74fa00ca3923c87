// Stands before the allocators of C++ where it is preloaded: of the native library's allocations, one fails.

#include <dlfcn.h>
#include <stdlib.h>

#include <atomic>
#include <cstring>
#include <new>

namespace {

const char *name = "";
std::atomic<long> left{-1};

// Whether the allocation that is asked for from `caller` is the one that fails.
bool fails(const void *caller) {
    Dl_info info;
    if (left < 0 || !dladdr(caller, &info) || !strstr(info.dli_fname, name)) return false;
    return left.fetch_sub(1) == 0;
}

void *allocated(void *memory) {
    if (!memory) throw std::bad_alloc();
    return memory;
}

}  // namespace

// From now on: `count` allocations of the library with this name succeed, the one behind them fails, and then none.
extern "C" void scarce_after(const char *library, long count) { name = library, left = count; }

// How many are to succeed yet; negative where one has failed.
extern "C" long scarce_left() { return left; }

void *operator new(size_t size) { return allocated(fails(__builtin_return_address(0)) ? nullptr : malloc(size)); }

void *operator new(size_t size, std::align_val_t alignment) {
    void *memory = nullptr;
    if (!fails(__builtin_return_address(0)) && posix_memalign(&memory, (size_t)alignment, size)) memory = nullptr;
    return allocated(memory);
}

extern "C" void *aligned_alloc(size_t alignment, size_t size) noexcept {
    void *memory = nullptr;
    if (fails(__builtin_return_address(0)) || posix_memalign(&memory, alignment, size)) return nullptr;
    return memory;
}

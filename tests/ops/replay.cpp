// Calls functions of a library as a file says, and writes what became of their buffers: for processors on which there is
// no Python to do it (native_replay.py).
//
// A call: the length of the name, the name, the number of arguments, and of each its kind ('i' int64, 'f' float, 'b'
// buffer, 'a' a buffer once more, 'n' null) and its value, a buffer's being its length in bytes and the bytes. Numbers
// are int64. Written are, for each call, the length of the message and the message, and all buffers.

#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace {

constexpr int MOST_INTEGERS = 28, MOST_FLOATS = 2;

bool read(std::FILE *from, void *to, size_t bytes) { return std::fread(to, 1, bytes, from) == bytes; }

int64_t number(std::FILE *from) {
    int64_t value;
    if (!read(from, &value, sizeof value)) std::exit(3);
    return value;
}

void write(std::FILE *to, const void *bytes, int64_t count) { std::fwrite(bytes, 1, count, to); }

// Integers and floats go to registers, and then onto the stack, apart from each other; more than a function takes do
// no harm. So one type does for all.
const char *call(void *function, const int64_t *i, const float *f) {
    typedef const char *(*Any)(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                               int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                               int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, float, float);
    return ((Any)function)(i[0], i[1], i[2], i[3], i[4], i[5], i[6], i[7], i[8], i[9], i[10], i[11], i[12], i[13],
                           i[14], i[15], i[16], i[17], i[18], i[19], i[20], i[21], i[22], i[23], i[24], i[25], i[26],
                           i[27], f[0], f[1]);
}

}  // namespace

int main(int, char **arguments) {
    void *library = dlopen(arguments[1], RTLD_NOW);
    if (!library) return std::fprintf(stderr, "%s\n", dlerror()), 2;
    std::FILE *from = std::fopen(arguments[2], "rb"), *to = std::fopen(arguments[3], "wb");
    for (int64_t length; read(from, &length, sizeof length);) {
        std::string name(length, ' ');
        if (!read(from, &name[0], length)) return 3;
        std::vector<std::vector<char>> buffers(number(from));
        int64_t integers[MOST_INTEGERS] = {};
        float floats[MOST_FLOATS] = {};
        int num_integers = 0, num_floats = 0, num_buffers = 0;
        for (size_t argument = 0; argument < buffers.size(); argument++) {
            const int64_t kind = number(from);
            if (kind == 'i') integers[num_integers++] = number(from);
            if (kind == 'n') integers[num_integers++] = 0;
            if (kind == 'a') integers[num_integers++] = (int64_t)buffers[number(from)].data();
            if (kind == 'f' && !read(from, floats + num_floats++, sizeof(float))) return 3;
            if (kind != 'b') continue;
            std::vector<char> &buffer = buffers[num_buffers++];
            buffer.resize(number(from));
            if (!read(from, buffer.data(), buffer.size())) return 3;
            integers[num_integers++] = (int64_t)buffer.data();
        }
        void *function = dlsym(library, name.c_str());
        if (!function) return std::fprintf(stderr, "%s is not there\n", name.c_str()), 2;
        const char *fault = call(function, integers, floats);
        const int64_t said = fault ? std::strlen(fault) : 0;
        write(to, &said, sizeof said);
        write(to, fault, said);
        for (int i = 0; i < num_buffers; i++) write(to, buffers[i].data(), buffers[i].size());
    }
    return std::fclose(to);
}

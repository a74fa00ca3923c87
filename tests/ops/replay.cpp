// Calls functions of a library as a file says, and writes what became of their buffers: for processors on which there is
// no Python to do it (native_replay.py).
//
// A call: the length of the name and the name; the number of buffers, and of each its length, its bytes, the number of
// addresses in it, and of each where it is, in which buffer it points, and how far behind that one's begin; the number of
// arguments, and of each its kind ('i' int64, 'f' float, 'a' a buffer's address) and its value. Numbers are int64.
// Written are, for each call, the length of the message and the message, and all buffers without addresses.

#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace {

constexpr int MOST_INTEGERS = 28, MOST_FLOATS = 2;

void read(std::FILE *from, void *to, size_t bytes) {
    if (std::fread(to, 1, bytes, from) != bytes) std::exit(3);
}

int64_t number(std::FILE *from) {
    int64_t value;
    read(from, &value, sizeof value);
    return value;
}

struct Address {
    int64_t at, buffer, offset;
};

struct Buffer {
    std::vector<char> data;
    std::vector<Address> addresses;
};

std::vector<Buffer> read_buffers(std::FILE *from) {
    std::vector<Buffer> buffers(number(from));
    for (Buffer &buffer : buffers) {
        buffer.data.resize(number(from));
        read(from, buffer.data.data(), buffer.data.size());
        buffer.addresses.resize(number(from));
        read(from, buffer.addresses.data(), buffer.addresses.size() * sizeof(Address));
    }
    for (Buffer &buffer : buffers)
        for (const Address &address : buffer.addresses) {
            const char *to = buffers[address.buffer].data.data() + address.offset;
            std::memcpy(buffer.data.data() + address.at, &to, sizeof to);
        }
    return buffers;
}

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
    for (int64_t length; std::fread(&length, 1, sizeof length, from) == sizeof length;) {
        std::string name(length, ' ');
        read(from, &name[0], length);
        std::vector<Buffer> buffers = read_buffers(from);
        int64_t integers[MOST_INTEGERS] = {};
        float floats[MOST_FLOATS] = {};
        int num_integers = 0, num_floats = 0;
        for (int64_t left = number(from); left > 0; left--) {
            const int64_t kind = number(from);
            if (kind == 'i') integers[num_integers++] = number(from);
            if (kind == 'a') integers[num_integers++] = (int64_t)buffers[number(from)].data.data();
            if (kind == 'f') read(from, floats + num_floats++, sizeof(float));
        }
        void *function = dlsym(library, name.c_str());
        if (!function) return std::fprintf(stderr, "%s is not there\n", name.c_str()), 2;
        const char *fault = call(function, integers, floats);
        const int64_t said = fault ? std::strlen(fault) : 0;
        std::fwrite(&said, 1, sizeof said, to);
        std::fwrite(fault, 1, said, to);
        for (const Buffer &buffer : buffers)
            if (buffer.addresses.empty()) std::fwrite(buffer.data.data(), 1, buffer.data.size(), to);
    }
    return std::fclose(to);
}

// libFuzzer over the parser of control messages.  The first byte chooses: the rest is the
// control area as it is; or messages whose headers lie; or messages that are put together
// properly, so that what must come out is known.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "core/passing/control_message.h"

namespace {

using forkfd::Control;
using forkfd::ControlHeader;

void demand(bool holds, const char* what) {
    if (holds) return;
    std::fprintf(stderr, "control_fuzz: not so: %s\n", what);
    std::abort();
}

Control parse(const std::vector<unsigned char>& bytes) {
    // Of this very size, so that reading one byte more is seen.
    const std::unique_ptr<unsigned char[]> copy(new unsigned char[bytes.size()]);
    if (!bytes.empty()) std::memcpy(copy.get(), bytes.data(), bytes.size());
    Control control;
    forkfd::parse_control(copy.get(), bytes.size(), control);
    demand(control.count <= control.fds.size(), "more descriptors than fit");
    demand(control.count <= bytes.size() / sizeof(int), "no more than the bytes can hold");
    for (unsigned i = 0; i < control.count; ++i) demand(control.fds[i] >= 0, "all are numbers");
    demand(control.malformed || bytes.size() <= forkfd::kControlSpace, "no kernel writes so much");
    return control;
}

void raw(const std::uint8_t* data, std::size_t size) { parse({data, data + size}); }

// Per message: a kind, how far its length is from the truth, the length of its body, the body.
void lying(const std::uint8_t* data, std::size_t size) {
    constexpr int kTypes[] = {SCM_RIGHTS, SCM_CREDENTIALS, forkfd::kScmPidfd, 99};
    std::vector<unsigned char> bytes;
    while (size >= 3) {
        const std::size_t body = std::min<std::size_t>(data[2], size - 3);
        const int lie = data[1] < 128 ? 0 : static_cast<signed char>(data[1] * 2);
        const ControlHeader header = {sizeof header + body + static_cast<std::size_t>(lie),
                                      SOL_SOCKET + (data[0] & 0x40 ? 1 : 0), kTypes[data[0] % 4]};
        const auto* const at = reinterpret_cast<const unsigned char*>(&header);
        while (bytes.size() % sizeof(std::size_t) != 0) bytes.push_back(0);
        bytes.insert(bytes.end(), at, at + sizeof header);
        bytes.insert(bytes.end(), data + 3, data + 3 + body);
        data += 3 + body;
        size -= 3 + body;
    }
    parse(bytes);
}

void assembled(const std::uint8_t* data, std::size_t size) {
    std::vector<unsigned char> bytes;
    std::vector<int> fds;
    int credentials = 0, pidfds = 0;
    while (size >= 2 && bytes.size() < 1000) {
        const unsigned kind = data[0] % 5, count = data[1] % 20;
        data += 2;
        size -= 2;
        std::vector<unsigned char> body;
        const auto add_fd = [&](int fd) {
            const auto* const at = reinterpret_cast<unsigned char*>(&fd);
            body.insert(body.end(), at, at + sizeof fd);
            fds.push_back(fd);
        };
        int level = SOL_SOCKET, type = SCM_RIGHTS;
        switch (kind) {
            case 0:
                for (unsigned i = 0; i < count; ++i) add_fd(static_cast<int>(fds.size()));
                break;
            case 1:
                type = SCM_CREDENTIALS;
                body.resize(sizeof(ucred));
                ++credentials;
                break;
            case 2:
                type = forkfd::kScmPidfd;
                body.resize(sizeof(int));
                ++pidfds;
                break;
            case 3: level = SOL_SOCKET + 1, body.resize(count); break;
            default: type = 99, body.resize(count);
        }
        const ControlHeader header = {sizeof header + body.size(), level, type};
        const auto* const at = reinterpret_cast<const unsigned char*>(&header);
        bytes.insert(bytes.end(), at, at + sizeof header);
        bytes.insert(bytes.end(), body.begin(), body.end());
        while (bytes.size() % sizeof(std::size_t) != 0) bytes.push_back(0);
    }
    const Control control = parse(bytes);
    demand(control.has_credentials == (credentials > 0), "credentials are seen");
    demand(control.has_pidfd == (pidfds > 0), "a pidfd is seen");
    demand(control.malformed == (credentials > 1 || pidfds > 1), "twice is once too often");
    if (pidfds > 1) return;  // the second is among the descriptors, to be closed
    demand(control.count == fds.size(), "none is lost");
    for (unsigned i = 0; i < control.count; ++i) demand(control.fds[i] == fds[i], "in order");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    if (size == 0) return 0;
    if (data[0] % 3 == 0) raw(data + 1, size - 1);
    else if (data[0] % 3 == 1) lying(data + 1, size - 1);
    else assembled(data + 1, size - 1);
    return 0;
}

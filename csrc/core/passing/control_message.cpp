#include "core/passing/control_message.h"

#include <algorithm>
#include <cstring>

namespace forkfd {

namespace {

constexpr std::size_t aligned(std::size_t length) {
    return (length + sizeof(std::size_t) - 1) & ~(sizeof(std::size_t) - 1);
}

void add_fd(int fd, Control& out) noexcept {
    if (fd < 0) out.malformed = true;
    else out.fds[out.count++] = fd;  // fds holds as many as kControlSpace can
}

void read_rights(const unsigned char* bytes, std::size_t size, Control& out) noexcept {
    if (size % sizeof(int) != 0) out.malformed = true;
    for (std::size_t i = 0; i + sizeof(int) <= size; i += sizeof(int)) {
        int fd;
        std::memcpy(&fd, bytes + i, sizeof fd);
        add_fd(fd, out);
    }
}

void read_credentials(const unsigned char* bytes, std::size_t size, Control& out) noexcept {
    if (size != sizeof(ucred) || out.has_credentials) {
        out.malformed = true;
        return;
    }
    std::memcpy(&out.credentials, bytes, sizeof(ucred));
    out.has_credentials = true;
}

void read_pidfd(const unsigned char* bytes, std::size_t size, Control& out) noexcept {
    if (size != sizeof(int) || out.has_pidfd) {  // a second pidfd must be closed too
        out.malformed = true;
        read_rights(bytes, size, out);
        return;
    }
    std::memcpy(&out.pidfd, bytes, sizeof(int));
    out.has_pidfd = true;
}

}  // namespace

void parse_control(const unsigned char* bytes, std::size_t size, Control& out) noexcept {
    if (size > kControlSpace) {
        out.malformed = true;
        size = kControlSpace;
    }
    while (size >= sizeof(ControlHeader)) {
        ControlHeader header;
        std::memcpy(&header, bytes, sizeof header);
        if (header.length < sizeof header) {
            out.malformed = true;
            return;
        }
        if (header.length > size) out.malformed = true;
        const std::size_t length = std::min(header.length, size);
        const unsigned char* const data = bytes + sizeof header;
        const std::size_t data_size = length - sizeof header;
        // Others (SCM_SECURITY, timestamps) hold no descriptor and are ignored.
        if (header.level == SOL_SOCKET) {
            if (header.type == SCM_RIGHTS) read_rights(data, data_size, out);
            if (header.type == SCM_CREDENTIALS) read_credentials(data, data_size, out);
            if (header.type == kScmPidfd) read_pidfd(data, data_size, out);
        }
        const std::size_t step = std::min(aligned(length), size);
        bytes += step;
        size -= step;
    }
}

}  // namespace forkfd

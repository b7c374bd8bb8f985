// What recvmsg(2) put beside the data of a UNIX socket, read from its bytes.  Pure: no system
// call and no allocation, so that it can be fuzzed; the caller closes.
#pragma once

#include <sys/socket.h>

#include <array>
#include <cstddef>

namespace forkfd {

constexpr unsigned kMessageFds = 253;  // SCM_MAX_FD, unix(7)
constexpr int kScmPidfd = 4;           // SCM_PIDFD, Linux 6.5

// The kernel's struct cmsghdr; musl's is made of other types.
struct ControlHeader {
    std::size_t length;  // with the header
    int level;
    int type;
};
static_assert(sizeof(ControlHeader) == CMSG_LEN(0));

// For `fds` descriptors, and nothing for none: CMSG_SPACE(0) would be room for four.
constexpr std::size_t rights_room(unsigned fds) {
    return fds == 0 ? 0 : CMSG_SPACE(fds * sizeof(int));
}
// For these, a sender's credentials and its pidfd, and what else a receiver may have asked
// the kernel for: time stamps, a security label.  The kernel fills it with descriptors too.
constexpr std::size_t control_room(unsigned fds) {
    return rights_room(fds) + CMSG_SPACE(sizeof(ucred)) + CMSG_SPACE(sizeof(int)) + 256;
}
constexpr std::size_t kControlRoom = control_room(kMessageFds);

// Every number below has been opened in this process and is the caller's to close.
struct Control {
    std::array<int, kControlRoom / sizeof(int)> fds;  // in the order sent; `count` are set
    unsigned count = 0;
    ucred credentials = {};
    bool has_credentials = false;
    int pidfd = 0;  // or -errno: the kernel could not make one
    bool has_pidfd = false;
    bool malformed = false;  // no kernel writes this: trust nothing of it, close what is named
};

// Of more than kControlRoom bytes the first are read, and the rest makes it malformed.
void parse_control(const unsigned char* bytes, std::size_t size, Control& out) noexcept;

}  // namespace forkfd

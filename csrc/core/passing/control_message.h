// The parser of control messages, which recvmsg(2) returns beside the data of a UNIX socket.
// Pure: no system call and no allocation, so that it is fuzzed; the caller closes descriptors.
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

// Space for `fds` descriptors, and none for 0: CMSG_SPACE(0) would hold four.
constexpr std::size_t rights_space(unsigned fds) {
    return fds == 0 ? 0 : CMSG_SPACE(fds * sizeof(int));
}
// Space for these, a sender's credentials and its pidfd, and for other options of the receiving
// socket: time stamps, a security label.  The kernel fills it with descriptors too.
constexpr std::size_t control_space(unsigned fds) {
    return rights_space(fds) + CMSG_SPACE(sizeof(ucred)) + CMSG_SPACE(sizeof(int)) + 256;
}
constexpr std::size_t kControlSpace = control_space(kMessageFds);

// All descriptors below are open in this process; the caller closes them.
struct Control {
    std::array<int, kControlSpace / sizeof(int)> fds;  // in the order sent; `count` are set
    unsigned count = 0;
    ucred credentials = {};
    bool has_credentials = false;
    int pidfd = 0;  // or -errno: the kernel could not make one
    bool has_pidfd = false;
    bool malformed = false;  // no kernel writes this: close the descriptors, and use nothing else
};

// Reads at most kControlSpace bytes; more make it malformed.
void parse_control(const unsigned char* bytes, std::size_t size, Control& out) noexcept;

}  // namespace forkfd

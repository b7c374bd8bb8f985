#include "core/passing/unwanted.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>

#include "core/base/unique_fd.h"
#include "core/passing/control_message.h"

namespace forkfd {

namespace {

constexpr unsigned kMostOfConnection = 1024;  // messages; SO_SNDBUF of the sender has fewer

void enable(int sock, int option) noexcept {
    const int on = 1;
    ::setsockopt(sock, SOL_SOCKET, option, &on, sizeof on);
}

int type_of(int sock) noexcept {
    int type = 0;
    socklen_t size = sizeof type;
    return ::getsockopt(sock, SOL_SOCKET, SO_TYPE, &type, &size) == 0 ? type : -1;
}

// Receives and discards one message.  Returns whether there may be another.
bool discard_message(int sock, bool stream) noexcept {
    alignas(ControlHeader) unsigned char bytes[kControlSpace];
    char data[4096];
    iovec buffer = {data, sizeof data};
    msghdr message = {};
    message.msg_iov = &buffer;
    message.msg_iovlen = 1;
    message.msg_control = bytes;
    message.msg_controllen = sizeof bytes;
    const ssize_t size = ::recvmsg(sock, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    // A pending ECONNRESET is reported once, before what waits.
    if (size < 0) return errno == ECONNRESET || errno == EINTR;
    Control control;
    parse_control(bytes, message.msg_controllen, control);
    discard_fds(control.fds.data(), control.count);
    if (control.has_pidfd && control.pidfd >= 0) ::close(control.pidfd);
    // Every message has credentials, an empty one too; the end has none.
    return size > 0 || (!stream && control.has_credentials);
}

}  // namespace

void end_linger(int sock) noexcept {
    const linger off = {};
    ::setsockopt(sock, SOL_SOCKET, SO_LINGER, &off, sizeof off);
}

void discard_fds(const int* fds, std::size_t count) noexcept {
    for (std::size_t i = 0; i < count; ++i) {
        if (fds[i] < 0) continue;
        end_linger(fds[i]);  // ENOTSOCK of all others
        ::close(fds[i]);
    }
}

void drain(int sock, unsigned most) noexcept {
    const int type = type_of(sock);
    enable(sock, SO_PASSCRED);
    // Urgent data, with descriptors of its own, would be discarded by the kernel.
    if (type == SOCK_STREAM) enable(sock, SO_OOBINLINE);
    ::shutdown(sock, SHUT_RD);
    for (unsigned i = 0; i < most && discard_message(sock, type == SOCK_STREAM); ++i) {
    }
}

void drain_backlog(int listener, unsigned most) noexcept {
    ::fcntl(listener, F_SETFL, O_NONBLOCK);
    for (unsigned i = 0; i < most; ++i) {
        const UniqueFd connection(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC));
        if (connection) drain(connection.get(), kMostOfConnection);
        else if (errno != EINTR && errno != ECONNABORTED) return;
    }
}

}  // namespace forkfd

#include "core/passing/peer.h"

#include <cerrno>
#include <string>

#include "core/descriptors/descriptor.h"

namespace forkfd {

namespace {

constexpr int kPassPidfd = 76, kPeerPidfd = 77, kPassRights = 83;  // asm-generic/socket.h

[[noreturn]] void fail(int sock, const char* option) {
    throw_errno(errno, "socket " + std::to_string(sock) + ": " + option);
}

void set(int sock, int option, bool on, const char* name) {
    const int value = on;
    if (::setsockopt(sock, SOL_SOCKET, option, &value, sizeof value) != 0) fail(sock, name);
}

}  // namespace

ucred peer_credentials(int sock) {
    ucred peer;
    socklen_t size = sizeof peer;
    if (::getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) fail(sock, "SO_PEERCRED");
    return peer;
}

UniqueFd peer_pidfd(int sock) {
    int fd = -1;
    socklen_t size = sizeof fd;
    if (::getsockopt(sock, SOL_SOCKET, kPeerPidfd, &fd, &size) != 0) fail(sock, "SO_PEERPIDFD");
    return UniqueFd(fd);
}

void pass_credentials(int sock, bool on) { set(sock, SO_PASSCRED, on, "SO_PASSCRED"); }
void pass_pidfd(int sock, bool on) { set(sock, kPassPidfd, on, "SO_PASSPIDFD"); }
void pass_rights(int sock, bool on) { set(sock, kPassRights, on, "SO_PASSRIGHTS"); }

}  // namespace forkfd

// Details of a socket: by its descriptor, or, in another process, by its inode.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <unordered_map>

namespace forkfd {

struct SocketDetails {
    int family = 0, type = 0, protocol = 0;
    std::string local, peer;  // the kernel's struct sockaddr; empty: none
    bool listening = false;
    std::optional<unsigned> backlog, waiting;  // of a listener; where the kernel reports them
};

// std::nullopt: not a socket, or only its name (O_PATH).
std::optional<SocketDetails> socket_details(int fd);

// sock_diag(7): all TCP, UDP and UNIX sockets of our network namespace, also of other processes,
// without any privilege.  Sockets that the kernel does not report are not found.
class SockDiag {
  public:
    const SocketDetails* find(std::uint64_t inode);  // queries the kernel at the first call

  private:
    bool dumped_ = false;
    std::unordered_map<std::uint64_t, SocketDetails> sockets_;
};

}  // namespace forkfd

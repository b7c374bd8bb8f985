// What is known of a socket: by its descriptor, or, of another process's, by its inode.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <unordered_map>

namespace forkfd {

struct SocketDetails {
    int family = 0, type = 0, protocol = 0;
    std::string local, peer;  // struct sockaddr as the kernel gives it; empty: none
    bool listening = false;
    std::optional<unsigned> backlog, waiting;  // of a listener, where the kernel tells
};

// std::nullopt: not a socket, or only a name of one (O_PATH).
std::optional<SocketDetails> socket_details(int fd);

// sock_diag(7): all TCP, UDP and UNIX sockets of our network namespace, of other processes
// too, without any privilege.  What the kernel refuses to tell is not found.
class SockDiag {
  public:
    const SocketDetails* find(std::uint64_t inode);  // asks the kernel at the first call

  private:
    bool dumped_ = false;
    std::unordered_map<std::uint64_t, SocketDetails> sockets_;
};

}  // namespace forkfd

// Descriptors over UNIX sockets: SCM_RIGHTS, SCM_CREDENTIALS, SCM_PIDFD, unix(7).
//
// One message carries up to 253 descriptors.  More are a *transfer*: several messages, each
// of which begins with the same marker, a sealed memfd that contains their total number,
// followed by up to 252 descriptors.  All messages but the last have one byte of filler as data;
// the last has the data.  So up to 253 descriptors interoperate with every other program; a
// receiver checks for a marker only if exactly 253 came; and a message that another sender
// interleaves is detected, since it does not have this marker.
#pragma once

#include <sys/socket.h>
#include <sys/uio.h>

#include <cstdint>
#include <optional>
#include <string>
#include <system_error>
#include <vector>

#include "core/base/unique_fd.h"
#include "core/passing/control_message.h"

namespace forkfd {

constexpr unsigned kPieceFds = kMessageFds - 1;  // of a transfer, beside the marker

enum class Progress { done, would_block, interrupted };

// Descriptors that are closed with their list.
class FdList {
  public:
    FdList() = default;
    FdList(FdList&&) noexcept = default;
    FdList& operator=(FdList&& other) noexcept {
        numbers.swap(other.numbers);
        return *this;
    }
    ~FdList() { close_all(); }
    void close_all() noexcept;
    std::vector<int> numbers;
};

// Closes `count` descriptors, neighbours at once: close_range(2).
void close_fds(int* fds, std::size_t count) noexcept;

// One message, or one transfer, on its way out.
class Sending {
  public:
    // Everything is borrowed until it is sent, or until keep().  `unix_socket`: the caller knows
    // that the socket is one, which saves a system call.
    Sending(std::vector<iovec> data, const int* fds, std::size_t count, const ucred* credentials,
            bool unix_socket = false);
    // sendmsg(2) with `flags` until all is sent or it would block.  std::system_error.
    Progress advance(int sock, int flags);
    std::size_t bytes_sent() const noexcept { return bytes_sent_; }
    std::size_t fds_sent() const noexcept { return sent_; }
    std::size_t fd_count() const noexcept { return count_; }
    // Part of a transfer is sent: it must be finished, or the socket is of no more use.
    bool begun() const noexcept { return sent_ > 0 && sent_ < count_; }
    // Copies all that is still to be sent: from now on it is owned.
    void keep();

  private:
    void demand_carrier(int sock) const;
    [[noreturn]] void fail(int sock, int err) const;

    bool unix_socket_;
    std::vector<iovec> data_;
    const int* fds_;
    std::size_t count_;
    std::size_t first_ = 0;  // the number of fds_[0] among all
    std::size_t sent_ = 0;
    std::size_t bytes_sent_ = 0;
    std::optional<ucred> credentials_;
    UniqueFd marker_;  // of a transfer
    FdList kept_;
    std::string kept_data_;
};

// A message or transfer was truncated, or had too many descriptors.  Those that came are closed,
// without a wait (unwanted.h); Receiving::size() is the number of bytes of data that came.
class Incomplete : public std::system_error {
  public:
    Incomplete(int err, const std::string& what, std::size_t closed)
        : std::system_error(err, std::generic_category(), what), closed(closed) {}
    std::size_t closed;
};

// One message, or one transfer, on its way in.
class Receiving {
  public:
    // `buffer` is borrowed.
    Receiving(char* buffer, std::size_t capacity, unsigned max_fds)
        : buffer_(buffer), capacity_(capacity), max_fds_(max_fds) {}
    // recvmsg(2) with `flags` and MSG_CMSG_CLOEXEC until it is whole or would block.
    // Incomplete; std::system_error.  After either, and after `done` once the result is taken,
    // restart() prepares for the next.
    Progress advance(int sock, int flags);
    void restart() noexcept;

    std::size_t size() const noexcept { return size_; }
    bool begun() const noexcept { return static_cast<bool>(marker_); }
    std::size_t expected() const noexcept { return total_; }

    FdList fds;
    UniqueFd pidfd;
    std::optional<ucred> credentials;
    int flags = 0;  // of the last message: MSG_EOR and kin

  private:
    void check_control(int sock, const Control& control);
    bool begin(int flags, const Control& control);
    void check_piece(unsigned expected, const Control& control, std::size_t bytes,
                     std::size_t before);
    [[noreturn]] void lose(int err, const std::string& what);

    char* buffer_;
    std::size_t capacity_;
    unsigned max_fds_;
    std::size_t size_ = 0;
    std::size_t total_ = 0;  // of a transfer that has begun; it has a marker
    UniqueFd marker_;
};

// poll(2).  1: ready, 0: time is up, -1: errno (EINTR too).
int wait_ready(int fd, short events, int timeout_ms) noexcept;

}  // namespace forkfd

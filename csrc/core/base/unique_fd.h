// The owner of one descriptor.  The destructor closes it and preserves errno, so that it can
// run after a failed call without hiding the error.
#pragma once

#include <cerrno>
#include <unistd.h>
#include <utility>

namespace forkfd {

class UniqueFd {
  public:
    UniqueFd() noexcept = default;
    explicit UniqueFd(int fd) noexcept : fd_(fd) {}
    UniqueFd(UniqueFd&& other) noexcept : fd_(other.release()) {}
    UniqueFd& operator=(UniqueFd&& other) noexcept {
        std::swap(fd_, other.fd_);
        return *this;
    }
    ~UniqueFd() { reset(); }

    int get() const noexcept { return fd_; }
    explicit operator bool() const noexcept { return fd_ >= 0; }
    int release() noexcept { return std::exchange(fd_, -1); }
    void reset() noexcept {
        if (fd_ < 0) return;
        const int saved = errno;
        ::close(std::exchange(fd_, -1));  // never retried: on Linux EINTR has closed it
        errno = saved;
    }

  private:
    int fd_ = -1;
};

}  // namespace forkfd

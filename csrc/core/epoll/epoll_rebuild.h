// An epoll of anybody's, known by its number alone, made anew in a child just born: what it
// watches is read from the kernel.  Nothing here allocates or takes a lock.
#pragma once

#include <cstddef>

#include "core/descriptors/fd_details.h"

namespace forkfd {

// One line of /proc/PID/fdinfo/EPOLL, without its end.  False: it is not about an entry.
bool parse_watch(const char* line, std::size_t size, EpollWatch& watch) noexcept;

// Cuts a text that comes in parts into lines.  One longer than any of an entry is left out.
class WatchLines {
  public:
    // call(const EpollWatch&) for each entry whose line ends in this part.
    template <class Call>
    void add(const char* part, std::size_t size, Call&& call) noexcept {
        for (const char* const end = part + size; part != end; ++part) {
            if (*part != '\n') {
                if (size_ < sizeof line_) line_[size_] = *part;
                if (size_ <= sizeof line_) ++size_;
                continue;
            }
            EpollWatch watch;
            if (size_ <= sizeof line_ && parse_watch(line_, size_, watch)) call(watch);
            size_ = 0;
        }
    }

  private:
    char line_[192];  // 118 bytes is the longest that Linux writes
    std::size_t size_ = 0;
};

// The text of /proc/self/fdinfo/NUMBER, from which the kernel writes an instance at one moment.
class FdInfo {
  public:
    explicit FdInfo(int number) noexcept;
    FdInfo(const FdInfo&) = delete;
    FdInfo& operator=(const FdInfo&) = delete;
    ~FdInfo();
    // 0: the end; or -errno.
    long read(char* part, std::size_t size) const noexcept;

  private:
    long fd_;
};

// call(const EpollWatch&) for each entry of an epoll: 0 or errno.
template <class Call>
int each_watch(int epfd, Call&& call) noexcept {
    const FdInfo info(epfd);
    WatchLines lines;
    char part[4096];
    long size;
    while ((size = info.read(part, sizeof part)) > 0)
        lines.add(part, static_cast<std::size_t>(size), call);
    return static_cast<int>(-size);
}

// `fd`, as a rule the number of the entry, is the file that was added: by inode, and by
// kcmp(2) for files that share theirs (eventfds) or show another in /proc (FIFOs of overlayfs).
bool is_watched_file(int epfd, const EpollWatch& watch, int fd) noexcept;

// EBADF: not open; EINVAL: no epoll.  std::system_error.
void demand_epoll(int number);

struct EpollRebuild {
    int number;
    int inherited = -1;  // where the parent's instance is meanwhile
    int err = 0;         // the first error
    bool is_new = false;
};

// In a child: under each number that is an epoll a new instance watches what the inherited
// one watches and is still here.  All are new before any is filled, for one may watch another.
// Whatever fails, the number is not the parent's instance afterwards: it is new and watches
// less, or is closed.  True: nothing has failed.
bool rebuild_epolls(EpollRebuild* all, std::size_t count) noexcept;

}  // namespace forkfd

// Any epoll, known by its number alone, made anew in a new child: its entries are read from the
// kernel.  Nothing here allocates or takes a lock.
#pragma once

#include <cstddef>

#include "core/descriptors/fd_details.h"

namespace forkfd {

// Parses one line of /proc/PID/fdinfo/EPOLL, without its newline.  False: not an entry.
bool parse_watch(const char* line, std::size_t size, EpollWatch& watch) noexcept;

// Splits a text that comes in parts into lines.  Lines too long for an entry are skipped.
class WatchLines {
  public:
    // Calls call(const EpollWatch&) for each entry whose line ends in this part.
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
    char line_[192];  // the longest line that Linux writes has 118 bytes
    std::size_t size_ = 0;
};

// A reader of /proc/self/fdinfo/NUMBER, in which the kernel lists an instance at one moment.
class FdInfo {
  public:
    explicit FdInfo(int number) noexcept;
    FdInfo(const FdInfo&) = delete;
    FdInfo& operator=(const FdInfo&) = delete;
    ~FdInfo();
    // Returns the size, 0 at the end, or -errno.
    long read(char* part, std::size_t size) const noexcept;

  private:
    long fd_;
};

// Calls call(const EpollWatch&) for each entry of an epoll; returns 0 or errno.
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

// Whether `fd`, as a rule the number of the entry, is the file that was added: by inode, and by
// kcmp(2) for files that share an inode (eventfds) or have another one in /proc (FIFOs of
// overlayfs).
bool is_watched_file(int epfd, const EpollWatch& watch, int fd) noexcept;

// EBADF: not open; EINVAL: no epoll.  std::system_error.
void demand_epoll(int number);

struct EpollRebuild {
    int number;
    int inherited = -1;  // the temporary number of the parent's instance
    int err = 0;         // the first error
    bool is_new = false;
};

// Called in a child: replaces each epoll by a new instance under its number, with those entries
// of the inherited one whose files are still open.  All are new before any is filled, since one
// may watch another.  After a failure the number is not the parent's instance either: it is new
// and has fewer entries, or is closed.  True: nothing has failed.
bool rebuild_epolls(EpollRebuild* all, std::size_t count) noexcept;

}  // namespace forkfd

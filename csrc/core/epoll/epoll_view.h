// The kernel's entries of an epoll, whichever code registered them.
#pragma once

#include <optional>
#include <vector>

#include "core/descriptors/fd_details.h"

namespace forkfd {

// From /proc/thread-self/fdinfo.  std::system_error with EBADF: not open; EINVAL: no epoll.
std::vector<EpollWatch> epoll_entries(int epfd);

// Whether `fd` is the open file of an entry: the `nth` of those with this number, in the order of
// epoll_entries().  kcmp(2) with KCMP_EPOLL_TFD (Linux 4.13); std::nullopt if that is refused or
// the entry is gone.  EBADF: fd is not open.
std::optional<bool> watches_file(int epfd, int number, unsigned nth, int fd);

// The same without exceptions: 0: the same file; above 0: another; -ENOENT: no nth entry; else
// -errno of kcmp.
long compare_watched(int epfd, int number, unsigned nth, int fd) noexcept;

// Whether our parent has the same open file at the same number: kcmp(2).  std::nullopt if access
// to the parent is denied (PTRACE_MODE_READ, ptrace(2)) or a sandbox refuses the call.
std::optional<bool> is_parents(int fd);

// For a new child; neither allocates.  The first returns errno if a number is no epoll, else 0,
// by removing a newly opened file from it; the second reads the name of the number in /proc.
int not_an_epoll(int number, int new_file) noexcept;
bool is_epoll_by_name(int number) noexcept;

}  // namespace forkfd

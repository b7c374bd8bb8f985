// What an epoll watches in the kernel's own eyes, whoever registered it.
#pragma once

#include <optional>
#include <vector>

#include "core/descriptors/fd_details.h"

namespace forkfd {

// From /proc/thread-self/fdinfo.  std::system_error with EBADF: not open; EINVAL: no epoll.
std::vector<EpollWatch> epoll_entries(int epfd);

// Whether `fd` is the open file that an entry watches: the `nth` of those with this number, in
// the order of epoll_entries().  kcmp(2) with KCMP_EPOLL_TFD (Linux 4.13); none where that is
// refused, or the entry has gone.  EBADF: fd is not open.
std::optional<bool> watches_file(int epfd, int number, unsigned nth, int fd);

// The same without a word: 0 it is, above 0 it is not, -ENOENT: there is no nth entry; else
// what kcmp was refused with.
long compare_watched(int epfd, int number, unsigned nth, int fd) noexcept;

// Whether our parent has the same open file at the same number: kcmp(2).  None where it may
// not be looked at (PTRACE_MODE_READ, ptrace(2)) or a sandbox refuses the call.
std::optional<bool> is_parents(int fd);

// For a child just born; neither allocates.  The errno that says that a number is no epoll, or
// 0, by asking to remove a file that was just opened; and what its name in /proc says.
int not_an_epoll(int number, int new_file) noexcept;
bool is_epoll_by_name(int number) noexcept;

}  // namespace forkfd

// One descriptor: its close-on-exec mark, closing ranges, whether two are the same open
// file.  Errors are std::system_error, whose text names the operation and the descriptor.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "core/base/unique_fd.h"

namespace forkfd {

bool cloexec(int fd);
void set_cloexec(int fd, bool on);

// close_range(2), both ends included.  If it is refused: unshare(2), then the descriptors that
// /proc lists, one by one.
void close_range(unsigned first, unsigned last, bool cloexec, bool unshare);

// Whether two of our descriptors are one open file.  By fcntl F_DUPFD_QUERY, else kcmp(2), else
// by inode; throws kcmp's error where the inodes do not decide.
bool same_open_file(int a, int b);

pid_t own_tid() noexcept;

// kcmp(2): 0 equal, 1 less, 2 greater, 3 different, or -errno.
int compare_open_files(pid_t pid, int a, int b) noexcept;

// The numbers in a directory like /proc/PID/fd, ascending; in our own, without the descriptor
// that reads it.
std::vector<int> list_descriptors(UniqueFd folder, bool own);

// A close-on-exec duplicate that has none of the numbers of `beside`, open or not; a high number,
// out of the way of the program's next descriptors.
UniqueFd duplicate_beside(int fd, const std::vector<int>& beside);

// Throws EBADF if no descriptor can have that number, RLIMIT_NOFILE.
void demand_below_limit(int number);

// dup3(2), repeated after EINTR and EBUSY: 0 or errno.  Safe in a handler of fork(2).
int replace(int number, int source, bool cloexec) noexcept;

// The kind of a descriptor: a buffered stream behaves the same over any two of one kind, but for
// the position in a file.  0 for files, 1 for pipes and sockets, 2 and more for a character
// device; -1: closed, -2: any other, like no other descriptor.
std::int64_t stream_kind(int fd) noexcept;

// signalfd(2), close-on-exec and non-blocking; bit n-1 of the mask is signal n.  The caller
// blocks the signals.
UniqueFd signal_fd(std::uint64_t mask);

// connect(2) with AF_UNSPEC: a connected socket is as it was before; std::system_error.
void disconnect(int fd);

[[noreturn]] void throw_errno(int err, const std::string& what);

}  // namespace forkfd

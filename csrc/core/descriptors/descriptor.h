// One descriptor: its close-on-exec mark, closing ranges, whether two are the same open
// file.  Errors are std::system_error, whose text says what was tried on what.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "core/base/unique_fd.h"

namespace forkfd {

bool cloexec(int fd);
void set_cloexec(int fd, bool on);

// close_range(2), both ends included.  Where it is refused: unshare(2), then one by one
// what /proc lists.
void close_range(unsigned first, unsigned last, bool cloexec, bool unshare);

// Of two of our own.  fcntl F_DUPFD_QUERY, else kcmp(2), else what inodes say; throws
// kcmp's error where that leaves it open.
bool same_open_file(int a, int b);

pid_t own_tid() noexcept;

// kcmp(2): 0 equal, 1 less, 2 greater, 3 different, or -errno.
int compare_open_files(pid_t pid, int a, int b) noexcept;

// The numbers in a directory like /proc/PID/fd, ascending; where it is our own, without
// the one it is read by.
std::vector<int> list_descriptors(UniqueFd folder, bool own);

// A close-on-exec duplicate that has none of the numbers of `beside`, open or not; high,
// where a program does not look for its next one.
UniqueFd duplicate_beside(int fd, const std::vector<int>& beside);

// EBADF if no descriptor can have that number, RLIMIT_NOFILE.
void demand_below_limit(int number);

// dup3(2) that is not given up: 0 or errno.  Safe in a handler of fork(2).
int replace(int number, int source, bool cloexec) noexcept;

// What a buffered stream cannot tell from another of the same kind, but for the position in a
// file: 0 for files, 1 for pipes and sockets, 2 and more for a character device; -1 is closed,
// -2 is like nothing else.
std::int64_t stream_kind(int fd) noexcept;

// signalfd(2), close-on-exec and non-blocking; bit n-1 of the mask is signal n.  The caller
// blocks them.
UniqueFd signal_fd(std::uint64_t mask);

[[noreturn]] void throw_errno(int err, const std::string& what);

}  // namespace forkfd

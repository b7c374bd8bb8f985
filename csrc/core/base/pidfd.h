// Signals and waits by pidfd: pids recycle, pidfds do not (pidfd_open(2)).
#pragma once

#include <sys/resource.h>
#include <sys/types.h>

#include <optional>

#include "core/base/unique_fd.h"

namespace forkfd {

struct ExitInfo {
    bool known;        // false: another caller reaped the child, and the kernel has no copy
    int code;          // CLD_EXITED, CLD_KILLED or CLD_DUMPED
    int status;        // exit code or signal
    bool has_usage;
    struct rusage usage;
};

UniqueFd open_pidfd(pid_t pid) noexcept;           // close-on-exec; empty and errno on failure
int send_signal(int pidfd, int sig) noexcept;      // 0 or errno; ESRCH once reaped
// poll(2) on the pidfd.  1: the process has ended; 0: time is up; -1: errno (EINTR too).
int wait_readable(int pidfd, int timeout_ms) noexcept;
// Reap the child: its exit status; std::nullopt while the process runs.  Never blocks.
std::optional<ExitInfo> reap(int pidfd) noexcept;
// Wait for the end of the child, in one waitid(2), and reap it; std::nullopt: EINTR.
std::optional<ExitInfo> reap_blocking(int pidfd) noexcept;
// Reap a child whose spawn failed: wait for its end, discard the status.
void reap_failed(pid_t pid) noexcept;

}  // namespace forkfd

// Additions to a fork() of ours: the child enters a cgroup before it runs any other code, and
// reports the result to the parent; the parent gets the child's pidfd.
#pragma once

#include <sys/types.h>

#include <string>

#include "core/base/unique_fd.h"

namespace forkfd {

class CgroupEntry {
  public:
    // `procs`: cgroup.procs, open for writing, borrowed until the fork is over; `name`: for
    // messages.  Throws std::system_error.
    CgroupEntry(int procs, std::string name);

    // Called in the child: enters the cgroup, or exits.
    void enter() noexcept;

    // Called in the parent: waits for the report.  Throws the child's error, after reaping it.
    // ECANCELED: the child was killed before it could report.
    void await(pid_t child, int pidfd);

  private:
    const int procs_;
    const std::string name_;
    UniqueFd reader_, writer_;
};

// Returns 0 if this process has one thread, by unshare(2): CLONE_THREAD has no effect then, and is
// EINVAL otherwise.  Another errno: a sandbox refuses the call.  Much cheaper than /proc.
int check_single_threaded() noexcept;

// The pidfd of a child of ours; empty if it has been reaped already, by another thread or because
// SIGCHLD is ignored.  Throws std::system_error, after killing and reaping the child.
UniqueFd pidfd_of_child(pid_t child);

}  // namespace forkfd

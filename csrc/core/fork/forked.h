// What goes with a fork() of ours: the child enters a cgroup before anything else, and the
// parent learns whether it did; the parent gets the child's pidfd.
#pragma once

#include <sys/types.h>

#include <string>

#include "core/base/unique_fd.h"

namespace forkfd {

class CgroupEntry {
  public:
    // `procs` is its cgroup.procs, open for writing, borrowed until the fork is over; `name`
    // is for messages.  Throws std::system_error.
    CgroupEntry(int procs, std::string name);

    // In the child: it is in the cgroup when this returns, or it exits.
    void enter() noexcept;

    // In the parent.  Throws what the child met with; it is reaped then.  ECANCELED: it was
    // killed before it could tell.
    void await(pid_t child, int pidfd);

  private:
    const int procs_;
    const std::string name_;
    UniqueFd reader_, writer_;
};

// 0 where this process has one thread, by unshare(2): CLONE_THREAD has no effect there, and is
// EINVAL elsewhere.  Another errno: a sandbox does not say.  Much cheaper than /proc.
int ask_single_threaded() noexcept;

// Of a child of ours; -1 if it has been reaped already, by another thread or because SIGCHLD
// is ignored.  Throws std::system_error, and then the child is killed and reaped.
UniqueFd pidfd_of_child(pid_t child);

}  // namespace forkfd

// clone of the calling process without libc's fork(), for flags that fork() does not take:
// namespaces, CLONE_PARENT, CLONE_INTO_CGROUP, another exit signal.
//
// What fork() does for the child is done here, so the process must have one thread: the
// kernel stores the child's thread id where libc keeps it, the robust list is registered
// again.  pthread_atfork handlers of others cannot be run; the caller runs those it has.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/base/unique_fd.h"

namespace forkfd {

struct Task {
    pid_t tid;
    std::string name;  // comm, prctl(2) PR_SET_NAME
};

// The process has other threads: it was not cloned.
struct OtherThreads : std::runtime_error {
    explicit OtherThreads(std::vector<Task> found);
    std::vector<Task> tasks;
};

struct SelfClone {
    std::uint64_t flags = 0;  // of clone_flags_for_processes
    int exit_signal = 0;      // must be 0 with CLONE_PARENT: the child gets ours
    int cgroup_fd = -1;       // CLONE_INTO_CGROUP, else the child writes cgroup.procs
    pid_t* pid_slot = nullptr;  // CLONE_PARENT_SETTID: written before the child runs
};

struct SelfCloned {
    pid_t pid;  // 0: this is the child
    UniqueFd pidfd;
};

// Flags whose child is a process of its own: not CLONE_VM, CLONE_FILES, CLONE_THREAD, ...
extern const std::uint64_t clone_flags_for_processes;

// Why a child of these flags could not be right here, or empty: libcs that keep the thread id
// elsewhere (musl), kernels that do not tell where (CONFIG_CHECKPOINT_RESTORE), and pid 1,
// whose siblings nobody would wait for.
std::string why_not_clone(std::uint64_t flags);

// The tasks of this process but for the caller, from /proc/self/task; one that is ending is
// waited for.
std::vector<Task> other_tasks();

// Throws OtherThreads, or std::system_error that says what was tried.  Returns twice.
SelfCloned self_clone(const SelfClone& how);

}  // namespace forkfd

// clone of the calling process without libc's fork(), for flags that fork() does not take:
// namespaces, CLONE_PARENT, CLONE_INTO_CGROUP, another exit signal.
//
// This code does for the child what fork() does, so the process must have one thread: the kernel
// stores the child's thread id in libc's place, the robust list is registered again.
// pthread_atfork handlers of other libraries cannot be run; the caller runs its own.
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

// The error of a process with other threads, which was not cloned.
struct OtherThreads : std::runtime_error {
    explicit OtherThreads(std::vector<Task> found);
    std::vector<Task> tasks;
};

struct SelfClone {
    std::uint64_t flags = 0;  // of clone_flags_for_processes
    int exit_signal = 0;      // 0 with CLONE_PARENT: the child gets this process's
    int cgroup_fd = -1;       // CLONE_INTO_CGROUP, else the child writes cgroup.procs
    pid_t* pid_slot = nullptr;  // CLONE_PARENT_SETTID: written before the child runs
};

struct SelfCloned {
    pid_t pid;  // 0: this is the child
    UniqueFd pidfd;
};

// Flags whose child is a process of its own: not CLONE_VM, CLONE_FILES, CLONE_THREAD, ...
extern const std::uint64_t clone_flags_for_processes;

// Why no correct child of these flags can be made here, or empty: a libc that stores the thread
// id elsewhere (musl), a kernel that does not return its address (CONFIG_CHECKPOINT_RESTORE), and
// pid 1, whose siblings no process would reap.
std::string why_not_clone(std::uint64_t flags);

// The tasks of this process but the caller, from /proc/self/task; waits for those that are
// ending.
std::vector<Task> other_tasks();

// Throws OtherThreads, or std::system_error that names the operation.  Returns twice.
SelfCloned self_clone(const SelfClone& how);

}  // namespace forkfd

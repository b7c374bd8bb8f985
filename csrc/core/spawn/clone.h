// The clone: a trampoline that starts the child on a stack of its own.
//
// Never syscall(SYS_clone3) with stack 0 and CLONE_VM: both processes would return
// through one frame, and the child's calls would overwrite the parent's return address.
#pragma once

#include <sys/types.h>

#include <cstdint>

#include "core/spawn/child_args.h"

namespace forkfd {

// The kinds of clone.  fork_like copies the page tables: for changes of credentials (a CLONE_VM
// child that changes its uid clears the parent's dumpable flag, which is in the shared mm), and
// where CLONE_VM does not really share memory.
enum class Backend : int { clone3, clone, fork_like };
const char* backend_name(Backend backend) noexcept;

// A stack with a guard page, and the shared report; cached, one per thread.
class ChildStack {
  public:
    static ChildStack& of_this_thread();  // SysError if it cannot be mapped
    static void forget_after_fork() noexcept;  // in a child whose pid may equal the parent's
    void* bottom() const noexcept { return stack_; }
    std::size_t size() const noexcept;
    Report* report() const noexcept { return report_; }

    ChildStack(const ChildStack&) = delete;
    ChildStack& operator=(const ChildStack&) = delete;
    ~ChildStack();

  private:
    ChildStack();
    char* mapping_ = nullptr;
    char* stack_ = nullptr;
    Report* report_ = nullptr;
    pid_t owner_;
};

struct CloneCall {
    bool use_clone3;
    std::uint64_t flags;
    int cgroup_fd;  // with CLONE_INTO_CGROUP
};

// Runs child::run(args) in a new child.  Returns its pid, or -errno; with CLONE_PIDFD *pidfd is
// set before the child runs.  Every signal must be blocked.
long clone_child(const CloneCall& how, ChildStack& stack, ChildArgs& args, int* pidfd) noexcept;

// Whether a CLONE_VM child really runs on our memory.  Found out once, by a child that writes one
// word; a refusal that may pass (EAGAIN, ENOMEM) is not remembered, and the next call tries again.
bool memory_is_shared();
int why_memory_is_not_shared();  // 0: it is; ENOTSUP: a copy; else the errno of clone(2)

}  // namespace forkfd

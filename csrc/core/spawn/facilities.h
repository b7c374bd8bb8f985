// The facilities of the kernel that one clone uses, and the order in which refusals take them
// away.  The first attempt uses all that there are; each refusal takes one away, until a child
// starts or there is nothing left to give up.  Pure: no system call, so that it is tested
// without one.
#pragma once

#include "core/base/probe.h"

namespace forkfd {

struct Facilities {
    bool clone3;
    bool share_memory;   // CLONE_VM
    bool share_table;    // CLONE_FILES, which the child ends by close_range(CLOSE_RANGE_UNSHARE)
    bool clear_sighand;  // CLONE_CLEAR_SIGHAND
    bool into_cgroup;    // CLONE_INTO_CGROUP
    bool pidfd;          // CLONE_PIDFD
};

// The parts of a request that have no replacement.
struct Needs {
    bool clone3;  // it has flags that clone() does not take
    bool pidfd;   // pidfd_open() afterwards does not serve
    bool flags;   // namespaces and kin, which may be the reason of a refusal
};

// Takes away what the kernel may have refused with `err`, and returns its name; nullptr: there
// is nothing left to give up, or the error is no refusal.  The refusal is remembered where
// nothing else in the request can be the reason.
const char* give_way(Facilities& used, const Needs& needs, int err, Refusals& seen) noexcept;

// The same for a child that could not unshare its table: CLOSE_RANGE_UNSHARE.
const char* give_way_unshare(Facilities& used, int err, Refusals& seen) noexcept;

}  // namespace forkfd

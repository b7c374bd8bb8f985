// From a wanted map (child's number -> our number) to an ordered list of steps.
//
// The naive way, dup2 for each pair in turn, is wrong: for {0: 1, 1: 0} the first
// dup2 destroys the source of the second.  The plan is separate from its execution
// so that it can be tested as pure code: it makes no syscall.
#pragma once

#include <vector>

namespace forkfd {

struct FdWant {
    int target;  // number in the child
    int source;  // number in the parent's table
};

struct FdStep {
    enum class Kind : int {
        dup,         // dup3(from, to, 0): `to` is open across exec
        keep,        // from == to: clear FD_CLOEXEC
        save,        // copy `from` to a scratch number above `to`, close-on-exec
        dup_saved,   // dup3(scratch, to, 0), then close scratch
        // Not of plan_fds(): file actions of posix_spawn, which are executed as they come.
        close,       // `to`, open or not
        close_from,  // `to` and all above
        open,        // `to` becomes ChildArgs::opens[from]
    };
    Kind kind;
    int from;
    int to;
};

// Targets must be distinct and nothing negative: std::invalid_argument otherwise.
// At most one scratch descriptor is alive at any time.
std::vector<FdStep> plan_fds(std::vector<FdWant> wanted);

}  // namespace forkfd

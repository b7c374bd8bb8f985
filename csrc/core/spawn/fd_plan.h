// The plan of a descriptor map: from the map (child's number -> our number) to ordered steps.
//
// The naive way, dup2 for each pair in turn, is wrong: for {0: 1, 1: 0} the first
// dup2 destroys the source of the second.  The plan is separate from its execution
// so that it can be tested as pure code: it makes no syscall.
#pragma once

#include <type_traits>
#include <vector>

namespace forkfd {

struct FdWant {
    int target;  // number in the child
    int source;  // number in the parent's table
};

// A file that the child opens by its path.
struct FdOpen {
    const char* path;
    int flags;
    unsigned mode;
};

// Each field has one meaning; a kind that does not name a field leaves it as it is here.
struct FdStep {
    enum class Kind : int {
        dup,        // dup3(source, target, 0): `target` is open across exec
        keep,       // clear FD_CLOEXEC of `target`, which is its own source
        save,       // copy `source` to a scratch number above `floor`, close-on-exec
        dup_saved,  // dup3(scratch, target, 0), then close scratch; the scratch is of `source`
        // Not of plan_fds(): file actions of posix_spawn, executed in the order given.
        close,       // `target`, open or not
        close_from,  // `target` and all above
        open,        // `target` becomes `file`
    };
    Kind kind;
    int target;  // the child's number; of save the one that dup_saved fills
    int source = -1;
    int floor = -1;
    FdOpen file = {nullptr, 0, 0};
};
static_assert(std::is_trivially_destructible_v<FdStep> && std::is_standard_layout_v<FdStep>);

// Targets must be distinct and nothing negative: std::invalid_argument otherwise.
// At most one scratch descriptor is alive at any time; its number is above `floor` and above
// every number of the map.
std::vector<FdStep> plan_fds(std::vector<FdWant> wanted, int floor);

}  // namespace forkfd

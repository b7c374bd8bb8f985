// The plan of a child, as plain data: a compiled Command.  Immutable during a spawn, so many
// threads may spawn from one plan.  Every descriptor in it is borrowed.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/spawn/child_args.h"

namespace forkfd {

struct FdAction {
    enum class Kind : int {
        descriptor,       // `source`, a number of ours; it must be open
        inherit_if_open,  // our own `target`; omitted if it is closed
        null_device,      // /dev/null
        pipe_to_child,    // the child reads; the caller gets the writing end
        pipe_from_child,  // the child writes; the caller gets the reading end
        open,             // `path`, opened by the child
        same_as,          // whatever is at `source`, a number of the child's
        closed,           // nothing, even if other descriptors stay open
        as_exec_leaves,   // our own `target`, unless it is closed or close-on-exec
    };
    int target;
    Kind kind;
    int source = -1;
    std::string path;
    int flags = 0;
    unsigned mode = 0;
};

// A file action of posix_spawn: executed in the order given, instead of a map.
struct FileAction {
    FdStep::Kind kind;  // dup, keep, close, close_from or open
    int source;         // of dup; -1 otherwise
    int target;
    std::string path;  // of open, as the two below
    int flags = 0;
    unsigned mode = 0;
};

struct IdMap {
    std::uint32_t inside, outside, count;
};

struct SpawnPlan {
    std::vector<std::string> argv;
    std::vector<std::string> candidates;  // programs to try in turn
    std::optional<int> exec_fd;           // or the program as a descriptor
    std::string program;                  // for messages
    bool every_candidate = false;         // after any error of one, try the next
    std::optional<std::vector<std::string>> env;  // "NAME=value"; none: environ at the call

    std::vector<FdAction> fds;  // ascending targets, each once
    std::vector<FileAction> file_actions;  // with no fds and close_others false
    bool close_others = true;
    std::optional<std::vector<std::string>> listen_names;  // targets 3, 4, ...

    bool new_session = false;
    std::optional<int> process_group;
    std::optional<int> controlling_terminal;
    std::string controlling_terminal_path;  // opened for the spawn, unless empty
    std::optional<int> foreground_terminal;
    std::string foreground_terminal_path;

    std::optional<unsigned> umask;
    std::vector<ChildLimit> limits;
    std::optional<int> nice;
    std::string affinity;  // bytes of the cpu mask
    std::optional<int> scheduler_policy;
    int scheduler_priority = 0;

    std::string chroot;
    std::optional<std::vector<gid_t>> groups;
    std::optional<gid_t> gid;
    std::optional<uid_t> uid;
    std::string user_name, group_name;  // for messages
    std::optional<std::uint64_t> bounding, permitted, inheritable, ambient;
    std::string cwd;
    std::optional<int> cwd_fd;
    bool cwd_before_credentials = false;
    bool no_new_privs = false;
    int death_signal = 0;
    bool death_with_process = true;  // not with the spawning thread

    std::uint64_t namespaces = 0;  // CLONE_NEW*
    std::vector<IdMap> uid_map, gid_map;
    std::string cgroup_path;
    std::optional<int> cgroup_fd;

    std::string seccomp;  // array of struct sock_filter
    std::optional<KernelSigset> signal_mask;
    KernelSigset default_signals = 0, ignore_signals = 0;
    bool wants_pidfd = true;

    // A CLONE_VM child that changes its credentials clears the parent's dumpable flag.
    bool changes_credentials() const noexcept {
        return groups || gid || uid || bounding || permitted || inheritable || ambient ||
               namespaces != 0;
    }
    // Processes of another user may then stop the child before its exec (exec_watch.h).
    bool changes_user() const noexcept { return uid.has_value(); }
};

}  // namespace forkfd

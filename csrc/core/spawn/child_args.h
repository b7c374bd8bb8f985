// The block that the child reads, as plain data.  With CLONE_VM the child runs on the parent's
// memory and may not allocate, so the block is prepared before the clone and owned by the parent
// (spawn.cpp), which waits in the kernel until the exec.
#pragma once

#include <sched.h>
#include <sys/resource.h>
#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <linux/filter.h>
#include <type_traits>

#include "core/base/error.h"
#include "core/base/signal_mask.h"
#include "core/spawn/fd_plan.h"

namespace forkfd {

// The report, which alone the child writes.  Lives in MAP_SHARED memory, because without CLONE_VM
// (and in emulators that run vfork as fork) the child has its own copy of all other memory.
struct Report {
    int stage;   // Stage the child is at; Stage::exec is the last
    int index;   // the item of that stage: an array index, a descriptor, a signal, a capability
    int err;     // errno if that stage failed, 0 while it runs
    // Handshake with the thread that writes the child's uid_map and gid_map.
    int map_state;  // MapState, a futex word
    int map_err;
};

enum MapState : int { kMapIdle = 0, kMapWanted = 1, kMapWritten = 2, kMapCancelled = 3 };

struct FdRange {
    unsigned first, last;
};

// Opened in the child, after everything else is closed: it may block (a FIFO).
struct ChildOpen {
    int target;
    FdOpen file;
};

// A duplicate of what the child has opened itself; both are the child's numbers.
struct ChildCopy {
    int target, source;
};

struct ChildLimit {
    int resource;
    struct {
        std::uint64_t soft, hard;
    } limit;  // prlimit(2)'s; musl has no rlimit64
};

struct ChildCapabilities {
    bool set;              // capset wanted
    bool keep_over_setuid;
    std::uint64_t permitted, inheritable;  // permitted is effective too
    bool has_permitted, has_inheritable;   // false: that set is unchanged
    bool has_ambient;
    std::uint64_t ambient;
    bool has_bounding;
    std::uint64_t bounding;  // the capabilities that remain in it
    int last;                // the highest capability of this kernel
};

struct ChildArgs {
    Report* report;
    int report_fd;  // -1, or a descriptor to which a failure's report is written too (apply)

    // Test-only: fail at this stage with this errno.
    int fault_stage, fault_err;

    // The parent, which must still live.
    int death_signal;    // 0: none
    bool may_wait;       // before the exec: it dies with the parent until then, whatever it gets
    pid_t parent_pid;
    int parent_pidfd;    // -1, or polled too: getppid() is 0 in a new pid namespace

    int exec_watch;        // -1, or a descriptor held until the exec (exec_watch.h)

    int cgroup_procs_fd;   // -1, or cgroup.procs, to which the child writes itself
    bool wait_for_maps;

    bool new_session;
    bool set_process_group;
    pid_t process_group;
    int controlling_terminal;  // -1 or descriptor
    int foreground_terminal;   // -1 or descriptor

    // Descriptors (fd_plan.h).
    bool table_is_shared;         // CLONE_FILES: unshare before any change
    bool close_others;
    unsigned hole_first;          // above every source: closed first, without being copied
    int kept_floor;               // kept descriptors go above this number
    const FdStep* steps;
    std::size_t n_steps;
    const FdRange* gaps;          // close_others: between the targets, up to hole_first
    std::size_t n_gaps;
    const int* closed;            // not close_others: closed by name, open or not
    std::size_t n_closed;
    const int* targets;           // ascending; for kernels without close_range
    std::size_t n_targets;
    const ChildOpen* opens;
    std::size_t n_opens;
    const ChildCopy* copies;      // made after `opens`
    std::size_t n_copies;

    bool set_umask;
    unsigned umask;
    const ChildLimit* limits;
    std::size_t n_limits;
    bool set_nice;
    int nice;
    const unsigned char* affinity;
    std::size_t affinity_bytes;   // 0: none
    bool set_scheduler;
    int scheduler_policy;
    sched_param scheduler_param;

    const char* chroot;           // nullptr: none

    bool set_groups;
    const gid_t* groups;
    std::size_t n_groups;
    bool set_gid, set_uid;
    gid_t gid;
    uid_t uid;
    ChildCapabilities caps;

    const char* cwd;              // nullptr: none
    int cwd_fd;                   // -1: none
    bool cwd_before_credentials;
    bool no_new_privs;

    bool handlers_are_cleared;    // by CLONE_CLEAR_SIGHAND
    KernelSigset default_signals, ignore_signals;
    KernelSigset mask;

    char* listen_pid;             // a slot for digits and NUL; nullptr: none
    char* listen_pidfdid;

    const sock_fprog* seccomp;    // nullptr: none

    int exec_fd;                    // -1, or executed instead of the candidates
    const char* const* candidates;  // paths to try in turn, nullptr at the end
    bool every_candidate;           // continue after any error, and report the first
    char* const* argv;
    char* const* envp;
};

static_assert(std::is_trivially_destructible_v<ChildArgs> && std::is_standard_layout_v<ChildArgs>);

}  // namespace forkfd

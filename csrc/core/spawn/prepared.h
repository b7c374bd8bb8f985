// A plan prepared for one child: files opened, descriptors checked, steps computed, and all of it
// in the block that the child reads.
#pragma once

#include <string>
#include <vector>

#include "core/spawn/child_args.h"
#include "core/spawn/environment.h"
#include "core/spawn/exec_watch.h"
#include "core/spawn/spawn_fds.h"
#include "core/spawn/spawn_plan.h"

namespace forkfd {

// The parent of the child, and whether the child executes a program.
struct Kinship {
    pid_t parent_pid;
    int parent_pidfd = -1;  // borrowed; polled too, where getppid() may be 0
    bool executes = true;   // false: apply() in a process that continues without an exec
};

class PreparedChild {
  public:
    // The plan must outlive it.  SysError.
    PreparedChild(const SpawnPlan& plan, Environment env, const std::vector<int>& sources,
                  KernelSigset mask, const Kinship& kin);

    int cgroup_fd() const noexcept { return plan_.cgroup_fd.value_or(cgroup_.get()); }
    // For a child that writes cgroup.procs itself, after CLONE_INTO_CGROUP was refused.
    void open_cgroup_procs();
    std::string subject(Stage stage, int index) const;  // of a stage, for messages

    ChildArgs args = {};
    ExecWatch watch;
    SpawnFds fds;
    std::string map_subject;  // of Stage::id_maps

  private:
    std::vector<int> used_later() const;
    void demand_cgroup2() const;
    void fill(KernelSigset mask, const Kinship& kin);

    const SpawnPlan& plan_;
    Environment env_;
    UniqueFd terminal_, foreground_, cgroup_, self_, cgroup_procs_;
    std::vector<char*> argv_;
    std::vector<const char*> candidates_;
    sock_fprog filter_ = {};
};

}  // namespace forkfd

// A plan made ready for one child: files opened, descriptors checked, steps computed, and all
// of it laid out as the plain data that the child reads.
#pragma once

#include <string>
#include <vector>

#include "core/spawn/child_args.h"
#include "core/spawn/environment.h"
#include "core/spawn/exec_watch.h"
#include "core/spawn/spawn_fds.h"
#include "core/spawn/spawn_plan.h"

namespace forkfd {

// Whose child it is to be, and whether it executes a program.
struct Kinship {
    pid_t parent_pid;
    int parent_pidfd = -1;  // borrowed; polled as well where getppid() may say nothing
    bool executes = true;   // false: apply() in a process that goes on as it is
};

class PreparedChild {
  public:
    // The plan must outlive it.  SysError.
    PreparedChild(const SpawnPlan& plan, Environment env, const std::vector<int>& sources,
                  KernelSigset mask, const Kinship& kin);

    int cgroup_fd() const noexcept { return plan_.cgroup_fd.value_or(cgroup_.get()); }
    // CLONE_INTO_CGROUP was refused: the child itself writes cgroup.procs.
    void open_cgroup_procs();
    std::string subject(Stage stage, int index) const;  // what a stage was applied to

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

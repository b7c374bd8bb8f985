// The parent's side of a spawn: prepare, block signals, clone, read the report.
#pragma once

#include <optional>
#include <vector>

#include "core/spawn/clone.h"
#include "core/spawn/environment.h"
#include "core/spawn/spawn_fds.h"
#include "core/spawn/spawn_plan.h"

namespace forkfd {

struct SpawnResult {
    pid_t pid;
    UniqueFd pidfd;
    Backend backend;
    std::vector<PipeEnd> pipes;
};

// Blocks until the child has become its program.  SysError on failure; then nothing is
// left behind: no child, no descriptor, no changed signal mask.
SpawnResult spawn(const SpawnPlan& plan, Environment environment,
                  const std::vector<int>& sources);

}  // namespace forkfd

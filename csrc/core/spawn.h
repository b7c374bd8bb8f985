// The parent's side of a spawn: prepare, block signals, clone, read the report.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "core/clone.h"
#include "core/environment.h"
#include "core/spawn_fds.h"
#include "core/spawn_plan.h"

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

// How many children were started so far, or tried to.
std::uint64_t spawn_count() noexcept;

// Test-only: demand one back end; std::nullopt chooses again.
void force_backend(std::optional<Backend> backend) noexcept;

}  // namespace forkfd

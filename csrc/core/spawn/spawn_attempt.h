// What one clone asks of the kernel.  The first attempt asks for all facilities, and each
// refusal takes one away, until it starts a child or there is nothing left to give up.
#pragma once

#include <cstdint>
#include <optional>

#include "core/spawn/clone.h"
#include "core/spawn/spawn_plan.h"

namespace forkfd {

struct Attempt {
    bool clone3, share_memory, share_table, clear_sighand, into_cgroup, pidfd;

    static Attempt first(const SpawnPlan& plan, bool has_cgroup);
    // Takes away what the kernel may have refused.  Remembered only where nothing that was
    // asked for could be the reason.  The name of it, or nullptr: nothing is left to give up.
    const char* give_way(const SpawnPlan& plan, int err);
    std::uint64_t flags(const SpawnPlan& plan) const noexcept;  // CLONE_*
    Backend backend() const noexcept;
};

// Test-only: demand one back end; std::nullopt chooses again.
void force_backend(std::optional<Backend> backend) noexcept;

}  // namespace forkfd

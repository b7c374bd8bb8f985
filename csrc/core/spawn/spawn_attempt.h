// One clone for a plan: the facilities that it uses, and the flags that follow from them.
#pragma once

#include <cstdint>
#include <optional>

#include "core/spawn/clone.h"
#include "core/spawn/facilities.h"
#include "core/spawn/spawn_plan.h"

namespace forkfd {

struct Attempt : Facilities {
    static Attempt first(const SpawnPlan& plan, bool has_cgroup);
    // After a clone that failed with `err`: the facility that the next attempt does without;
    // nullptr: there is no other way (facilities.h).
    const char* give_way(const SpawnPlan& plan, int err);
    std::uint64_t flags(const SpawnPlan& plan) const noexcept;  // CLONE_*
    Backend backend() const noexcept;
};

// Test-only: demand one back end; std::nullopt chooses again.
void force_backend(std::optional<Backend> backend) noexcept;

}  // namespace forkfd

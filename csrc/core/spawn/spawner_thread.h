// One thread that lives as long as the process, for children that are to die with it:
// prctl(2) PR_SET_PDEATHSIG fires when the *thread* that created the child ends.
#pragma once

#include <functional>
#include <optional>

#include "core/spawn/spawn.h"

namespace forkfd {

// Runs `work` there and returns, or throws, what it did.
SpawnResult on_spawner_thread(const std::function<SpawnResult()>& work);

// In the child of a fork, where the pid may be the parent's: of another pid namespace.
void forget_spawner_thread() noexcept;

}  // namespace forkfd

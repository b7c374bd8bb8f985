// One thread that lives as long as the process, for children that die with their parent:
// PR_SET_PDEATHSIG, prctl(2), fires when the *thread* that created the child ends.
#pragma once

#include <functional>
#include <optional>

#include "core/spawn/spawn.h"

namespace forkfd {

// Runs `work` on that thread; returns its result or throws its exception.
SpawnResult on_spawner_thread(const std::function<SpawnResult()>& work);

// Called in the child of a fork, whose pid may equal the parent's, in a new pid namespace.
void forget_spawner_thread() noexcept;

}  // namespace forkfd

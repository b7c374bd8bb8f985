// A spawn for Python: the environment is copied, the GIL is released, pipes become a dict.
#pragma once

#include <pybind11/pybind11.h>

#include <vector>

#include "core/spawn/spawn.h"

// Call it with the GIL held: os.environ changes the C environment under it.
forkfd::Environment environment_of(const forkfd::SpawnPlan& plan);
// forkfd::SysError.
forkfd::SpawnResult spawn_unlocked(const forkfd::SpawnPlan& plan, const std::vector<int>& sources);
// {child's number: our end of the pipe}; the descriptors are Python's from here on.
pybind11::dict released_pipes(forkfd::SpawnResult& child);

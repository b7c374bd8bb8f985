// A spawn for Python: the environment is copied, the GIL is released, pipes become a dict.
#pragma once

#include <pybind11/pybind11.h>

#include <vector>

#include "core/spawn/spawn.h"

// forkfd::SysError.
forkfd::SpawnResult spawn_unlocked(const forkfd::SpawnPlan& plan, const std::vector<int>& sources);
// {child's number: our end of the pipe}; the descriptors are Python's from here on.
pybind11::dict released_pipes(forkfd::SpawnResult& child);

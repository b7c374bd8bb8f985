// Plans from the plainest arguments, which most spawns have: cold code of Python would take most of
// their own time.  Another form is Python's to check and to describe.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>

#include "core/spawn/spawn_plan.h"

std::unique_ptr<forkfd::SpawnPlan> plain_plan(const pybind11::object& args,
                                              forkfd::KernelSigset signals);
pybind11::object add_plain_fds(forkfd::SpawnPlan& plan, const pybind11::object& fds,
                               const pybind11::tuple& kinds);

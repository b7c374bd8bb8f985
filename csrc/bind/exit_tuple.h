// The exit status of a child, as Python's ExitStatus takes it.
#pragma once

#include <pybind11/pybind11.h>

#include <optional>

#include "core/base/pidfd.h"

// Takes the status without waiting; std::nullopt while the process runs.  Releases the GIL
// only where FORKFD_DEBUG writes a line, which may block.
std::optional<forkfd::ExitInfo> reap_unlocked(int pidfd);
// (known, CLD_ code, status, rusage)
pybind11::object exit_tuple(const forkfd::ExitInfo& info);

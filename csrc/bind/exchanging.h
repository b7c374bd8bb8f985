// An exchange with a child for Python: the GIL is released, signal handlers run in between.
#pragma once

#include <pybind11/pybind11.h>

#include "bind/waiting.h"
#include "core/spawn/exchange.h"

void check_signals();  // throws what a handler has raised
// Returns once the child has ended, or a limit is reached.
forkfd::Exchange::State run_to_the_end(forkfd::Exchange& exchange, const Deadline& deadline);
pybind11::object bytes_or_none(const forkfd::Output* output);

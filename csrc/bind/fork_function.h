// fork(), a function of CPython's own: after a fork each page that is written costs a fault.
#pragma once

#include <pybind11/pybind11.h>

void add_fork_function(pybind11::module_& m);  // and prepare_fork()

// Python's signal handlers run while it waits, so Ctrl-C ends the wait.
void wait_for_fork_lock(bool exclusive);

// The topics of the module, one function each.  A binding converts, releases the GIL, calls the
// core and converts back; nothing else.
#pragma once

#include <pybind11/pybind11.h>

void bind_at_fork(pybind11::module_& m);
void bind_channel(pybind11::module_& m);
void bind_clone(pybind11::module_& m);
void bind_descriptor(pybind11::module_& m);
void bind_epoll(pybind11::module_& m);
void bind_errors(pybind11::module_& m);
void bind_fd_plan(pybind11::module_& m);
void bind_fd_table(pybind11::module_& m);
void bind_fork(pybind11::module_& m);
void bind_fork_exec(pybind11::module_& m);
void bind_page(pybind11::module_& m);
void bind_passing(pybind11::module_& m);
void bind_peer(pybind11::module_& m);
void bind_pipes(pybind11::module_& m);
void bind_plan(pybind11::module_& m);
void bind_process(pybind11::module_& m);
void bind_run(pybind11::module_& m);
void bind_spawn(pybind11::module_& m);
void bind_sysmon(pybind11::module_& m);
void bind_trace(pybind11::module_& m);

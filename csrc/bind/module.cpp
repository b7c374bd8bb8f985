#include "bind/bindings.h"

PYBIND11_MODULE(_core, m, pybind11::mod_gil_not_used()) {
    m.doc() = "Native core of pyforkfd; use the names of the package pyforkfd instead.";
    bind_at_fork(m);
    bind_channel(m);
    bind_clone(m);
    bind_descriptor(m);
    bind_epoll(m);
    bind_errors(m);
    bind_fd_plan(m);
    bind_fd_table(m);
    bind_fork(m);
    bind_fork_exec(m);
    bind_page(m);
    bind_passing(m);
    bind_peer(m);
    bind_pipes(m);
    bind_plan(m);
    bind_process(m);
    bind_run(m);
    bind_spawn(m);
    bind_sysmon(m);
    bind_trace(m);
}

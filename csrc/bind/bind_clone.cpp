#include "bind/bindings.h"

#include <pybind11/stl.h>

#include <cstdint>

#include "core/self_clone.h"

namespace py = pybind11;

namespace {

// The GIL is held: the child has no other thread, and goes on with this one's state.
py::tuple clone_self(std::uint64_t flags, int exit_signal, int cgroup_fd, std::uintptr_t pid_slot) {
    forkfd::SelfClone how;
    how.flags = flags;
    how.exit_signal = exit_signal;
    how.cgroup_fd = cgroup_fd;
    how.pid_slot = reinterpret_cast<pid_t*>(pid_slot);
    PyOS_BeforeFork();
    forkfd::SelfCloned child;
    try {
        child = forkfd::self_clone(how);
    } catch (...) {
        PyOS_AfterFork_Parent();
        throw;
    }
    if (child.pid == 0) PyOS_AfterFork_Child();
    else PyOS_AfterFork_Parent();
    return py::make_tuple(child.pid, child.pidfd.release());
}

}  // namespace

void bind_clone(py::module_& m) {
    static py::object* const type =
        new py::object(py::exception<forkfd::OtherThreads>(m, "OtherThreads"));
    py::register_exception_translator([](std::exception_ptr p) {
        try {
            if (p) std::rethrow_exception(p);
        } catch (const forkfd::OtherThreads& e) {
            py::list tasks;
            for (const forkfd::Task& task : e.tasks)
                tasks.append(py::make_tuple(task.tid, py::bytes(task.name)));
            PyErr_SetObject(type->ptr(), py::make_tuple(tasks).ptr());
        }
    });
    m.def("clone", &clone_self, py::arg("flags"), py::arg("exit_signal"), py::arg("cgroup_fd"),
          py::arg("pid_slot"),
          "(pid, pidfd owned) in the parent, (0, -1) in the child; at-fork hooks have run.");
    m.def("why_not_clone", &forkfd::why_not_clone, py::arg("flags"),
          "Why clone() cannot serve here; empty where it can.");
    m.attr("CLONE_FLAGS") = forkfd::clone_flags_for_processes;
}

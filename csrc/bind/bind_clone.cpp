#include "bind/bindings.h"

#include <pybind11/stl.h>

#include <sys/prctl.h>

#include <cerrno>
#include <cstdint>
#include <optional>
#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include "core/atfork/atfork.h"
#include "core/descriptors/descriptor.h"
#include "core/fork/self_clone.h"

namespace py = pybind11;

namespace {

// The GIL stays held: the child has no other thread, and continues with this thread's state.
py::tuple clone_self(std::uint64_t flags, int exit_signal, int cgroup_fd,
                     const std::optional<py::buffer>& pid_slot) {
    forkfd::SelfClone how;
    how.flags = flags;
    how.exit_signal = exit_signal;
    how.cgroup_fd = cgroup_fd;
    if (pid_slot) {
        const py::buffer_info slot = pid_slot->request(true);
        if (slot.size * slot.itemsize < static_cast<py::ssize_t>(sizeof(pid_t)))
            throw py::value_error("clone: pid_slot: too small for a pid");
        how.pid_slot = static_cast<pid_t*>(slot.ptr);
    }
    PyOS_BeforeFork();
    forkfd::run_native_before();
    forkfd::SelfCloned child;
    try {
        child = forkfd::self_clone(how);
    } catch (...) {
        forkfd::run_native_in_parent();
        PyOS_AfterFork_Parent();
        throw;
    }
    if (child.pid == 0) {
        forkfd::run_native_in_child();
        PyOS_AfterFork_Child();
    } else {
        forkfd::run_native_in_parent();
        PyOS_AfterFork_Parent();
    }
    return py::make_tuple(child.pid, child.pidfd.release());
}

py::list named(const std::vector<forkfd::Task>& tasks) {
    py::list list;
    for (const forkfd::Task& task : tasks)
        list.append(py::make_tuple(task.tid, py::bytes(task.name)));
    return list;
}

void become_subreaper() {
    if (::prctl(PR_SET_CHILD_SUBREAPER, 1) != 0)
        forkfd::throw_errno(errno, "prctl PR_SET_CHILD_SUBREAPER");
}

void trim_memory() {
#if defined(__GLIBC__)
    const py::gil_scoped_release release;
    ::malloc_trim(0);
#endif
}

}  // namespace

void bind_clone(py::module_& m) {
    static py::object* const type =
        new py::object(py::exception<forkfd::OtherThreads>(m, "OtherThreads"));
    py::register_exception_translator([](std::exception_ptr p) {
        try {
            if (p) std::rethrow_exception(p);
        } catch (const forkfd::OtherThreads& e) {
            PyErr_SetObject(type->ptr(), py::make_tuple(named(e.tasks)).ptr());
        }
    });
    m.def("clone", &clone_self, py::arg("flags"), py::arg("exit_signal"), py::arg("cgroup_fd"),
          py::arg("pid_slot"),
          "Clone this process, with at-fork hooks; return (pid, owned pidfd) in the parent, (0, "
          "-1) in the child.");
    m.def("why_not_clone", &forkfd::why_not_clone, py::arg("flags"),
          "Return why clone() is not possible here; empty where it is.");
    m.def("other_threads", [] { return named(forkfd::other_tasks()); },
          "List (thread id, name) of each thread but the calling one.");
    m.def("become_subreaper", &become_subreaper,
          "Make orphans among our descendants our children: PR_SET_CHILD_SUBREAPER(2const).");
    m.def("trim_memory", &trim_memory,
          "Return free memory to the kernel: malloc_trim(3), where libc has it.");
    m.attr("CLONE_FLAGS") = forkfd::clone_flags_for_processes;
}

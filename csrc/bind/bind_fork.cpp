#include "bind/bindings.h"

#include <memory>
#include <pybind11/stl.h>

#include "bind/at_fork_hooks.h"
#include "bind/fork_function.h"
#include "core/atfork/fd_section.h"
#include "core/atfork/fork_lock.h"
#include "core/fork/child_actions.h"

namespace py = pybind11;
using forkfd::ChildActions;
using forkfd::FdSection;

namespace {

// Not by a call_guard, with which pybind11 would update its tables without the GIL.
template <class T, class... Args>
std::unique_ptr<T> made_unlocked(const Args&... args) {
    const py::gil_scoped_release release;
    return std::make_unique<T>(args...);
}

}  // namespace

void bind_fork(py::module_& m) {
    const auto unlocked = py::call_guard<py::gil_scoped_release>();
    forkfd::fork_lock();  // made while no other thread forks
    add_fork_function(m);
    m.def("lock_fork_lock", &wait_for_fork_lock, py::arg("exclusive"));
    m.def("unlock_fork_lock", [](bool exclusive) {
        if (exclusive) forkfd::fork_lock().unlock();
        else forkfd::fork_lock().unlock_shared();
    }, py::arg("exclusive"));
    py::class_<FdSection>(m, "FdSection")
        .def(py::init([](const std::vector<int>& inheritable) {
            return made_unlocked<FdSection>(inheritable);
        }), py::arg("inheritable"))
        .def(py::init([](const std::vector<std::pair<int, int>>& redirect, bool here, bool there) {
            using Where = FdSection::Where;
            return made_unlocked<FdSection>(
                redirect, here && there ? Where::both : here ? Where::parent : Where::child);
        }), py::arg("redirect"), py::arg("in_parent"), py::arg("in_child"))
        .def("end", &FdSection::end, unlocked);
    py::class_<ChildActions>(m, "ChildActions")
        .def(py::init([](const std::vector<int>& close, const std::vector<int>& cloexec,
                         const std::vector<std::pair<int, int>>& redirect,
                         const std::vector<int>& rebuild_epoll, int order) {
            return made_unlocked<ChildActions>(close, cloexec, redirect, rebuild_epoll, order);
        }), py::arg("close"), py::arg("cloexec"), py::arg("redirect"), py::arg("rebuild_epoll"),
             py::arg("order"))
        .def("unregister", &ChildActions::unregister, unlocked)
        .def("timing", [](const ChildActions& a) { return forkfd::bind::numbers(a.timing()); });
}

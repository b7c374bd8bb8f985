#include "bind/bindings.h"

#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <memory>
#include <optional>
#include <pybind11/stl.h>

#include "bind/at_fork_hooks.h"
#include "bind/plain_call.h"
#include "core/child_actions.h"
#include "core/fd_section.h"
#include "core/fork_lock.h"
#include "core/forked.h"

namespace py = pybind11;
using forkfd::ChildActions;
using forkfd::FdSection;

namespace {

// Python's signal handlers run while we wait, so Ctrl-C ends the wait.
void lock(bool exclusive) {
    const auto locked = [exclusive](std::chrono::milliseconds time) {
        forkfd::ForkLock& l = forkfd::fork_lock();
        return exclusive ? l.try_lock_for(time) : l.try_lock_shared_for(time);
    };
    if (locked(std::chrono::milliseconds(0))) return;  // without letting go of the GIL
    for (;;) {
        {
            const py::gil_scoped_release release;
            if (locked(std::chrono::milliseconds(100))) return;
        }
        if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    }
}

struct Unlock {
    bool held = true;
    void now() {
        if (std::exchange(held, false)) forkfd::fork_lock().unlock();
    }
    ~Unlock() { now(); }
};

[[noreturn]] void throw_fork(int err) {
    errno = err;
    PyErr_SetFromErrno(PyExc_OSError);
    throw py::error_already_set();
}

// os.fork() with a lock around it, a way out, and the child's pidfd; None in the child.
// All in one call, and that not pybind11's, since each object and table that is touched right
// after a fork, this one or the last, costs a page fault.
py::object fork_process(const py::handle cgroup, const py::handle warn) {
    if (forkfd::ask_single_threaded() != 0) steal(PyObject_CallNoArgs(warn.ptr()));
    if (PySys_Audit("os.fork", nullptr) < 0) throw py::error_already_set();
    std::optional<forkfd::CgroupEntry> entry;
    if (!cgroup.is_none()) {
        const auto [procs, name] = cgroup.cast<std::pair<int, std::string>>();
        entry.emplace(procs, name);
    }
    lock(true);
    Unlock unlock;
    const forkfd::bind::Refusable refusable;
    PyOS_BeforeFork();
    if (refusable.refused()) {
        unlock.now();
        PyOS_AfterFork_Parent();
        refusable.rethrow();
    }
    const pid_t pid = ::fork();
    const int err = errno;
    if (pid == 0 && entry) entry->enter();
    // What comes after runs without the lock: it may wait for threads that want it.
    unlock.now();
    if (pid == 0) {
        PyOS_AfterFork_Child();
        return py::none();
    }
    PyOS_AfterFork_Parent();
    if (pid < 0) throw_fork(err);
    forkfd::UniqueFd pidfd = forkfd::pidfd_of_child(pid);
    if (entry) {
        const py::gil_scoped_release release;
        entry->await(pid, pidfd.get());
    }
    return steal(Py_BuildValue("ii", pid, pidfd.release()));
}

PyMethodDef fork_method = {
    "fork",
    reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(
        +[](PyObject*, PyObject* const* args, Py_ssize_t count) -> PyObject* {
            if (count != 2) {
                PyErr_SetString(PyExc_TypeError, "fork() takes cgroup and warn");
                return nullptr;
            }
            return guarded([args] { return fork_process(args[0], args[1]); });
        })),
    METH_FASTCALL,
    "(pid, pidfd) in the parent, None in the child; pidfd is owned, -1 if the child is "
    "reaped already.  cgroup: its cgroup.procs, borrowed, and its name.  warn() is called unless "
    "there is surely no other thread."};

// Not by a call_guard: pybind11 then enters the object into its tables without the GIL.
template <class T, class... Args>
std::unique_ptr<T> made_unlocked(const Args&... args) {
    const py::gil_scoped_release release;
    return std::make_unique<T>(args...);
}

}  // namespace

void bind_fork(py::module_& m) {
    const auto unlocked = py::call_guard<py::gil_scoped_release>();
    forkfd::fork_lock();  // made while nobody forks
    m.attr("fork") = steal(PyCFunction_NewEx(&fork_method, nullptr, nullptr));
    m.def("lock_fork_lock", &lock, py::arg("exclusive"));
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

#include "bind/fork_function.h"

#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <optional>
#include <pybind11/stl.h>

#include "bind/at_fork_hooks.h"
#include "bind/plain_call.h"
#include "bind/process_type.h"
#include "core/atfork/fork_lock.h"
#include "core/base/fork_page.h"
#include "core/fork/forked.h"

namespace py = pybind11;

void wait_for_fork_lock(bool exclusive) {
    const auto locked = [exclusive](std::chrono::milliseconds time) {
        forkfd::ForkLock& l = forkfd::fork_lock();
        return exclusive ? l.try_lock_for(time) : l.try_lock_shared_for(time);
    };
    if (locked(std::chrono::milliseconds(0))) return;  // with the GIL held
    for (;;) {
        {
            const py::gil_scoped_release release;
            if (locked(std::chrono::milliseconds(100))) return;
        }
        if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    }
}

namespace {

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

// Python objects that fork() uses; never freed, as the module is.
struct Needs {
    PyObject *process, *open_procs, *warn;
};
Needs needs = {};

struct Cgroup {
    explicit Cgroup(PyObject* cgroup) {
        const py::object opened = steal(PyObject_CallOneArg(needs.open_procs, cgroup));
        const auto [fd, name] = opened.cast<std::pair<int, std::string>>();
        procs = forkfd::UniqueFd(fd);
        entry.emplace(fd, name);
    }
    forkfd::UniqueFd procs;
    std::optional<forkfd::CgroupEntry> entry;
};

bool finalizing() {
#if PY_VERSION_HEX >= 0x030D0000
    return Py_IsFinalizing() != 0;
#else
    return _Py_IsFinalizing() != 0;
#endif
}

// A Process that was made and is not needed.  The child of a fork always has one, and freeing it
// would write to five pages, among them the garbage collector's links in its neighbours.
PyObject* spare = nullptr;

struct Prepared {
    py::object process = spare == nullptr
                             ? make_forked(reinterpret_cast<PyTypeObject*>(needs.process))
                             : steal(std::exchange(spare, nullptr));
    ~Prepared() {
        if (process && spare == nullptr) spare = process.release().ptr();
    }
};

// os.fork() under the fork lock, with refusal and the child's pidfd; None in the child.  All that
// can be made before the fork is, and nothing here is Python code: after a fork, this one or the
// last, each page that is written costs a fault, even for a reference count.
FORKFD_IN_CHILD py::object fork_process(PyObject* cgroup) {
    if (finalizing()) {
        PyErr_SetString(PyExc_RuntimeError, "fork: the interpreter shuts down");
        throw py::error_already_set();
    }
    Prepared prepared;
    std::optional<Cgroup> entered;
    if (cgroup != Py_None) entered.emplace(cgroup);
    if (forkfd::check_single_threaded() != 0) steal(PyObject_CallNoArgs(needs.warn));
    if (PySys_Audit("os.fork", nullptr) < 0) throw py::error_already_set();
    wait_for_fork_lock(true);
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
    if (pid == 0 && entered) entered->entry->enter();
    // Handlers after the fork run without the lock: they may wait for threads that take it.
    unlock.now();
    if (pid == 0) {
        PyOS_AfterFork_Child();
        return py::none();
    }
    PyOS_AfterFork_Parent();
    if (pid < 0) throw_fork(err);
    forkfd::UniqueFd pidfd = forkfd::pidfd_of_child(pid);
    if (entered) {
        const py::gil_scoped_release release;
        entered->entry->await(pid, pidfd.get());
    }
    const bool reaped = !pidfd;  // by another caller, before its pidfd was open
    set_forked(prepared.process.ptr(), pid, pidfd.release());
    py::object process = std::move(prepared.process);
    if (reaped) steal(PyObject_CallMethod(process.ptr(), "poll", nullptr));
    return process;
}

// (*, cgroup=None)
PyObject* cgroup_of(PyObject* const* args, Py_ssize_t count, PyObject* keywords) {
    if (count != 0) throw py::type_error("fork: cgroup: keyword-only");
    const Py_ssize_t named = keywords == nullptr ? 0 : PyTuple_GET_SIZE(keywords);
    for (Py_ssize_t i = 0; i < named; ++i) {
        PyObject* const name = PyTuple_GET_ITEM(keywords, i);
        if (PyUnicode_CompareWithASCIIString(name, "cgroup") != 0)
            throw py::type_error("fork: unexpected argument " +
                                 py::repr(py::handle(name)).cast<std::string>());
    }
    return named == 0 ? Py_None : args[0];
}

constexpr char kForkDoc[] =
    R"(fork(*, cgroup=None)
--

Fork this process, as os.fork does; the parent gets the child as a :class:`Process`.

The parent waits and signals through the child's pidfd, as for a spawned child.  The fork
lock is held, so no descriptor of :func:`inheriting`, :func:`redirected` or
:func:`no_forks` of another thread gets into the child, and no thread spawns with
``close_others=False`` meanwhile.  The lock is taken first, and released when the child
exists: ``before`` handlers run under it, and must not wait for a thread that takes it.

A ``before`` handler of :func:`atfork.register` may refuse the fork by an exception, which
is raised here.  Then nothing was forked.  ``after_in_parent`` is called for the handlers
whose ``before`` was called earlier; none is called for the one that refused and those
after it.  Functions of os.register_at_fork have run as for a fork that failed.

Args:
    cgroup: a cgroup directory, by path or borrowed descriptor, that the child enters
        before any of its code runs, by writing 0 to cgroup.procs, cgroups(7).

Returns:
    The child in the parent, which owns it; None in the child.

Raises:
    OSError: fork(2) failed; the child could not enter the cgroup, or was killed before
        it had (ECANCELED), and is reaped; no descriptor is free for the pidfd; EDEADLK,
        within :func:`no_forks`.
    RuntimeError: the interpreter shuts down.

Warns:
    ForkWarning: other threads live, which are named.  If that is an error, nothing was
        forked.)";

FORKFD_IN_CHILD PyObject* fork_function(PyObject*, PyObject* const* args, Py_ssize_t count,
                                        PyObject* keywords) {
    return guarded([=] { return fork_process(cgroup_of(args, count, keywords)); });
}

PyMethodDef fork_method = {"fork", fast(fork_function), METH_FASTCALL | METH_KEYWORDS, kForkDoc};

}  // namespace

void add_fork_function(py::module_& m) {
    // The module in which users find it.
    m.attr("fork") = steal(PyCFunction_NewEx(&fork_method, nullptr, py::str("pyforkfd").ptr()));
    m.def("prepare_fork", [](const py::object& process, const py::object& open_procs,
                             const py::object& warn) {
        needs = {py::object(process).release().ptr(), py::object(open_procs).release().ptr(),
                 py::object(warn).release().ptr()};
    }, py::arg("process"), py::arg("open_procs"), py::arg("warn"),
       "Set the class that fork() returns, the function that opens a cgroup (cgroup.procs, owned, "
       "and its name), and the one called unless there is surely no other thread.");
}

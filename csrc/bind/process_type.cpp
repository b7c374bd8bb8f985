#include "bind/process_type.h"

#include <structmember.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <new>

#include "bind/exit_tuple.h"
#include "bind/plain_call.h"

namespace py = pybind11;

namespace {

struct Process {
    PyObject_HEAD
    PyObject *args, *backend, *status;  // null is None
    PyObject* pipes;                    // null until first read
    pid_t pid, owner;
    struct Shared {
        std::atomic<int> pidfd{-1};
        std::mutex mutex;  // held to reap, or to take the pidfd; of all below
        std::optional<forkfd::ExitInfo> end;
        int waiting = 0;            // threads in waitid(2), which need the number of the pidfd
        forkfd::UniqueFd taken;     // that number, if it was taken meanwhile
        std::condition_variable reaped;
    } shared;
};

PyTypeObject* base_type = nullptr;
PyObject *no_args = nullptr, *forked = nullptr;

Process& of(PyObject* self) { return *reinterpret_cast<Process*>(self); }

// Never waits with the GIL held: the holder of the lock may need the GIL.
std::unique_lock<std::mutex> locked(Process& p) {
    std::unique_lock<std::mutex> lock(p.shared.mutex, std::try_to_lock);
    if (!lock) {
        const WithoutGil release;
        lock.lock();
    }
    return lock;
}

PyObject* make(PyTypeObject* type, PyObject*, PyObject*) {
    PyObject* const self = type->tp_alloc(type, 0);
    if (self == nullptr) return nullptr;
    new (&of(self).shared) Process::Shared;
    return self;
}

void replace(PyObject*& place, PyObject* value) {
    PyObject* const old = std::exchange(place, Py_NewRef(value));
    Py_XDECREF(old);
}

int number_of(PyObject* value) {
    const long number = PyLong_AsLong(value);
    if (number == -1 && PyErr_Occurred() != nullptr) throw py::error_already_set();
    return static_cast<int>(number);
}

// Not an __init__, whose call would take longer.
PyObject* begin(PyObject* self, PyObject* const* args, Py_ssize_t count) {
    return guarded([=]() -> py::object {
        if (count != 4) throw py::type_error("_begin() takes args, pid, pidfd and backend");
        Process& p = of(self);
        p.pid = number_of(args[1]);
        p.shared.pidfd = number_of(args[2]);
        p.owner = ::getpid();
        replace(p.args, args[0]);
        replace(p.backend, args[3]);
        return py::none();
    });
}

int visit(PyObject* self, visitproc visit, void* arg) {
    Process& p = of(self);
    Py_VISIT(p.args);
    Py_VISIT(p.backend);
    Py_VISIT(p.status);
    Py_VISIT(p.pipes);
    Py_VISIT(Py_TYPE(self));
    return 0;
}

int clear(PyObject* self) {
    Process& p = of(self);
    Py_CLEAR(p.args);
    Py_CLEAR(p.backend);
    Py_CLEAR(p.status);
    Py_CLEAR(p.pipes);
    return 0;
}

// No Python code if there is nothing to do: the child of a fork drops one of these.
void finalize(PyObject* self) {
    if (of(self).shared.pidfd < 0) return;
    const py::error_scope kept;
    PyObject* const done = PyObject_CallMethod(self, "_dropped", nullptr);
    if (done == nullptr) PyErr_WriteUnraisable(self);
    else Py_DECREF(done);
}

void destroy(PyObject* self) {
    PyTypeObject* const type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    clear(self);
    of(self).shared.~Shared();
    type->tp_free(self);
    Py_DECREF(type);
}

PyObject* pidfd(PyObject* self, void*) { return PyLong_FromLong(of(self).shared.pidfd); }

PyObject* pipes(PyObject* self, void*) {
    Process& p = of(self);
    if (p.pipes == nullptr && (p.pipes = PyDict_New()) == nullptr) return nullptr;
    return Py_NewRef(p.pipes);
}

// Records the end; one that waitid(2) gave to another thread is that thread's to record.
void record(Process& p, std::unique_lock<std::mutex>& lock, const forkfd::ExitInfo& end) {
    Process::Shared& s = p.shared;
    if (!end.has_usage) s.reaped.wait(lock, [&s] { return s.end || s.waiting == 0; });
    if (!s.end || end.has_usage) s.end = end;
    s.reaped.notify_all();
}

PyObject* reap(PyObject* self, PyObject*) {
    return guarded([self]() -> py::object {
        Process& p = of(self);
        std::optional<forkfd::ExitInfo> end;
        {
            auto lock = locked(p);
            if (!p.shared.end && p.shared.pidfd >= 0) {
                if (const auto found = reap_unlocked(p.shared.pidfd)) {
                    std::optional<WithoutGil> release;
                    if (p.shared.waiting > 0) release.emplace();
                    record(p, lock, *found);
                }
            }
            end = p.shared.end;
        }
        return end ? exit_tuple(*end) : py::none();
    });
}

// The lock is not held in waitid(2): other threads poll, send signals and close meanwhile.
std::optional<forkfd::ExitInfo> wait_once(Process& p) {
    const WithoutGil release;
    Process::Shared& s = p.shared;
    std::unique_lock<std::mutex> lock(s.mutex);
    if (s.end || s.pidfd < 0) return s.end;
    const int number = s.pidfd;
    ++s.waiting;
    lock.unlock();
    const std::optional<forkfd::ExitInfo> end = forkfd::reap_blocking(number);
    lock.lock();
    --s.waiting;
    if (end) record(p, lock, *end);
    if (s.waiting == 0) {
        s.taken.reset();
        s.reaped.notify_all();
    }
    return s.end;
}

PyObject* wait(PyObject* self, PyObject*) {
    return guarded([self]() -> py::object {
        for (;;) {
            if (const auto end = wait_once(of(self))) return exit_tuple(*end);
            if (of(self).shared.pidfd < 0) return py::none();
            if (PyErr_CheckSignals() != 0) throw py::error_already_set();
        }
    });
}

PyObject* take_pidfd(PyObject* self, PyObject*) {
    return guarded([self]() -> py::object {
        Process& p = of(self);
        // In a forked copy a thread of the parent may hold the lock for ever.
        std::unique_lock<std::mutex> lock;
        if (p.owner == ::getpid()) lock = locked(p);
        int number = p.shared.pidfd.exchange(-1);
        if (lock && p.shared.waiting > 0 && number >= 0) {
            p.shared.taken = forkfd::UniqueFd(std::exchange(number, -1));
        }
        return steal(PyLong_FromLong(number));
    });
}

PyMemberDef members[] = {
    {"args", T_OBJECT, offsetof(Process, args), 0, nullptr},
    {"backend", T_OBJECT, offsetof(Process, backend), 0, nullptr},
    {"pid", T_INT, offsetof(Process, pid), READONLY, nullptr},
    {"_owner", T_INT, offsetof(Process, owner), READONLY, "pid of the process whose child it is"},
    {"_status", T_OBJECT, offsetof(Process, status), 0, nullptr},
    {nullptr, 0, 0, 0, nullptr},
};
PyGetSetDef properties[] = {
    {"pidfd", pidfd, nullptr, "The pidfd of the child; borrowed, -1 once closed.",
     nullptr},
    {"pipes", pipes, nullptr, nullptr, nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};
PyMethodDef methods[] = {
    {"_begin", fast(begin), METH_FASTCALL,
     "_begin($self, args, pid, pidfd, backend, /)\n--\n\nSet the child, and take its pidfd."},
    {"_reap", reap, METH_NOARGS,
     "_reap($self, /)\n--\n\nReap the child: (known, CLD_ code, status, rusage), the same at later "
     "calls; None while it runs, and if the pidfd was closed before its end was known."},
    {"_wait", wait, METH_NOARGS,
     "_wait($self, /)\n--\n\nWait for the end of the child in one waitid(2), and reap it; None if "
     "the pidfd is closed."},
    {"_take_pidfd", take_pidfd, METH_NOARGS,
     "_take_pidfd($self, /)\n--\n\nGive up the pidfd: the caller owns it; -1: there is none, or a "
     "thread waits, which closes it."},
    {nullptr, nullptr, 0, nullptr},
};

constexpr char kDoc[] =
    "The child of a Process: pid, pidfd, pipes and exit status.\n\n"
    "_dropped() is called when an object is destroyed whose pidfd is open.";

PyType_Slot slots[] = {
    {Py_tp_doc, const_cast<char*>(kDoc)},
    {Py_tp_new, reinterpret_cast<void*>(make)},
    {Py_tp_traverse, reinterpret_cast<void*>(visit)},
    {Py_tp_clear, reinterpret_cast<void*>(clear)},
    {Py_tp_finalize, reinterpret_cast<void*>(finalize)},
    {Py_tp_dealloc, reinterpret_cast<void*>(destroy)},
    {Py_tp_members, members},
    {Py_tp_getset, properties},
    {Py_tp_methods, methods},
    {0, nullptr},
};
PyType_Spec spec = {"pyforkfd._core.ProcessBase", sizeof(Process), 0,
                    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, slots};

}  // namespace

// Never freed, as the module is.
void add_process_type(py::module_& m) {
    base_type = reinterpret_cast<PyTypeObject*>(steal(PyType_FromSpec(&spec)).release().ptr());
    no_args = steal(PyTuple_New(0)).release().ptr();
    forked = steal(PyUnicode_InternFromString("fork")).release().ptr();
    m.attr("ProcessBase") = py::handle(reinterpret_cast<PyObject*>(base_type));
}

py::object make_forked(PyTypeObject* type) {
    py::object made = steal(make(type, nullptr, nullptr));
    of(made.ptr()).args = Py_NewRef(no_args);
    of(made.ptr()).backend = Py_NewRef(forked);
    return made;
}

void set_forked(PyObject* process, pid_t pid, int pidfd) noexcept {
    Process& p = of(process);
    p.pid = pid;
    p.owner = ::getpid();
    if (pidfd < 0) p.shared.end = forkfd::ExitInfo{false, 0, 0, false, {}};
    else p.shared.pidfd.store(pidfd, std::memory_order_relaxed);
}

#include "bind/bindings.h"

#include <chrono>

#include "core/descriptor.h"
#include "core/fork_lock.h"

namespace py = pybind11;

namespace {

// Python's signal handlers run while we wait, so Ctrl-C ends the wait.
void lock_fork_lock() {
    for (;;) {
        {
            const py::gil_scoped_release release;
            if (forkfd::fork_lock().try_lock_for(std::chrono::milliseconds(100))) return;
        }
        if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    }
}

}  // namespace

void bind_descriptor(py::module_& m) {
    m.def("cloexec", &forkfd::cloexec, py::arg("fd"), py::pos_only());
    m.def("set_cloexec", &forkfd::set_cloexec, py::arg("fd"), py::arg("on"), py::pos_only());
    m.def("close_range", &forkfd::close_range, py::arg("first"), py::arg("last"),
          py::arg("cloexec"), py::arg("unshare"), py::call_guard<py::gil_scoped_release>());
    m.def("same_open_file", &forkfd::same_open_file, py::arg("a"), py::arg("b"), py::pos_only());
    m.def("lock_fork_lock", &lock_fork_lock);
    m.def("unlock_fork_lock", [] { forkfd::fork_lock().unlock(); });
    m.def("reset_fork_lock", [] { forkfd::fork_lock().reset_after_fork(); },
          "In the child of fork(2): what other threads held is free.");
}

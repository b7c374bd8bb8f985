#include "bind/waiting.h"

#include <pybind11/pybind11.h>

#include <cerrno>

#include "core/passing/fd_passing.h"

namespace py = pybind11;

bool wait_ready(int fd, short events, const Deadline& deadline) {
    for (;;) {
        const int ms = deadline.milliseconds_left();
        int ready, err;
        {
            const py::gil_scoped_release release;
            ready = forkfd::wait_ready(fd, events, ms);
            err = errno;
        }
        if (ready > 0) return true;
        if (ready == 0 && ms < Deadline::kDay) return false;
        if (ready < 0 && err != EINTR) {
            errno = err;
            PyErr_SetFromErrno(PyExc_OSError);
            throw py::error_already_set();
        }
        if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    }
}

#include "bind/waiting.h"

#include <pybind11/pybind11.h>

#include <algorithm>
#include <cerrno>
#include <cmath>

#include "core/passing/fd_passing.h"

namespace py = pybind11;

namespace {

using Clock = std::chrono::steady_clock;

constexpr int kDay = 24 * 60 * 60 * 1000;

}  // namespace

Deadline::Deadline(std::optional<double> seconds) {
    // The clock's count overflows beyond a few hundred years.
    if (seconds && *seconds < 1e9)
        at_ = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                 std::chrono::duration<double>(std::max(*seconds, 0.0)));
}

int Deadline::milliseconds_left() const {
    if (!at_) return -1;
    const std::chrono::duration<double, std::milli> left = *at_ - Clock::now();
    if (left.count() <= 0) return 0;
    return static_cast<int>(std::min(std::ceil(left.count()), double{kDay}));
}

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
        if (ready == 0 && ms < kDay) return false;
        if (ready < 0 && err != EINTR) {
            errno = err;
            PyErr_SetFromErrno(PyExc_OSError);
            throw py::error_already_set();
        }
        if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    }
}

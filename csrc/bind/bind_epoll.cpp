#include "bind/bindings.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <memory>
#include <optional>
#include <pybind11/stl.h>
#include <vector>

#include "bind/epoll_watches.h"
#include "core/epoll/epoll_set.h"
#include "core/epoll/epoll_view.h"

namespace py = pybind11;
using forkfd::EpollSet;

namespace {

using Clock = std::chrono::steady_clock;
using NoGil = py::call_guard<py::gil_scoped_release>;

struct DeleteWithoutGil {
    void operator()(EpollSet* set) const {
        const py::gil_scoped_release release;
        delete set;
    }
};

constexpr int kLongest = 1000000000;  // of one wait, in milliseconds

// Rounded up, so as to wait at least that long.
int milliseconds(double seconds) {
    return seconds <= 0 ? 0 : seconds >= 1e6 ? kLongest : static_cast<int>(seconds * 1e3 + 0.999);
}

// Python's signal handlers run in between; then the wait continues for the remaining time
// (PEP 475).
py::list wait(EpollSet& set, std::optional<double> timeout, int size) {
    epoll_event few[32];
    std::vector<epoll_event> many;
    epoll_event* ready = few;
    if (size > 32) {
        many.resize(static_cast<std::size_t>(size));
        ready = many.data();
    }
    Clock::time_point deadline;
    if (timeout && *timeout > 0)
        deadline = Clock::now() + std::chrono::microseconds(static_cast<std::int64_t>(
                                      std::min(*timeout, 1e9) * 1e6));
    int ms = timeout ? milliseconds(*timeout) : -1, found;
    for (;;) {
        {
            const py::gil_scoped_release release;
            found = set.wait(ready, size, ms);
        }
        if (found > 0 || (found == 0 && ms != kLongest)) break;
        if (found < 0 && found != -EINTR) {
            errno = -found;
            PyErr_SetFromErrno(PyExc_OSError);
            throw py::error_already_set();
        }
        if (PyErr_CheckSignals() != 0) throw py::error_already_set();
        if (ms > 0)
            ms = milliseconds(std::chrono::duration<double>(deadline - Clock::now()).count());
    }
    py::list rows(found);
    for (int i = 0; i < found; ++i) {
        const std::uint64_t number = ready[i].data.u64;
        const std::uint32_t events = ready[i].events;
        rows[static_cast<std::size_t>(i)] = py::make_tuple(number, events);
    }
    return rows;
}

py::list registrations(const EpollSet& set) {
    std::vector<forkfd::EpollRegistration> found;
    {
        const py::gil_scoped_release release;
        found = set.registrations();
    }
    py::list rows;
    for (const forkfd::EpollRegistration& r : found)
        rows.append(py::make_tuple(r.number, r.events, r.data, r.device, r.inode, r.err));
    return rows;
}

}  // namespace

py::list epoll_watches(const std::vector<forkfd::EpollWatch>& watches) {
    using namespace py::literals;
    py::list rows;
    for (const forkfd::EpollWatch& w : watches)
        rows.append(py::dict("number"_a = w.number, "events"_a = w.events, "data"_a = w.data,
                             "inode"_a = w.inode, "device"_a = w.device));
    return rows;
}

void bind_epoll(py::module_& m) {
    EpollSet::watch_forks();
    py::class_<EpollSet, std::unique_ptr<EpollSet, DeleteWithoutGil>>(m, "EpollSet")
        .def(py::init([] {
            const py::gil_scoped_release release;
            return std::unique_ptr<EpollSet, DeleteWithoutGil>(new EpollSet);
        }))
        .def("fileno", &EpollSet::fd, NoGil(), "Return the descriptor; -1 once closed.")
        .def("add", &EpollSet::add, py::arg("fd"), py::arg("events"), py::pos_only(), NoGil())
        .def("modify", &EpollSet::modify, py::arg("fd"), py::arg("events"), py::pos_only(),
             NoGil())
        .def("remove", &EpollSet::remove, py::arg("fd"), py::pos_only(), NoGil())
        .def("wait", &wait, py::arg("timeout"), py::arg("size"), py::pos_only(),
             "Wait for `timeout` seconds, None: without limit; return rows of (number, events).")
        .def("registrations", &registrations,
             "List (number, events, data, device, inode, errno of a failed re-registration).")
        .def("rebuilds", &EpollSet::rebuilds, NoGil())
        .def("close", &EpollSet::close, NoGil());
    m.def("epoll_entries", [](int epfd) {
        std::vector<forkfd::EpollWatch> found;
        {
            const py::gil_scoped_release release;
            found = forkfd::epoll_entries(epfd);
        }
        return epoll_watches(found);
    }, py::arg("epfd"), py::pos_only());
    m.def("watches_file", &forkfd::watches_file, py::arg("epfd"), py::arg("number"),
          py::arg("nth"), py::arg("fd"), py::pos_only(),
          "Return whether fd is the file of that entry; None: unknown.");
    m.def("is_parents", &forkfd::is_parents, py::arg("fd"), py::pos_only(),
          "Return whether our parent has the same open file at that number; None: unknown.");
}

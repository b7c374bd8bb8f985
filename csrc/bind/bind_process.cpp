#include "bind/bindings.h"

#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <optional>
#include <pybind11/stl.h>

#include "bind/exit_tuple.h"
#include "bind/process_type.h"
#include "bind/waiting.h"
#include "core/base/pidfd.h"
#include "core/base/probe.h"
#include "core/watch/features.h"

namespace py = pybind11;

namespace {

// Returns true when the process has ended, false when the time is up.
bool wait_pidfd(int pidfd, std::optional<double> timeout) {
    return wait_ready(pidfd, POLLIN, Deadline(timeout));
}

}  // namespace

void bind_process(py::module_& m) {
    m.def("wait_pidfd", &wait_pidfd, py::arg("pidfd"), py::arg("timeout"),
          "Wait until the process has ended; return False when the time is up.");
    add_process_type(m);
    m.def("reap", [](int pidfd) -> py::object {
        const std::optional<forkfd::ExitInfo> end = reap_unlocked(pidfd);
        return end ? exit_tuple(*end) : py::none();
    }, py::arg("pidfd"), "Reap a child: (known, CLD_ code, status, rusage); None while it runs.");
    m.def("own_pidfd_inode", []() -> std::optional<std::uint64_t> {
        struct stat info;
        if (!forkfd::has_pidfs()) return std::nullopt;
        const forkfd::UniqueFd self = forkfd::open_pidfd(::getpid());
        if (!self || ::fstat(self.get(), &info) != 0) return std::nullopt;
        return info.st_ino;
    }, "Return the LISTEN_PIDFDID of this process; None before pidfs (Linux 6.9).");
    m.def("send_signal", [](int pidfd, int sig) {
        if (const int err = forkfd::send_signal(pidfd, sig); err != 0) {
            errno = err;
            PyErr_SetFromErrno(PyExc_OSError);
            throw py::error_already_set();
        }
    }, py::arg("pidfd"), py::arg("signal"));
    m.def("probe_features", [](int cgroup_fd) {
        std::vector<forkfd::Feature> found;
        {
            const py::gil_scoped_release release;
            found = forkfd::probe_features(cgroup_fd);
        }
        py::dict errors;
        for (const forkfd::Feature& feature : found) errors[feature.name] = feature.err;
        return errors;
    }, py::arg("cgroup_fd"), py::pos_only(),
       "Try each facility of the kernel: errno by name; 0: available.");
}

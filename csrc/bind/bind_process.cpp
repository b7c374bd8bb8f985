#include "bind/bindings.h"

#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <optional>
#include <pybind11/stl.h>

#include "bind/waiting.h"
#include "core/features.h"
#include "core/pidfd.h"
#include "core/probe.h"
#include "core/trace.h"

namespace py = pybind11;

namespace {

// True when the process has ended, false when the time is up.
bool wait_pidfd(int pidfd, std::optional<double> timeout) {
    return wait_ready(pidfd, POLLIN, Deadline(timeout));
}

py::object usage_tuple(const struct rusage& u) {
    const auto seconds = [](const timeval& t) {
        return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) * 1e-6;
    };
    return py::make_tuple(seconds(u.ru_utime), seconds(u.ru_stime), u.ru_maxrss, u.ru_ixrss,
                          u.ru_idrss, u.ru_isrss, u.ru_minflt, u.ru_majflt, u.ru_nswap,
                          u.ru_inblock, u.ru_oublock, u.ru_msgsnd, u.ru_msgrcv, u.ru_nsignals,
                          u.ru_nvcsw, u.ru_nivcsw);
}

}  // namespace

void bind_process(py::module_& m) {
    m.def("wait_pidfd", &wait_pidfd, py::arg("pidfd"), py::arg("timeout"));
    m.def("reap", [](int pidfd) -> py::object {
        std::optional<forkfd::ExitInfo> info;
        {
            // Never blocks but where FORKFD_DEBUG's line does.
            std::optional<py::gil_scoped_release> release;
            if (forkfd::trace::on(forkfd::trace::kExec)) release.emplace();
            info = forkfd::reap(pidfd);
        }
        if (!info) return py::none();
        return py::make_tuple(info->known, info->code, info->status,
                              info->has_usage ? usage_tuple(info->usage) : py::none());
    }, py::arg("pidfd"), "(known, CLD_ code, status, rusage), or None while the process runs.");
    m.def("own_pidfd_inode", []() -> std::optional<std::uint64_t> {
        struct stat info;
        if (!forkfd::has_pidfs()) return std::nullopt;
        const forkfd::UniqueFd self = forkfd::open_pidfd(::getpid());
        if (!self || ::fstat(self.get(), &info) != 0) return std::nullopt;
        return info.st_ino;
    }, "What LISTEN_PIDFDID must be for us; None before pidfs (Linux 6.9).");
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
    }, py::arg("cgroup_fd"), py::pos_only(), "errno by facility of the kernel; 0: it is there.");
}

#include "bind/exit_tuple.h"

#include "core/base/trace.h"

namespace py = pybind11;

namespace {

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

std::optional<forkfd::ExitInfo> reap_unlocked(int pidfd) {
    std::optional<py::gil_scoped_release> release;
    if (forkfd::trace::on(forkfd::trace::kExec)) release.emplace();
    return forkfd::reap(pidfd);
}

py::object exit_tuple(const forkfd::ExitInfo& info) {
    return py::make_tuple(info.known, info.code, info.status,
                          info.has_usage ? usage_tuple(info.usage) : py::none());
}

#include "bind/bindings.h"
#include "bind/spawning.h"

#include <cerrno>
#include <pybind11/stl.h>
#include <stdexcept>

#include "core/base/names.h"
#include "core/base/probe.h"
#include "core/spawn/spawn_attempt.h"

namespace py = pybind11;
using forkfd::SpawnPlan;

namespace {

std::optional<forkfd::Backend> backend_named(const std::string& name) {
    for (const auto b : {forkfd::Backend::clone3, forkfd::Backend::clone,
                         forkfd::Backend::fork_like})
        if (name == forkfd::backend_name(b)) return b;
    throw std::invalid_argument("no back end is named '" + name + "'");
}

py::tuple spawn(const SpawnPlan& plan, const std::vector<int>& sources) {
    forkfd::SpawnResult child = spawn_unlocked(plan, sources);
    const py::dict pipes = released_pipes(child);
    return py::make_tuple(child.pid, child.pidfd.release(), forkfd::backend_name(child.backend),
                          pipes);
}

}  // namespace

forkfd::Environment environment_of(const SpawnPlan& plan) {
    return plan.env ? forkfd::Environment(*plan.env) : forkfd::Environment::current();
}

forkfd::SpawnResult spawn_unlocked(const SpawnPlan& plan, const std::vector<int>& sources) {
    forkfd::Environment env = environment_of(plan);
    const py::gil_scoped_release release;
    return forkfd::spawn(plan, std::move(env), sources);
}

py::dict released_pipes(forkfd::SpawnResult& child) {
    py::dict pipes;
    for (forkfd::PipeEnd& end : child.pipes) pipes[py::int_(end.target)] = end.fd.release();
    return pipes;
}

void bind_spawn(py::module_& m) {
    m.def("spawn", &spawn, py::arg("plan"), py::arg("sources"),
          "Start a child; return (pid, pidfd, back end, {child's number: our end of the pipe}), "
          "all owned.");
    m.def("force_backend", [](const std::optional<std::string>& name) {
        forkfd::force_backend(name ? backend_named(*name) : std::nullopt);
    }, py::arg("name"), "Test-only: demand one back end; None chooses again.");
    m.def("capability_names", &forkfd::capability_names,
          "List the names of capabilities by number, without CAP_.");
    m.def("refusals", [] {
        const forkfd::Refusals& r = forkfd::refusals();
        py::dict seen;
        const auto add = [&seen](const char* name, int err) { seen[name] = err; };
        add("clone3", r.clone3.err());
        add("clear_sighand", r.clear_sighand.err());
        add("into_cgroup", r.into_cgroup.err());
        add("clone_files", r.clone_files.err());
        add("clone_pidfd", r.clone_pidfd.err());
        add("unshare", r.unshare.err());
        add("shared_memory", r.shared_memory.err());
        return seen;
    }, "Return the errno with which the kernel has refused each facility; 0: not refused.");
}

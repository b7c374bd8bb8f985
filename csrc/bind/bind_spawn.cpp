#include "bind/bindings.h"

#include <cerrno>
#include <pybind11/native_enum.h>
#include <pybind11/stl.h>
#include <stdexcept>

#include "core/names.h"
#include "core/probe.h"
#include "core/spawn.h"

namespace py = pybind11;
using forkfd::FdAction;
using forkfd::FdStep;
using forkfd::SpawnPlan;

namespace {

std::optional<forkfd::Backend> backend_named(const std::string& name) {
    for (const auto b : {forkfd::Backend::clone3, forkfd::Backend::clone,
                         forkfd::Backend::fork_like})
        if (name == forkfd::backend_name(b)) return b;
    throw std::invalid_argument("no back end is named '" + name + "'");
}

py::tuple spawn(const SpawnPlan& plan, const std::vector<int>& sources) {
    // Read with the GIL held: os.environ changes the C environment under it.
    forkfd::Environment env =
        plan.env ? forkfd::Environment(*plan.env) : forkfd::Environment::current();
    std::optional<forkfd::SpawnResult> child;
    {
        const py::gil_scoped_release release;
        child.emplace(forkfd::spawn(plan, std::move(env), sources));
    }
    py::dict pipes;
    for (forkfd::PipeEnd& end : child->pipes) pipes[py::int_(end.target)] = end.fd.release();
    return py::make_tuple(child->pid, child->pidfd.release(),
                          forkfd::backend_name(child->backend), pipes);
}

void bind_plan(py::module_& m) {
#define FORKFD_FIELD(name) .def_readwrite(#name, &SpawnPlan::name)
    py::class_<SpawnPlan>(m, "SpawnPlan")
        .def(py::init<>())
        FORKFD_FIELD(argv) FORKFD_FIELD(candidates) FORKFD_FIELD(exec_fd) FORKFD_FIELD(program)
        FORKFD_FIELD(env) FORKFD_FIELD(close_others) FORKFD_FIELD(listen_names)
        FORKFD_FIELD(new_session) FORKFD_FIELD(process_group) FORKFD_FIELD(controlling_terminal)
        FORKFD_FIELD(controlling_terminal_path) FORKFD_FIELD(foreground_terminal)
        FORKFD_FIELD(foreground_terminal_path) FORKFD_FIELD(umask) FORKFD_FIELD(nice)
        FORKFD_FIELD(affinity) FORKFD_FIELD(scheduler_policy) FORKFD_FIELD(scheduler_priority)
        FORKFD_FIELD(chroot) FORKFD_FIELD(groups) FORKFD_FIELD(gid) FORKFD_FIELD(uid)
        FORKFD_FIELD(user_name) FORKFD_FIELD(group_name) FORKFD_FIELD(bounding)
        FORKFD_FIELD(permitted) FORKFD_FIELD(inheritable) FORKFD_FIELD(ambient)
        FORKFD_FIELD(cwd) FORKFD_FIELD(cwd_fd) FORKFD_FIELD(no_new_privs)
        FORKFD_FIELD(death_signal) FORKFD_FIELD(death_with_process) FORKFD_FIELD(namespaces)
        FORKFD_FIELD(cgroup_path) FORKFD_FIELD(cgroup_fd) FORKFD_FIELD(seccomp)
        FORKFD_FIELD(wants_pidfd) FORKFD_FIELD(signal_mask) FORKFD_FIELD(default_signals) FORKFD_FIELD(ignore_signals)
        .def("add_fd", [](SpawnPlan& p, int target, FdAction::Kind kind, int source,
                          const std::string& path, int flags, unsigned mode) {
            p.fds.push_back({target, kind, source, path, flags, mode});
        }, py::arg("target"), py::arg("kind"), py::arg("source") = -1, py::arg("path") = "",
           py::arg("flags") = 0, py::arg("mode") = 0)
        .def("add_file_action", [](SpawnPlan& p, FdStep::Kind kind, int from, int to,
                                   const std::string& path, int flags, unsigned mode) {
            p.file_actions.push_back({kind, from, to, path, flags, mode});
        }, py::arg("kind"), py::arg("from_"), py::arg("to"), py::arg("path") = "",
           py::arg("flags") = 0, py::arg("mode") = 0)
        .def("inherit_standard_fds", [](SpawnPlan& p) {
            for (int target = 0; target <= 2; ++target)
                p.fds.push_back({target, FdAction::Kind::inherit_if_open, -1, {}, 0, 0});
        })
        .def("add_limit", [](SpawnPlan& p, int resource, std::uint64_t soft, std::uint64_t hard) {
            p.limits.push_back({resource, {soft, hard}});
        }, py::arg("resource"), py::arg("soft"), py::arg("hard"))
        .def("add_uid_map", [](SpawnPlan& p, unsigned in, unsigned out, unsigned n) {
            p.uid_map.push_back({in, out, n});
        }, py::arg("inside"), py::arg("outside"), py::arg("count"))
        .def("add_gid_map", [](SpawnPlan& p, unsigned in, unsigned out, unsigned n) {
            p.gid_map.push_back({in, out, n});
        }, py::arg("inside"), py::arg("outside"), py::arg("count"));
#undef FORKFD_FIELD
}

}  // namespace

void bind_spawn(py::module_& m) {
    using Kind = FdAction::Kind;
    py::native_enum<Kind>(m, "FdKind", "enum.IntEnum")
        .value("DESCRIPTOR", Kind::descriptor)
        .value("INHERIT_IF_OPEN", Kind::inherit_if_open)
        .value("NULL_DEVICE", Kind::null_device)
        .value("PIPE_TO_CHILD", Kind::pipe_to_child)
        .value("PIPE_FROM_CHILD", Kind::pipe_from_child)
        .value("OPEN", Kind::open)
        .value("SAME_AS", Kind::same_as)
        .value("CLOSED", Kind::closed)
        .value("AS_EXEC_LEAVES", Kind::as_exec_leaves)
        .finalize();
    py::native_enum<FdStep::Kind>(m, "FdStep", "enum.IntEnum")
        .value("DUP", FdStep::Kind::dup)
        .value("KEEP", FdStep::Kind::keep)
        .value("CLOSE", FdStep::Kind::close)
        .value("CLOSE_FROM", FdStep::Kind::close_from)
        .value("OPEN", FdStep::Kind::open)
        .finalize();
    bind_plan(m);
    m.def("spawn_count", &forkfd::spawn_count, "Children started so far, or tried to.");
    m.def("spawn", &spawn, py::arg("plan"), py::arg("sources"),
          "(pid, pidfd, back end, {child's number: our end of the pipe}); descriptors owned.");
    m.def("force_backend", [](const std::optional<std::string>& name) {
        forkfd::force_backend(name ? backend_named(*name) : std::nullopt);
    }, py::arg("name"), "Test-only: demand one back end; None chooses again.");
    m.def("capability_names", &forkfd::capability_names, "By number, without CAP_.");
    m.def("refusals", [] {
        const forkfd::Refusals& r = forkfd::refusals();
        py::dict seen;
        const auto add = [&seen](const char* name, int err) { seen[name] = err; };
        add("clone3", r.clone3);
        add("clear_sighand", r.clear_sighand);
        add("into_cgroup", r.into_cgroup);
        add("clone_files", r.clone_files);
        add("clone_pidfd", r.clone_pidfd);
        add("unshare", r.unshare);
        add("shared_memory", r.shared_memory);
        return seen;
    }, "errno with which the kernel refused each feature so far; 0: not refused.");
}

#include "bind/bindings.h"

#include <pybind11/native_enum.h>
#include <pybind11/stl.h>

#include "bind/plain_plan.h"
#include "bind/plan_state.h"
#include "core/fork/become.h"

namespace py = pybind11;
using forkfd::FdAction;
using forkfd::FdStep;
using forkfd::SpawnPlan;

namespace {

py::tuple plan_of_worker(const py::tuple& state, const std::vector<int>& held, int reply) {
    SpawnPlan plan = plan_of_state(state);
    const int number = forkfd::keep_open(plan, held, reply);
    return py::make_tuple(std::move(plan), number);
}

void become(const SpawnPlan& plan, const std::vector<int>& sources, int parent_pid,
            int parent_pidfd, int report_fd) {
    const py::gil_scoped_release release;
    forkfd::become(plan, sources, {parent_pid, parent_pidfd, false}, report_fd);
}

py::tuple failed(const SpawnPlan& plan, const std::vector<int>& sources, int stage, int index) {
    if (stage < 0 || stage >= static_cast<int>(forkfd::Stage::count))
        throw py::value_error("failed: stage: no such stage");
    const auto s = static_cast<forkfd::Stage>(stage);
    return py::make_tuple(forkfd::stage_name(s), forkfd::failed_on(plan, sources, s, index),
                          forkfd::stage_text(s));
}

}  // namespace

void bind_plan(py::module_& m) {
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
    py::class_<SpawnPlan>(m, "SpawnPlan")
        .def(py::init<>())
#define FORKFD_X(name) .def_readwrite(#name, &SpawnPlan::name)
        FORKFD_PLAN_FIELDS(FORKFD_X)
#undef FORKFD_X
        .def("add_fd", [](SpawnPlan& p, int target, Kind kind, int source,
                          const std::string& path, int flags, unsigned mode) {
            p.fds.push_back({target, kind, source, path, flags, mode});
        }, py::arg("target"), py::arg("kind"), py::arg("source") = -1, py::arg("path") = "",
           py::arg("flags") = 0, py::arg("mode") = 0)
        .def("add_file_action", [](SpawnPlan& p, FdStep::Kind kind, int source, int target,
                                   const std::string& path, int flags, unsigned mode) {
            p.file_actions.push_back({kind, source, target, path, flags, mode});
        }, py::arg("kind"), py::arg("source"), py::arg("target"), py::arg("path") = "",
           py::arg("flags") = 0, py::arg("mode") = 0)
        .def("inherit_standard_fds", [](SpawnPlan& p) {
            for (int target = 0; target <= 2; ++target)
                p.fds.push_back({target, Kind::inherit_if_open, -1, {}, 0, 0});
        })
        .def("add_plain_fds", &add_plain_fds, py::arg("fds"), py::arg("kinds"),
             "Add the child's descriptors of a dict, 0 to 2 as ours where it has them not; return "
             "the numbers of the pipes that we write to.  None, and nothing is added, unless all "
             "are numbers or among `kinds`: pairs of an object and its kind; a kind of None is a "
             "pipe whose direction the number gives.")
        .def("clear_fds", [](SpawnPlan& p) { p.fds.clear(); })
        .def("add_limit", [](SpawnPlan& p, int resource, std::uint64_t soft, std::uint64_t hard) {
            p.limits.push_back({resource, {soft, hard}});
        }, py::arg("resource"), py::arg("soft"), py::arg("hard"))
        .def("add_uid_map", [](SpawnPlan& p, unsigned in, unsigned out, unsigned n) {
            p.uid_map.push_back({in, out, n});
        }, py::arg("inside"), py::arg("outside"), py::arg("count"))
        .def("add_gid_map", [](SpawnPlan& p, unsigned in, unsigned out, unsigned n) {
            p.gid_map.push_back({in, out, n});
        }, py::arg("inside"), py::arg("outside"), py::arg("count"))
        .def("state", &state_of_plan,
             "Return all but the id maps as plain values, for from_state().")
        .def_static("from_state", &plan_of_state, py::arg("state"));
    m.def("plain_plan", &plain_plan, py::arg("args"), py::arg("default_signals"), py::pos_only(),
          "Make the plan of a child without options, as yet without descriptors; None unless "
          "`args` is a tuple of ASCII words, the first with a slash.");
    m.def("plan_of_worker", &plan_of_worker, py::arg("state"), py::arg("held"),
          py::arg("reply"),
          "Make the plan of a worker, which leaves `held` open and a duplicate of `reply`; return "
          "(plan, number of the duplicate).");
    m.def("become", &become, py::arg("plan"), py::arg("sources"), py::arg("parent_pid"),
          py::arg("parent_pidfd"), py::arg("report_fd"),
          "Apply the plan to this process; a failure at a stage writes a Report and ends it.");
    m.def("failed", &failed, py::arg("plan"), py::arg("sources"), py::arg("stage"),
          py::arg("index"), "Describe a Report: (stage, subject, text).");
}

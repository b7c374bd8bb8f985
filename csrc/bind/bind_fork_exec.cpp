#include "bind/bindings.h"

#include <limits>
#include <map>

#include "bind/fork_exec_arguments.h"
#include "bind/spawning.h"

namespace py = pybind11;
using forkfd::FdAction;
using forkfd::SpawnPlan;

namespace {

// The child's descriptors: its 0, 1 and 2, and those that keep their numbers.
std::vector<FdAction> descriptors(const SpawnPlan& plan, const py::tuple& pass_fds,
                                  int left_out, const int (&standard)[3]) {
    using Kind = FdAction::Kind;
    std::map<int, FdAction> map;
    if (plan.close_others)
        for (int target = 0; target <= 2; ++target)
            map[target] = {target, Kind::as_exec_leaves, -1, {}, 0, 0};
    long previous = -1;
    for (const py::handle item : pass_fds) {
        const long fd = PyLong_Check(item.ptr()) ? PyLong_AsLong(item.ptr()) : -1;
        PyErr_Clear();  // overflow
        if (fd <= previous || fd > std::numeric_limits<int>::max())
            refuse(PyExc_ValueError, "bad value(s) in fds_to_keep");
        previous = fd;
        const int number = static_cast<int>(fd);
        if (number != left_out) map[number] = {number, Kind::descriptor, number, {}, 0, 0};
    }
    for (const FdAction& action : plan.fds)  // of our own options
        if (action.kind != Kind::inherit_if_open) map[action.target] = action;
    for (int target = 0; target <= 2; ++target)
        if (standard[target] != -1)
            map[target] = {target, Kind::descriptor, standard[target], {}, 0, 0};
    std::vector<FdAction> ascending;
    ascending.reserve(map.size());
    for (auto& [target, action] : map) ascending.push_back(std::move(action));
    return ascending;
}

py::tuple fork_exec(const py::object& args, const py::object& executables, bool close_fds,
                    const py::tuple& pass_fds, const py::object& cwd, const py::object& env,
                    int p2cread, int c2pwrite, int errwrite, int errpipe_write,
                    bool restore_signals, bool new_session, int process_group,
                    const py::object& gid, const py::object& groups, const py::object& uid,
                    int umask, const SpawnPlan* options) {
    SpawnPlan plan;
    if (options != nullptr) plan = *options;
    else plan.wants_pidfd = false;
    plan.close_others = close_fds;
    plan.candidates = strings(executables, "executable_list must be a sequence", plain_bytes);
    plan.argv = strings(args, "argv must be a tuple", file_name);
    if (!env.is_none()) plan.env = strings(env, "env must be a sequence", plain_bytes);
    plan.program = plan.candidates.empty() ? "" : plan.candidates.back();
    plan.every_candidate = true;
    plan.fds = descriptors(plan, pass_fds, errpipe_write, {p2cread, c2pwrite, errwrite});
    if (!cwd.is_none()) {
        plan.cwd = file_name(cwd.ptr());
        if (plan.cwd.empty()) forkfd::throw_sys(forkfd::Stage::working_directory, ENOENT, "");
        plan.cwd_before_credentials = true;
    }
    if (restore_signals)
        plan.default_signals |= forkfd::signal_bit(SIGPIPE) | forkfd::signal_bit(SIGXFSZ);
    plan.new_session = new_session;
    if (process_group >= 0) plan.process_group = process_group;
    if (!groups.is_none()) plan.groups = group_ids(groups);
    if (!gid.is_none()) {
        plan.gid = id(gid, "gid is less than minimum", "gid is greater than maximum");
        plan.group_name = std::to_string(*plan.gid);
    }
    if (!uid.is_none()) {
        plan.uid = id(uid, "uid is less than minimum", "uid is greater than maximum");
        plan.user_name = std::to_string(*plan.uid);
    }
    if (umask >= 0) plan.umask = static_cast<unsigned>(umask);
    forkfd::SpawnResult child = spawn_unlocked(plan, {});
    const py::dict pipes = released_pipes(child);
    return py::make_tuple(child.pid, child.pidfd.release(), pipes);
}

}  // namespace

void bind_fork_exec(py::module_& m) {
    m.def("fork_exec", &fork_exec, py::arg("args"), py::arg("executable_list"),
          py::arg("close_fds"), py::arg("pass_fds"), py::arg("cwd").none(), py::arg("env").none(),
          py::arg("p2cread"), py::arg("c2pwrite"), py::arg("errwrite"),
          py::arg("errpipe_write"),
          py::arg("restore_signals"), py::arg("call_setsid"), py::arg("pgid_to_set"),
          py::arg("gid").none(), py::arg("extra_groups").none(), py::arg("uid").none(),
          py::arg("child_umask"), py::arg("options").none(), py::pos_only(),
          "Start a child as the standard _posixsubprocess.fork_exec does, with the options of a "
          "plan; return (pid, pidfd or -1, {child's number: our end of the pipe}).");
}

#include "bind/bindings.h"

#include <limits>
#include <map>

#include "core/spawn/spawn.h"

namespace py = pybind11;
using forkfd::FdAction;
using forkfd::SpawnPlan;

namespace {

// The arguments are those of _posixsubprocess.fork_exec, and so are the errors.

[[noreturn]] void refuse(PyObject* type, const char* text) {
    PyErr_SetString(type, text);
    throw py::error_already_set();
}

std::string file_name(PyObject* value) {
    PyObject* bytes = nullptr;
    if (PyUnicode_FSConverter(value, &bytes) == 0) throw py::error_already_set();
    const auto owner = py::reinterpret_steal<py::object>(bytes);
    return {PyBytes_AS_STRING(bytes), static_cast<std::size_t>(PyBytes_GET_SIZE(bytes))};
}

std::string plain_bytes(PyObject* value) {
    char* data = nullptr;
    if (PyBytes_AsStringAndSize(value, &data, nullptr) != 0) throw py::error_already_set();
    return data;
}

std::vector<std::string> strings(const py::object& sequence, const char* complaint,
                                 std::string (*convert)(PyObject*)) {
    const auto fast = py::reinterpret_steal<py::object>(
        PySequence_Fast(sequence.ptr(), complaint));
    if (!fast) throw py::error_already_set();
    std::vector<std::string> converted;
    const Py_ssize_t count = PySequence_Fast_GET_SIZE(fast.ptr());
    converted.reserve(static_cast<std::size_t>(count));
    for (Py_ssize_t i = 0; i < count; ++i) {
        // A conversion may run Python code, which may shorten a list under us.
        if (PySequence_Fast_GET_SIZE(fast.ptr()) != count)
            refuse(PyExc_RuntimeError, "args changed during iteration");
        const auto item =
            py::reinterpret_borrow<py::object>(PySequence_Fast_GET_ITEM(fast.ptr(), i));
        converted.push_back(convert(item.ptr()));
    }
    return converted;
}

std::uint32_t id(const py::handle& value, const char* too_small, const char* too_large) {
    const auto index = py::reinterpret_steal<py::object>(PyNumber_Index(value.ptr()));
    if (!index) throw py::error_already_set();
    int overflow = 0;
    const long long number = PyLong_AsLongLongAndOverflow(index.ptr(), &overflow);
    if (overflow < 0 || (overflow == 0 && number < 0)) refuse(PyExc_OverflowError, too_small);
    if (overflow > 0 || number >= std::numeric_limits<std::uint32_t>::max())
        refuse(PyExc_OverflowError, too_large);
    return static_cast<std::uint32_t>(number);
}

std::vector<gid_t> group_ids(const py::object& groups) {
    if (!PyList_Check(groups.ptr()))
        refuse(PyExc_TypeError, "setgroups argument must be a list");
    std::vector<gid_t> ids;
    for (const py::handle group : groups) {
        if (!PyLong_Check(group.ptr())) refuse(PyExc_TypeError, "extra_groups must be integers");
        try {
            ids.push_back(id(group, "", ""));
        } catch (const py::error_already_set&) {
            refuse(PyExc_ValueError, "invalid group id");
        }
        if (ids.size() > 65536) refuse(PyExc_ValueError, "too many extra_groups");
    }
    return ids;
}

// The child's descriptors: what it gets of 0, 1 and 2, and what keeps its number.
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
                    bool restore_signals,
                    bool new_session, int process_group, const py::object& gid,
                    const py::object& groups, const py::object& uid, int umask,
                    const SpawnPlan* options) {
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
    forkfd::Environment environment =
        plan.env ? forkfd::Environment(*plan.env) : forkfd::Environment::current();
    std::optional<forkfd::SpawnResult> child;
    {
        const py::gil_scoped_release release;
        child.emplace(forkfd::spawn(plan, std::move(environment), {}));
    }
    py::dict pipes;
    for (forkfd::PipeEnd& end : child->pipes) pipes[py::int_(end.target)] = end.fd.release();
    return py::make_tuple(child->pid, child->pidfd.release(), pipes);
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
          "(pid, pidfd or -1, {child's number: our end of the pipe}) of a child as the standard "
          "_posixsubprocess.fork_exec makes it, and with the options of a plan.");
}

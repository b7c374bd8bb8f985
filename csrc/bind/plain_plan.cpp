#include "bind/plain_plan.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>
#include <vector>

namespace py = pybind11;
using forkfd::FdAction;
using forkfd::SpawnPlan;
using Kind = FdAction::Kind;

namespace {

// -1: no plain number.
int plain_number(PyObject* value) {
    if (!PyLong_CheckExact(value)) return -1;
    int overflow = 0;
    const long number = PyLong_AsLongAndOverflow(value, &overflow);
    return overflow != 0 || number > std::numeric_limits<int>::max() ? -1
                                                                     : static_cast<int>(number);
}

std::optional<FdAction> plain_action(int target, PyObject* source, const py::tuple& kinds) {
    for (const py::handle pair : kinds) {
        if (PyTuple_GET_ITEM(pair.ptr(), 0) != source) continue;
        PyObject* const kind = PyTuple_GET_ITEM(pair.ptr(), 1);
        if (kind != Py_None)
            return FdAction{target, static_cast<Kind>(PyLong_AsLong(kind)), -1, {}, 0, 0};
        return FdAction{target, target == 0 ? Kind::pipe_to_child : Kind::pipe_from_child, -1,
                        {}, 0, 0};
    }
    const int number = plain_number(source);
    if (number < 0) return std::nullopt;
    return FdAction{target, Kind::descriptor, number, {}, 0, 0};
}

}  // namespace

std::unique_ptr<SpawnPlan> plain_plan(const py::object& args, forkfd::KernelSigset signals) {
    if (!PyTuple_CheckExact(args.ptr()) || PyTuple_GET_SIZE(args.ptr()) == 0) return nullptr;
    auto plan = std::make_unique<SpawnPlan>();
    const Py_ssize_t count = PyTuple_GET_SIZE(args.ptr());
    plan->argv.reserve(static_cast<std::size_t>(count));
    for (Py_ssize_t i = 0; i < count; ++i) {
        PyObject* const word = PyTuple_GET_ITEM(args.ptr(), i);
        if (!PyUnicode_CheckExact(word) || !PyUnicode_IS_ASCII(word)) return nullptr;
        const auto size = static_cast<std::size_t>(PyUnicode_GET_LENGTH(word));
        const auto* const data = static_cast<const char*>(PyUnicode_DATA(word));
        if (std::memchr(data, 0, size) != nullptr) return nullptr;
        plan->argv.emplace_back(data, size);
    }
    plan->program = plan->argv.front();
    if (plan->program.find('/') == std::string::npos) return nullptr;  // PATH has it
    plan->candidates.push_back(plan->program);
    plan->default_signals = signals;
    return plan;
}

py::object add_plain_fds(SpawnPlan& plan, const py::object& fds, const py::tuple& kinds) {
    if (!PyDict_CheckExact(fds.ptr())) return py::none();
    std::vector<FdAction> actions;
    py::list writable;
    PyObject *key, *source;
    Py_ssize_t at = 0;
    while (PyDict_Next(fds.ptr(), &at, &key, &source) != 0) {
        const int target = plain_number(key);
        if (target < 0) return py::none();
        auto action = plain_action(target, source, kinds);
        if (!action) return py::none();
        if (action->kind == Kind::pipe_to_child) writable.append(target);
        actions.push_back(std::move(*action));
    }
    for (int target = 0; target <= 2; ++target) {
        const auto has = [target](const FdAction& a) { return a.target == target; };
        if (std::none_of(actions.begin(), actions.end(), has))
            actions.push_back({target, Kind::inherit_if_open, -1, {}, 0, 0});
    }
    std::sort(actions.begin(), actions.end(),
              [](const FdAction& a, const FdAction& b) { return a.target < b.target; });
    plan.fds = std::move(actions);
    return writable;
}

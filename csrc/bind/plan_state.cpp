#include "bind/plan_state.h"

#include <pybind11/stl.h>

namespace py = pybind11;
using forkfd::FdAction;
using forkfd::SpawnPlan;

namespace {

// Strings of a plan are bytes: paths need not be UTF-8.
py::object plain(const std::string& s) { return py::bytes(s); }
py::object plain(const std::vector<std::string>& all) {
    py::list list;
    for (const std::string& s : all) list.append(py::bytes(s));
    return list;
}
template <class T>
py::object plain(const T& value) { return py::cast(value); }
template <class T>
py::object plain(const std::optional<T>& value) {
    return value ? plain(*value) : py::object(py::none());
}

}  // namespace

// Short, for it is sent for each worker.
py::tuple state_of_plan(const SpawnPlan& plan) {
    static const SpawnPlan fresh;
    py::dict fields;
    py::list fds, limits;
#define FORKFD_X(name) if (plan.name != fresh.name) fields[#name] = plain(plan.name);
    FORKFD_PLAN_FIELDS(FORKFD_X)
#undef FORKFD_X
    for (const FdAction& a : plan.fds)
        fds.append(py::make_tuple(a.target, static_cast<int>(a.kind), a.source,
                                  py::bytes(a.path), a.flags, a.mode));
    for (const forkfd::ChildLimit& l : plan.limits)
        limits.append(py::make_tuple(l.resource, l.limit.soft, l.limit.hard));
    return py::make_tuple(fields, fds, limits);
}

SpawnPlan plan_of_state(const py::tuple& state) {
    SpawnPlan plan;
    for (const auto& [key, value] : state[0].cast<py::dict>()) {
        const auto field = key.cast<std::string_view>();
#define FORKFD_X(name) \
        if (field == #name) plan.name = value.cast<decltype(SpawnPlan::name)>();
        FORKFD_PLAN_FIELDS(FORKFD_X)
#undef FORKFD_X
    }
    for (const py::handle item : state[1]) {
        const auto t = item.cast<py::tuple>();
        plan.fds.push_back({t[0].cast<int>(), static_cast<FdAction::Kind>(t[1].cast<int>()),
                            t[2].cast<int>(), t[3].cast<std::string>(), t[4].cast<int>(),
                            t[5].cast<unsigned>()});
    }
    for (const py::handle item : state[2]) {
        const auto t = item.cast<py::tuple>();
        plan.limits.push_back({t[0].cast<int>(), {t[1].cast<std::uint64_t>(),
                                                  t[2].cast<std::uint64_t>()}});
    }
    return plan;
}

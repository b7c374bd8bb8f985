#include "bind/bindings.h"

#include "core/spawn/fd_plan.h"

namespace py = pybind11;

void bind_fd_plan(py::module_& m) {
    m.def(
        "plan_fds",
        [](const py::dict& wanted) {
            std::vector<forkfd::FdWant> pairs;
            for (const auto& [target, source] : wanted)
                pairs.push_back({target.cast<int>(), source.cast<int>()});
            py::list steps;
            static const char* const names[] = {"dup", "keep", "save", "dup_saved"};
            for (const forkfd::FdStep& s : forkfd::plan_fds(pairs, 0))
                steps.append(py::make_tuple(names[static_cast<int>(s.kind)], s.source, s.target,
                                            s.floor));
            return steps;
        },
        py::arg("wanted"), py::pos_only(),
        "Plan the steps that turn our descriptors into the wanted map.\n\nReturns:\n    "
        "(kind, source, target, floor) of each step; a scratch number is above floor.");
}

#include "bind/bindings.h"

#include <optional>
#include <pybind11/stl.h>
#include <string>

#include "core/atfork/fork_trace.h"
#include "core/base/counters.h"
#include "core/base/trace.h"

namespace py = pybind11;
namespace trace = forkfd::trace;

void bind_trace(py::module_& m) {
    forkfd::fork_trace::watch_forks();
    m.def("trace_configure", &trace::configure, py::arg("topics"), py::arg("fd"),
          py::arg("owned"));
    m.def("trace_on", [](unsigned topics) { return (trace::topics.load() & topics) != 0; },
          py::arg("topics"), py::pos_only());
    m.def("trace_now", &trace::now_ns);
    // Without the GIL: the pipe that the line goes to may be full.
    m.def("trace_line", [](const std::string& event, const std::string& stage,
                           const std::string& subject, std::uint64_t begun) {
        trace::Line(event.c_str(), stage.c_str(), subject).duration(begun);
    }, py::arg("event"), py::arg("stage"), py::arg("subject") = "", py::arg("begun") = 0,
       py::call_guard<py::gil_scoped_release>(),
       "Write one line, whether or not the topic is on; begun: trace_now() then, 0: no duration.");
    m.def("counters", [] {
        const forkfd::Counters& c = forkfd::counters();
        py::dict seen;
        seen["spawned"] = c.spawned.load();
        seen["failed"] = c.failed.load();
        seen["reaped"] = c.reaped.load();
        seen["forked"] = c.forked.load();
        return seen;
    });
}

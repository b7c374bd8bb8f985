#include "bind/bindings.h"

#include <map>
#include <memory>
#include <pybind11/stl.h>

#include "core/watch/sysmon.h"

namespace py = pybind11;
using forkfd::Sysmon;
using forkfd::SysmonSettings;

namespace {

const char* kind_name(forkfd::SysmonEvent::Kind kind) {
    using Kind = forkfd::SysmonEvent::Kind;
    switch (kind) {
        case Kind::fd_growth: return "fd_growth";
        case Kind::gil_stalled: return "gil_stalled";
        case Kind::loop_stalled: return "loop_stalled";
        case Kind::gauge: return "gauge";
        default: return "turn";
    }
}

// Once the monitor is stopped, the GIL is not released: while the interpreter ends, a thread that
// takes it again does not return, and here that would end the process (an exception through
// noexcept).
py::object next(Sysmon& monitor) {
    if (monitor.begin_wait()) {
        const py::gil_scoped_release release;
        monitor.wait();
    }
    const auto event = monitor.take();
    if (!event) return py::none();
    return py::make_tuple(kind_name(event->kind), event->index, event->value, event->ns);
}

std::uint64_t ns(double seconds) { return static_cast<std::uint64_t>(seconds * 1e9); }

}  // namespace

void bind_sysmon(py::module_& m) {
    py::class_<Sysmon>(m, "Monitor")
        .def(py::init([](double interval, double gil_stall, double loop_stall, double fd_growth,
                         double summary, const std::map<int, std::int64_t>& bounds,
                         int dump_signal) {
            SysmonSettings s;
            s.interval = ns(interval);
            s.gil_stall = ns(gil_stall);
            s.loop_stall = ns(loop_stall);
            s.summary = ns(summary);
            s.fd_growth = fd_growth;
            for (const auto& [number, bound] : bounds)
                s.gauge_bounds.at(static_cast<std::size_t>(number)) = bound;
            s.dump_signal = dump_signal;
            return std::make_unique<Sysmon>(s);
        }), py::kw_only(), py::arg("interval"), py::arg("gil_stall"), py::arg("loop_stall"),
            py::arg("fd_growth"), py::arg("summary"), py::arg("bounds"), py::arg("dump_signal"))
        .def("start", &Sysmon::start)
        .def("stop", &Sysmon::stop, py::call_guard<py::gil_scoped_release>())
        .def("next", &next)
        .def_property_readonly("stopped_at_work", &Sysmon::stopped_at_work)
        .def("loop_probed", &Sysmon::loop_probed, py::arg("slot"))
        .def("loop_replied", &Sysmon::loop_replied, py::arg("slot"))
        .def("loop_forgotten", &Sysmon::loop_forgotten, py::arg("slot"));
    m.def("call", [](const py::object& callback, const py::object& argument) {
        try {
            callback(argument);
        } catch (py::error_already_set& error) {
            error.discard_as_unraisable(callback);
        }
    }, py::arg("callback"), py::arg("argument"), py::pos_only(),
       "Call it; its exception goes to sys.unraisablehook.");
    m.attr("MAX_LOOPS") = Sysmon::kMaxLoops;
    m.def("gauges", [] {
        std::vector<std::string> names;
        for (int i = 0; i < forkfd::gauge_count(); ++i)
            names.emplace_back(forkfd::gauge(i).name);
        return names;
    }, "List the names of the gauges by number.");
    m.def("read_gauge", [](int number) {
        const forkfd::Gauge& gauge = forkfd::gauge(number);
        return gauge.read(gauge.context);
    }, py::arg("number"), py::pos_only(), py::call_guard<py::gil_scoped_release>(),
       "Read a gauge; -1: not available.");
    m.def("unused_signal", &forkfd::unused_signal);
    m.def("name_this_thread", &forkfd::name_this_thread, py::arg("name"));
    m.def("count_descriptors", &forkfd::count_descriptors);
}

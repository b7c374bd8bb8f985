#include "bind/bindings.h"

#include "core/descriptors/descriptor.h"

namespace py = pybind11;

void bind_descriptor(py::module_& m) {
    m.def("cloexec", &forkfd::cloexec, py::arg("fd"), py::pos_only());
    m.def("set_cloexec", &forkfd::set_cloexec, py::arg("fd"), py::arg("on"), py::pos_only());
    m.def("close_range", &forkfd::close_range, py::arg("first"), py::arg("last"),
          py::arg("cloexec"), py::arg("unshare"), py::call_guard<py::gil_scoped_release>());
    m.def("same_open_file", &forkfd::same_open_file, py::arg("a"), py::arg("b"), py::pos_only());
    m.def("stream_kind", &forkfd::stream_kind, py::arg("fd"), py::pos_only());
    m.def("disconnect", &forkfd::disconnect, py::arg("fd"), py::pos_only());
    m.def(
        "signal_fd", [](std::uint64_t mask) { return forkfd::signal_fd(mask).release(); },
        py::arg("mask"), py::pos_only());
}

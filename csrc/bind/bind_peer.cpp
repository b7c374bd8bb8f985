#include "bind/bindings.h"

#include <pybind11/stl.h>

#include "bind/passed_values.h"
#include "bind/waiting.h"
#include "core/passing/peer.h"
#include "core/passing/unwanted.h"

namespace py = pybind11;

// The peer of a socket and what it sends unwanted, waiting for a socket, a function for tests.
void bind_peer(py::module_& m) {
    m.def("wait_ready", [](int fd, short events, std::optional<double> timeout) {
        return wait_ready(fd, events, Deadline(timeout));
    }, py::arg("fd"), py::arg("events"), py::arg("timeout"), py::pos_only());
    m.def("peer_credentials", [](int sock) {
        return credentials_object(forkfd::peer_credentials(sock));
    }, py::arg("sock"), py::pos_only());
    m.def("peer_pidfd", [](int sock) { return owned_fd(forkfd::peer_pidfd(sock)); },
          py::arg("sock"), py::pos_only());
    m.def("pass_credentials", &forkfd::pass_credentials, py::arg("sock"), py::arg("on"),
          py::pos_only());
    m.def("pass_pidfd", &forkfd::pass_pidfd, py::arg("sock"), py::arg("on"), py::pos_only());
    m.def("pass_rights", &forkfd::pass_rights, py::arg("sock"), py::arg("on"), py::pos_only());
    m.def("discard_received", [](py::handle received) {
        const std::vector<int> numbers = take_numbers(received);
        const py::gil_scoped_release released;
        forkfd::discard_fds(numbers.data(), numbers.size());
    }, py::arg("received"), py::pos_only());
    m.def("end_linger", &forkfd::end_linger, py::arg("sock"), py::pos_only());
    m.def("drain_socket", &forkfd::drain, py::arg("sock"), py::arg("most"), py::pos_only(),
          py::call_guard<py::gil_scoped_release>());
    m.def("drain_backlog", &forkfd::drain_backlog, py::arg("listener"), py::arg("most"),
          py::pos_only(), py::call_guard<py::gil_scoped_release>());
    m.def("parse_control", [](const std::string& bytes) {
        forkfd::Control control;
        forkfd::parse_control(reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size(),
                              control);
        const int* const fds = control.fds.data();
        return py::make_tuple(
            std::vector<int>(fds, fds + control.count),
            control.has_credentials ? credentials_object(control.credentials) : py::none(),
            control.has_pidfd ? py::object(py::int_(control.pidfd)) : py::none(),
            control.malformed);
    }, py::arg("area"), py::pos_only(),
          "Test-only: parse bytes; return (descriptors, credentials, pidfd or -errno, malformed).");
}

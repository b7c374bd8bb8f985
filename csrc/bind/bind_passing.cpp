#include "bind/bindings.h"

#include <poll.h>

#include <memory>

#include "bind/passed_values.h"
#include "bind/passing_arguments.h"
#include "bind/plain_call.h"
#include "bind/waiting.h"

namespace py = pybind11;
using forkfd::Progress;

namespace {

constexpr std::size_t kOnStack = 4096;

[[noreturn]] void raise(PyObject* type, int err, const std::string& text) {
    PyErr_SetObject(type, py::make_tuple(err, text).ptr());
    throw py::error_already_set();
}

template <class Transfer, class Describe>
void run(Transfer& transfer, int sock, int flags, std::optional<double> seconds, short events,
         const Describe& describe) {
    const Deadline deadline(seconds);
    const int all_flags = seconds ? flags | MSG_DONTWAIT : flags;
    for (;;) {
        Progress progress;
        {
            const WithoutGil released;
            progress = transfer.advance(sock, all_flags);
        }
        if (progress == Progress::done) return;
        if (progress == Progress::interrupted) {
            if (PyErr_CheckSignals() != 0) throw py::error_already_set();
        } else if (!seconds || (flags & MSG_DONTWAIT) != 0 || *seconds == 0) {
            raise(PyExc_OSError, EAGAIN, describe() + "Resource temporarily unavailable");
        } else if (!wait_ready(sock, events, deadline)) {
            raise(PyExc_TimeoutError, ETIMEDOUT, describe() + "timed out");
        }
    }
}

std::string so_far(const char* what, bool begun, std::size_t some, std::size_t all) {
    if (!begun) return std::string(what) + ": ";
    return std::string(what) + ": " + std::to_string(some) + " of " + std::to_string(all) +
           " descriptors were transferred; close this socket, the transfer cannot continue: ";
}

py::object send_fds(py::handle sock, py::handle data, py::handle fds, int flags,
                    py::handle timeout, py::handle credentials) {
    const int number = borrowed_number(sock, "send_fds");
    const Buffers buffers(data);
    const Borrowed borrowed(fds);
    const auto ids = credentials_of(credentials);
    forkfd::Sending sending(buffers.pieces(), borrowed.numbers.data(), borrowed.numbers.size(),
                            ids ? &*ids : nullptr, is_unix(sock));
    run(sending, number, flags, timeout_of(sock, timeout), POLLOUT, [&] {
        return so_far("send_fds", sending.begun(), sending.fds_sent(), sending.fd_count());
    });
    return py::int_(sending.bytes_sent());
}

py::object recv_fds(py::handle sock, Py_ssize_t max_bytes, Py_ssize_t max_fds, int flags,
                    py::handle timeout) {
    const int number = borrowed_number(sock, "recv_fds");
    if (max_bytes < 0 || max_fds < 0 || max_fds > INT_MAX)
        throw py::value_error("recv_fds: max_bytes, max_fds: must not be negative");
    const auto size = static_cast<std::size_t>(max_bytes);
    char small[kOnStack];
    const std::unique_ptr<char[]> large(size > kOnStack ? new char[size] : nullptr);
    char* const buffer = large ? large.get() : small;
    forkfd::Receiving receiving(buffer, size, static_cast<unsigned>(max_fds));
    try {
        run(receiving, number, flags, timeout_of(sock, timeout), POLLIN, [&] {
            return so_far("recv_fds", receiving.begun(), receiving.fds.numbers.size(),
                          receiving.expected());
        });
    } catch (const forkfd::Incomplete& error) {
        set_incomplete(error, receiving, buffer);
        throw py::error_already_set();
    }
    return received(receiving, buffer);
}

int int_of(PyObject* value) {
    const long number = PyLong_AsLong(value);
    if (number == -1 && PyErr_Occurred() != nullptr) throw py::error_already_set();
    return static_cast<int>(number);
}

Py_ssize_t size_of(PyObject* value) {
    const Py_ssize_t size = PyNumber_AsSsize_t(value, PyExc_OverflowError);
    if (size == -1 && PyErr_Occurred() != nullptr) throw py::error_already_set();
    return size;
}

PyObject* call_send_fds(PyObject*, PyObject* const* args, Py_ssize_t count) {
    return guarded([&] {
        if (count != 6) throw py::type_error("send_fds: 6 arguments");
        return send_fds(args[0], args[1], args[2], int_of(args[3]), args[4], args[5]);
    });
}

PyObject* call_recv_fds(PyObject*, PyObject* const* args, Py_ssize_t count) {
    return guarded([&] {
        if (count != 5) throw py::type_error("recv_fds: 5 arguments");
        return recv_fds(args[0], size_of(args[1]), size_of(args[2]), int_of(args[3]), args[4]);
    });
}

PyObject* call_close_received(PyObject*, PyObject* received) {
    return guarded([&]() -> py::object {
        std::vector<int> numbers = take_numbers(received);
        {
            const WithoutGil released;
            forkfd::close_fds(numbers.data(), numbers.size());
        }
        return py::none();
    });
}

PyMethodDef methods[] = {
    {"send_fds", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(call_send_fds)),
     METH_FASTCALL, "Send (sock, data, fds, flags, timeout, credentials); return the bytes sent."},
    {"recv_fds", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(call_recv_fds)),
     METH_FASTCALL, "Receive (sock, max_bytes, max_fds, flags, timeout); return a Received."},
    {"close_received", call_close_received, METH_O,
     "Close the descriptors that a Received still owns."},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

void bind_passing(py::module_& m) {
    if (PyModule_AddFunctions(m.ptr(), methods) != 0) throw py::error_already_set();
    m.def("register_passing", [](py::type fd, py::type received, py::type credentials,
                                 py::type error, py::type socket) {
        register_values(std::move(fd), std::move(received), std::move(credentials),
                        std::move(error));
        register_socket(std::move(socket));
    }, py::arg("fd"), py::arg("received"), py::arg("credentials"), py::arg("error"),
          py::arg("socket"), py::pos_only());
}

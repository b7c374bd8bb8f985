#include "bind/bindings.h"

#include <pybind11/stl.h>
#include <unistd.h>

#include <cerrno>
#include <optional>

#include "bind/exchanging.h"
#include "bind/plain_call.h"

namespace py = pybind11;
using forkfd::Exchange;
using State = Exchange::State;

namespace {

bool collect(int stdout_fd, int stderr_fd, std::optional<double> timeout, py::list& stdout_chunks,
             py::list& stderr_chunks) {
    Exchange exchange(stdout_fd, stderr_fd);
    const auto append = [&] {
        for (const int number : {1, 2}) {
            const forkfd::Output* const output = exchange.output(number);
            if (output == nullptr || output->size() == 0) continue;
            (number == 1 ? stdout_chunks : stderr_chunks).append(bytes_or_none(output));
        }
    };
    try {
        const bool ended = run_to_the_end(exchange, Deadline(timeout)) == State::ended;
        append();
        return ended;
    } catch (...) {
        append();
        throw;
    }
}

// At most what a pipe holds; another read finds its end, so that the loop is called once for both.
PyObject* drain(PyObject*, PyObject* number) {
    return guarded([number]() -> py::object {
        const long fd = PyLong_AsLong(number);
        if (fd == -1 && PyErr_Occurred() != nullptr) throw py::error_already_set();
        char bytes[64 * 1024];
        std::size_t size = 0;
        long count;
        int err;
        {
            const WithoutGil release;
            do {
                count = ::read(static_cast<int>(fd), bytes + size, sizeof bytes - size);
                err = errno;
                if (count > 0) size += static_cast<std::size_t>(count);
            } while (count > 0 && size < sizeof bytes);
        }
        if (count < 0 && err != EAGAIN && err != EINTR && size == 0) {
            errno = err;
            PyErr_SetFromErrno(PyExc_OSError);
            throw py::error_already_set();
        }
        return py::make_tuple(py::bytes(bytes, size), count == 0);
    });
}

PyMethodDef drain_method = {"drain", drain, METH_O,
                            "drain(fd, /)\n--\n\nRead what a pipe holds, and its end; "
                            "return (bytes, whether it has ended)."};

}  // namespace

void bind_pipes(py::module_& m) {
    m.attr("drain") = steal(PyCFunction_NewEx(&drain_method, nullptr, m.attr("__name__").ptr()));
    m.def("collect", &collect, py::arg("stdout"), py::arg("stderr"), py::arg("timeout"),
          py::arg("stdout_chunks"), py::arg("stderr_chunks"), py::pos_only(),
          "Read two pipes (-1: none), leave them open, and append their data, which nothing loses; "
          "return whether both have ended; False: the time is up.");
}

#include "bind/passing_arguments.h"

#include <climits>

#include "bind/plain_call.h"

namespace py = pybind11;

namespace {

// Never freed, as the module is.
PyTypeObject* socket_class;
PyObject* socket_family;  // the member itself: the property makes an enum of it
PyObject* fileno_name;    // interned: a call by name then makes no string
PyObject* gettimeout_name;

}  // namespace

void register_socket(py::type socket) {
    socket_family = py::object(socket.attr("__base__").attr("family")).release().ptr();
    socket_class = reinterpret_cast<PyTypeObject*>(socket.release().ptr());
    fileno_name = PyUnicode_InternFromString("fileno");
    gettimeout_name = PyUnicode_InternFromString("gettimeout");
}

bool is_unix(py::handle sock) {
    if (!PyObject_TypeCheck(sock.ptr(), socket_class)) return false;
    const py::object family = steal(Py_TYPE(socket_family)->tp_descr_get(
        socket_family, sock.ptr(), reinterpret_cast<PyObject*>(Py_TYPE(sock.ptr()))));
    return PyLong_AsLong(family.ptr()) == AF_UNIX;
}

std::optional<double> timeout_of(py::handle sock, py::handle timeout) {
    py::object given = py::reinterpret_borrow<py::object>(timeout);
    if (given.is_none() && PyObject_TypeCheck(sock.ptr(), socket_class)) {
        given = steal(PyObject_CallMethodNoArgs(sock.ptr(), gettimeout_name));
        // Without end, or not at all: so the kernel does by itself.
        if (given.is_none() || PyFloat_AsDouble(given.ptr()) == 0) return std::nullopt;
    }
    if (given.is_none()) return std::nullopt;
    const double seconds = PyFloat_AsDouble(given.ptr());
    if (seconds == -1 && PyErr_Occurred() != nullptr) throw py::error_already_set();
    if (!(seconds >= 0)) throw py::value_error("timeout: seconds, and not fewer than 0");
    return seconds;
}

Buffers::Buffers(py::handle data) {
    const auto add = [this](PyObject* piece) {
        views_.emplace_back();
        if (PyObject_GetBuffer(piece, &views_.back(), PyBUF_SIMPLE) == 0) return;
        views_.pop_back();
        throw py::error_already_set();
    };
    try {
        if (PyObject_CheckBuffer(data.ptr()) || PyUnicode_Check(data.ptr())) {
            add(data.ptr());
            return;
        }
        const py::object pieces = steal(PySequence_Tuple(data.ptr()));
        const Py_ssize_t count = PyTuple_GET_SIZE(pieces.ptr());
        views_.reserve(static_cast<std::size_t>(count));
        for (Py_ssize_t i = 0; i < count; ++i) add(PyTuple_GET_ITEM(pieces.ptr(), i));
    } catch (...) {
        for (Py_buffer& view : views_) PyBuffer_Release(&view);
        throw;
    }
}

Buffers::~Buffers() {
    for (Py_buffer& view : views_) PyBuffer_Release(&view);
}

std::vector<iovec> Buffers::pieces() const {
    std::vector<iovec> pieces;
    pieces.reserve(views_.size());
    for (const Py_buffer& view : views_)
        pieces.push_back({view.buf, static_cast<std::size_t>(view.len)});
    return pieces;
}

std::size_t Buffers::size() const {
    std::size_t size = 0;
    for (const Py_buffer& view : views_) size += static_cast<std::size_t>(view.len);
    return size;
}

int borrowed_number(py::handle fd, const char* what) {
    py::object number = py::reinterpret_borrow<py::object>(fd);
    if (!PyLong_Check(fd.ptr())) {
        number = py::reinterpret_steal<py::object>(
            PyObject_CallMethodNoArgs(fd.ptr(), fileno_name));
        if (!number && PyErr_ExceptionMatches(PyExc_AttributeError)) PyErr_Clear();
        else if (!number) throw py::error_already_set();
    }
    if (!number || !PyLong_Check(number.ptr()) || PyBool_Check(number.ptr()))
        throw py::type_error(std::string(what) + ": " + py::str(py::repr(fd)).cast<std::string>() +
                             " is neither a descriptor nor has a fileno()");
    const long value = PyLong_AsLong(number.ptr());
    if (value < 0 || value > INT_MAX) {
        PyErr_Clear();  // of what is no long at all
        throw py::value_error(std::string(what) + ": " + py::str(number).cast<std::string>() +
                              " is not a descriptor (closed?)");
    }
    return static_cast<int>(value);
}

Borrowed::Borrowed(py::handle fds) : held_(steal(PySequence_Tuple(fds.ptr()))) {
    const Py_ssize_t count = PyTuple_GET_SIZE(held_.ptr());
    numbers.reserve(static_cast<std::size_t>(count));
    for (Py_ssize_t i = 0; i < count; ++i)
        numbers.push_back(borrowed_number(PyTuple_GET_ITEM(held_.ptr(), i), "send_fds"));
}

std::optional<ucred> credentials_of(py::handle value) {
    if (value.is_none()) return std::nullopt;
    return ucred{value.attr("pid").cast<pid_t>(), value.attr("uid").cast<uid_t>(),
                 value.attr("gid").cast<gid_t>()};
}

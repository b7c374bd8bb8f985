#include "bind/passed_values.h"

#include <array>
#include <climits>

namespace py = pybind11;

namespace {

py::object steal(PyObject* made) {
    if (made == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(made);
}

// Interned once; calling by name costs a lookup then, and no string.
struct Names {
    PyObject* fileno = PyUnicode_InternFromString("fileno");
    PyObject* gettimeout = PyUnicode_InternFromString("gettimeout");
    PyObject* pop = PyUnicode_InternFromString("pop");
};
const Names& names() {
    static const Names* const interned = new Names;
    return *interned;
}

// A class with __slots__, instances of which are filled without running its __init__: that
// would take longer than receiving a descriptor.
template <std::size_t N>
class SlotClass {
  public:
    void set(py::type type, const std::array<const char*, N>& slots) {
        for (std::size_t i = 0; i < N; ++i) members_[i] = py::object(type.attr(slots[i])).release().ptr();
        type_ = reinterpret_cast<PyTypeObject*>(type.release().ptr());
    }
    py::object make(const std::array<py::object, N>& values) const {
        py::object made = steal(type_->tp_alloc(type_, 0));
        for (std::size_t i = 0; i < N; ++i) {
            PyObject* const member = members_[i];
            if (Py_TYPE(member)->tp_descr_set(member, made.ptr(), values[i].ptr()) != 0)
                throw py::error_already_set();
        }
        return made;
    }

    py::object get(py::handle object, std::size_t slot) const {
        PyObject* const member = members_[slot];
        return steal(Py_TYPE(member)->tp_descr_get(
            member, object.ptr(), reinterpret_cast<PyObject*>(Py_TYPE(object.ptr()))));
    }

  private:
    PyTypeObject* type_ = nullptr;
    std::array<PyObject*, N> members_ = {};
};

// For the life of the process, as the module is.
SlotClass<1> fd_class;
SlotClass<5> received_class;
SlotClass<3> credentials_class;
PyObject* error_class;
PyTypeObject* socket_class;
PyObject* socket_family;  // the member itself: the property makes an enum of it

py::object integer(long value) { return steal(PyLong_FromLong(value)); }

}  // namespace

void register_passing(py::type fd, py::type received, py::type credentials, py::type error,
                      py::type socket) {
    fd_class.set(std::move(fd), {"_held"});
    received_class.set(std::move(received), {"data", "fds", "flags", "credentials", "pidfd"});
    credentials_class.set(std::move(credentials), {"pid", "uid", "gid"});
    error_class = error.release().ptr();
    socket_family = py::object(socket.attr("__base__").attr("family")).release().ptr();
    socket_class = reinterpret_cast<PyTypeObject*>(socket.release().ptr());
}

bool is_unix(py::handle sock) {
    if (!PyObject_TypeCheck(sock.ptr(), socket_class)) return false;
    const py::object family = steal(Py_TYPE(socket_family)->tp_descr_get(
        socket_family, sock.ptr(), reinterpret_cast<PyObject*>(Py_TYPE(sock.ptr()))));
    return PyLong_AsLong(family.ptr()) == AF_UNIX;
}

std::optional<double> patience(py::handle sock, py::handle timeout) {
    py::object given = py::reinterpret_borrow<py::object>(timeout);
    if (given.is_none() && PyObject_TypeCheck(sock.ptr(), socket_class)) {
        given = steal(PyObject_CallMethodNoArgs(sock.ptr(), names().gettimeout));
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
            PyObject_CallMethodNoArgs(fd.ptr(), names().fileno));
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

py::object owned_fd(forkfd::UniqueFd fd) {
    py::object held = steal(PyList_New(1));
    PyList_SET_ITEM(held.ptr(), 0, integer(fd.get()).release().ptr());
    py::object made = fd_class.make({std::move(held)});
    fd.release();
    return made;
}

std::vector<int> take_numbers(py::handle received) {
    const py::object fds = received_class.get(received, 1), pidfd = received_class.get(received, 4);
    std::vector<int> numbers;
    const auto take = [&numbers](PyObject* owner) {
        const py::object held = fd_class.get(owner, 0);
        // As Fd.close() does: of two that take the number, one gets it.
        const auto one =
            py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(held.ptr(), names().pop));
        if (one) numbers.push_back(static_cast<int>(PyLong_AsLong(one.ptr())));
        else PyErr_Clear();
    };
    const Py_ssize_t count = PyTuple_GET_SIZE(fds.ptr());
    numbers.reserve(static_cast<std::size_t>(count) + 1);
    for (Py_ssize_t i = 0; i < count; ++i) take(PyTuple_GET_ITEM(fds.ptr(), i));
    if (!pidfd.is_none()) take(pidfd.ptr());
    return numbers;
}

py::object credentials_object(const ucred& value) {
    return credentials_class.make({integer(value.pid), integer(value.uid), integer(value.gid)});
}

py::object received(forkfd::Receiving& from, const char* data) {
    std::vector<int>& numbers = from.fds.numbers;
    py::object fds = steal(PyTuple_New(static_cast<Py_ssize_t>(numbers.size())));
    for (std::size_t i = 0; i < numbers.size(); ++i) {
        forkfd::UniqueFd fd(std::exchange(numbers[i], -1));
        PyTuple_SET_ITEM(fds.ptr(), i, owned_fd(std::move(fd)).release().ptr());
    }
    numbers.clear();
    const auto size = static_cast<Py_ssize_t>(from.size());
    py::object made = received_class.make(
        {steal(PyBytes_FromStringAndSize(data, size)), std::move(fds), integer(from.flags),
         from.credentials ? credentials_object(*from.credentials) : py::none(),
         from.pidfd ? owned_fd(std::move(from.pidfd)) : py::none()});
    from.restart();
    return made;
}

void set_incomplete(const forkfd::Incomplete& error, forkfd::Receiving& from, const char* data) {
    const py::bytes came(data, from.size());
    from.restart();
    const py::object args = py::make_tuple(error.code().value(), error.what(), came, error.closed);
    PyErr_SetObject(error_class, args.ptr());
}

#include "bind/passed_values.h"

#include <array>

#include "bind/plain_call.h"

namespace py = pybind11;

namespace {

// A class with __slots__, whose instances are filled without its __init__, which would take
// longer than receiving a descriptor.
template <std::size_t N>
class SlotClass {
  public:
    void set(py::type type, const std::array<const char*, N>& slots) {
        for (std::size_t i = 0; i < N; ++i)
            members_[i] = py::object(type.attr(slots[i])).release().ptr();
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

// Never freed, as the module is.
SlotClass<1> fd_class;
SlotClass<5> received_class;
SlotClass<3> credentials_class;
PyObject* error_class;
PyObject* pop_name;  // interned

py::object integer(long value) { return steal(PyLong_FromLong(value)); }

}  // namespace

void register_values(py::type fd, py::type received, py::type credentials, py::type error) {
    fd_class.set(std::move(fd), {"_held"});
    received_class.set(std::move(received), {"data", "fds", "flags", "credentials", "pidfd"});
    credentials_class.set(std::move(credentials), {"pid", "uid", "gid"});
    error_class = error.release().ptr();
    pop_name = PyUnicode_InternFromString("pop");
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
        // As Fd.close() does: of two concurrent callers, one gets the number.
        const auto one =
            py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(held.ptr(), pop_name));
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

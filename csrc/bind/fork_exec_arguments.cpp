#include "bind/fork_exec_arguments.h"

#include <limits>

namespace py = pybind11;

void refuse(PyObject* type, const char* text) {
    PyErr_SetString(type, text);
    throw py::error_already_set();
}

std::string file_name(PyObject* value) {
    PyObject* bytes = nullptr;
    if (PyUnicode_FSConverter(value, &bytes) == 0) throw py::error_already_set();
    const auto owner = py::reinterpret_steal<py::object>(bytes);
    return {PyBytes_AS_STRING(bytes), static_cast<std::size_t>(PyBytes_GET_SIZE(bytes))};
}

std::string plain_bytes(PyObject* value) {
    char* data = nullptr;
    if (PyBytes_AsStringAndSize(value, &data, nullptr) != 0) throw py::error_already_set();
    return data;
}

std::vector<std::string> strings(const py::object& sequence, const char* complaint,
                                 std::string (*convert)(PyObject*)) {
    const auto fast = py::reinterpret_steal<py::object>(
        PySequence_Fast(sequence.ptr(), complaint));
    if (!fast) throw py::error_already_set();
    std::vector<std::string> converted;
    const Py_ssize_t count = PySequence_Fast_GET_SIZE(fast.ptr());
    converted.reserve(static_cast<std::size_t>(count));
    for (Py_ssize_t i = 0; i < count; ++i) {
        // A conversion may run Python code, which may shorten a list under us.
        if (PySequence_Fast_GET_SIZE(fast.ptr()) != count)
            refuse(PyExc_RuntimeError, "args changed during iteration");
        const auto item =
            py::reinterpret_borrow<py::object>(PySequence_Fast_GET_ITEM(fast.ptr(), i));
        converted.push_back(convert(item.ptr()));
    }
    return converted;
}

std::uint32_t id(const py::handle& value, const char* too_small, const char* too_large) {
    const auto index = py::reinterpret_steal<py::object>(PyNumber_Index(value.ptr()));
    if (!index) throw py::error_already_set();
    int overflow = 0;
    const long long number = PyLong_AsLongLongAndOverflow(index.ptr(), &overflow);
    if (overflow < 0 || (overflow == 0 && number < 0)) refuse(PyExc_OverflowError, too_small);
    if (overflow > 0 || number >= std::numeric_limits<std::uint32_t>::max())
        refuse(PyExc_OverflowError, too_large);
    return static_cast<std::uint32_t>(number);
}

std::vector<gid_t> group_ids(const py::object& groups) {
    if (!PyList_Check(groups.ptr()))
        refuse(PyExc_TypeError, "setgroups argument must be a list");
    std::vector<gid_t> ids;
    for (const py::handle group : groups) {
        if (!PyLong_Check(group.ptr())) refuse(PyExc_TypeError, "extra_groups must be integers");
        try {
            ids.push_back(id(group, "", ""));
        } catch (const py::error_already_set&) {
            refuse(PyExc_ValueError, "invalid group id");
        }
        if (ids.size() > 65536) refuse(PyExc_ValueError, "too many extra_groups");
    }
    return ids;
}

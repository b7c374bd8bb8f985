// Functions through CPython's own interface, where a call through pybind11 would take as long as
// the function itself.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <new>
#include <stdexcept>
#include <string>
#include <system_error>

// Releases the GIL; pybind11's class does more, and takes as long as the system call.
class WithoutGil {
  public:
    WithoutGil() : state_(PyEval_SaveThread()) {}
    ~WithoutGil() { PyEval_RestoreThread(state_); }
    WithoutGil(const WithoutGil&) = delete;
    WithoutGil& operator=(const WithoutGil&) = delete;

  private:
    PyThreadState* state_;
};

// Returns the result of `body`, a pybind11::object; or NULL, with its exception set in Python.
template <class Body>
PyObject* guarded(const Body& body) {
    try {
        return body().release().ptr();
    } catch (pybind11::error_already_set& error) {
        error.restore();
    } catch (const pybind11::builtin_exception& error) {
        error.set_error();
    } catch (const std::system_error& error) {
        const pybind11::object args = pybind11::make_tuple(error.code().value(), error.what());
        PyErr_SetObject(PyExc_OSError, args.ptr());
    } catch (const std::invalid_argument& error) {
        PyErr_SetString(PyExc_ValueError, error.what());
    } catch (const std::bad_alloc&) {
        PyErr_NoMemory();
    }
    return nullptr;
}

inline pybind11::object steal(PyObject* made) {
    if (made == nullptr) throw pybind11::error_already_set();
    return pybind11::reinterpret_steal<pybind11::object>(made);
}

inline std::uint64_t natural_of(PyObject* value) {
    const unsigned long long number = PyLong_AsUnsignedLongLong(value);  // TypeError, OverflowError
    if (number == static_cast<unsigned long long>(-1) && PyErr_Occurred() != nullptr)
        throw pybind11::error_already_set();
    return number;
}

// Parses (name=default, ...), by position or by name, without the tuple and the dictionary that
// PyArg_ParseTupleAndKeywords takes.
template <std::size_t N>
void named_numbers(const char* function, const char* const (&names)[N],
                   std::uint64_t (&values)[N], PyObject* const* args, Py_ssize_t count,
                   PyObject* keywords) {
    if (count > static_cast<Py_ssize_t>(N))
        throw pybind11::type_error(std::string(function) + ": too many arguments");
    for (Py_ssize_t i = 0; i < count; ++i) values[i] = natural_of(args[i]);
    const Py_ssize_t named = keywords == nullptr ? 0 : PyTuple_GET_SIZE(keywords);
    for (Py_ssize_t k = 0; k < named; ++k) {
        PyObject* const name = PyTuple_GET_ITEM(keywords, k);
        std::size_t i = static_cast<std::size_t>(count);
        while (i < N && PyUnicode_CompareWithASCIIString(name, names[i]) != 0) ++i;
        if (i == N)
            throw pybind11::type_error(std::string(function) + ": unknown or given twice: " +
                                       pybind11::cast<std::string>(pybind11::handle(name)));
        values[i] = natural_of(args[count + k]);
    }
}

template <class Function>
PyCFunction fast(Function function) {
    return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

// Functions of CPython's own interface, for where a call through pybind11 would take as long
// as what it calls.
#pragma once

#include <pybind11/pybind11.h>

#include <new>
#include <stdexcept>
#include <system_error>

// pybind11's does more than is wanted, for a call that takes as long as the kernel's.
class WithoutGil {
  public:
    WithoutGil() : state_(PyEval_SaveThread()) {}
    ~WithoutGil() { PyEval_RestoreThread(state_); }
    WithoutGil(const WithoutGil&) = delete;
    WithoutGil& operator=(const WithoutGil&) = delete;

  private:
    PyThreadState* state_;
};

// The result of `body`, a pybind11::object; or NULL, and its exception as Python's.
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

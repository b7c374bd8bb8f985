#include "bind/bindings.h"

#include <cstdlib>
#include <system_error>

#include "core/base/error.h"
#include "core/base/fault.h"

namespace py = pybind11;

// forkfd::SysError becomes _core.SysError(stage, errno, subject, text); the Python package makes
// a SpawnError of it, which names the program.  std::system_error, of all other calls, becomes
// OSError.
void bind_errors(py::module_& m) {
    static py::object* const type =
        new py::object(py::exception<forkfd::SysError>(m, "SysError"));
    py::register_exception_translator([](std::exception_ptr p) {
        try {
            if (p) std::rethrow_exception(p);
        } catch (const forkfd::SysError& e) {
            py::object args = py::make_tuple(
                forkfd::stage_name(e.stage()), e.err(),
                py::reinterpret_steal<py::object>(PyUnicode_DecodeFSDefaultAndSize(
                    e.subject().data(), static_cast<Py_ssize_t>(e.subject().size()))),
                forkfd::stage_text(e.stage()));
            PyErr_SetObject(type->ptr(), args.ptr());
        } catch (const std::system_error& e) {
            const py::object args = py::make_tuple(e.code().value(), e.what());
            PyErr_SetObject(PyExc_OSError, args.ptr());
        }
    });
    m.def("stages", [] {
        py::list names;
        for (int i = 1; i < static_cast<int>(forkfd::Stage::count); ++i)
            names.append(forkfd::stage_name(static_cast<forkfd::Stage>(i)));
        return names;
    }, "List the names of all stages of a spawn, in order.");
    m.def("inject_fault", [](const std::string& stage, int err) {
        forkfd::fault::slot() = {forkfd::stage_named(stage), err};
    }, py::arg("stage"), py::arg("errno"), "Test-only: make every spawn fail at this stage.");
    m.def("clear_fault", [] { forkfd::fault::slot() = forkfd::fault::Armed{}; },
          "Test-only: undo inject_fault().");
}

#include "bind/bindings.h"

#include <pybind11/stl.h>

#include "bind/at_fork_hooks.h"
#include "bind/plain_call.h"
#include "core/base/fork_page.h"

namespace py = pybind11;
using namespace forkfd::bind;

namespace {

FORKFD_IN_CHILD PyObject* child_hook(PyObject*, PyObject*) {
    return guarded(run_after<after_in_child>);
}

}  // namespace

void bind_at_fork(py::module_& m) {
    m.def("add_at_fork", &add_handlers, py::arg("functions"), py::arg("registration"),
          py::arg("order"), "Add (before, after_in_parent, after_in_child); return their id.");
    m.def("remove_at_fork", &remove_handlers, py::arg("number"), py::pos_only(),
          "Remove handlers by their id; return False if no handler has it.");
    m.def("at_fork_handlers", &all_handlers,
          "List the handlers in order: (registration, and for each phase calls, failures, ns in "
          "all, ns of the longest).");
    // For os.register_at_fork().  Not through pybind11, whose call writes to pages that every
    // fork has left protected, with or without a handler.
    static PyMethodDef hooks[] = {
        {"run_before", [](PyObject*, PyObject*) { return guarded(run_before); }, METH_NOARGS,
         nullptr},
        {"run_after_in_parent",
         [](PyObject*, PyObject*) { return guarded(run_after<after_in_parent>); }, METH_NOARGS,
         nullptr},
        {"run_after_in_child", child_hook, METH_NOARGS, nullptr},
    };
    for (PyMethodDef& hook : hooks)
        m.attr(hook.ml_name) = steal(PyCFunction_NewEx(&hook, nullptr, nullptr));
}

// ProcessBase, what a Process knows of its child: a type of CPython's own, since after a fork
// each page that is written costs a page fault, and this is one place.
#pragma once

#include <pybind11/pybind11.h>

#include <sys/types.h>

void add_process_type(pybind11::module_& m);

// Of `type`, a class made from ProcessBase, without its __init__: a child that is not there
// yet, of backend "fork".
pybind11::object make_forked(PyTypeObject* type);
// It is there.  pidfd is taken; -1: somebody else has reaped it already.
void set_forked(PyObject* process, pid_t pid, int pidfd) noexcept;

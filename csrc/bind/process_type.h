// ProcessBase, the part of a Process that holds its child: a type of CPython's own, since after a
// fork each page that is written costs a page fault, and this type is in one place.
#pragma once

#include <pybind11/pybind11.h>

#include <sys/types.h>

void add_process_type(pybind11::module_& m);

// Makes an instance of `type`, a class derived from ProcessBase, without its __init__: a child
// that does not exist yet, of backend "fork".
pybind11::object make_forked(PyTypeObject* type);
// Sets the child.  Takes the pidfd; -1: another caller has reaped the child already.
void set_forked(PyObject* process, pid_t pid, int pidfd) noexcept;

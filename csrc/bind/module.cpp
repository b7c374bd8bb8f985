#include "bind/bindings.h"

PYBIND11_MODULE(_core, m) {
    m.doc() = "Native core of pyforkfd; use the names of the package pyforkfd instead.";
    bind_fd_plan(m);
}

#pragma once

#include <pybind11/pybind11.h>

void bind_fd_plan(pybind11::module_& m);

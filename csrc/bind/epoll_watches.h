// Entries of an epoll as dicts with the arguments of the Python class EpollWatch.
#pragma once

#include <pybind11/pybind11.h>

#include <vector>

#include "core/descriptors/fd_details.h"

pybind11::list epoll_watches(const std::vector<forkfd::EpollWatch>& watches);

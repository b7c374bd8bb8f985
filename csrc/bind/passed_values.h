// Received data and descriptors, as instances of the package's own classes.
#pragma once

#include <pybind11/pybind11.h>

#include <vector>

#include "core/passing/fd_passing.h"

// Returns a Received, which owns all descriptors from then on.
pybind11::object received(forkfd::Receiving& from, const char* data);
pybind11::object owned_fd(forkfd::UniqueFd fd);
// Takes the descriptors of a Received that are neither closed nor detached; the caller owns them.
std::vector<int> take_numbers(pybind11::handle received);
pybind11::object credentials_object(const ucred& value);

// Sets PassingError and clears `from`.
void set_incomplete(const forkfd::Incomplete& error, forkfd::Receiving& from, const char* data);

// Sets the classes Fd, Received, Credentials and PassingError of the package.
void register_values(pybind11::type fd, pybind11::type received, pybind11::type credentials,
                     pybind11::type error);

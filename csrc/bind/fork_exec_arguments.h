// The arguments of _posixsubprocess.fork_exec, checked as CPython checks them: the errors are
// its own, word for word.
#pragma once

#include <pybind11/pybind11.h>

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

[[noreturn]] void refuse(PyObject* type, const char* text);

std::string file_name(PyObject* value);    // os.fsencode() of a str, bytes or path
std::string plain_bytes(PyObject* value);  // of bytes without a NUL
std::vector<std::string> strings(const pybind11::object& sequence, const char* complaint,
                                 std::string (*convert)(PyObject*));
// Reads a user or group id; OverflowError with one of the texts.
std::uint32_t id(const pybind11::handle& value, const char* too_small, const char* too_large);
std::vector<gid_t> group_ids(const pybind11::object& groups);

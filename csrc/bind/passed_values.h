// The Python values of passing: what is sent as the core wants it, what was received as
// instances of the package's own classes.
#pragma once

#include <pybind11/pybind11.h>

#include <optional>
#include <vector>

#include "core/fd_passing.h"

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

// bytes-like, or an iterable of such, held while it is being sent.
class Buffers {
  public:
    explicit Buffers(pybind11::handle data);
    ~Buffers();
    Buffers(const Buffers&) = delete;
    Buffers& operator=(const Buffers&) = delete;
    std::vector<iovec> pieces() const;
    std::size_t size() const;

  private:
    std::vector<Py_buffer> views_;
};

// Numbers of borrowed descriptors, and whatever has them.
class Borrowed {
  public:
    explicit Borrowed(pybind11::handle fds);  // an iterable
    std::vector<int> numbers;

  private:
    pybind11::object held_;
};

int borrowed_number(pybind11::handle fd, const char* what);
std::optional<ucred> credentials_of(pybind11::handle value);  // None: none

// Gives all descriptors away to the object that is returned.
pybind11::object received(forkfd::Receiving& from, const char* data);
pybind11::object owned_fd(forkfd::UniqueFd fd);
// Those of a Received that are neither closed nor detached; the caller's now.
std::vector<int> take_numbers(pybind11::handle received);
pybind11::object credentials_object(const ucred& value);

// Sets PassingError and clears `from`.
void set_incomplete(const forkfd::Incomplete& error, forkfd::Receiving& from, const char* data);

// Seconds; std::nullopt: as the socket itself is.  For None a socket.socket is asked.
std::optional<double> patience(pybind11::handle sock, pybind11::handle timeout);

// A socket.socket that says so; others may be one too.
bool is_unix(pybind11::handle sock);

// Fd, Received, Credentials and PassingError of the package, and socket.socket.
void register_passing(pybind11::type fd, pybind11::type received, pybind11::type credentials,
                      pybind11::type error, pybind11::type socket);

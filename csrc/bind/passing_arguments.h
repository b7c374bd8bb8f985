// What is to be sent, and over what, as the core wants it.
#pragma once

#include <pybind11/pybind11.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <optional>
#include <vector>

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

// Seconds; std::nullopt: as the socket itself is.  For None a socket.socket is asked.
std::optional<double> patience(pybind11::handle sock, pybind11::handle timeout);

// A socket.socket that says so; others may be one too.
bool is_unix(pybind11::handle sock);

void register_socket(pybind11::type socket);  // socket.socket

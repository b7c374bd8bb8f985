// Python arguments of sending: data, descriptors, socket, converted for the core.
#pragma once

#include <pybind11/pybind11.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <optional>
#include <vector>

// A bytes-like object, or an iterable of such; held while it is being sent.
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

// Numbers of borrowed descriptors, and references to the objects that own them.
class Borrowed {
  public:
    explicit Borrowed(pybind11::handle fds);  // an iterable
    std::vector<int> numbers;

  private:
    pybind11::object held_;
};

int borrowed_number(pybind11::handle fd, const char* what);
std::optional<ucred> credentials_of(pybind11::handle value);  // None: none

// The timeout in seconds; std::nullopt: block as the socket does.  None: the timeout of a
// socket.socket.
std::optional<double> timeout_of(pybind11::handle sock, pybind11::handle timeout);

// Whether it is a socket.socket of AF_UNIX; other objects may be UNIX sockets too.
bool is_unix(pybind11::handle sock);

void register_socket(pybind11::type socket);  // socket.socket

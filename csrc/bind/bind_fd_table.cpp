#include "bind/bindings.h"

#include <arpa/inet.h>
#include <linux/netlink.h>
#include <linux/vm_sockets.h>
#include <netinet/in.h>
#include <pybind11/stl.h>
#include <sys/socket.h>

#include <cstring>

#include "bind/epoll_watches.h"
#include "core/descriptors/fd_table.h"

namespace py = pybind11;
using namespace py::literals;

namespace {

py::object decoded(const std::string& name) {
    PyObject* text = PyUnicode_DecodeFSDefaultAndSize(name.data(),
                                                      static_cast<Py_ssize_t>(name.size()));
    if (text == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(text);
}

template <class Sockaddr>
Sockaddr as(const std::string& raw) {
    Sockaddr a = {};
    std::memcpy(&a, raw.data(), std::min(raw.size(), sizeof a));
    return a;
}

py::object unix_name(const std::string& name) {
    if (!name.empty() && name.front() == '\0') return py::bytes(name);
    return decoded(name.substr(0, name.find('\0')));
}

// The address as the socket module returns it.
py::object address(const std::string& raw) {
    if (raw.size() < sizeof(sa_family_t)) return py::none();
    char host[INET6_ADDRSTRLEN] = "";
    switch (as<sockaddr>(raw).sa_family) {
        case AF_INET: {
            const auto a = as<sockaddr_in>(raw);
            ::inet_ntop(AF_INET, &a.sin_addr, host, sizeof host);
            return py::make_tuple(host, ntohs(a.sin_port));
        }
        case AF_INET6: {
            const auto a = as<sockaddr_in6>(raw);
            ::inet_ntop(AF_INET6, &a.sin6_addr, host, sizeof host);
            return py::make_tuple(host, ntohs(a.sin6_port), ntohl(a.sin6_flowinfo),
                                  a.sin6_scope_id);
        }
        case AF_UNIX: return unix_name(raw.substr(sizeof(sa_family_t)));
        case AF_NETLINK: {
            const auto a = as<sockaddr_nl>(raw);
            return py::make_tuple(a.nl_pid, a.nl_groups);
        }
        case AF_VSOCK: {
            const auto a = as<sockaddr_vm>(raw);
            return py::make_tuple(a.svm_cid, a.svm_port);
        }
        default: return py::bytes(raw);
    }
}

// The arguments of the Python class of the same name.
struct Fields {
    py::object operator()(const std::monostate&) const { return py::none(); }
    py::object operator()(const forkfd::FileDetails& d) const {
        return py::dict("size"_a = d.size, "links"_a = d.links);
    }
    py::object operator()(const forkfd::PipeDetails& d) const {
        return py::dict("capacity"_a = d.capacity, "unread"_a = d.unread);
    }
    py::object operator()(const forkfd::SocketDetails& d) const {
        return py::dict("family"_a = d.family, "type"_a = d.type, "protocol"_a = d.protocol,
                        "local"_a = address(d.local), "peer"_a = address(d.peer),
                        "listening"_a = d.listening, "backlog"_a = d.backlog,
                        "waiting"_a = d.waiting);
    }
    py::object operator()(const forkfd::EpollDetails& d) const {
        return py::dict("watches"_a = epoll_watches(d.watches));
    }
    py::object operator()(const forkfd::EventfdDetails& d) const {
        return py::dict("count"_a = d.count, "id"_a = d.id, "semaphore"_a = d.semaphore);
    }
    py::object operator()(const forkfd::TimerfdDetails& d) const {
        return py::dict("clock"_a = d.clock, "ticks"_a = d.ticks,
                        "remaining_ns"_a = d.remaining_ns, "interval_ns"_a = d.interval_ns);
    }
    py::object operator()(const forkfd::SignalfdDetails& d) const {
        return py::dict("mask"_a = d.mask);
    }
    py::object operator()(const forkfd::InotifyDetails& d) const {
        py::list watches;
        for (const forkfd::InotifyWatch& w : d.watches)
            watches.append(py::dict("watch"_a = w.watch, "mask"_a = w.mask, "inode"_a = w.inode,
                                    "device"_a = w.device));
        return py::dict("watches"_a = watches);
    }
    py::object operator()(const forkfd::PidfdDetails& d) const { return py::dict("pid"_a = d.pid); }
    py::object operator()(const forkfd::MemfdDetails& d) const {
        return py::dict("size"_a = d.size, "seals"_a = d.seals);
    }
};

py::list fd_table(pid_t pid) {
    forkfd::FdTable table;
    {
        const py::gil_scoped_release release;
        table = forkfd::fd_table(pid);
    }
    std::vector<py::tuple> open_files;
    for (const std::vector<int>& numbers : table.open_files)
        open_files.emplace_back(py::tuple(py::cast(numbers)));
    py::list rows;
    for (const forkfd::FdRow& row : table.rows) {
        const bool seen = row.stat.mode != 0;
        rows.append(py::make_tuple(
            row.number, row.kind, decoded(row.target), row.cloexec, row.flags, row.offset,
            seen ? py::object(py::int_(row.stat.device)) : py::none(),
            seen ? py::object(py::int_(row.stat.inode)) : py::none(),
            std::visit(Fields{}, row.details),
            row.open_file < 0 ? py::none()
                              : py::object(open_files[static_cast<std::size_t>(row.open_file)])));
    }
    return rows;
}

}  // namespace

void bind_fd_table(py::module_& m) {
    m.def("fd_table", &fd_table, py::arg("pid"), py::pos_only(),
          "List (number, kind, target, cloexec, flags, offset, device, inode, fields of the "
          "details, numbers of the same open file); pid 0 is the calling thread.");
}

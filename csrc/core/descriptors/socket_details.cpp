#include "core/descriptors/socket_details.h"

#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <linux/unix_diag.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <vector>

#include "core/base/unique_fd.h"

namespace forkfd {

namespace {

using Sockets = std::unordered_map<std::uint64_t, SocketDetails>;

// TCP_LISTEN of net/tcp_states.h, which UNIX sockets use as well.
constexpr int kListening = 10;

int option(int fd, int level, int name) {
    int value = -1;
    socklen_t size = sizeof value;
    return ::getsockopt(fd, level, name, &value, &size) == 0 ? value : -1;
}

template <class Call>
std::string address(Call call, int fd) {
    sockaddr_storage storage;
    socklen_t size = sizeof storage;
    auto* const at = reinterpret_cast<sockaddr*>(&storage);
    if (call(fd, at, &size) != 0 || size > sizeof storage) return {};
    return std::string(reinterpret_cast<const char*>(at), size);
}

template <class Sockaddr>
std::string bytes_of(const Sockaddr& a) {
    return std::string(reinterpret_cast<const char*>(&a), sizeof a);
}

std::string inet_address(int family, const __be32* words, __be16 port, unsigned interface) {
    if (family == AF_INET) {
        sockaddr_in a = {};
        a.sin_family = AF_INET;
        a.sin_port = port;
        std::memcpy(&a.sin_addr, words, sizeof a.sin_addr);
        return bytes_of(a);
    }
    sockaddr_in6 a = {};
    a.sin6_family = AF_INET6;
    a.sin6_port = port;
    std::memcpy(&a.sin6_addr, words, sizeof a.sin6_addr);
    if (IN6_IS_ADDR_LINKLOCAL(&a.sin6_addr)) a.sin6_scope_id = interface;
    return bytes_of(a);
}

std::string unix_address(const std::string& name) {
    const sa_family_t family = AF_UNIX;
    return std::string(reinterpret_cast<const char*>(&family), sizeof family) + name;
}

// Sends one request for a dump and calls `each` for every reply.  An error ends it: a kernel
// without that family has no socket of it.
template <class Request, class Handler>
void dump(int netlink, const Request& request, Handler each) {
    struct {
        nlmsghdr header;
        Request request;
    } message = {};
    message.header.nlmsg_len = sizeof message;
    message.header.nlmsg_type = SOCK_DIAG_BY_FAMILY;
    message.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
    message.request = request;
    if (::send(netlink, &message, sizeof message, 0) < 0) return;
    std::vector<char> buffer(65536);
    for (;;) {
        const ssize_t got = ::recv(netlink, buffer.data(), buffer.size(), 0);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return;
        auto left = static_cast<unsigned>(got);
        for (auto* h = reinterpret_cast<nlmsghdr*>(buffer.data()); NLMSG_OK(h, left);
             h = NLMSG_NEXT(h, left)) {
            if (h->nlmsg_type == NLMSG_DONE || h->nlmsg_type == NLMSG_ERROR) return;
            each(h);
        }
    }
}

void dump_inet(int netlink, int family, int protocol, Sockets& found) {
    inet_diag_req_v2 request = {};
    request.sdiag_family = static_cast<std::uint8_t>(family);
    request.sdiag_protocol = static_cast<std::uint8_t>(protocol);
    request.idiag_states = ~0U;
    dump(netlink, request, [&](nlmsghdr* h) {
        const auto* m = static_cast<const inet_diag_msg*>(NLMSG_DATA(h));
        if (m->idiag_inode == 0) return;  // TIME_WAIT, or not accepted yet: no descriptor
        SocketDetails s;
        s.family = family;
        s.type = protocol == IPPROTO_TCP ? SOCK_STREAM : SOCK_DGRAM;
        s.protocol = protocol;
        s.local = inet_address(family, m->id.idiag_src, m->id.idiag_sport, m->id.idiag_if);
        s.listening = protocol == IPPROTO_TCP && m->idiag_state == kListening;
        if (s.listening) {
            s.waiting = m->idiag_rqueue;
            s.backlog = m->idiag_wqueue;
        } else if (m->id.idiag_dport != 0) {
            s.peer = inet_address(family, m->id.idiag_dst, m->id.idiag_dport, m->id.idiag_if);
        }
        found.emplace(m->idiag_inode, std::move(s));
    });
}

void dump_unix(int netlink, Sockets& found) {
    unix_diag_req request = {};
    request.sdiag_family = AF_UNIX;
    request.udiag_states = ~0U;
    request.udiag_show =
        UDIAG_SHOW_NAME | UDIAG_SHOW_PEER | UDIAG_SHOW_ICONS | UDIAG_SHOW_RQLEN;
    std::unordered_map<std::uint64_t, std::uint64_t> peers;
    dump(netlink, request, [&](nlmsghdr* h) {
        const auto* m = static_cast<const unix_diag_msg*>(NLMSG_DATA(h));
        SocketDetails s;
        s.family = AF_UNIX;
        s.type = m->udiag_type;
        s.listening = m->udiag_state == kListening;
        s.local = unix_address({});
        if (m->udiag_ino == 0) return;  // not accepted yet: no descriptor
        auto left = static_cast<unsigned>(h->nlmsg_len - NLMSG_LENGTH(sizeof *m));
        for (const auto* a = reinterpret_cast<const rtattr*>(m + 1); RTA_OK(a, left);
             a = RTA_NEXT(a, left)) {
            const auto* data = static_cast<const char*>(RTA_DATA(a));
            if (a->rta_type == UNIX_DIAG_NAME) {
                s.local = unix_address(std::string(data, RTA_PAYLOAD(a)));
            } else if (a->rta_type == UNIX_DIAG_PEER) {
                std::uint32_t peer;
                std::memcpy(&peer, data, sizeof peer);
                if (peer != 0) peers.emplace(m->udiag_ino, peer);
            } else if (a->rta_type == UNIX_DIAG_ICONS) {
                // The waiting clients: the peer of each has the listener's name.
                for (std::size_t at = 0; at + sizeof(std::uint32_t) <= RTA_PAYLOAD(a);
                     at += sizeof(std::uint32_t)) {
                    std::uint32_t client;
                    std::memcpy(&client, data + at, sizeof client);
                    if (client != 0) peers.emplace(client, m->udiag_ino);
                }
            } else if (a->rta_type == UNIX_DIAG_RQLEN && s.listening) {
                unix_diag_rqlen queue;
                std::memcpy(&queue, data, sizeof queue);
                s.waiting = queue.udiag_rqueue;
                s.backlog = queue.udiag_wqueue;
            }
        }
        found.emplace(m->udiag_ino, std::move(s));
    });
    for (const auto& [inode, peer] : peers)
        if (const auto other = found.find(peer); other != found.end())
            found[inode].peer = other->second.local;
}

}  // namespace

std::optional<SocketDetails> socket_details(int fd) {
    SocketDetails s;
    s.family = option(fd, SOL_SOCKET, SO_DOMAIN);
    if (s.family < 0) return std::nullopt;
    s.type = option(fd, SOL_SOCKET, SO_TYPE);
    s.protocol = option(fd, SOL_SOCKET, SO_PROTOCOL);
    s.listening = option(fd, SOL_SOCKET, SO_ACCEPTCONN) == 1;
    s.local = address(::getsockname, fd);
    s.peer = address(::getpeername, fd);
    if (s.listening && s.protocol == IPPROTO_TCP) {
        // For a listener these two describe its queue: tcp_get_info() in net/ipv4/tcp.c.
        tcp_info info;
        socklen_t size = sizeof info;
        if (::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) == 0) {
            s.waiting = info.tcpi_unacked;
            s.backlog = info.tcpi_sacked;
        }
    }
    return s;
}

const SocketDetails* SockDiag::find(std::uint64_t inode) {
    if (!dumped_) {
        dumped_ = true;
        const UniqueFd netlink(
            ::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG));
        if (!netlink) return nullptr;
        for (const int family : {AF_INET, AF_INET6})
            for (const int protocol : {IPPROTO_TCP, IPPROTO_UDP})
                dump_inet(netlink.get(), family, protocol, sockets_);
        dump_unix(netlink.get(), sockets_);
    }
    const auto at = sockets_.find(inode);
    return at == sockets_.end() ? nullptr : &at->second;
}

}  // namespace forkfd

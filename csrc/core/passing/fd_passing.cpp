#include "core/passing/fd_passing.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <stdexcept>

#include "core/base/raw_syscall.h"
#include "core/descriptors/descriptor.h"
#include "core/passing/transfer_marker.h"
#include "core/passing/unwanted.h"

namespace forkfd {

namespace {

std::string not_open(int fd) { return "descriptor " + std::to_string(fd) + " to pass"; }

std::string count_of(std::size_t n) {
    return std::to_string(n) + (n == 1 ? " descriptor" : " descriptors");
}

// Returns -errno on failure, as the kernel does.
ssize_t send_message(int sock, const iovec* data, std::size_t pieces, int marker, const int* fds,
                     unsigned count, const std::optional<ucred>& credentials,
                     int flags) noexcept {
    alignas(ControlHeader) unsigned char control[kControlSpace];
    std::size_t used = 0;
    const auto add = [&](int type, std::size_t size) {
        const ControlHeader header = {CMSG_LEN(size), SOL_SOCKET, type};
        std::memcpy(control + used, &header, sizeof header);
        unsigned char* const at = control + used + sizeof header;
        used += CMSG_SPACE(size);
        return at;
    };
    if (const unsigned all = count + (marker >= 0); all > 0) {
        unsigned char* at = add(SCM_RIGHTS, all * sizeof(int));
        if (marker >= 0) {
            std::memcpy(at, &marker, sizeof marker);
            at += sizeof marker;
        }
        std::memcpy(at, fds, count * sizeof(int));
    }
    if (credentials)
        std::memcpy(add(SCM_CREDENTIALS, sizeof(ucred)), &*credentials, sizeof(ucred));
    msghdr message = {};
    message.msg_iov = const_cast<iovec*>(data);
    message.msg_iovlen = pieces;
    message.msg_control = used > 0 ? control : nullptr;
    message.msg_controllen = used;
    const ssize_t sent = ::sendmsg(sock, &message, flags | MSG_NOSIGNAL);
    return sent < 0 ? -errno : sent;
}

ssize_t receive_message(int sock, iovec buffer, int flags, int& got, Control& control) noexcept {
    alignas(ControlHeader) unsigned char bytes[kControlSpace];
    msghdr message = {};
    message.msg_iov = &buffer;
    message.msg_iovlen = 1;
    message.msg_control = bytes;
    // Space for all that can come: what does not fit the kernel closes, which may wait (unwanted.h).
    message.msg_controllen = sizeof bytes;
    // MSG_TRUNC: the whole length of the datagram is returned.
    const ssize_t size = ::recvmsg(sock, &message, flags | MSG_CMSG_CLOEXEC | MSG_TRUNC);
    if (size < 0) return -errno;
    got = message.msg_flags & ~MSG_CMSG_CLOEXEC;
    parse_control(bytes, message.msg_controllen, control);
    return size;
}

int option(int sock, int name) {
    int value = 0;
    socklen_t size = sizeof value;
    return ::getsockopt(sock, SOL_SOCKET, name, &value, &size) == 0 ? value : -1;
}

std::size_t size_of(const std::vector<iovec>& data) {
    std::size_t size = 0;
    for (const iovec& piece : data) size += piece.iov_len;
    return size;
}

}  // namespace

void close_fds(int* fds, std::size_t count) noexcept {
    std::sort(fds, fds + count);
    std::size_t i = 0;
    while (i < count && fds[i] < 0) ++i;  // taken by the caller meanwhile
    while (i < count) {
        std::size_t end = i + 1;
        while (end < count && fds[end] == fds[end - 1] + 1) ++end;
        // Numbers in between belong to others: only consecutive ones are closed together.
        if (end - i == 1 || raw::call(raw::nr_close_range, fds[i], fds[end - 1], 0) != 0)
            for (std::size_t k = i; k < end; ++k) ::close(fds[k]);
        i = end;
    }
}

void FdList::close_all() noexcept {
    close_fds(numbers.data(), numbers.size());
    numbers.clear();
}

Sending::Sending(std::vector<iovec> data, const int* fds, std::size_t count,
                 const ucred* credentials, bool unix_socket)
    : unix_socket_(unix_socket), data_(std::move(data)), fds_(fds), count_(count) {
    if (credentials != nullptr) credentials_ = *credentials;
    if (count_ <= kMessageFds) return;
    // A closed one among them would get the marker's number, and the marker be sent in its place.
    for (std::size_t i = 0; i < count_; ++i)
        if (::fcntl(fds_[i], F_GETFD) < 0) throw_errno(errno, not_open(fds_[i]));
    marker_ = make_marker(count_);
    if (!marker_) throw_errno(errno, "mark " + count_of(count_) + " as one transfer: memfd");
}

Progress Sending::advance(int sock, int flags) {
    if (count_ > 0) demand_carrier(sock);
    for (;;) {
        const std::size_t left = count_ - sent_;
        const bool last = left <= (marker_ ? kPieceFds : kMessageFds);
        const auto count = static_cast<unsigned>(last ? left : kPieceFds);
        char nothing = 0;
        const iovec filler = {&nothing, 1};
        const ssize_t sent =
            send_message(sock, last ? data_.data() : &filler, last ? data_.size() : 1,
                         marker_.get(), fds_ + (sent_ - first_), count, credentials_, flags);
        if (sent == -EAGAIN || sent == -EWOULDBLOCK) return Progress::would_block;
        if (sent == -EINTR) return Progress::interrupted;
        if (sent < 0) fail(sock, static_cast<int>(-sent));
        sent_ += count;
        if (!last) continue;
        bytes_sent_ = static_cast<std::size_t>(sent);
        return Progress::done;
    }
}

// Throws where the kernel would drop the descriptors without an error.
void Sending::demand_carrier(int sock) const {
    if (!unix_socket_ && option(sock, SO_DOMAIN) != AF_UNIX && ::fcntl(sock, F_GETFD) >= 0)
        throw_errno(option(sock, SO_DOMAIN) < 0 ? errno : EAFNOSUPPORT,
                    "send descriptors over " + std::to_string(sock) + ": not a Unix socket");
    if (size_of(data_) == 0 && option(sock, SO_TYPE) == SOCK_STREAM)
        throw std::invalid_argument("send descriptors: a stream carries them only with data");
}

void Sending::fail(int sock, int err) const {
    std::string what = "send over socket " + std::to_string(sock) + ": ";
    if (err == EBADF && ::fcntl(sock, F_GETFD) >= 0)
        for (std::size_t i = sent_; i < count_; ++i)
            if (::fcntl(fds_[i - first_], F_GETFD) < 0)
                throw_errno(err, what + not_open(fds_[i - first_]));
    if (err == EMSGSIZE)
        what += "a message of " + std::to_string(size_of(data_)) + " bytes, SO_SNDBUF is " +
                std::to_string(option(sock, SO_SNDBUF)) + ": ";
    if (err == ETOOMANYREFS)
        what += "descriptors in flight, not received yet, have reached RLIMIT_NOFILE, or sockets "
                "are nested too deeply in sockets: ";
    if (begun())
        what += "after " + std::to_string(sent_) + " of " + count_of(count_) +
                "; close this socket, the transfer cannot be finished: ";
    what.resize(what.size() - 2);
    throw_errno(err, what);
}

void Sending::keep() {
    FdList kept;
    kept.numbers.reserve(count_ - sent_);
    for (std::size_t i = sent_; i < count_; ++i) {
        const int fd = ::fcntl(fds_[i - first_], F_DUPFD_CLOEXEC, 0);
        if (fd < 0) throw_errno(errno, "duplicate descriptor " + std::to_string(fds_[i - first_]));
        kept.numbers.push_back(fd);
    }
    std::string data;
    data.reserve(size_of(data_));
    for (const iovec& piece : data_) data.append(static_cast<char*>(piece.iov_base), piece.iov_len);
    kept_ = std::move(kept);
    kept_data_ = std::move(data);
    fds_ = kept_.numbers.data();
    first_ = sent_;
    data_ = {{kept_data_.data(), kept_data_.size()}};
}

Progress Receiving::advance(int sock, int flags) {
    for (;;) {
        const std::size_t left = total_ - fds.numbers.size();  // of a transfer
        const bool last = !begun() || left <= kPieceFds;
        const auto expected = static_cast<unsigned>(std::min<std::size_t>(left, kPieceFds) + 1);
        char filler;
        const iovec into = last ? iovec{buffer_ + size_, capacity_ - size_} : iovec{&filler, 1};
        const std::size_t before = fds.numbers.size();
        int got = 0;
        Control control;
        // Before receiving: std::bad_alloc must not lose descriptors.
        fds.numbers.reserve(before + control.fds.size());
        const ssize_t bytes = receive_message(sock, into, flags, got, control);
        if (bytes == -EAGAIN || bytes == -EWOULDBLOCK) return Progress::would_block;
        if (bytes == -EINTR) return Progress::interrupted;
        if (bytes < 0) {
            restart();
            throw_errno(static_cast<int>(-bytes), "receive from socket " + std::to_string(sock));
        }
        fds.numbers.insert(fds.numbers.end(), control.fds.begin(),
                           control.fds.begin() + control.count);
        if (control.has_pidfd) pidfd = UniqueFd(control.pidfd);
        if (control.has_credentials) credentials = control.credentials;
        this->flags = got;
        if (last) size_ += std::min(static_cast<std::size_t>(bytes), into.iov_len);

        check_control(sock, control);
        if (begun()) check_piece(expected, control, static_cast<std::size_t>(bytes), before);
        if ((got & MSG_TRUNC) != 0 && (flags & MSG_TRUNC) == 0)
            lose(EMSGSIZE, "a message of " + std::to_string(bytes) +
                               " bytes came, the buffer has " + std::to_string(into.iov_len));
        if (!begun()) {
            if (begin(flags, control)) continue;
            return Progress::done;
        }
        ::close(fds.numbers[before]);  // the same marker again
        fds.numbers.erase(fds.numbers.begin() + static_cast<std::ptrdiff_t>(before));
        if (last) return Progress::done;
    }
}

// Throws if the kernel dropped anything; it reports that here or nowhere.
void Receiving::check_control(int sock, const Control& control) {
    const bool cut = (flags & MSG_CTRUNC) != 0;
    if (control.malformed && cut)
        lose(EMSGSIZE, "other control messages, which the socket enables, do not fit");
    if (control.malformed) lose(EPROTO, "control messages that no kernel writes");
    if ((control.has_pidfd && control.pidfd == -EMFILE) || (cut && control.count < kMessageFds)) {
        const UniqueFd another(::fcntl(sock, F_DUPFD_CLOEXEC, 0));
        rlimit limit = {};
        ::getrlimit(RLIMIT_NOFILE, &limit);
        const std::string came = count_of(fds.numbers.size()) + " came, then ";
        if (another) lose(EACCES, came + "one was refused, by a security module?");
        lose(EMFILE, came + "RLIMIT_NOFILE (" + std::to_string(limit.rlim_cur) + ") was reached");
    }
    if (!begun() && (cut || control.count > max_fds_))
        lose(EMSGSIZE, "more descriptors came than max_fds, which is " + std::to_string(max_fds_));
}

// Returns whether a transfer begins with this message.
bool Receiving::begin(int flags, const Control& control) {
    if (control.count != kMessageFds) return false;
    const auto total = read_marker(fds.numbers.front());
    if (!total) return false;
    if (size_ > 0) --size_;  // the filler; data of a stream before it stays
    if (*total > max_fds_)
        lose(EMSGSIZE, count_of(*total) + " are being sent, max_fds is " +
                           std::to_string(max_fds_) + "; close this socket, the rest is in it");
    if ((flags & MSG_PEEK) != 0)
        lose(EINVAL, "MSG_PEEK of " + std::to_string(*total) +
                         " descriptors, which come in several messages");
    marker_ = UniqueFd(fds.numbers.front());
    fds.numbers.erase(fds.numbers.begin());
    total_ = static_cast<std::size_t>(*total);
    return true;
}

void Receiving::check_piece(unsigned expected, const Control& control, std::size_t bytes,
                            std::size_t before) {
    const std::string so_far = "after " + std::to_string(before) + " of " + count_of(total_);
    if (control.count == 0 && bytes == 0) lose(ECONNRESET, so_far + " the sender was gone");
    if (control.count != expected || (flags & MSG_CTRUNC) != 0 ||
        !same_marker(fds.numbers[before], marker_.get()))
        lose(EPROTO, so_far + " another message came: send from one place at a time");
}

void Receiving::lose(int err, const std::string& what) {
    const std::size_t closed = fds.numbers.size();
    const std::size_t size = size_;
    restart();
    size_ = size;
    throw Incomplete(err, "receive descriptors: " + what, closed);
}

void Receiving::restart() noexcept {
    discard_fds(fds.numbers.data(), fds.numbers.size());
    fds.numbers.clear();
    pidfd.reset();
    marker_.reset();
    credentials.reset();
    total_ = size_ = 0;
    flags = 0;
}

int wait_ready(int fd, short events, int timeout_ms) noexcept {
    pollfd p = {fd, events, 0};
    return ::poll(&p, 1, timeout_ms);
}

}  // namespace forkfd

// Descriptors over sockets, without Python: the parser, messages, transfers.
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <thread>

#include "core/passing/fd_passing.h"
#include "core/passing/transfer_marker.h"
#include "support.h"

using namespace support;
using forkfd::Control;
using forkfd::ControlHeader;
using forkfd::Incomplete;
using forkfd::Progress;
using forkfd::Receiving;
using forkfd::Sending;
using forkfd::UniqueFd;

namespace {

struct Pair {
    explicit Pair(int type) {
        int ends[2];
        CHECK_EQ(::socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, ends), 0);
        one = UniqueFd(ends[0]);
        other = UniqueFd(ends[1]);
    }
    UniqueFd one, other;
};

struct Bytes {
    unsigned char data[1024] = {};
    std::size_t size = 0;

    void add(int level, int type, const void* body, std::size_t length, std::size_t claimed) {
        const ControlHeader header = {sizeof header + claimed, level, type};
        std::memcpy(data + size, &header, sizeof header);
        if (length > 0) std::memcpy(data + size + sizeof header, body, length);
        size += CMSG_SPACE(length);
    }
    void add(int type, const void* body, std::size_t length) {
        add(SOL_SOCKET, type, body, length, length);
    }
    Control parsed() const {
        Control control;
        forkfd::parse_control(data, size, control);
        return control;
    }
};

void send_all(int sock, std::size_t count, std::string data) {
    const std::vector<int> fds(count, sock);
    Sending sending({{data.data(), data.size()}}, fds.data(), count, nullptr);
    CHECK(sending.advance(sock, 0) == Progress::done);
    CHECK_EQ(sending.bytes_sent(), data.size());
}

void passes(int type, std::size_t count) {
    const Pair pair(type);
    std::thread sender([&] { send_all(pair.one.get(), count, "data"); });
    char buffer[100];
    Receiving receiving(buffer, sizeof buffer, 1000);
    const Progress progress = receiving.advance(pair.other.get(), 0);
    sender.join();
    CHECK(progress == Progress::done);
    CHECK_EQ(std::string(buffer, receiving.size()), "data");
    CHECK_EQ(receiving.fds.numbers.size(), count);
    for (const int fd : receiving.fds.numbers) {
        CHECK_EQ(identity(fd), identity(pair.one.get()));
        CHECK_EQ(::fcntl(fd, F_GETFD), FD_CLOEXEC);
    }
}

}  // namespace

TEST(the_parser_reads_what_the_kernel_writes) {
    const int fds[] = {5, 6, 7};
    const ucred from = {1, 2, 3};
    const int pidfd = 9;
    Bytes bytes;
    bytes.add(SCM_CREDENTIALS, &from, sizeof from);
    bytes.add(SCM_RIGHTS, fds, sizeof fds);
    bytes.add(SOL_SOCKET + 1, SCM_RIGHTS, fds, sizeof fds, sizeof fds);
    bytes.add(77, fds, sizeof fds);
    bytes.add(forkfd::kScmPidfd, &pidfd, sizeof pidfd);
    const Control c = bytes.parsed();
    CHECK(!c.malformed);
    CHECK_EQ(c.count, 3U);
    CHECK_EQ(c.fds[2], 7);
    CHECK(c.has_credentials);
    CHECK_EQ(c.credentials.gid, 3U);
    CHECK(c.has_pidfd);
    CHECK_EQ(c.pidfd, 9);
}

TEST(the_parser_of_nothing) {
    const Control c = Bytes().parsed();
    CHECK(!c.malformed);
    CHECK_EQ(c.count, 0U);
}

TEST(the_parser_gives_out_every_descriptor_of_what_is_malformed) {
    const int fds[] = {5, 6};
    Bytes too_long;
    too_long.add(SOL_SOCKET, SCM_RIGHTS, fds, sizeof fds, 1000);
    CHECK(too_long.parsed().malformed);
    CHECK_EQ(too_long.parsed().count, 2U);

    Bytes too_short;
    too_short.add(SCM_RIGHTS, fds, sizeof fds);
    too_short.add(SOL_SOCKET, SCM_RIGHTS, fds, sizeof fds, -sizeof(ControlHeader));
    CHECK(too_short.parsed().malformed);
    CHECK_EQ(too_short.parsed().count, 2U);

    Bytes partial;
    partial.add(SCM_RIGHTS, fds, sizeof fds - 1);
    CHECK(partial.parsed().malformed);
    CHECK_EQ(partial.parsed().count, 1U);

    Bytes two_pidfds;
    two_pidfds.add(forkfd::kScmPidfd, fds, sizeof(int));
    two_pidfds.add(forkfd::kScmPidfd, fds + 1, sizeof(int));
    CHECK(two_pidfds.parsed().malformed);
    CHECK_EQ(two_pidfds.parsed().count, 1U);
    CHECK_EQ(two_pidfds.parsed().fds[0], 6);
}

TEST(every_number_of_descriptors_over_every_kind_of_socket) {
    for (const int type : {SOCK_STREAM, SOCK_SEQPACKET, SOCK_DGRAM})
        for (const std::size_t count : {0, 1, 252, 253, 254, 504, 505, 900}) passes(type, count);
}

TEST(what_is_not_taken_is_closed) {
    const Pair pair(SOCK_SEQPACKET);
    char buffer[4];
    for (const std::size_t count : {3, 300}) {
        send_all(pair.one.get(), count, "data");
        Receiving receiving(buffer, sizeof buffer, 1000);
        CHECK(receiving.advance(pair.other.get(), 0) == Progress::done);
    }
    send_all(pair.one.get(), 3, "data");
    Receiving refusing(buffer, sizeof buffer, 2);
    try {
        refusing.advance(pair.other.get(), 0);
        CHECK(false);
    } catch (const Incomplete& error) {
        CHECK_EQ(error.code().value(), EMSGSIZE);
        CHECK_EQ(error.closed, 3U);
    }
}

TEST(a_transfer_that_is_left_half_way_is_kept_or_closed) {
    const Pair pair(SOCK_SEQPACKET);
    const int small = 1;
    ::setsockopt(pair.one.get(), SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
    const std::vector<int> fds(252 * 12, pair.other.get());
    char data[] = "data", buffer[10];
    Receiving receiving(buffer, sizeof buffer, 5000);
    {
        Sending sending({{data, 4}}, fds.data(), fds.size(), nullptr);
        CHECK(sending.advance(pair.one.get(), MSG_DONTWAIT) == Progress::would_block);
        CHECK(sending.begun());
        sending.keep();
        CHECK(receiving.advance(pair.other.get(), MSG_DONTWAIT) == Progress::would_block);
        CHECK(receiving.begun());
        while (sending.advance(pair.one.get(), MSG_DONTWAIT) != Progress::done)
            receiving.advance(pair.other.get(), MSG_DONTWAIT);
    }
    CHECK(receiving.advance(pair.other.get(), MSG_DONTWAIT) == Progress::done);
    CHECK_EQ(receiving.fds.numbers.size(), fds.size());
}

TEST(a_marker_is_what_we_make_and_nothing_else) {
    const UniqueFd marker = forkfd::make_marker(300), other = forkfd::make_marker(300);
    CHECK_EQ(forkfd::read_marker(marker.get()).value_or(0), 300U);
    const UniqueFd again(::dup(marker.get()));
    CHECK(forkfd::same_marker(marker.get(), again.get()));
    CHECK(!forkfd::same_marker(marker.get(), other.get()));
    const UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
    CHECK(!forkfd::read_marker(null.get()));
    CHECK(::ftruncate(marker.get(), 0) != 0);
}

int main(int argc, char** argv) {
    if (const std::optional<int> status = helper(argc, argv)) return *status;
    return check::run(argc, argv);
}

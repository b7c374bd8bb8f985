// The epoll that is made anew in the child of every fork().
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <map>
#include <string>
#include <system_error>
#include <vector>

#include "core/epoll/epoll_rebuild.h"
#include "core/epoll/epoll_set.h"
#include "core/epoll/epoll_view.h"
#include "core/fork/child_actions.h"
#include "support.h"
#include "threads.h"

using namespace support;
using forkfd::EpollSet;
using forkfd::UniqueFd;

namespace {

template <class Body>
int in_child_of_fork(Body body) {
    const pid_t pid = ::fork();
    CHECK(pid >= 0);
    if (pid == 0) ::_exit(body());
    int status = 0;
    while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {}
    CHECK(WIFEXITED(status));
    return WEXITSTATUS(status);
}

struct Pipe {
    Pipe() {
        int ends[2];
        CHECK_EQ(::pipe2(ends, O_CLOEXEC | O_NONBLOCK), 0);
        reader = UniqueFd(ends[0]);
        writer = UniqueFd(ends[1]);
    }
    void fill() const { CHECK_EQ(::write(writer.get(), "x", 1), 1); }
    UniqueFd reader, writer;
};

// Whether map and kernel have the same registrations.
bool agree(const EpollSet& set) {
    std::map<int, std::uint64_t> known, watched;
    for (const forkfd::EpollRegistration& r : set.registrations()) known[r.number] = r.data;
    for (const forkfd::EpollWatch& w : forkfd::epoll_entries(set.fd())) watched[w.number] = w.data;
    return known == watched;
}

int ready(EpollSet& set) {
    epoll_event events[8];
    return set.wait(events, 8, 0);
}

int error_of_add(EpollSet& set, int number) {
    try {
        set.add(number, EPOLLIN);
    } catch (const std::system_error& e) {
        return e.code().value();
    }
    return 0;
}

}  // namespace

TEST(a_childs_changes_are_its_own) {
    EpollSet set;
    const Pipe pipe;
    set.add(pipe.reader.get(), EPOLLIN);
    pipe.fill();
    const int code = in_child_of_fork([&] {
        const bool same = agree(set) && set.rebuilds() == 1 && ready(set) == 1;
        set.remove(pipe.reader.get());
        return same && ready(set) == 0 ? 0 : 1;
    });
    CHECK_EQ(code, 0);
    CHECK_EQ(ready(set), 1);
    CHECK_EQ(set.rebuilds(), 0U);
}

TEST(what_the_kernel_refuses_changes_nothing) {
    EpollSet set;
    CHECK_EQ(error_of_add(set, 4095), EBADF);
    const UniqueFd file(::open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
    CHECK_EQ(error_of_add(set, file.get()), EPERM);
    const Pipe pipe;
    CHECK_EQ(error_of_add(set, pipe.reader.get()), 0);
    CHECK_EQ(error_of_add(set, pipe.reader.get()), EEXIST);
    CHECK_EQ(set.registrations().size(), 1U);
    CHECK(agree(set));
    set.close();
    CHECK_EQ(error_of_add(set, pipe.writer.get()), EBADF);
    CHECK_EQ(in_child_of_fork([&] { return set.fd() == -1 ? 0 : 1; }), 0);
}

TEST(no_child_sees_a_change_half_done) {
    EpollSet set, other;
    std::atomic<bool> stop{false};
    Threads threads;
    for (EpollSet* s : {&set, &other})
        threads.start([s, &stop] {
            const Pipe one, two;
            while (!stop) {
                s->add(one.reader.get(), EPOLLIN);
                s->add(two.writer.get(), EPOLLOUT);
                s->modify(one.reader.get(), EPOLLIN | EPOLLET);
                ready(*s);
                s->remove(two.writer.get());
                s->remove(one.reader.get());
            }
        });
    threads.start([&stop] {
        while (!stop) EpollSet();
    });
    int wrong = 0;
    for (int i = 0; i < (emulated() ? 10 : 100); ++i)
        wrong += in_child_of_fork([&] { return agree(set) && agree(other) ? 0 : 1; });
    stop = true;
    threads.join();
    CHECK_EQ(wrong, 0);
}

namespace {

std::atomic<int> forks{0}, shared{0}, failed{0};
int number_of_set = -1;

// Once: a fork may take longer than any interval, and then nothing else would ever run.
void ask_for_a_signal() {
    const itimerval soon = {{0, 0}, {0, 700}};
    ::setitimer(ITIMER_REAL, &soon, nullptr);
}

void fork_here(int) {
    const int saved = errno;
    const pid_t pid = ::fork();
    if (pid == 0) ::_exit(forkfd::is_parents(number_of_set).value_or(false) ? 1 : 0);
    int status = 0;
    if (pid < 0 || ::waitpid(pid, &status, 0) != pid) ++failed;
    else if (status != 0) ++shared;
    ++forks;
    errno = saved;
}

}  // namespace

TEST(a_signal_handler_may_fork_in_the_middle_of_a_change) {
    if (emulated()) throw check::Skip("qemu runs handlers between system calls only");
    EpollSet set;
    const Pipe pipe;
    number_of_set = set.fd();
    struct sigaction action = {}, before;
    action.sa_handler = fork_here;
    action.sa_flags = SA_RESTART;
    ::sigaction(SIGALRM, &action, &before);
    for (int round = 0; round < 100; ++round) {
        ask_for_a_signal();
        while (forks <= round) {
            set.add(pipe.reader.get(), EPOLLIN);
            set.remove(pipe.reader.get());
        }
    }
    ::sigaction(SIGALRM, &before, nullptr);
    CHECK_EQ(failed.load(), 0);
    CHECK_EQ(shared.load(), 0);
    CHECK(agree(set));
}

TEST(lines_of_fdinfo_come_in_any_parts) {
    const std::string text =
        "pos:\t0\nflags:\t02000002\n" + std::string(500, 'x') +
        "\ntfd:        5 events: 1000001c data:  badcafe00000005  pos:0 ino:437dfe sdev:800003\n"
        "tfd:        6 events:       19 data:\n"
        "tfd: 2147483647 events: ffffffff data: ffffffffffffffff  pos:-9223372036854775808 "
        "ino:ffffffffffffffff sdev:ffffffff\n"
        "tfd:        7 events:       19 data:                7  pos:0 ino:1 sdev:f";  // cut off
    for (std::size_t size = 1; size <= text.size(); ++size) {
        forkfd::WatchLines lines;
        std::vector<forkfd::EpollWatch> seen;
        for (std::size_t at = 0; at < text.size(); at += size)
            lines.add(text.data() + at, std::min(size, text.size() - at),
                      [&](const forkfd::EpollWatch& watch) { seen.push_back(watch); });
        CHECK_EQ(seen.size(), 2U);
        CHECK_EQ(seen[0].number, 5);
        CHECK_EQ(seen[0].events, 0x1000001cU);
        CHECK_EQ(seen[0].data, 0x0badcafe00000005U);
        CHECK_EQ(seen[0].inode, 0x437dfeU);
        CHECK_EQ(seen[0].device, forkfd::device_of(0x800003));
        CHECK_EQ(seen[1].number, 2147483647);
        CHECK_EQ(seen[1].data, ~std::uint64_t{0});
    }
}

TEST(anybodys_epoll_is_made_anew_in_a_child) {
    if (emulated()) throw check::Skip("qemu's user mode hands on an fdinfo of its own");
    const UniqueFd inner(::epoll_create1(EPOLL_CLOEXEC)), outer(::epoll_create1(0));
    const Pipe pipe;
    const UniqueFd first(::eventfd(1, EFD_CLOEXEC)), gone(::eventfd(1, EFD_CLOEXEC));
    const auto watch = [](int epfd, int number) {
        epoll_event event = {};
        event.events = EPOLLIN;
        event.data.u64 = std::uint64_t{7} << 32 | static_cast<unsigned>(number);
        CHECK_EQ(::epoll_ctl(epfd, EPOLL_CTL_ADD, number, &event), 0);
    };
    watch(inner.get(), pipe.reader.get());
    watch(inner.get(), first.get());
    watch(inner.get(), gone.get());
    watch(outer.get(), inner.get());
    // gone's number is another eventfd in the child: the same inode, another file.
    const UniqueFd other(::eventfd(0, EFD_CLOEXEC));
    forkfd::ChildActions actions({}, {}, {{gone.get(), other.get()}}, {inner.get(), outer.get()}, 0);
    const int code = in_child_of_fork([&] {
        if (forkfd::is_parents(inner.get()).value_or(true)) return 1;
        if (::fcntl(inner.get(), F_GETFD) != FD_CLOEXEC || ::fcntl(outer.get(), F_GETFD) != 0)
            return 2;
        const auto entries = forkfd::epoll_entries(inner.get());
        if (entries.size() != 2) return 3;
        for (const forkfd::EpollWatch& w : entries)
            if (w.data >> 32 != 7 || w.number == gone.get()) return 4;
        // The outer one watches the new inner one, which alone has the event.
        epoll_event ready[4];
        if (::epoll_wait(outer.get(), ready, 4, 0) != 1) return 5;
        for (const int fd : {pipe.reader.get(), first.get()})
            if (::epoll_ctl(inner.get(), EPOLL_CTL_DEL, fd, nullptr) != 0) return 6;
        return ::epoll_wait(outer.get(), ready, 4, 0) == 0 ? 0 : 7;
    });
    CHECK_EQ(code, 0);
    epoll_event ready[4];
    CHECK_EQ(::epoll_wait(inner.get(), ready, 4, 0), 2);
    CHECK_EQ(actions.timing().failures.load(), 0U);
}

TEST(a_shortage_at_a_renewal_is_not_for_good) {
    const Pipe pipe;
    const UniqueFd gone(::eventfd(0, EFD_CLOEXEC));
    const UniqueFd holder(::fcntl(gone.get(), F_DUPFD_CLOEXEC, 0));
    EpollSet set;
    set.add(pipe.reader.get(), EPOLLIN);
    set.add(gone.get(), EPOLLIN);
    // Its number is another file now, so only a new instance forgets the entry.
    CHECK(::dup3(pipe.writer.get(), gone.get(), O_CLOEXEC) >= 0);
    const auto error_of = [](auto call) {
        try {
            call();
        } catch (const std::system_error& e) {
            return e.code().value();
        }
        return 0;
    };
    without({SYS_epoll_create1}, [&] {
        CHECK_EQ(error_of([&] { set.remove(gone.get()); }), ENOMEM);
        CHECK_EQ(error_of([&] { ready(set); }), ENOMEM);
    }, ENOMEM);
    pipe.fill();
    CHECK_EQ(ready(set), 1);
    CHECK(agree(set));
    CHECK_EQ(set.rebuilds(), 1U);
}

int main(int argc, char** argv) {
    if (const auto code = helper(argc, argv)) return *code;
    return check::run(argc, argv);
}

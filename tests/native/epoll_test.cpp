// The epoll that is made anew in the child of every fork().
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <map>
#include <system_error>

#include "core/epoll_set.h"
#include "core/epoll_view.h"
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

// Exactly what the map says is what the kernel says.
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
    const int said = in_child_of_fork([&] {
        const bool same = agree(set) && set.rebuilds() == 1 && ready(set) == 1;
        set.remove(pipe.reader.get());
        return same && ready(set) == 0 ? 0 : 1;
    });
    CHECK_EQ(said, 0);
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
    const itimerval often = {{0, 700}, {0, 700}}, never = {};
    ::setitimer(ITIMER_REAL, &often, nullptr);
    while (forks < 100) {
        set.add(pipe.reader.get(), EPOLLIN);
        set.remove(pipe.reader.get());
    }
    ::setitimer(ITIMER_REAL, &never, nullptr);
    ::sigaction(SIGALRM, &before, nullptr);
    CHECK_EQ(failed.load(), 0);
    CHECK_EQ(shared.load(), 0);
    CHECK(agree(set));
}

int main(int argc, char** argv) {
    if (const auto code = helper(argc, argv)) return *code;
    return check::run(argc, argv);
}

// A clone of this process without libc's fork(): what libc keeps is right in the child.
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <ctime>
#include <system_error>

#include "core/base/raw_syscall.h"
#include "core/descriptors/descriptor.h"
#include "core/fork/become.h"
#include "core/fork/self_clone.h"
#include "support.h"

using forkfd::FdAction;
using forkfd::SelfClone;
using forkfd::SelfCloned;

namespace {

// In shared memory, so that parent and child can both hold it.
struct SharedMutex {
    pthread_mutex_t* mutex;
    SharedMutex() {
        void* const p = ::mmap(nullptr, sizeof *mutex, PROT_READ | PROT_WRITE,
                               MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        CHECK(p != MAP_FAILED);
        mutex = static_cast<pthread_mutex_t*>(p);
        pthread_mutexattr_t attributes;
        ::pthread_mutexattr_init(&attributes);
        ::pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
        ::pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
        ::pthread_mutex_init(mutex, &attributes);
    }
    // With a limit: a mutex is never free if its owner's death was not reported.
    int lock() const {
        timespec until;
        ::clock_gettime(CLOCK_REALTIME, &until);
        until.tv_sec += 10;
        return ::pthread_mutex_timedlock(mutex, &until);
    }
    ~SharedMutex() { ::munmap(mutex, sizeof *mutex); }
};

// Runs `body` in a clone; its exit code.
template <class Body>
int in_clone(Body body, SelfClone how = {0, SIGCHLD}) {
    const SelfCloned child = forkfd::self_clone(how);
    if (child.pid == 0) ::_exit(body());
    CHECK(child.pidfd);
    CHECK_EQ(forkfd::wait_readable(child.pidfd.get(), 60 * 1000), 1);
    const auto end = forkfd::reap(child.pidfd.get());
    CHECK(end.has_value());
    CHECK_EQ(end->code, CLD_EXITED);
    return end->status;
}

void demand_clone() {
    const std::string why = forkfd::why_not_clone(0);
    if (!why.empty()) throw check::Skip(why);
}

void* set_flag(void* flag) {
    *static_cast<int*>(flag) = forkfd::own_tid() != ::getpid();
    return nullptr;
}

}  // namespace

TEST(where_it_cannot_be_right_it_is_refused) {
    const std::string why = forkfd::why_not_clone(0);
    if (why.empty()) return;
    try {
        in_clone([] { return 0; });
        CHECK(!"refused");
    } catch (const std::system_error& e) {
        CHECK_EQ(e.code().value(), ENOTSUP);
        CHECK(std::string(e.what()).find(why) != std::string::npos);
    }
}

TEST(the_thread_id_is_the_childs) {
    demand_clone();
    // pthread_kill reads the id that libc keeps: a stale one would be the parent's.
    CHECK_EQ(in_clone([] {
                 ::signal(SIGUSR1, [](int) { ::_exit(42); });
                 ::pthread_kill(::pthread_self(), SIGUSR1);
                 return 1;
             }), 42);
    CHECK_EQ(in_clone([] {
                 pthread_mutexattr_t attributes;
                 ::pthread_mutexattr_init(&attributes);
                 ::pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ERRORCHECK);
                 pthread_mutex_t mutex;
                 ::pthread_mutex_init(&mutex, &attributes);
                 ::pthread_mutex_lock(&mutex);
                 return ::pthread_mutex_lock(&mutex);
             }), EDEADLK);
}

TEST(a_robust_mutex_that_the_child_held_is_told_to_the_parent) {
    demand_clone();
    const SharedMutex shared;
    CHECK_EQ(in_clone([&] { return ::pthread_mutex_lock(shared.mutex); }), 0);
    CHECK_EQ(shared.lock(), EOWNERDEAD);
    ::pthread_mutex_consistent(shared.mutex);
    CHECK_EQ(::pthread_mutex_unlock(shared.mutex), 0);
}

TEST(a_robust_mutex_that_the_parent_holds_stays_its_own) {
    demand_clone();
    const SharedMutex held, other;
    CHECK_EQ(::pthread_mutex_lock(held.mutex), 0);
    CHECK_EQ(in_clone([&] {
                 if (::pthread_mutex_trylock(held.mutex) != EBUSY) return 1;
                 return ::pthread_mutex_lock(other.mutex);
             }), 0);
    CHECK_EQ(::pthread_mutex_trylock(held.mutex), EBUSY);
    CHECK_EQ(::pthread_mutex_unlock(held.mutex), 0);
    CHECK_EQ(other.lock(), EOWNERDEAD);
    ::pthread_mutex_consistent(other.mutex);
    CHECK_EQ(::pthread_mutex_unlock(other.mutex), 0);
}

TEST(the_child_starts_threads_allocates_and_spawns) {
    demand_clone();
    CHECK_EQ(in_clone([] {
                 for (int i = 0; i < 20; ++i) {
                     int flag = 0;
                     pthread_t thread;
                     if (::pthread_create(&thread, nullptr, set_flag, &flag) != 0) return 1;
                     if (::pthread_join(thread, nullptr) != 0 || flag != 1) return 2;
                 }
                 for (std::size_t size = 1; size < (1U << 24); size *= 3)
                     std::free(std::malloc(size));
                 if (support::exit_code(support::spawn(support::plan_of_true())) != 0) return 3;
                 return in_clone([] { return 5; }) == 5 ? 0 : 4;
             }), 0);
}

TEST(at_its_end_the_kernel_clears_the_word_that_libc_has_chosen) {
    demand_clone();
    const auto cleared = [] {
        void* address = nullptr;
        ::prctl(PR_GET_TID_ADDRESS, &address);
        return address;
    };
    void* const ours = cleared();
    CHECK(ours != nullptr);
    CHECK_EQ(in_clone([&] { return cleared() == ours ? 0 : 1; }), 0);
#ifndef __SANITIZE_ADDRESS__  // that of GCC 16 takes the main thread for one that was joined
    CHECK_EQ(in_clone([] {
                 static const pthread_t main_thread = ::pthread_self();
                 pthread_t thread;
                 const auto join = [](void*) -> void* {
                     ::_exit(::pthread_join(main_thread, nullptr) == 0 ? 42 : 1);
                 };
                 if (::pthread_create(&thread, nullptr, join, nullptr) != 0) return 2;
                 ::pthread_exit(nullptr);
                 return 3;
             }), 42);
#endif
}

TEST(a_sibling_is_our_parents_child) {
    demand_clone();
    int ends[2];
    CHECK_EQ(::pipe2(ends, O_CLOEXEC), 0);
    const forkfd::UniqueFd reader(ends[0]), writer(ends[1]);
    CHECK_EQ(in_clone([&] {
                 const SelfCloned child = forkfd::self_clone({CLONE_PARENT, 0});
                 if (child.pid == 0) ::_exit(9);
                 if (forkfd::reap(child.pidfd.get()).has_value() &&
                     ::waitpid(child.pid, nullptr, WNOHANG) != -1)
                     return 1;
                 return ::write(writer.get(), &child.pid, sizeof child.pid) ==
                                static_cast<ssize_t>(sizeof child.pid) ? 0 : 2;
             }), 0);
    pid_t pid = 0;
    CHECK_EQ(::read(reader.get(), &pid, sizeof pid), static_cast<ssize_t>(sizeof pid));
    int status = 0;
    CHECK_EQ(::waitpid(pid, &status, 0), pid);
    CHECK(WIFEXITED(status));
    CHECK_EQ(WEXITSTATUS(status), 9);
}

TEST(any_exit_signal_can_be_waited_for) {
    demand_clone();
    CHECK_EQ(in_clone([] { return 3; }, {0, 0}), 3);
    ::signal(SIGUSR2, [](int) {});
    CHECK_EQ(in_clone([] { return 4; }, {0, SIGUSR2}), 4);
    ::signal(SIGUSR2, SIG_DFL);
}

TEST(the_pid_is_in_its_slot_before_the_child_runs) {
    demand_clone();
    void* const p = ::mmap(nullptr, sizeof(pid_t), PROT_READ | PROT_WRITE,
                           MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(p != MAP_FAILED);
    auto* const slot = static_cast<pid_t*>(p);
    const auto seen = [&] { return *slot == ::getpid() ? 0 : 1; };
    SelfClone how = {0, SIGCHLD};
    how.pid_slot = slot;
    CHECK_EQ(in_clone(seen, how), 0);
    ::munmap(p, sizeof(pid_t));
}

TEST(a_clone_becomes_what_a_plan_says_without_an_exec) {
    demand_clone();
    const pid_t parent = ::getpid();
    const forkfd::UniqueFd file(::open("/dev/null", O_RDWR | O_CLOEXEC));
    CHECK_EQ(in_clone([&] {
                 forkfd::SpawnPlan plan;
                 plan.umask = 027;
                 plan.cwd = "/proc";
                 plan.signal_mask = forkfd::signal_bit(SIGUSR1);
                 plan.default_signals = forkfd::signal_bit(SIGPIPE);
                 plan.death_signal = SIGKILL;
                 plan.fds = {{1, FdAction::Kind::inherit_if_open},
                             {5, FdAction::Kind::descriptor, file.get()},
                             {70, FdAction::Kind::inherit_if_open}};
                 ::dup2(1, 70);
                 ::signal(SIGPIPE, SIG_IGN);
                 ::signal(SIGUSR2, [](int) {});
                 forkfd::become(plan, {}, {parent, -1, false}, 70);
                 char cwd[64];
                 if (::umask(0) != 027 || ::getcwd(cwd, sizeof cwd) == nullptr) return 1;
                 if (std::string(cwd) != "/proc") return 2;
                 if (forkfd::current_signal_mask() != forkfd::signal_bit(SIGUSR1)) return 3;
                 for (int fd = 0; fd < 256; ++fd) {
                     const int flags = ::fcntl(fd, F_GETFD);
                     const bool wanted = fd == 1 || fd == 5 || fd == 70;
                     if ((flags >= 0) != wanted) return 100 + fd % 100;
                     if (wanted && (flags == FD_CLOEXEC) != (fd > 2)) return 4;
                 }
                 if (::signal(SIGPIPE, SIG_DFL) != SIG_DFL) return 5;
                 return ::signal(SIGUSR2, SIG_DFL) == SIG_DFL ? 6 : 0;  // its own handlers stay
             }), 0);
}

TEST(a_stage_that_fails_is_reported_and_ends_the_process) {
    demand_clone();
    int ends[2];
    CHECK_EQ(::pipe2(ends, O_CLOEXEC | O_NONBLOCK), 0);
    const forkfd::UniqueFd reader(ends[0]), writer(ends[1]);
    const pid_t parent = ::getpid();
    forkfd::SpawnPlan plan;
    plan.cwd = "/nowhere";
    plan.fds = {{writer.get(), FdAction::Kind::inherit_if_open}};
    CHECK_EQ(in_clone([&] {
                 forkfd::become(plan, {}, {parent, -1, false}, writer.get());
                 return 0;
             }), 127);
    forkfd::Report report = {};
    CHECK_EQ(::read(reader.get(), &report, sizeof report),
             static_cast<ssize_t>(sizeof report));
    CHECK_EQ(static_cast<forkfd::Stage>(report.stage), forkfd::Stage::working_directory);
    CHECK_EQ(report.err, ENOENT);
    CHECK_EQ(forkfd::failed_on(plan, {}, forkfd::Stage::working_directory, 0), "/nowhere");
}

TEST(other_threads_are_named_and_nothing_is_cloned) {
    demand_clone();
    pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
    ::pthread_mutex_lock(&gate);
    pthread_t thread;
    CHECK_EQ(::pthread_create(&thread, nullptr, [](void* g) -> void* {
                 ::pthread_mutex_lock(static_cast<pthread_mutex_t*>(g));
                 ::pthread_mutex_unlock(static_cast<pthread_mutex_t*>(g));
                 return nullptr;
             }, &gate), 0);
    ::pthread_setname_np(thread, "some-pool");
    std::string text;
    try {
        in_clone([] { return 0; });
    } catch (const forkfd::OtherThreads& e) {
        CHECK_EQ(e.tasks.size(), 1U);
        text = e.what();
    }
    ::pthread_mutex_unlock(&gate);
    ::pthread_join(thread, nullptr);
    CHECK(text.find("some-pool (") != std::string::npos);
    CHECK_EQ(in_clone([] { return 6; }), 6);  // a joined thread is none
}

int main(int argc, char** argv) {
    if (const auto code = support::helper(argc, argv)) return *code;
    return check::run(argc, argv);
}

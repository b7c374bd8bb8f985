// Spawns from many threads at once, and the fork lock.
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <shared_mutex>
#include <thread>

#include "core/atfork/fork_lock.h"
#include "core/base/raw_syscall.h"
#include "core/spawn/spawner_thread.h"
#include "support.h"
#include "threads.h"

using namespace support;
using Kind = FdAction::Kind;
using forkfd::UniqueFd;

namespace {

struct Exclusive {
    Exclusive() { CHECK(forkfd::fork_lock().try_lock_for(std::chrono::milliseconds(10000))); }
    ~Exclusive() { forkfd::fork_lock().unlock(); }
};

pid_t this_tid() { return static_cast<pid_t>(::syscall(SYS_gettid)); }

}  // namespace

TEST(many_threads_spawn_and_each_child_has_exactly_its_map) {
    std::atomic<bool> stop{false};
    Threads noise, spawners;
    for (int i = 0; i < 2; ++i)
        noise.start([&stop] {  // inheritable for its whole life
            while (!stop) UniqueFd(::open("/dev/null", O_RDONLY));
        });
    const int rounds = emulated() ? 3 : 15;
    for (int i = 0; i < 8; ++i)
        spawners.start([rounds] {
            for (int round = 0; round < rounds; ++round) {
                int ends[2];
                CHECK_EQ(::pipe2(ends, O_CLOEXEC), 0);
                const UniqueFd reader(ends[0]), writer(ends[1]);
                SpawnPlan plan = plan_of_true();
                plan.fds.clear();
                plan.fds.push_back({0, Kind::descriptor, reader.get()});
                plan.fds.push_back({5, Kind::descriptor, writer.get()});
                Facts facts = facts_of(plan);
                facts.fds.erase(1);
                CHECK_EQ(facts.fds.size(), 2U);
                CHECK_EQ(facts.fds.at(0), identity(reader.get()));
                CHECK_EQ(facts.fds.at(5), identity(writer.get()));
                CHECK_EQ(error_of(plan_of({"/nonexistent"})).err(), ENOENT);
            }
        });
    spawners.join();
    stop = true;
    noise.join();
}

TEST(a_script_just_written_is_never_busy) {
    char dir[] = "/tmp/forkfd-scripts-XXXXXX";
    CHECK(::mkdtemp(dir) != nullptr);
    Threads threads;
    const int rounds = emulated() ? 5 : 40;
    for (int i = 0; i < 6; ++i)
        threads.start([&dir, i, rounds] {
            const std::string path = std::string(dir) + "/" + std::to_string(i);
            for (int round = 0; round < rounds; ++round) {
                {
                    const UniqueFd script(::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0700));
                    const std::string text = "#!/bin/sh\nexit 3\n";
                    CHECK_EQ(::write(script.get(), text.data(), text.size()),
                             static_cast<ssize_t>(text.size()));
                }
                CHECK_EQ(exit_code(spawn(plan_of({path}))), 3);
                ::unlink(path.c_str());
            }
        });
    threads.join();
    CHECK_EQ(::rmdir(dir), 0);
}

TEST(the_fork_lock_keeps_out_spawns_that_let_descriptors_through) {
    Threads threads;
    std::atomic<pid_t> tid{0};
    const UniqueFd file(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    {
        const Exclusive exclusive;
        CHECK_EQ(::fcntl(file.get(), F_SETFD, 0), 0);  // inheritable for a moment
        const int number = file.get();
        threads.start([&tid, number] {
            SpawnPlan plan = plan_of_true();
            plan.close_others = false;
            tid = this_tid();
            CHECK_EQ(facts_of(plan).fds.count(number), 0U);
        });
        while (tid == 0) std::this_thread::yield();
        wait_until_asleep(tid);
        // A strict spawn needs no lock: this one would wait for ever if it took it.
        CHECK_EQ(exit_code(spawn(plan_of_true())), 0);
        CHECK_EQ(::fcntl(file.get(), F_SETFD, FD_CLOEXEC), 0);
    }
    threads.join();
}

TEST(spawns_that_let_descriptors_through_share_the_fork_lock) {
    const std::shared_lock<forkfd::ForkLock> shared(forkfd::fork_lock());
    Threads threads;
    threads.start([] {
        SpawnPlan plan = plan_of_true();
        plan.close_others = false;
        CHECK_EQ(exit_code(spawn(plan)), 0);
    });
    threads.join();
}

// The signal fires when the thread that spawned ends: the spawner thread never does.
TEST(a_child_that_dies_with_the_process_outlives_the_thread) {
    for (const bool with_process : {true, false}) {
        std::optional<SpawnResult> child;
        Threads threads;
        threads.start([&child, with_process] {
            SpawnPlan plan = plan_of_self({"sleep"});
            plan.death_signal = SIGTERM;
            plan.death_with_process = with_process;
            child.emplace(spawn(plan));
        });
        threads.join();
        CHECK(child);
        if (with_process) {
            CHECK_EQ(forkfd::wait_readable(child->pidfd.get(), 200), 0);
            CHECK_EQ(forkfd::send_signal(child->pidfd.get(), SIGKILL), 0);
        }
        CHECK_EQ(wait(*child).status, with_process ? SIGKILL : SIGTERM);
    }
}

TEST(callers_of_no_spawner_thread_start_one_and_a_shortage_of_threads_passes) {
    SpawnPlan plan = plan_of_true();
    plan.death_signal = SIGTERM;
    for (int round = 0; round < 20; ++round) {
        forkfd::forget_spawner_thread();
        if (!emulated())
            without({forkfd::raw::nr_clone3, SYS_clone}, [&plan] {
                try {
                    spawn(plan);
                    CHECK(!"spawned");
                } catch (const forkfd::SysError& error) {
                    CHECK_EQ(error.stage(), Stage::helper_thread);
                    CHECK_EQ(error.err(), EAGAIN);
                }
            }, EAGAIN);
        Threads threads;
        for (int i = 0; i < 4; ++i)
            threads.start([&plan] { CHECK_EQ(exit_code(spawn(plan)), 0); });
        threads.join();
    }
}

TEST(a_child_killed_before_its_exec_is_an_error) {
    char dir[] = "/tmp/forkfd-fifo-XXXXXX";
    CHECK(::mkdtemp(dir) != nullptr);
    const std::string fifo = std::string(dir) + "/fifo";
    CHECK_EQ(::mkfifo(fifo.c_str(), 0600), 0);
    std::atomic<pid_t> tid{0};
    Threads threads;
    threads.start([&] {
        SpawnPlan plan = plan_of_true();
        plan.fds.push_back({5, Kind::open, -1, fifo, O_RDONLY, 0});  // blocks
        tid = this_tid();
        try {
            spawn(plan);
        } catch (const forkfd::SysError& error) {
            CHECK_EQ(error.stage(), Stage::open_file);
            CHECK_EQ(error.err(), ECANCELED);
            return;
        }
        throw check::Failure("the child executed");
    });
    while (tid == 0) std::this_thread::yield();
    pid_t child = 0;
    while (child == 0) {
        std::ifstream list("/proc/self/task/" + std::to_string(tid) + "/children");
        if (!list) break;
        list >> child;
    }
    // Past the clone, perhaps not yet in open(): either way it is not past its exec.
    const UniqueFd writer;
    if (child > 0) {
        const std::string path = "/proc/" + std::to_string(child) + "/stat";
        while (first_word_after(path, ") ") != "S") std::this_thread::yield();
        CHECK_EQ(::kill(child, SIGKILL), 0);
    } else {  // no such list in this kernel: let the child go on
        UniqueFd(::open(fifo.c_str(), O_WRONLY | O_CLOEXEC));
    }
    try {
        threads.join();
    } catch (const check::Failure&) {
        if (child > 0) throw;
    }
    ::unlink(fifo.c_str());
    CHECK_EQ(::rmdir(dir), 0);
}

int main(int argc, char** argv) {
    if (const auto code = helper(argc, argv)) return *code;
    return check::run(argc, argv);
}

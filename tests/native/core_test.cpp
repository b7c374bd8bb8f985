// The core without Python: what a spawn does, under each back end.
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>

#include "core/base/probe.h"
#include "core/base/raw_syscall.h"
#include "core/watch/features.h"
#include "support.h"

using namespace support;
using Kind = FdAction::Kind;
using forkfd::UniqueFd;

namespace {

UniqueFd some_file() {
    char path[] = "/tmp/forkfd-test-XXXXXX";
    UniqueFd fd(::mkostemp(path, O_CLOEXEC));
    CHECK(fd);
    ::unlink(path);
    return fd;
}

Backend spawn_and_end(const SpawnPlan& plan) {
    const SpawnResult child = spawn(plan);
    CHECK_EQ(exit_code(child), 0);
    return child.backend;
}

}  // namespace

TEST(the_back_end_that_runs_is_the_best_there_is) {
    const SpawnResult child = spawn(plan_of_true());
    CHECK_EQ(exit_code(child), 0);
    CHECK_EQ(child.backend, expected(std::nullopt));
    std::printf("     back end: %s; clone3 refused with %d, shared memory with %d\n",
                forkfd::backend_name(child.backend), forkfd::refusals().clone3.err(),
                forkfd::refusals().shared_memory.err());
    if (!emulated()) return;
    CHECK_EQ(forkfd::refusals().clone3.err(), ENOSYS);
    CHECK(forkfd::refusals().shared_memory);
    CHECK(!forkfd::memory_is_shared());
}

TEST(each_back_end_runs_when_it_is_forced) {
    with_each_backend([](Backend backend) {
        CHECK_EQ(spawn_and_end(plan_of_true()), expected(backend));
    });
}

TEST(without_clone3_it_is_clone_unless_clone3_is_demanded) {
    const auto demand = [] {
        CHECK_EQ(exit_code(spawn(plan_of_true())), 0);
        CHECK_EQ(forkfd::refusals().clone3.err(), ENOSYS);
        CHECK_EQ(spawn_and_end(plan_of_true()), emulated() ? Backend::fork_like : Backend::clone);
        const Forced forced(Backend::clone3);
        const forkfd::SysError error = error_of(plan_of_true());
        CHECK_EQ(error.stage(), Stage::clone);
        CHECK_EQ(error.err(), ENOSYS);
    };
    if (emulated()) demand();
    else without({forkfd::raw::nr_clone3}, demand);
}

TEST(exit_code_and_signal_are_told) {
    with_each_backend([](Backend) {
        CHECK_EQ(exit_code(spawn(plan_of_self({"exit", "7"}))), 7);
        const forkfd::ExitInfo info = wait(spawn(plan_of_self({"kill", "15"})));
        CHECK_EQ(info.code, CLD_KILLED);
        CHECK_EQ(info.status, SIGTERM);
    });
}

TEST(a_child_is_signalled_through_its_descriptor) {
    with_each_backend([](Backend) {
        const SpawnResult child = spawn(plan_of_self({"sleep"}));
        CHECK(!forkfd::reap(child.pidfd.get()));
        CHECK_EQ(forkfd::send_signal(child.pidfd.get(), SIGKILL), 0);
        const forkfd::ExitInfo info = wait(child);
        CHECK_EQ(info.status, SIGKILL);
        CHECK_EQ(forkfd::send_signal(child.pidfd.get(), SIGKILL), ESRCH);
    });
}

// Each target's file is the wanted one, and nothing else is open.
TEST(descriptors_arrive_in_any_permutation) {
    const std::vector<std::map<int, int>> wanted = {
        {{3, 0}, {4, 1}},
        {{3, 1}, {4, 0}},                    // a swap
        {{3, 1}, {4, 2}, {5, 0}},            // a cycle
        {{3, 0}, {4, 0}, {5, 0}},            // one source thrice
        {{3, 2}, {5, 1}, {200, 0}, {0, 2}},  // gaps, and a number far up
        {},
    };
    with_each_backend([&](Backend) {
        for (const auto& map : wanted) {
            // Sources sit on the targets' numbers, so that an order can be wrong.
            const UniqueFd files[] = {some_file(), some_file(), some_file()};
            UniqueFd low[3];
            std::map<int, std::string> expected_fds;
            for (int i = 0; i < 3; ++i)
                low[i] = UniqueFd(::fcntl(files[i].get(), F_DUPFD_CLOEXEC, 3));
            SpawnPlan plan = plan_of_true();
            plan.fds.clear();
            for (const auto& [target, index] : map) {
                plan.fds.push_back({target, Kind::descriptor, low[index].get()});
                expected_fds[target] = identity(files[index].get());
            }
            Facts facts = facts_of(plan);
            facts.fds.erase(1);
            CHECK(facts.fds == expected_fds);
        }
    });
}

TEST(every_permutation_of_four_numbers) {
    std::vector<UniqueFd> files;
    for (int i = 0; i < 4; ++i) {
        const UniqueFd file = some_file();
        files.emplace_back(::fcntl(file.get(), F_DUPFD_CLOEXEC, 10));
    }
    int order[] = {0, 1, 2, 3};
    int turn = 0;
    do {
        const Forced forced(std::vector<std::optional<Backend>>{
            std::nullopt, Backend::clone, Backend::fork_like}[turn++ % 3]);
        SpawnPlan plan = plan_of_true();
        plan.fds.clear();
        std::map<int, std::string> expected_fds;
        for (int i = 0; i < 4; ++i) {  // targets are the sources' own numbers
            const int source = files[order[i]].get();
            plan.fds.push_back({files[i].get(), Kind::descriptor, source});
            expected_fds[files[i].get()] = identity(source);
        }
        Facts facts = facts_of(plan);
        facts.fds.erase(1);
        CHECK(facts.fds == expected_fds);
        // next permutation
        int i = 2;
        while (i >= 0 && order[i] > order[i + 1]) --i;
        if (i < 0) break;
        int j = 3;
        while (order[j] < order[i]) --j;
        std::swap(order[i], order[j]);
        for (int a = i + 1, b = 3; a < b; ++a, --b) std::swap(order[a], order[b]);
    } while (true);
    CHECK_EQ(turn, 24);
}

TEST(without_close_range_the_child_closes_what_it_finds_listed) {
    const UniqueFd file = some_file();
    CHECK_EQ(::fcntl(file.get(), F_SETFD, 0), 0);
    const UniqueFd far(::fcntl(file.get(), F_DUPFD, 500));
    without({forkfd::raw::nr_close_range}, [&] {
        with_each_backend([&](Backend backend) {
            SpawnPlan plan = plan_of_true();
            plan.fds.clear();
            plan.fds.push_back({300, Kind::descriptor, file.get()});
            CHECK_EQ(spawn_and_end(plan), backend);
            Facts facts = facts_of(plan);
            facts.fds.erase(1);
            CHECK(facts.fds == (std::map<int, std::string>{{300, identity(file.get())}}));
        });
        CHECK_EQ(forkfd::refusals().unshare.err(), ENOSYS);
    });
}

TEST(what_is_inheritable_passes_only_when_asked) {
    const UniqueFd file = some_file();
    CHECK_EQ(::fcntl(file.get(), F_SETFD, 0), 0);
    with_each_backend([&](Backend) {
        SpawnPlan plan = plan_of_true();
        CHECK_EQ(facts_of(plan).fds.count(file.get()), 0U);
        plan.close_others = false;
        CHECK_EQ(facts_of(plan).fds.at(file.get()), identity(file.get()));
        plan.fds.push_back({file.get(), Kind::closed});
        CHECK_EQ(facts_of(plan).fds.count(file.get()), 0U);
    });
}

// The guards of check::run() find the zombie or the descriptor that a failure left.
TEST(a_failed_exec_is_told_and_leaves_nothing) {
    with_each_backend([](Backend) {
        const forkfd::SysError missing = error_of(plan_of({"/nonexistent/program"}));
        CHECK_EQ(missing.stage(), Stage::exec);
        CHECK_EQ(missing.err(), ENOENT);
        CHECK_EQ(error_of(plan_of({"/"})).err(), EACCES);

        SpawnPlan search = plan_of({"x"});  // EACCES is remembered, ENOENT passed over
        search.candidates = {"/nonexistent/x", "/etc/passwd", "/nonexistent/y"};
        CHECK_EQ(error_of(search).err(), EACCES);

        SpawnPlan pipes = plan_of({"/nonexistent/program"});
        pipes.fds.push_back({3, Kind::pipe_to_child});
        pipes.fds.push_back({4, Kind::pipe_from_child});
        CHECK_EQ(error_of(pipes).err(), ENOENT);

        SpawnPlan directory = plan_of_true();
        directory.cwd = "/nonexistent";
        const forkfd::SysError error = error_of(directory);
        CHECK_EQ(error.stage(), Stage::working_directory);
        CHECK_EQ(error.err(), ENOENT);
        CHECK_EQ(error.subject(), std::string("/nonexistent"));
    });
}

// A stage that no plan of ours enters is one where the fault does not strike.
TEST(every_stage_is_told_when_it_fails) {
    std::map<Stage, int> reported;
    with_each_backend([&](Backend backend) {
        for (const Stage stage : all_stages()) {
            if (!can_enter(stage, backend)) continue;
            const SpawnPlan plan = plan_entering(stage);
            const Fault fault(stage, ENOTNAM);
            const forkfd::SysError error = error_of(plan);
            CHECK_EQ(error.stage(), stage);
            CHECK_EQ(error.err(), ENOTNAM);
            ++reported[stage];
        }
    });
    for (const Stage stage : all_stages())
        if (reported[stage] == 0)
            std::printf("     not entered on this machine: %s\n", forkfd::stage_name(stage));
}

TEST(the_signal_mask_of_the_parent_is_kept_and_the_childs_is_as_asked) {
    sigset_t one, before;
    ::sigemptyset(&one);
    ::sigaddset(&one, SIGUSR1);
    ::sigaddset(&one, SIGRTMIN + 3);
    ::pthread_sigmask(SIG_BLOCK, &one, &before);
    const forkfd::KernelSigset mine = forkfd::current_signal_mask();
    char text[32];
    std::snprintf(text, sizeof text, "%llx", static_cast<unsigned long long>(mine));
    with_each_backend([&](Backend) {
        CHECK_EQ(facts_of(plan_of_true()).mask, std::string(text));
        CHECK_EQ(forkfd::current_signal_mask(), mine);
        SpawnPlan plan = plan_of_true();
        plan.signal_mask = forkfd::signal_bit(SIGTERM);
        CHECK_EQ(facts_of(plan).mask, std::string("4000"));
        CHECK_EQ(forkfd::current_signal_mask(), mine);
        error_of(plan_of({"/nonexistent"}));
        CHECK_EQ(forkfd::current_signal_mask(), mine);
    });
    ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

TEST(handlers_become_default_and_ignored_signals_stay) {
    const auto old_usr1 = ::signal(SIGUSR1, [](int) {});
    const auto old_hup = ::signal(SIGHUP, SIG_IGN);
    with_each_backend([](Backend) {
        Facts facts = facts_of(plan_of_true());
        CHECK_EQ(facts.dispositions.at(SIGUSR1), std::string("default"));
        CHECK_EQ(facts.dispositions.at(SIGHUP), std::string("ignored"));
        SpawnPlan plan = plan_of_true();
        plan.default_signals = forkfd::signal_bit(SIGHUP);
        plan.ignore_signals = forkfd::signal_bit(SIGUSR1);
        facts = facts_of(plan);
        CHECK_EQ(facts.dispositions.at(SIGUSR1), std::string("ignored"));
        CHECK_EQ(facts.dispositions.at(SIGHUP), std::string("default"));
    });
    ::signal(SIGUSR1, old_usr1);
    ::signal(SIGHUP, old_hup);
}

TEST(the_child_writes_its_own_listen_slots) {
    const UniqueFd file = some_file();
    with_each_backend([&](Backend) {
        SpawnPlan plan = plan_of_true();
        plan.fds.push_back({3, Kind::descriptor, file.get()});
        plan.env = std::vector<std::string>{"A=1", "LISTEN_PID=1", "LISTEN_FDS=9", "B=2"};
        plan.listen_names = std::vector<std::string>{"http"};
        const Facts facts = facts_of(plan);
        CHECK_EQ(facts.env.at("LISTEN_PID"), std::to_string(facts.pid));
        CHECK_EQ(facts.env.at("LISTEN_FDS"), std::string("1"));
        CHECK_EQ(facts.env.at("LISTEN_FDNAMES"), std::string("http"));
        CHECK_EQ(facts.env.at("A") + facts.env.at("B"), std::string("12"));
        CHECK_EQ(facts.env.count("LISTEN_PIDFDID"), forkfd::has_pidfs() ? 1U : 0U);
    });
}

TEST(the_inode_of_its_pidfd_is_the_childs_listen_pidfdid) {
    if (!forkfd::has_pidfs()) throw check::Skip("no pidfs before Linux 6.9");
    with_each_backend([&](Backend) {
        SpawnPlan plan = plan_of_self({"report"});
        plan.listen_names = std::vector<std::string>{};
        plan.fds.clear();
        plan.fds.push_back({1, Kind::pipe_from_child});
        const SpawnResult child = spawn(plan);
        struct stat info;
        CHECK_EQ(::fstat(child.pidfd.get(), &info), 0);
        std::string text(65536, '\0');
        std::size_t used = 0;
        for (ssize_t n; (n = ::read(child.pipes.at(0).fd.get(), &text[used], 4096)) > 0;)
            used += static_cast<std::size_t>(n);
        CHECK_EQ(exit_code(child), 0);
        CHECK(text.find("LISTEN_PIDFDID=" + std::to_string(info.st_ino) + "\n") !=
              std::string::npos);
    });
}

TEST(umask_and_directory_are_as_asked) {
    with_each_backend([](Backend) {
        SpawnPlan plan = plan_of_true();
        plan.umask = 027;
        plan.cwd = "/usr";
        const Facts facts = facts_of(plan);
        CHECK_EQ(facts.umask, 027U);
        CHECK_EQ(facts.cwd, std::string("/usr"));
    });
    const mode_t mine = ::umask(022);
    ::umask(mine);
    CHECK_EQ(facts_of(plan_of_true()).umask, mine);
}

TEST(a_program_is_executed_by_descriptor) {
    const SpawnPlan named = plan_of_true();
    const UniqueFd program(::open(named.program.c_str(), O_RDONLY | O_CLOEXEC));
    with_each_backend([&](Backend) {
        SpawnPlan plan = named;
        plan.candidates.clear();
        plan.exec_fd = program.get();
        try {
            CHECK_EQ(exit_code(spawn(plan)), 0);
        } catch (const forkfd::SysError& error) {
            if (!emulated() || error.err() != ENOSYS) throw;
            throw check::Skip("qemu before 9.0 has no execveat");
        }
    });
}

TEST(features_are_what_the_calls_answer) {
    CHECK_EQ(exit_code(spawn(plan_of_true())), 0);  // which learns
    std::map<std::string, int> here;
    for (const forkfd::Feature& feature : forkfd::probe_features(-1)) {
        CHECK(feature.err >= 0);
        CHECK(here.emplace(feature.name, feature.err).second);
    }
    CHECK_EQ(here.count("clone_into_cgroup"), 0U);
    CHECK_EQ(here.at("clone3"), forkfd::refusals().clone3.err());
    CHECK_EQ(here.at("shared_memory") == 0, forkfd::memory_is_shared());
    CHECK_EQ(here.at("pidfd_open") == 0, forkfd::has_pidfd_open());
    CHECK_EQ(here.at("pidfs") == 0, forkfd::has_pidfs());
    const long rc = forkfd::raw::call(forkfd::raw::nr_close_range, ~0U, ~0U, 0);
    CHECK_EQ(here.at("close_range"), -rc);
    if (emulated()) return;  // its calls are not ours to refuse
    without({forkfd::raw::nr_clone3, forkfd::raw::nr_close_range}, [&] {
        for (const forkfd::Feature& feature : forkfd::probe_features(some_cgroup())) {
            const std::string name = feature.name;
            const bool refused = name == "clone3" || name == "clone_clear_sighand" ||
                                 name == "clone_into_cgroup" ||
                                 name.compare(0, 11, "close_range") == 0;
            CHECK_EQ(feature.err, refused ? ENOSYS : here.at(name));
        }
    });
}

TEST(after_a_fork_the_report_is_not_shared) {
    forkfd::Report& mine = *forkfd::ChildStack::of_this_thread().report();
    mine.stage = 11;
    const pid_t pid = ::fork();
    if (pid == 0) {
        forkfd::Report& fresh = *forkfd::ChildStack::of_this_thread().report();
        const bool clean = fresh.stage == 0;
        fresh.stage = 22;
        try {
            const bool ran = exit_code(spawn(plan_of_true())) == 0;
            ::_exit(clean && ran ? 0 : 1);
        } catch (...) {
            ::_exit(2);
        }
    }
    int status = -1;
    CHECK_EQ(::waitpid(pid, &status, 0), pid);
    CHECK_EQ(status, 0);
    CHECK_EQ(mine.stage, 11);
}

int main(int argc, char** argv) {
    if (const auto code = helper(argc, argv)) return *code;
    return check::run(argc, argv);
}

// Nothing between clone and exec allocates: in no back end, at no stage.  Nor does what
// pthread_atfork runs in the child.
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>

#include "core/base/raw_syscall.h"
#include "core/epoll/epoll_set.h"
#include "support.h"
#include "trap.h"

using namespace support;

namespace {

// Fails, naming the call, if a child allocated.
void demand_silence(const std::string& what) {
    trap::disarm();
    if (trap::sprung() != 0)
        throw check::Failure(what + ": the child called " + trap::last_call());
}

}  // namespace

TEST(a_child_with_every_option_does_not_allocate) {
    with_each_backend([](Backend backend) {
        SpawnPlan plan = rich_plan();
        if (emulated()) plan.seccomp.clear();  // qemu does not hand it on
        trap::arm();
        const SpawnResult child = spawn(plan);
        demand_silence(forkfd::backend_name(backend));
        CHECK_EQ(child.backend, expected(backend));
        CHECK_EQ(exit_code(child), 0);
    });
}

TEST(a_child_that_closes_by_listing_does_not_allocate) {
    without({forkfd::raw::nr_close_range}, [] {
        with_each_backend([](Backend backend) {
            trap::arm();
            const SpawnResult child = spawn(rich_plan());
            demand_silence(forkfd::backend_name(backend));
            CHECK_EQ(exit_code(child), 0);
        });
    });
}

TEST(a_child_that_fails_does_not_allocate_at_any_stage) {
    with_each_backend([](Backend backend) {
        for (const Stage stage : all_stages()) {
            if (!can_enter(stage, backend)) continue;
            const SpawnPlan plan = plan_entering(stage);
            const Fault fault(stage, ENOTNAM);
            trap::arm();
            const forkfd::SysError error = error_of(plan);
            demand_silence(std::string(forkfd::backend_name(backend)) + ", " +
                           forkfd::stage_name(stage));
            CHECK_EQ(error.stage(), stage);
            CHECK_EQ(error.err(), ENOTNAM);
        }
    });
}

TEST(a_forked_child_makes_its_epolls_anew_without_allocating) {
    forkfd::EpollSet set;
    set.add(some_terminal(), EPOLLIN);
    trap::arm();
    const pid_t pid = ::fork();
    if (pid == 0) ::_exit(0);
    int status = 0;
    ::waitpid(pid, &status, 0);
    demand_silence("fork");
    CHECK_EQ(status, 0);
}

int main(int argc, char** argv) {
    if (const auto code = helper(argc, argv)) return *code;
    return check::run(argc, argv);
}

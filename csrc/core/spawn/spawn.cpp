#include "core/spawn/spawn.h"

#include <linux/sched.h>
#include <unistd.h>

#include <atomic>
#include <ctime>
#include <mutex>
#include <shared_mutex>

#include "core/atfork/fork_lock.h"
#include "core/base/counters.h"
#include "core/base/fault.h"
#include "core/base/pidfd.h"
#include "core/base/probe.h"
#include "core/spawn/id_maps.h"
#include "core/spawn/prepared.h"
#include "core/spawn/spawn_attempt.h"
#include "core/spawn/spawn_trace.h"
#include "core/spawn/spawner_thread.h"

namespace forkfd {

namespace {

// Children of ours between clone and exec.  They may hold a copy of the descriptor of a script
// that another thread has just written and closed.
std::atomic<int> in_flight{0};
std::atomic<unsigned> landed{0};  // spawns that have ended

struct InFlight {
    InFlight() noexcept { ++in_flight; }
    ~InFlight() {
        ++landed;
        --in_flight;
    }
    // Whether there was another one, since `before` was read from landed.
    static bool others(unsigned before) noexcept { return in_flight > 1 || landed != before; }
};

class Spawn {
  public:
    Spawn(const SpawnPlan& plan, Environment env, const std::vector<int>& sources,
          KernelSigset mask)
        : plan_(plan), child_(plan, std::move(env), sources, mask, {::getpid()}),
          args_(child_.args) {}

    SpawnResult run();

  private:
    int cgroup_fd() const noexcept { return child_.cgroup_fd(); }
    long clone_once(const Attempt& attempt);
    std::string subject(Stage stage, int index) const { return child_.subject(stage, index); }

    const SpawnPlan& plan_;
    PreparedChild child_;
    ChildArgs& args_;
    Report report_ = {};  // a copy of the child's last report
    int pidfd_ = -1;
};

long Spawn::clone_once(const Attempt& t) {
    if (cgroup_fd() >= 0 && !t.into_cgroup) child_.open_cgroup_procs();
    args_.table_is_shared = t.share_table;
    args_.handlers_are_cleared = t.clear_sighand;

    ChildStack& stack = ChildStack::of_this_thread();
    Report& shared = *stack.report();
    shared = {};
    args_.report = &shared;
    pidfd_ = -1;
    child_.watch.arm();
    long pid;
    {
        const AllSignalsBlocked blocked;  // in the helper thread too
        std::optional<IdMapWriter> maps;
        if (args_.wait_for_maps) maps.emplace(plan_, shared, pidfd_);
        const fault::Armed armed = fault::armed();
        pid = armed.stage == Stage::clone
                  ? -armed.err
                  : clone_child({t.clone3, t.flags(plan_), t.into_cgroup ? cgroup_fd() : -1}, stack,
                                args_, &pidfd_);
        if (pid > 0)
            child_.watch.wait(static_cast<pid_t>(pid), pidfd_, shared,
                              t.share_table && plan_.changes_user(), plan_.changes_user());
        if (maps) child_.map_subject = maps->subject();
    }
    report_ = shared;
    return pid;
}

SpawnResult Spawn::run() {
    const InFlight counted;
    const SpawnTrace trace(plan_.program);
    // ETXTBSY: one of our own children may hold a script that another thread has just written,
    // until its exec.  Wait for that, but not for ever.
    timespec pause = {0, 200 * 1000};
    long patience = 1000L * 1000 * 1000;
    Attempt t = Attempt::first(plan_, cgroup_fd() >= 0);
    for (;;) {
        const std::uint64_t begun = trace.begin();
        const unsigned before = landed;
        const long pid = clone_once(t);
        trace.cloned(t, pid, report_, begun);
        if (pid < 0) {
            const int err = static_cast<int>(-pid);
            const bool injected = fault::armed().stage == Stage::clone;
            if (const char* const part = injected ? nullptr : t.give_way(plan_, err)) {
                trace.gave_way(part, err);
                continue;
            }
            if (t.into_cgroup) throw_sys(Stage::cgroup, err, subject(Stage::cgroup, 0));
            throw_sys(Stage::clone, err, subject(Stage::clone, 0));
        }
        UniqueFd pidfd(pidfd_);
        const auto stage = static_cast<Stage>(report_.stage);
        if (child_.watch.gave_up()) {
            reap_failed(static_cast<pid_t>(pid));
            throw_sys(stage, ETIMEDOUT,
                      subject(stage, report_.index) + ": not done within " +
                          std::to_string(ExecWatch::kPatience) +
                          " s of the change of user, so the child was killed");
        }
        if (stage == Stage::exec && report_.err == 0) {
            const fault::Armed armed = fault::armed();
            if (!pidfd && plan_.wants_pidfd) pidfd = open_pidfd(static_cast<pid_t>(pid));
            if ((!pidfd && plan_.wants_pidfd) || armed.stage == Stage::pidfd) {
                const int err = pidfd ? armed.err : errno;
                ::kill(static_cast<pid_t>(pid), SIGKILL);  // ours and unreaped: no other
                reap_failed(static_cast<pid_t>(pid));
                throw_sys(Stage::pidfd, err, "of child " + std::to_string(pid));
            }
            return {static_cast<pid_t>(pid), std::move(pidfd), t.backend(),
                    child_.fds.take_pipes()};
        }
        reap_failed(static_cast<pid_t>(pid));
        const bool injected = fault::armed().stage == stage;
        if (stage == Stage::unshare_descriptors && !injected) {
            if (const char* const part = give_way_unshare(t, report_.err, refusals())) {
                trace.gave_way(part, report_.err);
                continue;
            }
        }
        if (stage == Stage::exec && report_.err == ETXTBSY && patience > 0 &&
            InFlight::others(before)) {
            trace.busy();
            patience -= pause.tv_nsec;
            ::nanosleep(&pause, nullptr);
            continue;
        }
        if (report_.err == 0)
            throw_sys(stage == Stage::none ? Stage::clone : stage, ECANCELED,
                      "the child was killed before it could execute");
        throw_sys(stage, report_.err, subject(stage, report_.index));
    }
}

SpawnResult start_child(const SpawnPlan& plan, Environment environment,
                        const std::vector<int>& sources) {
    const KernelSigset mask = current_signal_mask();
    const auto start = [&] { return Spawn(plan, std::move(environment), sources, mask).run(); };
    // Locked by the calling thread, which may hold it exclusively, not by the spawner thread.
    std::shared_lock<ForkLock> lock(fork_lock(), std::defer_lock);
    if (!plan.close_others) lock.lock();
    // The death signal fires when the spawning thread ends, not the process.
    if (plan.death_signal != 0 && plan.death_with_process) return on_spawner_thread(start);
    return start();
}

}  // namespace

SpawnResult spawn(const SpawnPlan& plan, Environment environment,
                  const std::vector<int>& sources) {
    const SpawnTrace trace(plan.program);
    const std::uint64_t begun = trace.begin();
    trace.started();
    try {
        SpawnResult child = start_child(plan, std::move(environment), sources);
        count(counters().spawned);
        trace.executed(child, begun);
        return child;
    } catch (const SysError& error) {
        count(counters().failed);
        trace.failed(error, begun);
        throw;
    }
}

}  // namespace forkfd

#include "core/spawn.h"

#include <linux/sched.h>
#include <unistd.h>

#include <atomic>
#include <ctime>
#include <mutex>
#include <shared_mutex>

#include "core/fault.h"
#include "core/fork_lock.h"
#include "core/id_maps.h"
#include "core/pidfd.h"
#include "core/prepared.h"
#include "core/probe.h"
#include "core/spawner_thread.h"

namespace forkfd {

namespace {

constexpr std::uint64_t kPidfd = 0x1000;  // older headers lack some of these
constexpr std::uint64_t kClearSighand = 0x100000000ULL;
constexpr std::uint64_t kIntoCgroup = 0x200000000ULL;
constexpr std::uint64_t kNewTime = 0x80;  // lies in clone()'s exit signal: clone3 only

std::atomic<int> forced_backend{-1};

// Children of ours that are between clone and exec.  They may hold a copy of a
// script's descriptor that another thread has just written and closed.
std::atomic<int> in_flight{0};

struct InFlight {
    InFlight() noexcept { ++in_flight; }
    ~InFlight() { --in_flight; }
};

// What one attempt asks of the kernel; each refusal takes one thing away.
struct Attempt {
    bool clone3, share_memory, share_table, clear_sighand, into_cgroup, pidfd;
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
    Attempt first_attempt() const;
    bool give_way(Attempt& attempt, int err);
    long clone_once(const Attempt& attempt);
    std::string subject(Stage stage, int index) const { return child_.subject(stage, index); }

    const SpawnPlan& plan_;
    PreparedChild child_;
    ChildArgs& args_;
    Report report_ = {};  // the child's last word, copied
    int pidfd_ = -1;
};

Attempt Spawn::first_attempt() const {
    const int forced = forced_backend.load();
    const Refusals& seen = refusals();
    Attempt t;
    t.clone3 = (plan_.namespaces & kNewTime) != 0 ||
               forced == static_cast<int>(Backend::clone3) ||
               (seen.clone3 == 0 && forced != static_cast<int>(Backend::clone));
    t.share_memory = forced != static_cast<int>(Backend::fork_like) &&
                     !plan_.changes_credentials() && memory_is_shared();
    t.share_table = plan_.close_others && seen.unshare == 0 && seen.clone_files == 0;
    t.clear_sighand = t.clone3 && seen.clear_sighand == 0;
    t.into_cgroup = t.clone3 && cgroup_fd() >= 0 && seen.into_cgroup == 0;
    t.pidfd = seen.clone_pidfd == 0;
    return t;
}

// Takes away what the kernel may have refused.  Remembered only where nothing that was
// asked for could be the reason.  False: there is nothing left to give up.
bool Spawn::give_way(Attempt& t, int err) {
    Refusals& seen = refusals();
    const bool plain = plan_.namespaces == 0 && !t.into_cgroup;
    const auto drop = [&](bool& part, std::atomic<int>& memory) {
        part = false;
        if (plain) memory = err;
        return true;
    };
    if (!means_refused(err)) return false;
    if ((plan_.namespaces & kNewTime) != 0) return false;
    if (t.into_cgroup) {
        t.into_cgroup = false;
        if (err == E2BIG) seen.into_cgroup = err;
        return true;
    }
    if (t.clone3 && t.clear_sighand && err == EINVAL) return drop(t.clear_sighand, seen.clear_sighand);
    if (t.clone3 && forced_backend.load() != static_cast<int>(Backend::clone3)) {
        t.clear_sighand = false;
        return drop(t.clone3, seen.clone3);
    }
    if (!t.clone3 && t.share_table && err == EINVAL) return drop(t.share_table, seen.clone_files);
    if (!t.clone3 && t.pidfd && err == EINVAL && has_pidfd_open() && !args_.wait_for_maps)
        return drop(t.pidfd, seen.clone_pidfd);
    return false;
}

long Spawn::clone_once(const Attempt& t) {
    if (cgroup_fd() >= 0 && !t.into_cgroup) child_.open_cgroup_procs();
    std::uint64_t flags = CLONE_VFORK | plan_.namespaces;
    if (t.share_memory) flags |= CLONE_VM;
    if (t.share_table) flags |= CLONE_FILES;
    if (t.pidfd) flags |= kPidfd;
    if (t.clear_sighand) flags |= kClearSighand;
    if (t.into_cgroup) flags |= kIntoCgroup;
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
                  : clone_child({t.clone3, flags, t.into_cgroup ? cgroup_fd() : -1}, stack, args_,
                                &pidfd_);
        if (pid > 0) child_.watch.wait();
        if (maps) child_.map_subject = maps->subject();
    }
    report_ = shared;
    return pid;
}

SpawnResult Spawn::run() {
    const InFlight counted;
    // A script that another thread has just written may be held open by one of our own
    // children for the moment before its exec: worth waiting for, but not for ever.
    timespec pause = {0, 200 * 1000};
    long patience = 1000L * 1000 * 1000;
    Attempt t = first_attempt();
    for (;;) {
        const long pid = clone_once(t);
        if (pid < 0) {
            const int err = static_cast<int>(-pid);
            if (fault::armed().stage != Stage::clone && give_way(t, err)) continue;
            if (t.into_cgroup) throw_sys(Stage::cgroup, err, subject(Stage::cgroup, 0));
            throw_sys(Stage::clone, err, subject(Stage::clone, 0));
        }
        UniqueFd pidfd(pidfd_);
        const auto stage = static_cast<Stage>(report_.stage);
        if (stage == Stage::exec && report_.err == 0) {
            const fault::Armed armed = fault::armed();
            if (!pidfd) pidfd = open_pidfd(static_cast<pid_t>(pid));
            if (!pidfd || armed.stage == Stage::pidfd) {
                const int err = pidfd ? armed.err : errno;
                ::kill(static_cast<pid_t>(pid), SIGKILL);  // ours and unreaped: no other
                reap_failed(static_cast<pid_t>(pid));
                throw_sys(Stage::pidfd, err, "of child " + std::to_string(pid));
            }
            const Backend backend = !t.share_memory ? Backend::fork_like
                                    : t.clone3      ? Backend::clone3
                                                    : Backend::clone;
            return {static_cast<pid_t>(pid), std::move(pidfd), backend, child_.fds.take_pipes()};
        }
        reap_failed(static_cast<pid_t>(pid));
        const bool injected = fault::armed().stage == stage;
        if (stage == Stage::unshare_descriptors && means_refused(report_.err) && !injected) {
            refusals().unshare = report_.err;
            t.share_table = false;
            continue;
        }
        if (stage == Stage::exec && report_.err == ETXTBSY && in_flight > 1 && patience > 0) {
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

}  // namespace

void force_backend(std::optional<Backend> backend) noexcept {
    forced_backend = backend ? static_cast<int>(*backend) : -1;
}

SpawnResult spawn(const SpawnPlan& plan, Environment environment,
                  const std::vector<int>& sources) {
    const KernelSigset mask = current_signal_mask();
    const auto start = [&] { return Spawn(plan, std::move(environment), sources, mask).run(); };
    // Taken by the thread that asks, which may hold it exclusively, not by the spawner's.
    std::shared_lock<ForkLock> lock(fork_lock(), std::defer_lock);
    if (!plan.close_others) lock.lock();
    // The death signal fires when the thread that spawned ends, not the process.
    if (plan.death_signal != 0 && plan.death_with_process) return on_spawner_thread(start);
    return start();
}

}  // namespace forkfd

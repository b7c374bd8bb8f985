#include "core/spawn.h"

#include <fcntl.h>
#include <linux/sched.h>
#include <sys/prctl.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <atomic>
#include <ctime>
#include <mutex>
#include <shared_mutex>

#include "core/exec_watch.h"
#include "core/fault.h"
#include "core/fork_lock.h"
#include "core/id_maps.h"
#include "core/names.h"
#include "core/pidfd.h"
#include "core/probe.h"
#include "core/spawner_thread.h"

namespace forkfd {

namespace {

constexpr std::uint64_t kPidfd = 0x1000;  // older headers lack some of these
constexpr std::uint64_t kClearSighand = 0x100000000ULL;
constexpr std::uint64_t kIntoCgroup = 0x200000000ULL;
constexpr std::uint64_t kNewTime = 0x80;  // lies in clone()'s exit signal: clone3 only

std::atomic<int> forced_backend{-1};
std::atomic<std::uint64_t> spawns{0};

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
        : plan_(plan), env_(std::move(env)),
          terminal_(open_path(plan.controlling_terminal_path, O_RDWR | O_NOCTTY)),
          foreground_(open_path(plan.foreground_terminal_path, O_RDWR | O_NOCTTY)),
          cgroup_(open_path(plan.cgroup_path, O_RDONLY | O_DIRECTORY)),
          self_(watch_self()), watch_(!memory_is_shared()), fds_(plan, sources, used_later()) {
        demand_cgroup2();
        fill(mask);
    }

    SpawnResult run();

  private:
    static UniqueFd open_path(const std::string& path, int flags);
    UniqueFd watch_self() const;
    std::vector<int> used_later() const;
    void demand_cgroup2() const;
    int cgroup_fd() const noexcept { return plan_.cgroup_fd.value_or(cgroup_.get()); }
    void fill(KernelSigset mask);
    void fill_capabilities();
    Attempt first_attempt() const;
    bool give_way(Attempt& attempt, int err);
    long clone_once(const Attempt& attempt);
    void open_cgroup_procs();
    std::string subject(Stage stage, int index) const;

    const SpawnPlan& plan_;
    Environment env_;
    UniqueFd terminal_, foreground_, cgroup_, self_, cgroup_procs_;
    ExecWatch watch_;
    SpawnFds fds_;
    std::vector<char*> argv_;
    std::vector<const char*> candidates_;
    sock_fprog filter_ = {};
    ChildArgs args_ = {};
    Report report_ = {};  // the child's last word, copied
    std::string map_subject_;
    int pidfd_ = -1;
};

UniqueFd Spawn::open_path(const std::string& path, int flags) {
    if (path.empty()) return {};
    fault::point(Stage::open_resource, path.c_str());
    UniqueFd fd(::open(path.c_str(), flags | O_CLOEXEC));
    if (!fd) throw_sys(Stage::open_resource, errno, path);
    return fd;
}

// The kernel says EBADF of a good descriptor on another file system, which misleads.
void Spawn::demand_cgroup2() const {
    constexpr long kCgroup2Magic = 0x63677270;
    struct statfs info;
    if (cgroup_fd() < 0) return;
    const std::string what = subject(Stage::cgroup, 0);
    if (::fstatfs(cgroup_fd(), &info) != 0) throw_sys(Stage::cgroup, errno, what);
    if (info.f_type != kCgroup2Magic)
        throw_sys(Stage::cgroup, EINVAL, what + " is not in a cgroup v2 tree");
}

// In a new pid namespace getppid() is 0 whether or not the parent lives.
UniqueFd Spawn::watch_self() const {
    if (plan_.death_signal == 0 || (plan_.namespaces & CLONE_NEWPID) == 0) return {};
    UniqueFd self = open_pidfd(::getpid());
    if (!self) throw_sys(Stage::pidfd, errno, "of the parent, to see it die");
    return self;
}

std::vector<int> Spawn::used_later() const {
    return {plan_.exec_fd.value_or(-1), plan_.cwd_fd.value_or(-1), self_.get(), watch_.number()};
}

void Spawn::fill(KernelSigset mask) {
    const SpawnPlan& p = plan_;
    ChildArgs& a = args_;
    const fault::Armed armed = fault::armed();
    a.fault_stage = static_cast<int>(armed.stage);
    a.fault_err = armed.err;
    a.death_signal = p.death_signal;
    a.parent_pid = ::getpid();
    a.parent_pidfd = self_.get();
    a.exec_watch = watch_.number();
    a.cgroup_procs_fd = -1;
    a.wait_for_maps = !p.uid_map.empty() || !p.gid_map.empty();
    a.new_session = p.new_session;
    a.set_process_group = p.process_group.has_value();
    a.process_group = p.process_group.value_or(0);
    a.controlling_terminal = p.controlling_terminal.value_or(terminal_.get());
    a.foreground_terminal = p.foreground_terminal.value_or(foreground_.get());
    a.close_others = p.close_others;
    fds_.fill(a);
    a.set_umask = p.umask.has_value();
    a.umask = p.umask.value_or(0);
    a.limits = p.limits.data();
    a.n_limits = p.limits.size();
    a.set_nice = p.nice.has_value();
    a.nice = p.nice.value_or(0);
    a.affinity = reinterpret_cast<const unsigned char*>(p.affinity.data());
    a.affinity_bytes = p.affinity.size();
    a.set_scheduler = p.scheduler_policy.has_value();
    a.scheduler_policy = p.scheduler_policy.value_or(0);
    a.scheduler_param.sched_priority = p.scheduler_priority;
    a.chroot = p.chroot.empty() ? nullptr : p.chroot.c_str();
    a.set_groups = p.groups.has_value();
    a.groups = p.groups ? p.groups->data() : nullptr;
    a.n_groups = p.groups ? p.groups->size() : 0;
    a.set_gid = p.gid.has_value();
    a.gid = p.gid.value_or(0);
    a.set_uid = p.uid.has_value();
    a.uid = p.uid.value_or(0);
    fill_capabilities();
    a.cwd = p.cwd.empty() ? nullptr : p.cwd.c_str();
    a.cwd_fd = p.cwd_fd.value_or(-1);
    a.cwd_before_credentials = p.cwd_before_credentials;
    a.no_new_privs = p.no_new_privs;
    a.default_signals = p.default_signals;
    a.ignore_signals = p.ignore_signals;
    a.mask = p.signal_mask.value_or(mask);
    if (p.listen_names) env_.set_listen(*p.listen_names, has_pidfs());
    a.envp = env_.data();
    a.listen_pid = env_.listen_pid();
    a.listen_pidfdid = env_.listen_pidfdid();
    if (!p.seccomp.empty()) {
        filter_.len = static_cast<unsigned short>(p.seccomp.size() / sizeof(sock_filter));
        filter_.filter = reinterpret_cast<sock_filter*>(const_cast<char*>(p.seccomp.data()));
        a.seccomp = &filter_;
    }
    a.exec_fd = p.exec_fd.value_or(-1);
    for (const std::string& s : p.candidates) candidates_.push_back(s.c_str());
    candidates_.push_back(nullptr);
    a.candidates = candidates_.data();
    a.every_candidate = p.every_candidate;
    for (const std::string& s : p.argv) argv_.push_back(const_cast<char*>(s.c_str()));
    argv_.push_back(nullptr);
    a.argv = argv_.data();
}

void Spawn::fill_capabilities() {
    const SpawnPlan& p = plan_;
    ChildCapabilities& c = args_.caps;
    if (!p.bounding && !p.permitted && !p.inheritable && !p.ambient) return;
    c.has_bounding = p.bounding.has_value();
    c.bounding = p.bounding.value_or(0);
    c.has_permitted = p.permitted.has_value();
    c.permitted = p.permitted.value_or(0);
    c.has_inheritable = p.inheritable.has_value();
    c.inheritable = p.inheritable.value_or(0);
    c.has_ambient = p.ambient.has_value();
    c.ambient = p.ambient.value_or(0);
    c.set = c.has_permitted || c.has_inheritable;
    c.keep_over_setuid = c.set && p.uid.has_value();
    while (c.last < 63 && ::prctl(PR_CAPBSET_READ, c.last + 1) >= 0) ++c.last;
}

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
    t.pidfd = seen.clone_pidfd == 0 && (plan_.wants_pidfd || args_.wait_for_maps);
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

// CLONE_INTO_CGROUP was refused: the child itself writes cgroup.procs.
void Spawn::open_cgroup_procs() {
    if (cgroup_procs_) return;
    cgroup_procs_ = UniqueFd(::openat(cgroup_fd(), "cgroup.procs", O_WRONLY | O_CLOEXEC));
    if (!cgroup_procs_) throw_sys(Stage::cgroup, errno, subject(Stage::cgroup, 0));
    args_.cgroup_procs_fd = cgroup_procs_.get();
}

long Spawn::clone_once(const Attempt& t) {
    if (cgroup_fd() >= 0 && !t.into_cgroup) open_cgroup_procs();
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
    watch_.arm();
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
        if (pid > 0) watch_.wait();
        if (maps) map_subject_ = maps->subject();
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
            if (!pidfd && plan_.wants_pidfd) pidfd = open_pidfd(static_cast<pid_t>(pid));
            if ((!pidfd && plan_.wants_pidfd) || armed.stage == Stage::pidfd) {
                const int err = pidfd ? armed.err : errno;
                ::kill(static_cast<pid_t>(pid), SIGKILL);  // ours and unreaped: no other
                reap_failed(static_cast<pid_t>(pid));
                throw_sys(Stage::pidfd, err, "of child " + std::to_string(pid));
            }
            const Backend backend = !t.share_memory ? Backend::fork_like
                                    : t.clone3      ? Backend::clone3
                                                    : Backend::clone;
            return {static_cast<pid_t>(pid), std::move(pidfd), backend, fds_.take_pipes()};
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

std::string Spawn::subject(Stage stage, int index) const {
    const SpawnPlan& p = plan_;
    switch (stage) {
        case Stage::parent_alive:
        case Stage::parent_death_signal: return "signal " + std::to_string(p.death_signal);
        case Stage::cgroup:
            return p.cgroup_path.empty() ? "descriptor " + std::to_string(cgroup_fd())
                                         : p.cgroup_path;
        case Stage::id_maps: return map_subject_;
        case Stage::process_group: return std::to_string(p.process_group.value_or(0));
        case Stage::controlling_terminal:
            return p.controlling_terminal_path.empty()
                       ? "descriptor " + std::to_string(args_.controlling_terminal)
                       : p.controlling_terminal_path;
        case Stage::foreground:
            return p.foreground_terminal_path.empty()
                       ? "descriptor " + std::to_string(args_.foreground_terminal)
                       : p.foreground_terminal_path;
        case Stage::keep_descriptor: return "descriptor " + std::to_string(index);
        case Stage::map_descriptor:
        case Stage::open_file: return fds_.describe(index);
        case Stage::resource_limit:
            return resource_name(p.limits.at(static_cast<std::size_t>(index)).resource);
        case Stage::nice: return std::to_string(p.nice.value_or(0));
        case Stage::scheduler: return "policy " + std::to_string(p.scheduler_policy.value_or(0));
        case Stage::chroot: return p.chroot;
        case Stage::bounding_set:
        case Stage::ambient_set: return index < 0 ? "clear" : capability_name(index);
        case Stage::groups: return std::to_string(p.groups ? p.groups->size() : 0) + " groups";
        case Stage::group: return p.group_name;
        case Stage::user: return p.user_name;
        case Stage::working_directory:
            return p.cwd.empty() ? "descriptor " + std::to_string(args_.cwd_fd) : p.cwd;
        case Stage::default_signals:
        case Stage::ignore_signals: return "signal " + std::to_string(index);
        case Stage::seccomp: return std::to_string(filter_.len) + " instructions";
        case Stage::clone: {
            const std::string how =
                refusals().clone3 == 0 ? "clone3" : "clone, clone3 being refused";
            return p.namespaces == 0 ? how : how + ", with new namespaces";
        }
        default: return p.program;
    }
}

}  // namespace

void force_backend(std::optional<Backend> backend) noexcept {
    forced_backend = backend ? static_cast<int>(*backend) : -1;
}

std::uint64_t spawn_count() noexcept { return spawns.load(std::memory_order_relaxed); }

SpawnResult spawn(const SpawnPlan& plan, Environment environment,
                  const std::vector<int>& sources) {
    spawns.fetch_add(1, std::memory_order_relaxed);
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

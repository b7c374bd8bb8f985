#include "core/spawn/prepared.h"

#include <fcntl.h>
#include <linux/sched.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "core/base/fault.h"
#include "core/base/names.h"
#include "core/base/pidfd.h"
#include "core/base/probe.h"
#include "core/spawn/clone.h"
#include "core/spawn/spawn_args.h"

namespace forkfd {

namespace {

UniqueFd open_path(const std::string& path, int flags) {
    if (path.empty()) return {};
    fault::point(Stage::open_resource, path.c_str());
    UniqueFd fd(::open(path.c_str(), flags | O_CLOEXEC));
    if (!fd) throw_sys(Stage::open_resource, errno, path);
    return fd;
}

// In a new pid namespace getppid() is 0 whether or not the parent lives.
UniqueFd watch_self(const SpawnPlan& plan) {
    if ((plan.namespaces & CLONE_NEWPID) == 0) return {};
    if (plan.death_signal == 0 && !may_wait(plan)) return {};
    UniqueFd self = open_pidfd(::getpid());
    if (!self && plan.death_signal == 0) return {};  // only a wait is at stake
    if (!self) throw_sys(Stage::pidfd, errno, "of the parent, to see it die");
    return self;
}

}  // namespace

PreparedChild::PreparedChild(const SpawnPlan& plan, Environment env,
                             const std::vector<int>& sources, KernelSigset mask,
                             const Kinship& kin)
    : watch(kin.executes && (plan.changes_user() || !memory_is_shared())), plan_(plan), env_(std::move(env)),
      terminal_(open_path(plan.controlling_terminal_path, O_RDWR | O_NOCTTY)),
      foreground_(open_path(plan.foreground_terminal_path, O_RDWR | O_NOCTTY)),
      cgroup_(open_path(plan.cgroup_path, O_RDONLY | O_DIRECTORY)),
      self_(kin.executes ? watch_self(plan) : UniqueFd()) {
    args.exec_fd = plan.exec_fd.value_or(-1);
    args.cwd_fd = plan.cwd_fd.value_or(-1);
    args.parent_pidfd = kin.executes ? self_.get() : kin.parent_pidfd;
    args.exec_watch = watch.number();
    fds = SpawnFds(plan, sources, used_later());
    demand_cgroup2();
    fill(mask, kin);
}

// The kernel's error for a descriptor on another file system is EBADF, which misleads.
void PreparedChild::demand_cgroup2() const {
    constexpr long kCgroup2Magic = 0x63677270;
    struct statfs info;
    if (cgroup_fd() < 0) return;
    const std::string what = subject(Stage::cgroup, 0);
    if (::fstatfs(cgroup_fd(), &info) != 0) throw_sys(Stage::cgroup, errno, what);
    if (info.f_type != kCgroup2Magic)
        throw_sys(Stage::cgroup, EINVAL, what + " is not in a cgroup v2 tree");
}

std::vector<int> PreparedChild::used_later() const {
    return {args.exec_fd, args.cwd_fd, args.parent_pidfd, args.exec_watch};
}

void PreparedChild::fill(KernelSigset mask, const Kinship& kin) {
    const SpawnPlan& p = plan_;
    ChildArgs& a = args;
    copy_plan(p, a);
    const fault::Armed armed = fault::armed();
    a.fault_stage = static_cast<int>(armed.stage);
    a.fault_err = armed.err;
    a.parent_pid = kin.parent_pid;
    a.handlers_are_cleared = !kin.executes;  // a process without an exec keeps its handlers
    a.report_fd = -1;
    a.cgroup_procs_fd = -1;
    a.controlling_terminal = p.controlling_terminal.value_or(terminal_.get());
    a.foreground_terminal = p.foreground_terminal.value_or(foreground_.get());
    fds.fill(a);
    a.mask = p.signal_mask.value_or(mask);
    if (p.listen_names && kin.executes) env_.set_listen(*p.listen_names, has_pidfs());
    a.envp = env_.data();
    a.listen_pid = env_.listen_pid();
    a.listen_pidfdid = env_.listen_pidfdid();
    if (!p.seccomp.empty()) {
        filter_.len = static_cast<unsigned short>(p.seccomp.size() / sizeof(sock_filter));
        filter_.filter = reinterpret_cast<sock_filter*>(const_cast<char*>(p.seccomp.data()));
        a.seccomp = &filter_;
    }
    for (const std::string& s : p.candidates) candidates_.push_back(s.c_str());
    candidates_.push_back(nullptr);
    a.candidates = candidates_.data();
    a.every_candidate = p.every_candidate;
    for (const std::string& s : p.argv) argv_.push_back(const_cast<char*>(s.c_str()));
    argv_.push_back(nullptr);
    a.argv = argv_.data();
}

void PreparedChild::open_cgroup_procs() {
    if (cgroup_procs_) return;
    cgroup_procs_ = UniqueFd(::openat(cgroup_fd(), "cgroup.procs", O_WRONLY | O_CLOEXEC));
    if (!cgroup_procs_) throw_sys(Stage::cgroup, errno, subject(Stage::cgroup, 0));
    args.cgroup_procs_fd = cgroup_procs_.get();
}

std::string PreparedChild::subject(Stage stage, int index) const {
    const SpawnPlan& p = plan_;
    switch (stage) {
        case Stage::parent_alive:
        case Stage::parent_death_signal: return "signal " + std::to_string(p.death_signal);
        case Stage::cgroup:
            return p.cgroup_path.empty() ? "descriptor " + std::to_string(cgroup_fd())
                                         : p.cgroup_path;
        case Stage::id_maps: return map_subject;
        case Stage::process_group: return std::to_string(p.process_group.value_or(0));
        case Stage::controlling_terminal:
            return p.controlling_terminal_path.empty()
                       ? "descriptor " + std::to_string(args.controlling_terminal)
                       : p.controlling_terminal_path;
        case Stage::foreground:
            return p.foreground_terminal_path.empty()
                       ? "descriptor " + std::to_string(args.foreground_terminal)
                       : p.foreground_terminal_path;
        case Stage::keep_descriptor: return "descriptor " + std::to_string(index);
        case Stage::map_descriptor:
        case Stage::open_file: return fds.describe(index);
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
            return p.cwd.empty() ? "descriptor " + std::to_string(args.cwd_fd) : p.cwd;
        case Stage::default_signals:
        case Stage::ignore_signals: return "signal " + std::to_string(index);
        case Stage::seccomp: return std::to_string(filter_.len) + " instructions";
        case Stage::clone: {
            const std::string how =
                !refusals().clone3 ? "clone3" : "clone, clone3 being refused";
            return p.namespaces == 0 ? how : how + ", with new namespaces";
        }
        default: return p.program;
    }
}

}  // namespace forkfd

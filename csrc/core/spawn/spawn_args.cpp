#include "core/spawn/spawn_args.h"

#include <sys/prctl.h>

#include <algorithm>

namespace forkfd {

namespace {

void copy_capabilities(const SpawnPlan& p, ChildCapabilities& c) {
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

}  // namespace

bool may_wait(const SpawnPlan& p) {
    const auto opens = [](const FdAction& action) { return action.kind == FdAction::Kind::open; };
    const auto also = [](const FileAction& action) { return action.kind == FdStep::Kind::open; };
    const bool enters_cgroup = p.cgroup_fd || !p.cgroup_path.empty();  // may be frozen
    const bool enters_directory = p.cwd_fd || !p.cwd.empty() || !p.chroot.empty();  // FUSE, autofs
    return !p.uid_map.empty() || !p.gid_map.empty() || enters_cgroup || enters_directory ||
           std::any_of(p.fds.begin(), p.fds.end(), opens) ||
           std::any_of(p.file_actions.begin(), p.file_actions.end(), also);
}

void copy_plan(const SpawnPlan& p, ChildArgs& a) {
    a.death_signal = p.death_signal;
    a.may_wait = may_wait(p);
    a.wait_for_maps = !p.uid_map.empty() || !p.gid_map.empty();
    a.new_session = p.new_session;
    a.set_process_group = p.process_group.has_value();
    a.process_group = p.process_group.value_or(0);
    a.close_others = p.close_others;
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
    copy_capabilities(p, a.caps);
    a.cwd = p.cwd.empty() ? nullptr : p.cwd.c_str();
    a.cwd_fd = p.cwd_fd.value_or(-1);
    a.cwd_before_credentials = p.cwd_before_credentials;
    a.no_new_privs = p.no_new_privs;
    a.default_signals = p.default_signals;
    a.ignore_signals = p.ignore_signals;
    a.exec_fd = p.exec_fd.value_or(-1);
}

}  // namespace forkfd

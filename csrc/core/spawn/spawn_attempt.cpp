#include "core/spawn/spawn_attempt.h"

#include <linux/sched.h>

#include <atomic>

#include "core/base/kernel_flags.h"
#include "core/base/probe.h"

namespace forkfd {

namespace {

std::atomic<int> forced_backend{-1};

bool is_forced(Backend backend) noexcept {
    return forced_backend.load() == static_cast<int>(backend);
}

// They are written by the pidfd of the clone.
bool has_id_maps(const SpawnPlan& plan) noexcept {
    return !plan.uid_map.empty() || !plan.gid_map.empty();
}

bool needs_clone3(const SpawnPlan& plan) noexcept {
    return (plan.namespaces & kClone3Only) != 0 || is_forced(Backend::clone3);
}

}  // namespace

Attempt Attempt::first(const SpawnPlan& plan, bool has_cgroup) {
    const Refusals& seen = refusals();
    Attempt t;
    t.clone3 = needs_clone3(plan) || (!seen.clone3 && !is_forced(Backend::clone));
    t.share_memory =
        !is_forced(Backend::fork_like) && !plan.changes_credentials() && memory_is_shared();
    t.share_table = plan.close_others && !seen.unshare && !seen.clone_files;
    t.clear_sighand = t.clone3 && !seen.clear_sighand;
    t.into_cgroup = t.clone3 && has_cgroup && !seen.into_cgroup;
    t.pidfd = !seen.clone_pidfd && (plan.wants_pidfd || has_id_maps(plan));
    return t;
}

const char* Attempt::give_way(const SpawnPlan& plan, int err) {
    const Needs needs = {needs_clone3(plan), has_id_maps(plan) || !has_pidfd_open(),
                         plan.namespaces != 0};
    return forkfd::give_way(*this, needs, err, refusals());
}

std::uint64_t Attempt::flags(const SpawnPlan& plan) const noexcept {
    std::uint64_t flags = plan.namespaces;
    if (!plan.changes_user()) flags |= CLONE_VFORK;  // else exec_watch.h waits
    if (share_memory) flags |= CLONE_VM;
    if (share_table) flags |= CLONE_FILES;
    if (pidfd) flags |= kClonePidfd;
    if (clear_sighand) flags |= kCloneClearSighand;
    if (into_cgroup) flags |= kCloneIntoCgroup;
    return flags;
}

Backend Attempt::backend() const noexcept {
    return !share_memory ? Backend::fork_like : clone3 ? Backend::clone3 : Backend::clone;
}

void force_backend(std::optional<Backend> backend) noexcept {
    forced_backend = backend ? static_cast<int>(*backend) : -1;
}

}  // namespace forkfd

#include "core/spawn/spawn_attempt.h"

#include <linux/sched.h>

#include <atomic>

#include "core/base/probe.h"

namespace forkfd {

namespace {

constexpr std::uint64_t kPidfd = 0x1000;  // older headers lack some of these
constexpr std::uint64_t kClearSighand = 0x100000000ULL;
constexpr std::uint64_t kIntoCgroup = 0x200000000ULL;
constexpr std::uint64_t kNewTime = 0x80;  // lies in clone()'s exit signal: clone3 only

std::atomic<int> forced_backend{-1};

bool has_id_maps(const SpawnPlan& plan) noexcept {  // which are written by the pidfd
    return !plan.uid_map.empty() || !plan.gid_map.empty();
}

}  // namespace

Attempt Attempt::first(const SpawnPlan& plan, bool has_cgroup) {
    const int forced = forced_backend.load();
    const Refusals& seen = refusals();
    Attempt t;
    t.clone3 = (plan.namespaces & kNewTime) != 0 || forced == static_cast<int>(Backend::clone3) ||
               (seen.clone3 == 0 && forced != static_cast<int>(Backend::clone));
    t.share_memory = forced != static_cast<int>(Backend::fork_like) &&
                     !plan.changes_credentials() && memory_is_shared();
    t.share_table = plan.close_others && seen.unshare == 0 && seen.clone_files == 0;
    t.clear_sighand = t.clone3 && seen.clear_sighand == 0;
    t.into_cgroup = t.clone3 && has_cgroup && seen.into_cgroup == 0;
    t.pidfd = seen.clone_pidfd == 0 && (plan.wants_pidfd || has_id_maps(plan));
    return t;
}

const char* Attempt::give_way(const SpawnPlan& plan, int err) {
    Refusals& seen = refusals();
    const bool plain = plan.namespaces == 0 && !into_cgroup;
    const auto drop = [&](bool& part, std::atomic<int>& memory, const char* name) {
        part = false;
        if (plain) memory = err;
        return name;
    };
    if (!means_refused(err)) return nullptr;
    if ((plan.namespaces & kNewTime) != 0) return nullptr;
    if (into_cgroup) {
        into_cgroup = false;
        if (err == E2BIG) seen.into_cgroup = err;
        return "CLONE_INTO_CGROUP";
    }
    if (clone3 && clear_sighand && err == EINVAL)
        return drop(clear_sighand, seen.clear_sighand, "CLONE_CLEAR_SIGHAND");
    if (clone3 && forced_backend.load() != static_cast<int>(Backend::clone3)) {
        clear_sighand = false;
        return drop(clone3, seen.clone3, "clone3");
    }
    if (!clone3 && share_table && err == EINVAL)
        return drop(share_table, seen.clone_files, "CLONE_FILES");
    if (!clone3 && pidfd && err == EINVAL && has_pidfd_open() && !has_id_maps(plan))
        return drop(pidfd, seen.clone_pidfd, "CLONE_PIDFD");
    return nullptr;
}

std::uint64_t Attempt::flags(const SpawnPlan& plan) const noexcept {
    std::uint64_t flags = CLONE_VFORK | plan.namespaces;
    if (share_memory) flags |= CLONE_VM;
    if (share_table) flags |= CLONE_FILES;
    if (pidfd) flags |= kPidfd;
    if (clear_sighand) flags |= kClearSighand;
    if (into_cgroup) flags |= kIntoCgroup;
    return flags;
}

Backend Attempt::backend() const noexcept {
    return !share_memory ? Backend::fork_like : clone3 ? Backend::clone3 : Backend::clone;
}

void force_backend(std::optional<Backend> backend) noexcept {
    forced_backend = backend ? static_cast<int>(*backend) : -1;
}

}  // namespace forkfd

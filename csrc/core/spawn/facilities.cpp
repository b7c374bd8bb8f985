#include "core/spawn/facilities.h"

namespace forkfd {

const char* give_way(Facilities& used, const Needs& needs, int err, Refusals& seen) noexcept {
    if (!means_refused(err)) return nullptr;
    const bool plain = !needs.flags && !used.into_cgroup;
    const auto drop = [&](bool& facility, Refusal& memory, bool certain, const char* name) {
        facility = false;
        if (certain) memory.remember(err);
        return name;
    };
    // A cgroup may refuse the child (EPERM, EINVAL); only the size of the block is its own.
    if (used.into_cgroup)
        return drop(used.into_cgroup, seen.into_cgroup, err == E2BIG, "CLONE_INTO_CGROUP");
    if (used.clone3 && used.clear_sighand && err == EINVAL)
        return drop(used.clear_sighand, seen.clear_sighand, plain, "CLONE_CLEAR_SIGHAND");
    if (used.clone3 && !needs.clone3) {
        used.clear_sighand = false;
        return drop(used.clone3, seen.clone3, plain || err == ENOSYS, "clone3");
    }
    if (!used.clone3 && used.share_table && err == EINVAL)
        return drop(used.share_table, seen.clone_files, plain, "CLONE_FILES");
    if (!used.clone3 && used.pidfd && !needs.pidfd && err == EINVAL)
        return drop(used.pidfd, seen.clone_pidfd, plain, "CLONE_PIDFD");
    return nullptr;
}

const char* give_way_unshare(Facilities& used, int err, Refusals& seen) noexcept {
    if (!used.share_table || !means_refused(err)) return nullptr;
    used.share_table = false;
    seen.unshare.remember(err);
    return "CLOSE_RANGE_UNSHARE";
}

}  // namespace forkfd

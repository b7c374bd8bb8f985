// What the running kernel (or sandbox, or emulator) has refused so far, with its
// errno.  Learned from real calls, never from version numbers: a filter installed
// after the first spawn is found as well.
#pragma once

#include <atomic>
#include <cerrno>

namespace forkfd {

// 0: not refused so far.
struct Refusals {
    std::atomic<int> clone3{0};
    std::atomic<int> clear_sighand{0};  // CLONE_CLEAR_SIGHAND, Linux 5.5
    std::atomic<int> into_cgroup{0};    // CLONE_INTO_CGROUP, Linux 5.7
    std::atomic<int> clone_files{0};    // refused by qemu's user mode
    std::atomic<int> clone_pidfd{0};    // refused by qemu's user mode
    std::atomic<int> unshare{0};        // close_range(CLOSE_RANGE_UNSHARE), Linux 5.9
    std::atomic<int> shared_memory{0};  // CLONE_VM runs on a copy: emulators, valgrind
};

inline Refusals& refusals() noexcept {
    static Refusals seen;
    return seen;
}

// What a kernel without a call, or a filter in front of it, answers.
inline bool means_refused(int err) noexcept {
    return err == ENOSYS || err == EPERM || err == EINVAL || err == E2BIG;
}

bool has_pidfd_open() noexcept;  // asked each time: a filter may come later
bool has_pidfs() noexcept;       // pidfds with inodes of their own, Linux 6.9

}  // namespace forkfd

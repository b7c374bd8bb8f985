// The facilities that the running kernel (or a sandbox, or an emulator) has refused so far,
// each with its errno.  Learned from real calls, never from version numbers: a filter
// installed after the first spawn is found as well.
#pragma once

#include <atomic>
#include <cerrno>

namespace forkfd {

// The errors of a kernel without a call or a flag, and of a filter in front of it.  They last;
// any other error (EAGAIN, ENOMEM, EMFILE, ENFILE, ENOSPC, EINTR) may be over a moment later.
inline bool means_refused(int err) noexcept {
    return err == ENOSYS || err == EPERM || err == EINVAL || err == E2BIG;
}

// One facility, refused or not.  Only remember() records a refusal, and it records none that
// may pass, so no shortage of a moment decides how later children are started.
class Refusal {
  public:
    int err() const noexcept { return err_.load(std::memory_order_relaxed); }  // 0: not refused
    explicit operator bool() const noexcept { return err() != 0; }
    void remember(int err) noexcept {
        if (means_refused(err) || err == ENOTSUP) err_.store(err, std::memory_order_relaxed);
    }
    void forget() noexcept { err_.store(0, std::memory_order_relaxed); }

  private:
    std::atomic<int> err_{0};
};

struct Refusals {
    Refusal clone3;
    Refusal clear_sighand;  // CLONE_CLEAR_SIGHAND, Linux 5.5
    Refusal into_cgroup;    // CLONE_INTO_CGROUP, Linux 5.7
    Refusal clone_files;    // refused by qemu's user mode
    Refusal clone_pidfd;    // refused by qemu's user mode
    Refusal unshare;        // close_range(CLOSE_RANGE_UNSHARE), Linux 5.9
    Refusal shared_memory;  // ENOTSUP: CLONE_VM runs on a copy, as in emulators and valgrind
};

inline Refusals& refusals() noexcept {
    static Refusals seen;
    return seen;
}

// Tried at each call: a filter may be installed later.
bool has_pidfd_open() noexcept;
bool has_pidfs() noexcept;  // pidfds with inodes of their own, Linux 6.9

}  // namespace forkfd

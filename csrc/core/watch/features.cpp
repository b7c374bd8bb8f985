#include "core/watch/features.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <csignal>
#include <cstdint>

#include "core/base/kernel_flags.h"
#include "core/base/pidfd.h"
#include "core/base/probe.h"
#include "core/base/raw_syscall.h"
#include "core/base/signal_mask.h"
#include "core/base/unique_fd.h"
#include "core/descriptors/descriptor.h"
#include "core/spawn/clone.h"

namespace forkfd {

namespace {

constexpr unsigned kActionAvailable = 2;  // SECCOMP_GET_ACTION_AVAIL

// close_range(2) of a number that is never open: nothing is closed.
long touch_no_descriptor(unsigned flags) noexcept {
    return raw::call(raw::nr_close_range, UINT_MAX, UINT_MAX, flags);
}

struct Call {
    bool clone3;
    std::uint64_t flags = 0;
    int cgroup_fd = -1;
    bool unshare = false;
};

// The child has a copy of the memory, so it may continue on this frame.  It makes one call or
// none and exits with its errno.
__attribute__((noinline, no_sanitize("address"), no_sanitize("thread"),
               no_sanitize("undefined"))) long
start(const Call& how, int* pidfd) noexcept {
    KernelCloneArgs args = {};
    args.flags = how.flags;
    args.pidfd = reinterpret_cast<std::uint64_t>(pidfd);
    args.cgroup = static_cast<std::uint64_t>(how.cgroup_fd);
    const long size = how.cgroup_fd >= 0 ? kCloneArgsCgroup : kCloneArgsFirst;
    const long pid =
        how.clone3 ? raw::call(raw::nr_clone3, raw::addr(&args), size)
                   : raw::call(SYS_clone, static_cast<long>(how.flags), 0, raw::addr(pidfd));
    if (pid != 0) return pid;
    const long rc = how.unshare ? touch_no_descriptor(kCloseRangeUnshare) : 0;
    for (;;) raw::call(SYS_exit_group, -rc);
}

struct Ended {
    int err;         // of the clone
    int code = 0;    // of the child
    UniqueFd pidfd;  // with kClonePidfd
};

// No exit signal: the program's SIGCHLD handler and its waits do not see the child.
Ended run(const Call& how) noexcept {
    int pidfd = -1, status = 0;
    const AllSignalsBlocked blocked;
    const long pid = start(how, &pidfd);
    if (pid < 0) return {static_cast<int>(-pid), 0, UniqueFd()};
    while (raw::call(SYS_wait4, pid, raw::addr(&status), __WCLONE, 0) == -EINTR) {}
    return {0, WEXITSTATUS(status), UniqueFd(pidfd)};
}

int exit_information() noexcept {
    const Ended child = run({false, kClonePidfd});
    if (child.err != 0) return child.err;
    const auto info = reap(child.pidfd.get());  // run() has reaped it
    return info && info->known ? 0 : ENOTTY;
}

int close_range_unshare() noexcept {
    const Ended child = run({false, 0, -1, true});
    return child.err != 0 ? child.err : child.code;
}

int getfd(int pidfd) noexcept {
    const long fd = raw::call(raw::nr_pidfd_getfd, pidfd, pidfd, 0);
    if (fd < 0) return static_cast<int>(-fd);
    ::close(static_cast<int>(fd));
    return 0;
}

int wait_by_pidfd(int pidfd) noexcept {
    siginfo_t info;
    const long rc =
        raw::call(SYS_waitid, kWaitPidfd, pidfd, raw::addr(&info), WEXITED | WNOHANG, 0);
    return rc == -ECHILD ? 0 : static_cast<int>(-rc);  // ECHILD: we are no child of our own
}

int execute_descriptor() noexcept {
    char* const none[] = {nullptr};
    const long rc = raw::call(SYS_execveat, -1, raw::addr(""), raw::addr(none), raw::addr(none),
                              AT_EMPTY_PATH);
    return rc == -EBADF ? 0 : static_cast<int>(-rc);
}

int seccomp() noexcept {
    const std::uint32_t kill_process = 0x80000000U;  // SECCOMP_RET_KILL_PROCESS
    return static_cast<int>(
        -raw::call(SYS_seccomp, kActionAvailable, 0, raw::addr(&kill_process)));
}

int bpf() noexcept {
    std::uint32_t array_map[32] = {2, 4, 4, 1};  // type, sizes of key and value, entries
    const long fd = raw::call(SYS_bpf, 0, raw::addr(array_map), sizeof array_map);
    if (fd < 0) return static_cast<int>(-fd);
    ::close(static_cast<int>(fd));
    return 0;
}

}  // namespace

std::vector<Feature> probe_features(int cgroup_fd) {
    std::vector<Feature> found;
    const auto add = [&found](const char* name, long err) {
        found.push_back({name, static_cast<int>(err)});
    };
    const UniqueFd self = open_pidfd(::getpid());
    const int without = self ? 0 : errno;
    const auto by_pidfd = [&](int (*probe)(int)) { return self ? probe(self.get()) : without; };

    add("clone3", run({true}).err);
    add("clone_clear_sighand", run({true, kCloneClearSighand}).err);
    if (cgroup_fd >= 0) add("clone_into_cgroup", run({true, kCloneIntoCgroup, cgroup_fd}).err);
    add("clone_pidfd", run({false, kClonePidfd}).err);
    add("shared_memory", why_memory_is_not_shared());
    add("pidfd_open", without);
    add("pidfd_send_signal", by_pidfd([](int fd) { return send_signal(fd, 0); }));
    add("waitid_pidfd", by_pidfd(wait_by_pidfd));
    add("pidfd_getfd", by_pidfd(getfd));
    add("pidfs", has_pidfs() ? 0 : without != 0 ? without : ENOTSUP);
    add("pidfd_exit_information", exit_information());
    add("close_range", -touch_no_descriptor(0));
    add("close_range_cloexec", -touch_no_descriptor(kCloseRangeCloexec));
    add("close_range_unshare", close_range_unshare());
    add("f_dupfd_query", by_pidfd([](int fd) {
            return ::fcntl(fd, kDupfdQuery, fd) >= 0 ? 0 : errno;
        }));
    add("kcmp", by_pidfd([](int fd) { return -compare_open_files(own_tid(), fd, fd); }));
    add("execveat", execute_descriptor());
    add("seccomp", seccomp());
    add("bpf", bpf());
    return found;
}

}  // namespace forkfd

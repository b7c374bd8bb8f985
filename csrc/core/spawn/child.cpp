// THE FENCE: every line that runs between clone and exec is in this file.
//
// With CLONE_VM the child runs on the parent's memory while other threads of the parent run.
// Allowed here, and nothing else:
//   - reading the ChildArgs block;
//   - writing its Report, and the two LISTEN slots that it names;
//   - raw system calls (raw_syscall.h): never libc, whose setuid() sends signals to all threads,
//     and whose sigaction(SIGABRT) takes a lock that another thread may hold;
//   - local variables of plain types, and functions of this file marked FORKFD_CHILD or
//     FORKFD_INLINE, which are noexcept and not instrumented;
//   - constants and plain structures of headers (kernel_flags.h, signal_mask.h).
// Not allowed: allocation, exceptions, libc functions, errno, statics with a constructor, and
// code of which a compiler makes a call of memset or memcpy ("= {...}" of a structure).  A test
// compiles this file alone and checks that it needs no outside symbol.
//
// run() ends in an exec or in exit_group, never in a return.  apply() runs the same stages in a
// process that continues without an exec, with memory and descriptors of its own; a failure ends
// that process too.
//
// Until map_descriptors() has unshared the descriptor table, that table may be the parent's own
// (CLONE_FILES): nothing before may open, close or change a descriptor.
#include "core/spawn/child.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <linux/stat.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>

#include <cerrno>

#include "core/base/kernel_flags.h"
#include "core/base/raw_syscall.h"
#include "core/spawn/child_args.h"

// No instrumentation, whose runtime would be called, and no libc function in the place of a loop
// (GCC) or of an assignment (clang).
#if defined(__clang__)
#if __has_attribute(disable_sanitizer_instrumentation)
#define FORKFD_NO_TSAN __attribute__((disable_sanitizer_instrumentation))  // not for atomics either
#else
#define FORKFD_NO_TSAN
#endif
#define FORKFD_BARE                                                                       \
    FORKFD_NO_TSAN __attribute__((no_sanitize("all"), no_stack_protector, no_builtin))
#else
#define FORKFD_BARE                                                                       \
    __attribute__((no_sanitize("address"), no_sanitize("thread"), no_sanitize("undefined"), \
                   no_stack_protector, optimize("no-tree-loop-distribute-patterns")))
#endif
#define FORKFD_CHILD FORKFD_BARE __attribute__((noinline))
#define FORKFD_CHILD_INLINE FORKFD_BARE FORKFD_INLINE

// -ftrivial-auto-var-init fills what is larger than a few words by memset.
#if __has_attribute(uninitialized)
#define FORKFD_UNINITIALIZED __attribute__((uninitialized))
#else
#define FORKFD_UNINITIALIZED
#endif

namespace forkfd::child {

namespace {

using raw::addr;
using raw::call;

constexpr timespec kNow = {0, 0};
constexpr int kNotExecuted = 127;  // exit status of a child that did not execute its program

// Descriptors that are used after the map is made, at numbers out of its way.
struct Kept {
    int exec_fd, cwd_fd, parent_pidfd, exec_watch;
    FORKFD_CHILD_INLINE bool has(int fd) const noexcept {
        return fd == exec_fd || fd == cwd_fd || fd == parent_pidfd || fd == exec_watch;
    }
};

[[noreturn]] FORKFD_CHILD void fail(const ChildArgs& a, long err) noexcept {
    volatile Report& report = *a.report;
    report.err = static_cast<int>(err);
    if (a.report_fd >= 0) call(SYS_write, a.report_fd, addr(a.report), sizeof *a.report);
    for (;;) call(SYS_exit_group, kNotExecuted);
}

FORKFD_CHILD_INLINE void enter(const ChildArgs& a, Stage stage, int index = 0) noexcept {
    volatile Report& report = *a.report;
    report.index = index;
    report.stage = static_cast<int>(stage);
    if (a.fault_stage == static_cast<int>(stage)) fail(a, a.fault_err);
}

FORKFD_CHILD_INLINE long check(const ChildArgs& a, long result) noexcept {
    if (result < 0) fail(a, -result);
    return result;
}

// A change of credentials clears the signal, so it is set before and after.  A parent that died
// in between is detected by getppid() (never compared with 1: the parent may be pid 1, and a
// sub-reaper may be the new parent).
FORKFD_CHILD void die_with_parent(const ChildArgs& a, Stage stage, int death_signal,
                                  int parent_pidfd) noexcept {
    enter(a, stage);
    check(a, call(SYS_prctl, PR_SET_PDEATHSIG, death_signal));
    if (death_signal == 0) return;
    // The children of a dying parent have a new one before its pidfd is readable, so both are
    // checked; in a new pid namespace getppid() is 0, and only the pidfd is conclusive.
    const long parent = call(SYS_getppid);
    const bool is_unknown = parent == 0 && (parent_pidfd >= 0 || a.death_signal == 0);
    if (parent != a.parent_pid && !is_unknown) fail(a, ESRCH);
    if (parent_pidfd < 0) return;
    pollfd ended = {parent_pidfd, POLLIN, 0};
    if (check(a, call(SYS_ppoll, addr(&ended), 1, addr(&kNow), 0, 0)) != 0) fail(a, ESRCH);
}

FORKFD_CHILD void enter_cgroup(const ChildArgs& a) noexcept {
    if (a.cgroup_procs_fd < 0) return;
    enter(a, Stage::cgroup);
    check(a, call(SYS_write, a.cgroup_procs_fd, addr("0"), 1));
}

FORKFD_CHILD void wait_for_maps(const ChildArgs& a) noexcept {
    if (!a.wait_for_maps) return;
    enter(a, Stage::id_maps);
    int* const state = &a.report->map_state;
    __atomic_store_n(state, kMapWanted, __ATOMIC_SEQ_CST);
    call(SYS_futex, addr(state), FUTEX_WAKE, 1);
    while (__atomic_load_n(state, __ATOMIC_SEQ_CST) == kMapWanted)
        call(SYS_futex, addr(state), FUTEX_WAIT, kMapWanted, 0);
    if (__atomic_load_n(state, __ATOMIC_SEQ_CST) != kMapWritten) fail(a, ECANCELED);
    if (a.report->map_err != 0) fail(a, a.report->map_err);
}

// Runs before the signal mask is restored: SIGTTOU is still blocked, so TIOCSPGRP from a
// background process group does not stop the child.
FORKFD_CHILD void join_terminal(const ChildArgs& a) noexcept {
    if (a.new_session) {
        enter(a, Stage::session);
        check(a, call(SYS_setsid));
    }
    if (a.set_process_group) {
        enter(a, Stage::process_group);
        check(a, call(SYS_setpgid, 0, a.process_group));
    }
    if (a.controlling_terminal >= 0) {
        enter(a, Stage::controlling_terminal);
        check(a, call(SYS_ioctl, a.controlling_terminal, TIOCSCTTY, 0));
    }
    if (a.foreground_terminal >= 0) {
        enter(a, Stage::foreground);
        int group = static_cast<int>(call(SYS_getpgid, 0));
        check(a, call(SYS_ioctl, a.foreground_terminal, TIOCSPGRP, addr(&group)));
    }
}

FORKFD_CHILD bool is_target(const ChildArgs& a, int fd) noexcept {
    std::size_t low = 0, high = a.n_targets;
    while (low < high) {
        const std::size_t middle = low + (high - low) / 2;
        if (a.targets[middle] == fd) return true;
        if (a.targets[middle] < fd) low = middle + 1;
        else high = middle;
    }
    return false;
}

// For kernels before 5.9, and sandboxes that refuse close_range.  /proc lists descriptors in
// ascending order, so closing while reading skips none.
FORKFD_CHILD void close_others_by_listing(const ChildArgs& a, const Kept& kept,
                                          int from) noexcept {
    const int dir = static_cast<int>(check(
        a, call(SYS_openat, AT_FDCWD, addr("/proc/self/fd"), O_RDONLY | O_DIRECTORY | O_CLOEXEC)));
    alignas(LinuxDirent64) FORKFD_UNINITIALIZED char buffer[2048];
    for (;;) {
        const long got = check(a, call(SYS_getdents64, dir, addr(buffer), sizeof buffer));
        if (got == 0) break;
        for (long at = 0; at < got;) {
            const auto* entry = reinterpret_cast<const LinuxDirent64*>(buffer + at);
            at += entry->reclen;
            int fd = 0;
            const char* digit = entry->name;
            for (; *digit >= '0' && *digit <= '9'; ++digit) fd = fd * 10 + (*digit - '0');
            if (digit == entry->name) continue;  // "." and ".."
            if (fd >= from && fd != dir && !kept.has(fd) && !is_target(a, fd))
                call(SYS_close, fd);
        }
    }
    call(SYS_close, dir);
}

// Duplicates a descriptor above every target; the exec closes it.
FORKFD_CHILD int keep(const ChildArgs& a, int fd) noexcept {
    if (fd < 0) return -1;
    enter(a, Stage::keep_descriptor, fd);
    return static_cast<int>(
        check(a, call(SYS_fcntl, fd, F_DUPFD_CLOEXEC, a.kept_floor + 1)));
}

FORKFD_CHILD void open_file(const ChildArgs& a, int target, const FdOpen& file) noexcept {
    enter(a, Stage::open_file, target);
    const int fd = static_cast<int>(check(
        a, call(SYS_openat, AT_FDCWD, addr(file.path), file.flags | O_CLOEXEC, file.mode)));
    if (fd == target) {
        check(a, call(SYS_fcntl, fd, F_SETFD, 0));
    } else {
        check(a, call(SYS_dup3, fd, target, 0));
        call(SYS_close, fd);
    }
}

FORKFD_CHILD void open_files(const ChildArgs& a) noexcept {
    for (std::size_t i = 0; i < a.n_opens; ++i) open_file(a, a.opens[i].target, a.opens[i].file);
    for (std::size_t i = 0; i < a.n_copies; ++i) {
        enter(a, Stage::open_file, a.copies[i].target);
        check(a, call(SYS_dup3, a.copies[i].source, a.copies[i].target, 0));
    }
}

// Kept descriptors must not be closed, and may be above `from`.
FORKFD_CHILD void close_from(const ChildArgs& a, const Kept& kept, int from) noexcept {
    enter(a, Stage::close_others);
    const bool keeps = kept.exec_fd >= 0 || kept.cwd_fd >= 0 || kept.parent_pidfd >= 0 ||
                       kept.exec_watch >= 0;
    if (keeps || call(raw::nr_close_range, from, ~0U, 0) < 0)
        close_others_by_listing(a, kept, from);
}

FORKFD_CHILD void do_steps(const ChildArgs& a, const Kept& kept) noexcept {
    int scratch = -1;
    for (std::size_t i = 0; i < a.n_steps; ++i) {
        const FdStep& step = a.steps[i];
        enter(a, Stage::map_descriptor, step.target);
        switch (step.kind) {
            case FdStep::Kind::dup:
                check(a, call(SYS_dup3, step.source, step.target, 0));
                break;
            case FdStep::Kind::keep:
                check(a, call(SYS_fcntl, step.target, F_SETFD, 0));
                break;
            case FdStep::Kind::save:
                scratch = static_cast<int>(check(
                    a, call(SYS_fcntl, step.source, F_DUPFD_CLOEXEC, step.floor + 1)));
                break;
            case FdStep::Kind::dup_saved:
                check(a, call(SYS_dup3, scratch, step.target, 0));
                call(SYS_close, scratch);
                break;
            case FdStep::Kind::close:
                call(SYS_close, step.target);
                break;
            case FdStep::Kind::close_from:
                close_from(a, kept, step.target);
                break;
            case FdStep::Kind::open:
                open_file(a, step.target, step.file);
                break;
        }
    }
}

FORKFD_CHILD Kept map_descriptors(const ChildArgs& a) noexcept {
    bool can_close_range = true;
    if (a.table_is_shared) {
        // Closes all above the highest source without copying it: flat cost in open descriptors,
        // and no copy of the descriptor of a script that another thread is writing.
        enter(a, Stage::unshare_descriptors);
        check(a, call(raw::nr_close_range, a.hole_first, ~0U, kCloseRangeUnshare));
    } else if (a.close_others) {
        enter(a, Stage::close_others);
        can_close_range = call(raw::nr_close_range, a.hole_first, ~0U, 0) == 0;
    }
    const Kept kept = {keep(a, a.exec_fd), keep(a, a.cwd_fd), keep(a, a.parent_pidfd),
                       keep(a, a.exec_watch)};
    do_steps(a, kept);
    if (a.close_others) {
        enter(a, Stage::close_others);
        if (can_close_range) {
            for (std::size_t i = 0; i < a.n_gaps; ++i)
                check(a, call(raw::nr_close_range, a.gaps[i].first, a.gaps[i].last, 0));
        } else {
            close_others_by_listing(a, kept, 0);
        }
    } else if (a.n_closed != 0) {
        enter(a, Stage::close_others);
        for (std::size_t i = 0; i < a.n_closed; ++i) call(SYS_close, a.closed[i]);
    }
    open_files(a);
    return kept;
}

FORKFD_CHILD void set_resources(const ChildArgs& a) noexcept {
    if (a.set_umask) {
        enter(a, Stage::umask);
        call(SYS_umask, a.umask);
    }
    for (std::size_t i = 0; i < a.n_limits; ++i) {
        enter(a, Stage::resource_limit, static_cast<int>(i));
        check(a, call(SYS_prlimit64, 0, a.limits[i].resource, addr(&a.limits[i].limit), 0));
    }
    if (a.set_nice) {
        enter(a, Stage::nice);
        check(a, call(SYS_setpriority, PRIO_PROCESS, 0, a.nice));
    }
    if (a.affinity_bytes != 0) {
        enter(a, Stage::affinity);
        check(a, call(SYS_sched_setaffinity, 0, static_cast<long>(a.affinity_bytes),
                      addr(a.affinity)));
    }
    if (a.set_scheduler) {
        enter(a, Stage::scheduler);
        check(a, call(SYS_sched_setscheduler, 0, a.scheduler_policy, addr(&a.scheduler_param)));
    }
}

FORKFD_CHILD void change_root(const ChildArgs& a) noexcept {
    if (a.chroot == nullptr) return;
    enter(a, Stage::chroot);
    check(a, call(SYS_chroot, addr(a.chroot)));
    check(a, call(SYS_chdir, addr("/")));  // or the old root stays reachable
}

FORKFD_CHILD_INLINE std::uint32_t half_of(std::uint64_t set, int half) noexcept {
    return static_cast<std::uint32_t>(set >> (32 * half));
}

// The bounding set first: a change of it needs CAP_SETPCAP, which setuid drops.
FORKFD_CHILD void change_credentials(const ChildArgs& a) noexcept {
    const ChildCapabilities& caps = a.caps;
    if (caps.has_bounding) {
        for (int cap = 0; cap <= caps.last; ++cap) {
            if ((caps.bounding >> cap & 1) != 0) continue;
            enter(a, Stage::bounding_set, cap);
            // Not in the set: no change, and no privilege needed.
            if (check(a, call(SYS_prctl, PR_CAPBSET_READ, cap)) == 0) continue;
            check(a, call(SYS_prctl, PR_CAPBSET_DROP, cap));
        }
    }
    if (caps.keep_over_setuid) {
        enter(a, Stage::keep_capabilities);
        check(a, call(SYS_prctl, PR_SET_KEEPCAPS, 1));
    }
    if (a.set_groups) {
        enter(a, Stage::groups);
        check(a, call(SYS_setgroups, static_cast<long>(a.n_groups), addr(a.groups)));
    }
    if (a.set_gid) {
        enter(a, Stage::group);
        check(a, call(SYS_setresgid, a.gid, a.gid, a.gid));
    }
    if (a.set_uid) {
        enter(a, Stage::user);
        check(a, call(SYS_setresuid, a.uid, a.uid, a.uid));
    }
    if (caps.set) {
        enter(a, Stage::capabilities);
        __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
        __user_cap_data_struct data[2];
        check(a, call(SYS_capget, addr(&header), addr(data)));
        for (int half = 0; half < 2; ++half) {
            if (caps.has_permitted) data[half].permitted = half_of(caps.permitted, half);
            if (caps.has_inheritable) data[half].inheritable = half_of(caps.inheritable, half);
            data[half].effective = data[half].permitted;
        }
        check(a, call(SYS_capset, addr(&header), addr(data)));
    }
    if (caps.has_ambient) {
        enter(a, Stage::ambient_set, -1);
        check(a, call(SYS_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0));
        for (int cap = 0; cap <= caps.last; ++cap) {
            if ((caps.ambient >> cap & 1) == 0) continue;
            enter(a, Stage::ambient_set, cap);
            check(a, call(SYS_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0));
        }
    }
}

// With the new credentials: a directory that the new user may not enter is an error.  (With the
// old ones in place of the standard subprocess, which uses that order.)
FORKFD_CHILD void change_directory(const ChildArgs& a, const Kept& kept) noexcept {
    if (a.cwd != nullptr) {
        enter(a, Stage::working_directory);
        check(a, call(SYS_chdir, addr(a.cwd)));
    } else if (kept.cwd_fd >= 0) {
        enter(a, Stage::working_directory);
        check(a, call(SYS_fchdir, kept.cwd_fd));
    }
}

FORKFD_CHILD_INLINE bool contains(KernelSigset signals, int sig) noexcept {
    return (signals >> (sig - 1) & 1) != 0;
}

// All signals are still blocked.  A handler of the parent must not run here once the mask is
// restored, so each is reset, unless CLONE_CLEAR_SIGHAND has done it in the clone.
FORKFD_CHILD void set_signals(const ChildArgs& a) noexcept {
    for (int sig = 1; sig <= kLastSignal; ++sig) {
        const bool wanted = contains(a.default_signals, sig);
        if (a.handlers_are_cleared && !wanted) continue;
        enter(a, Stage::default_signals, sig);
        KernelSigaction action;
        check(a, call(SYS_rt_sigaction, sig, 0, addr(&action), sizeof action.mask));
        if (action.handler == 0 || (action.handler == 1 && !wanted)) continue;
        action.handler = 0;
        action.flags = 0;
        action.mask = 0;
        check(a, call(SYS_rt_sigaction, sig, addr(&action), 0, sizeof action.mask));
    }
    for (int sig = 1; sig <= kLastSignal; ++sig) {
        if (!contains(a.ignore_signals, sig)) continue;
        enter(a, Stage::ignore_signals, sig);
        KernelSigaction action;  // not "= {...}", of which a compiler may make a memset
        action.handler = 1;
        action.flags = 0;
        action.restorer = 0;
        action.mask = 0;
        check(a, call(SYS_rt_sigaction, sig, addr(&action), 0, sizeof action.mask));
    }
}

FORKFD_CHILD void write_decimal(char* out, std::uint64_t value) noexcept {
    char digits[20];
    int n = 0;
    do digits[n++] = static_cast<char>('0' + value % 10);
    while ((value /= 10) != 0);
    while (n > 0) *out++ = digits[--n];
    *out = '\0';
}

// sd_listen_fds(3): LISTEN_PID is the receiver's pid, LISTEN_PIDFDID the inode of its
// pidfd, which never recycles (pidfs, Linux 6.9).
FORKFD_CHILD void write_environment(const ChildArgs& a) noexcept {
    if (a.listen_pid == nullptr) return;
    enter(a, Stage::environment);
    const long self = call(SYS_getpid);
    write_decimal(a.listen_pid, static_cast<std::uint64_t>(self));
    if (a.listen_pidfdid == nullptr) return;
    const long pidfd = check(a, call(raw::nr_pidfd_open, self, 0));
    FORKFD_UNINITIALIZED struct statx info;
    check(a, call(SYS_statx, pidfd, addr(""), AT_EMPTY_PATH, STATX_INO, addr(&info)));
    call(SYS_close, pidfd);
    write_decimal(a.listen_pidfdid, info.stx_ino);
}

// The mask first: the filter may refuse the call that sets it.
FORKFD_CHILD void confine(const ChildArgs& a) noexcept {
    enter(a, Stage::signal_mask);
    check(a, call(SYS_rt_sigprocmask, SIG_SETMASK, addr(&a.mask), 0, sizeof a.mask));
    if (a.seccomp != nullptr) {  // last: the filter need allow no more than execve
        enter(a, Stage::seccomp);
        check(a, call(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, addr(a.seccomp)));
    }
}

[[noreturn]] FORKFD_CHILD void execute(const ChildArgs& a, const Kept& kept) noexcept {
    enter(a, Stage::exec);
    if (kept.exec_fd >= 0)
        fail(a, -call(SYS_execveat, kept.exec_fd, addr(""), addr(a.argv), addr(a.envp),
                      AT_EMPTY_PATH));
    // execvpe(3): a directory of PATH without the program is skipped; EACCES of one that has it is
    // reported if no later one succeeds.
    long error = -ENOENT;
    long refused = 0;
    for (const char* const* path = a.candidates; *path != nullptr; ++path) {
        error = call(SYS_execve, addr(*path), addr(a.argv), addr(a.envp));
        const bool absent = error == -ENOENT || error == -ENOTDIR;
        if (refused == 0 && (a.every_candidate ? !absent : error == -EACCES)) refused = error;
        if (!a.every_candidate && !absent && error != -EACCES && error != -ESTALE &&
            error != -ENODEV && error != -ETIMEDOUT)
            break;
    }
    if (refused != 0 && (a.every_candidate || error == -ENOENT || error == -ENOTDIR))
        error = refused;
    fail(a, -error);
}

// Everything up to the mask and the filter, in the order of the stages.
FORKFD_CHILD Kept prepare(const ChildArgs& a) noexcept {
    // A child that waits for id maps, the other end of a FIFO, a directory's file system or the
    // thaw of its cgroup would wait for ever without its parent, or execute long after.
    const int while_waiting = a.may_wait ? SIGKILL : a.death_signal;
    if (while_waiting != 0)
        die_with_parent(a, Stage::parent_alive, while_waiting, a.parent_pidfd);
    enter_cgroup(a);
    wait_for_maps(a);
    join_terminal(a);
    const Kept kept = map_descriptors(a);
    set_resources(a);
    change_root(a);
    if (a.cwd_before_credentials) change_directory(a, kept);
    change_credentials(a);
    // Cleared by that; and not before Stage::user again, by which exec_watch.h knows the user.
    if (while_waiting != 0)
        die_with_parent(a, Stage::parent_death_signal, while_waiting, kept.parent_pidfd);
    if (!a.cwd_before_credentials) change_directory(a, kept);
    if (a.no_new_privs) {
        enter(a, Stage::no_new_privs);
        check(a, call(SYS_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    }
    if (while_waiting != a.death_signal)
        die_with_parent(a, Stage::parent_death_signal, a.death_signal, kept.parent_pidfd);
    set_signals(a);
    write_environment(a);
    return kept;
}

FORKFD_CHILD void drop(int fd) noexcept {
    if (fd >= 0) call(SYS_close, fd);
}

}  // namespace

[[noreturn]] FORKFD_CHILD void run(void* args) noexcept {
    const ChildArgs& a = *static_cast<const ChildArgs*>(args);
    const Kept kept = prepare(a);
    confine(a);
    execute(a, kept);
}

FORKFD_CHILD void apply(const ChildArgs& a) noexcept {
    const Kept kept = prepare(a);
    drop(kept.cwd_fd);  // no exec will close them
    drop(kept.parent_pidfd);
    confine(a);
}

}  // namespace forkfd::child

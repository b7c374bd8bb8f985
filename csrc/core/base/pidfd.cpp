#include "core/base/pidfd.h"

#include <poll.h>
#include <sys/ioctl.h>
#include <sys/wait.h>

#include <cstdint>

#include "core/base/counters.h"
#include "core/base/kernel_flags.h"
#include "core/base/raw_syscall.h"
#include "core/base/trace.h"

namespace forkfd {

namespace {

// __WALL: children whose exit signal is not SIGCHLD too, clone(2).
constexpr int kExited = WEXITED | __WALL;

// PIDFD_GET_INFO has the exit status even of a child that another caller reaped
// (PIDFD_INFO_EXIT, Linux 6.15; linux/pidfd.h).
struct PidfdInfo {
    std::uint64_t mask, cgroup;
    std::uint32_t ids[11];
    std::int32_t exit_code;
};
constexpr std::uint64_t kInfoExit = 1U << 3;
constexpr unsigned long kGetInfo = _IOWR(0xFF, 11, PidfdInfo);

ExitInfo status_after_reaping(int pidfd) noexcept {
    PidfdInfo info = {};
    info.mask = kInfoExit;
    if (::ioctl(pidfd, kGetInfo, &info) != 0 || (info.mask & kInfoExit) == 0)
        return {false, 0, 0, false, {}};
    const int s = info.exit_code;
    if (WIFEXITED(s)) return {true, CLD_EXITED, WEXITSTATUS(s), false, {}};
    return {true, WCOREDUMP(s) ? CLD_DUMPED : CLD_KILLED, WTERMSIG(s), false, {}};
}

void trace_end(const ExitInfo& end, pid_t pid) noexcept {
    count(counters().reaped);
    if (!trace::on(trace::kExec)) return;
    trace::Line line("exec", "reaped");
    if (pid > 0) line.field("child", pid);
    if (end.known) line.field(end.code == CLD_EXITED ? "code" : "signal", end.status);
    if (end.has_usage) {
        const auto us = [](const timeval& t) { return t.tv_sec * 1000000LL + t.tv_usec; };
        line.field("cpu_us", us(end.usage.ru_utime) + us(end.usage.ru_stime));
    }
}

}  // namespace

UniqueFd open_pidfd(pid_t pid) noexcept {
    const long fd = raw::call(raw::nr_pidfd_open, pid, 0);
    if (fd < 0) errno = static_cast<int>(-fd);
    return UniqueFd(fd < 0 ? -1 : static_cast<int>(fd));
}

int send_signal(int pidfd, int sig) noexcept {
    return static_cast<int>(-raw::call(raw::nr_pidfd_send_signal, pidfd, sig, 0, 0));
}

int wait_readable(int pidfd, int timeout_ms) noexcept {
    pollfd p = {pidfd, POLLIN, 0};
    return ::poll(&p, 1, timeout_ms);
}

namespace {

// -EAGAIN: it runs; another error is the kernel's.
long try_reap(int pidfd, int options, ExitInfo& result) noexcept {
    // libc's waitid() has no rusage; the kernel's has.
    siginfo_t info = {};
    const long rc = raw::call(SYS_waitid, kWaitPidfd, pidfd, raw::addr(&info), kExited | options,
                              raw::addr(&result.usage));
    if (rc < 0) return rc;
    if (info.si_pid == 0) return -EAGAIN;
    result.code = info.si_code;
    result.status = info.si_status;
    trace_end(result, info.si_pid);
    return 0;
}

ExitInfo reaped_elsewhere(int pidfd) noexcept {
    const ExitInfo late = status_after_reaping(pidfd);
    trace_end(late, 0);
    return late;
}

}  // namespace

std::optional<ExitInfo> reap(int pidfd) noexcept {
    ExitInfo result = {true, 0, 0, true, {}};
    const long rc = try_reap(pidfd, WNOHANG, result);
    if (rc == -ECHILD && wait_readable(pidfd, 0) == 1) return reaped_elsewhere(pidfd);
    if (rc < 0) return std::nullopt;
    return result;
}

std::optional<ExitInfo> reap_blocking(int pidfd) noexcept {
    ExitInfo result = {true, 0, 0, true, {}};
    const long rc = try_reap(pidfd, 0, result);
    if (rc == -EINTR) return std::nullopt;
    if (rc < 0) return reaped_elsewhere(pidfd);
    return result;
}

void reap_failed(pid_t pid) noexcept {
    siginfo_t info;
    while (raw::call(SYS_waitid, P_PID, pid, raw::addr(&info), kExited, 0) == -EINTR) {}
}

}  // namespace forkfd

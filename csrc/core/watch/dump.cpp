#include "core/watch/dump.h"

#include <sys/prctl.h>
#include <sys/wait.h>

#include <cerrno>
#include <csignal>
#include <ctime>
#include <initializer_list>

#include "core/base/raw_syscall.h"
#include "core/base/signal_mask.h"

namespace forkfd {

namespace {

[[noreturn]] void dump_and_exit(int signal) noexcept {
    raw::call(SYS_prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);  // no core file if it crashes
    const KernelSigaction standard = {};
    for (const int sig : {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT})
        raw::call(SYS_rt_sigaction, sig, raw::addr(&standard), 0, sizeof standard.mask);
    raw::call(SYS_tgkill, raw::call(SYS_getpid), raw::call(SYS_gettid), signal);
    for (;;) raw::call(SYS_exit_group, 0);
}

}  // namespace

int dump_in_a_copy(int signal, const std::atomic<std::uint32_t>& give_up) noexcept {
    const long pid = raw::call(SYS_clone, 0, 0, 0, 0, 0);  // fork(2), but without an exit signal
    if (pid == 0) dump_and_exit(signal);
    if (pid < 0) return static_cast<int>(-pid);
    const timespec pause = {0, 5000000};
    for (int patience = 1000; raw::call(SYS_wait4, pid, 0, __WALL | WNOHANG, 0) == 0; --patience) {
        if (patience == 0 || give_up != 0) {
            raw::call(SYS_kill, pid, SIGKILL);  // ours and unreaped: no other
            while (raw::call(SYS_wait4, pid, 0, __WALL, 0) == -EINTR) {}
            break;
        }
        raw::call(SYS_nanosleep, raw::addr(&pause), 0);
    }
    return 0;
}

}  // namespace forkfd

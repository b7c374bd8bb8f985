// Signal masks of the calling thread, and the kernel's structures for signals.
// Raw system calls, because libc never blocks its own signals (32 to 34), and a handler that
// runs in a CLONE_VM child would run on the parent's memory.
#pragma once

#include <csignal>
#include <cstdint>

#include "core/base/raw_syscall.h"

namespace forkfd {

using KernelSigset = std::uint64_t;  // bit n-1 is signal n; kernel's size is 8 bytes
constexpr int kLastSignal = 64;

// The kernel's own struct sigaction, the same on x86-64 and aarch64.
struct KernelSigaction {
    unsigned long handler;  // 0 is SIG_DFL, 1 is SIG_IGN
    unsigned long flags;
    unsigned long restorer;
    KernelSigset mask;
};

constexpr KernelSigset signal_bit(int sig) noexcept { return KernelSigset{1} << (sig - 1); }

inline KernelSigset current_signal_mask() noexcept {
    KernelSigset mask = 0;
    raw::call(SYS_rt_sigprocmask, SIG_BLOCK, 0, raw::addr(&mask), sizeof mask);
    return mask;
}

// Blocks every signal, and restores the mask at the end of the scope.
class AllSignalsBlocked {
  public:
    AllSignalsBlocked() noexcept {
        const KernelSigset all = ~KernelSigset{0};
        raw::call(SYS_rt_sigprocmask, SIG_SETMASK, raw::addr(&all), raw::addr(&before_),
                  sizeof all);
    }
    AllSignalsBlocked(const AllSignalsBlocked&) = delete;
    AllSignalsBlocked& operator=(const AllSignalsBlocked&) = delete;
    ~AllSignalsBlocked() {
        raw::call(SYS_rt_sigprocmask, SIG_SETMASK, raw::addr(&before_), 0, sizeof before_);
    }

  private:
    KernelSigset before_ = 0;
};

}  // namespace forkfd

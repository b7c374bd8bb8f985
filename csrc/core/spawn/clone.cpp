#include "core/spawn/clone.h"

#include <sys/mman.h>
#include <unistd.h>
#include <sys/wait.h>

#include <atomic>
#include <csignal>
#include <cstring>
#include <memory>

#include "core/base/fault.h"
#include "core/base/kernel_flags.h"
#include "core/base/probe.h"
#include "core/base/raw_syscall.h"
#include "core/spawn/child.h"

namespace forkfd {

namespace {

constexpr std::size_t kStackSize = 64 * 1024;
constexpr std::size_t kPage = 64 * 1024;  // the largest page size of aarch64

using Entry = void (*)(void*);

// The child returns from the kernel on the new stack; there it calls entry(arg), and never
// returns from that.
long trampoline(long nr, long a, long b, long c, Entry entry, void* arg) noexcept {
#if defined(__x86_64__)
    long ret;
    register long r10 __asm__("r10") = 0;
    register long r8 __asm__("r8") = 0;
    register Entry r12 __asm__("r12") = entry;
    register void* r13 __asm__("r13") = arg;
    __asm__ volatile(
        "syscall\n\t"
        "test %%rax, %%rax\n\t"
        "jnz 1f\n\t"
        "xor %%ebp, %%ebp\n\t"  // end of the chain of frames
        "mov %%r13, %%rdi\n\t"
        "call *%%r12\n\t"
        "hlt\n"
        "1:"
        : "=a"(ret)
        : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r12), "r"(r13)
        : "rcx", "r11", "memory");
    return ret;
#else
    register long x8 __asm__("x8") = nr;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = 0;
    register long x4 __asm__("x4") = 0;
    register Entry x10 __asm__("x10") = entry;
    register void* x11 __asm__("x11") = arg;
    __asm__ volatile(
        "svc #0\n\t"
        "cbnz x0, 1f\n\t"
        "mov x29, #0\n\t"  // end of the chain of frames
        "mov x0, x11\n\t"
        "blr x10\n\t"
        "brk #1\n"
        "1:"
        : "+r"(x0)
        : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x10), "r"(x11)
        : "memory");
    return x0;
#endif
}

long enter_kernel(const CloneCall& how, ChildStack& stack, int* pidfd, int exit_signal,
                  Entry entry, void* arg) noexcept {
    if (how.use_clone3) {
        KernelCloneArgs args = {};
        args.flags = how.flags;
        args.pidfd = reinterpret_cast<std::uint64_t>(pidfd);
        args.exit_signal = static_cast<std::uint64_t>(exit_signal);
        args.stack = reinterpret_cast<std::uint64_t>(stack.bottom());
        args.stack_size = stack.size();
        args.cgroup = static_cast<std::uint64_t>(how.cgroup_fd);
        const std::size_t size = how.cgroup_fd >= 0 ? kCloneArgsCgroup : kCloneArgsFirst;
        return trampoline(raw::nr_clone3, raw::addr(&args), static_cast<long>(size), 0, entry, arg);
    }
    char* const top = static_cast<char*>(stack.bottom()) + stack.size();
    return trampoline(SYS_clone, static_cast<long>(how.flags) | exit_signal, raw::addr(top),
                      raw::addr(pidfd), entry, arg);
}

__attribute__((no_sanitize("address"), no_sanitize("thread"))) void
write_and_exit(void* flag) {
    *static_cast<volatile int*>(flag) = 1;
    for (;;) raw::call(SYS_exit_group, 0);
}

}  // namespace

const char* backend_name(Backend backend) noexcept {
    switch (backend) {
        case Backend::clone3: return "clone3";
        case Backend::clone: return "clone";
        default: return "fork-like";
    }
}

std::size_t ChildStack::size() const noexcept { return kStackSize; }

// Lowest to highest: guard, stack, report.
ChildStack::ChildStack() : owner_(::getpid()) {
    fault::point(Stage::child_stack, "64 KiB");
    void* const p = ::mmap(nullptr, 2 * kPage + kStackSize, PROT_NONE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    if (p == MAP_FAILED) throw_sys(Stage::child_stack, errno, "64 KiB");
    mapping_ = static_cast<char*>(p);
    stack_ = mapping_ + kPage;
    void* const shared = ::mmap(stack_ + kStackSize, sizeof(Report), PROT_READ | PROT_WRITE,
                                MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    if (shared == MAP_FAILED || ::mprotect(stack_, kStackSize, PROT_READ | PROT_WRITE) != 0) {
        const int err = errno;
        ::munmap(mapping_, 2 * kPage + kStackSize);
        throw_sys(Stage::child_stack, err, "64 KiB");
    }
    report_ = static_cast<Report*>(shared);
}

ChildStack::~ChildStack() { ::munmap(mapping_, 2 * kPage + kStackSize); }

namespace {
thread_local std::unique_ptr<ChildStack> cached;
}

ChildStack& ChildStack::of_this_thread() {
    // After a fork the report is shared with the parent: both would write it.
    if (cached == nullptr || cached->owner_ != ::getpid()) cached.reset(new ChildStack);
    return *cached;
}

void ChildStack::forget_after_fork() noexcept { cached.reset(); }

long clone_child(const CloneCall& how, ChildStack& stack, ChildArgs& args, int* pidfd) noexcept {
    return enter_kernel(how, stack, pidfd, SIGCHLD, child::run, &args);
}

int why_memory_is_not_shared() {
    static std::atomic<bool> is_shared{false};
    if (is_shared.load(std::memory_order_relaxed)) return 0;
    Refusal& refusal = refusals().shared_memory;
    if (refusal) return refusal.err();
    const AllSignalsBlocked blocked;
    volatile int flag = 0;
    // No exit signal: the program's SIGCHLD handler and its waits do not see the child.
    const long pid = enter_kernel({false, CLONE_VM | CLONE_VFORK, -1},
                                  ChildStack::of_this_thread(), nullptr, 0, write_and_exit,
                                  const_cast<int*>(&flag));
    int err = static_cast<int>(-pid);
    if (pid > 0) {
        int status = 0;
        long ended;
        do ended = raw::call(SYS_wait4, pid, raw::addr(&status), __WCLONE, 0);
        while (ended == -EINTR);
        if (flag == 1) {
            is_shared.store(true, std::memory_order_relaxed);
            return 0;
        }
        // A child that was killed before it wrote (out of memory) proves nothing.
        err = ended == pid && WIFEXITED(status) ? ENOTSUP : EAGAIN;
    }
    refusal.remember(err);
    return err;
}

bool memory_is_shared() { return why_memory_is_not_shared() == 0; }

}  // namespace forkfd

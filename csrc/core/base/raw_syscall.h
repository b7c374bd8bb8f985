// System calls without libc: no errno, no interceptor, no cancellation point, no lock.
// The result is the kernel's: -errno on failure.  These are the only calls that the child may
// make (child.cpp).  The numbers are defined here because libc's headers may be older than the
// running kernel (syscalls(2): numbers from 424 up are the same on all architectures).
#pragma once

#include <sys/syscall.h>

#define FORKFD_INLINE inline __attribute__((always_inline))

namespace forkfd::raw {

constexpr long nr_pidfd_send_signal = 424;
constexpr long nr_pidfd_open = 434;
constexpr long nr_clone3 = 435;
constexpr long nr_close_range = 436;
constexpr long nr_pidfd_getfd = 438;

#if defined(__x86_64__)

FORKFD_INLINE long call(long n, long a = 0, long b = 0, long c = 0, long d = 0, long e = 0,
                        long f = 0) noexcept {
    long ret;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    __asm__ volatile("syscall"
                     : "=a"(ret)
                     : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return ret;
}

#elif defined(__aarch64__)

FORKFD_INLINE long call(long n, long a = 0, long b = 0, long c = 0, long d = 0, long e = 0,
                        long f = 0) noexcept {
    register long x8 __asm__("x8") = n;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    register long x5 __asm__("x5") = f;
    __asm__ volatile("svc #0"
                     : "+r"(x0)
                     : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
                     : "memory");
    return x0;
}

#else
#error "pyforkfd supports x86-64 and aarch64"
#endif

FORKFD_INLINE long addr(const volatile void* p) noexcept { return reinterpret_cast<long>(p); }

}  // namespace forkfd::raw

/* A ptrace() for user-mode Linux, by LD_PRELOAD.
 *
 * It sets its processes' extended processor state, as large as it was built for.  Linux takes
 * the whole of it or nothing, and with AMX that is 11,008 bytes: the machine would panic at its
 * first process.  So here the whole is read, what the caller has is laid over it, and the whole
 * is written. */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { LARGEST = 1 << 16 };

long ptrace(enum __ptrace_request request, ...) {
    va_list rest;
    va_start(rest, request);
    const pid_t pid = va_arg(rest, pid_t);
    void* const address = va_arg(rest, void*);
    void* data = va_arg(rest, void*);
    va_end(rest);

    static _Thread_local char whole[LARGEST];
    struct iovec ours = {whole, sizeof whole};
    if (request == PTRACE_SETREGSET && (long)address == NT_X86_XSTATE) {
        const struct iovec* theirs = data;
        if (syscall(SYS_ptrace, PTRACE_GETREGSET, pid, address, &ours) == 0 &&
            ours.iov_len > theirs->iov_len) {
            memcpy(whole, theirs->iov_base, theirs->iov_len);
            data = &ours;
        }
    }
    /* The system call writes what a PEEK finds, libc's function returns it. */
    const int peeks = request == PTRACE_PEEKTEXT || request == PTRACE_PEEKDATA ||
                      request == PTRACE_PEEKUSER;
    long found = 0;
    const long result = syscall(SYS_ptrace, request, pid, address, peeks ? &found : data);
    if (!peeks || result < 0) return result;
    errno = 0; /* -1 may be what was found */
    return found;
}

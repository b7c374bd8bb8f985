/* Wrappers of fork and kin: mark the descriptors of each child at its birth. */
#include "preload.h"

#include <errno.h>
#include <pty.h>
#include <sched.h>
#include <stdarg.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))find_real(REAL_##name))

EXPORT pid_t _Fork(void);

/* The pid of the process that was marked at its birth.  A child in its parent's memory must not
 * write the first, which is its parent's.  It writes the second, of the thread that waits for
 * it, which no other process takes for its own pid. */
static pid_t born_as;
static pid_t born_of;
static __thread pid_t born_as_guest __attribute__((tls_model("initial-exec")));

void born(bool in_shared_memory, pid_t parent) {
    const int err = errno;
    mark_all();
    if (in_shared_memory) born_as_guest = getpid();
    else {
        born_as = getpid();
        born_of = parent;
    }
    errno = err;
}

bool was_born(void) {
    const pid_t pid = getpid();
    return born_as == pid || born_as_guest == pid;
}

/* A parent in another pid namespace is 0. */
bool is_daemon(void) {
    const pid_t parent = getppid();
    return born_as == getpid() && born_of != 0 && parent != 0 && parent != born_of;
}

EXPORT pid_t fork(void) {
    const pid_t parent = getpid(); /* it may have ended before the child runs */
    const pid_t pid = REAL(fork)();
    if (pid == 0) born(false, parent);
    return pid;
}

EXPORT pid_t _Fork(void) {
    if (REAL(_Fork) == NULL) {
        errno = ENOSYS;
        return -1;
    }
    const pid_t parent = getpid();
    const pid_t pid = REAL(_Fork)();
    if (pid == 0) born(false, parent);
    return pid;
}

/* libc forks inside these without calling our fork(). */
EXPORT int forkpty(int *terminal, char *name, const struct termios *modes,
                   const struct winsize *size) {
    if (REAL(forkpty) == NULL) {
        errno = ENOSYS;
        return -1;
    }
    const pid_t parent = getpid();
    const pid_t pid = REAL(forkpty)(terminal, name, modes, size);
    if (pid == 0) born(false, parent);
    return pid;
}

EXPORT int daemon(int keep_directory, int keep_streams) {
    const int rc = REAL(daemon)(keep_directory, keep_streams);
    if (rc == 0) born(false, -1); /* libc ends the parent */
    return rc;
}

struct Start {
    int (*function)(void *);
    void *argument;
    bool in_shared_memory;
    pid_t parent;
};

static int start(void *block) {
    const struct Start *it = block;
    born(it->in_shared_memory, it->parent);
    return it->function(it->argument);
}

EXPORT int clone(int (*function)(void *), void *stack, int flags, void *argument, ...) {
    va_list more;
    va_start(more, argument); /* as libc does: arguments that were not given are read, not used */
    void *parent_tid = va_arg(more, void *);
    void *tls = va_arg(more, void *);
    void *child_tid = va_arg(more, void *);
    va_end(more);
    if (function == NULL || stack == NULL || (flags & CLONE_FILES) != 0)
        return REAL(clone)(function, stack, flags, argument, parent_tid, tls, child_tid);
    /* On the child's stack: the caller's frame may be gone before the child starts. */
    struct Start *block = (struct Start *)(((uintptr_t)stack - sizeof *block) & ~(uintptr_t)15);
    *block = (struct Start){function, argument, (flags & CLONE_VM) != 0, getpid()};
    return REAL(clone)(start, block, flags, block, parent_tid, tls, child_tid);
}

/* Their names in old programs. */
__asm__(".globl __fork, __clone\n"
        ".set __fork, fork\n"
        ".set __clone, clone\n");

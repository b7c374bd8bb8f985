/* The descriptor table of this process: finding inheritable descriptors, and marking them. */
#include "preload.h"

#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define CLOSE_RANGE_MARK 4U /* CLOSE_RANGE_CLOEXEC, Linux 5.11 */
#ifndef SYS_close_range
#define SYS_close_range 436
#endif

/* The file at each number when it was found inheritable and marked.  A child of vfork writes it
 * in its parent's memory, where it is as true.  A number that is another file by now, or that
 * is not marked, was not marked here. */
static _Atomic uint64_t seen[NUMBERS];
static _Atomic int seen_end = FIRST;
/* The file at each number that was inheritable when this program was executed. */
static uint64_t given[NUMBERS];

/* struct statx, statx(2), which an older musl does not declare. */
struct Statx {
    uint32_t others_before[8];
    uint64_t inode;
    uint32_t others_between[24];
    uint32_t device_major, device_minor;
    uint64_t others_after[14];
};
_Static_assert(sizeof(struct Statx) == 256, "the size of the kernel's struct statx");
#define STATX_WANT_INODE 0x100U
/* AT_EMPTY_PATH | AT_STATX_DONT_SYNC: no request to the server of a remote file system. */
#define STATX_QUIETLY (0x1000 | 0x4000)

static uint64_t mix(uint64_t inode, uint32_t device_major, uint32_t device_minor) {
    return ((inode * 0x9e3779b97f4a7c15U) ^ ((uint64_t)device_major << 32 | device_minor)) | 1;
}

uint64_t identity_at(int folder, const char *path) {
    struct Statx info;
    if (syscall(SYS_statx, folder, path, STATX_QUIETLY, STATX_WANT_INODE, &info) == 0)
        return mix(info.inode, info.device_major, info.device_minor);
    struct stat plain;
    if ((*path == '\0' ? fstat(folder, &plain) : fstatat(folder, path, &plain, 0)) != 0) return 1;
    return mix(plain.st_ino, major(plain.st_dev), minor(plain.st_dev));
}

/* All epolls and other anonymous files share one inode: only their numbers differ. */
static uint64_t identity(int number) { return identity_at(number, ""); }

static bool is_inheritable(int number) {
    const int flags = fcntl(number, F_GETFD);
    return flags >= 0 && (flags & FD_CLOEXEC) == 0;
}

/* Call visit for each open number above 2; without /proc for each that may be open. */
static void walk(void (*visit)(int)) {
    struct Entry { /* getdents64(2) */
        uint64_t inode;
        int64_t offset;
        unsigned short length;
        unsigned char type;
        char name[];
    };
    _Alignas(struct Entry) char buffer[1024];
    /* By syscall(): libc's open() is a cancellation point. */
    const int folder = (int)syscall(SYS_openat, AT_FDCWD, "/proc/thread-self/fd",
                                    O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0) {
        for (int number = FIRST; number < NUMBERS; ++number) visit(number);
        return;
    }
    long size;
    while ((size = syscall(SYS_getdents64, folder, buffer, sizeof buffer)) > 0) {
        for (char *at = buffer; at < buffer + size; at += ((struct Entry *)at)->length) {
            const char *name = ((struct Entry *)at)->name;
            const int number = *name == '.' ? 0 : atoi(name);
            if (number >= FIRST && number != folder) visit(number);
        }
    }
    syscall(SYS_close, folder);
}

static bool was_given(int number) {
    return given[number] != 0 && given[number] == identity(number);
}

static void give(int number) {
    if (number < NUMBERS && is_inheritable(number)) given[number] = identity(number);
}

/* A shell marks its own descriptors itself: any other that it opened is a redirection, made
 * before it forks (dash) or after (bash). */
static bool is_passed_on_purpose(int number) {
    return is_kept(number) || (settings.shell && number < NUMBERS && !was_given(number));
}

static void see(int number) {
    if (number >= NUMBERS || !is_inheritable(number) || is_passed_on_purpose(number)) return;
    seen[number] = identity(number);
    int end = seen_end;
    while (end <= number && !atomic_compare_exchange_weak(&seen_end, &end, number + 1)) {}
}

/* FD_CLOEXEC is the only descriptor flag, fcntl(2). */
static void mark(int number) {
    if (is_inheritable(number) && !is_passed_on_purpose(number)) fcntl(number, F_SETFD, FD_CLOEXEC);
}

/* If leaks are only reported: mark no more than settle() can undo. */
static void see_and_mark(int number) {
    if (number >= NUMBERS && !settings.stop) return;
    see(number);
    mark(number);
}

static void see_and_mark_own(int number) {
    if (number >= NUMBERS || !was_given(number)) see_and_mark(number);
}

static bool mark_range(unsigned first, unsigned last) {
    return first > last || syscall(SYS_close_range, first, last, CLOSE_RANGE_MARK) == 0;
}

void remember_given(void) { walk(give); }

/* Mark all descriptors but those passed on purpose. */
void mark_all(void) {
    if (!settings.stop || settings.shell) {
        walk(see_and_mark);
        return;
    }
    walk(see);
    /* One call for each gap: between single calls another thread's open() could slip in. */
    unsigned first = FIRST;
    bool done = true;
    for (int i = 0; i < settings.kept_count && done; ++i) {
        done = mark_range(first, (unsigned)settings.kept[i] - 1);
        first = (unsigned)settings.kept[i] + 1;
    }
    if (!done || !mark_range(first, UINT_MAX)) walk(mark);
}

/* Mark the descriptors that the program has opened itself. */
void mark_own(void) { walk(see_and_mark_own); }

/* Remove our mark from each descriptor that is passed, not leaked; collect the others, which
 * are stopped. */
void settle(const struct Program *program, enum Passing passing, struct Numbers *stopped) {
    memset(stopped, 0, sizeof *stopped);
    struct Numbers announced;
    bool read = false;
    const int end = seen_end;
    for (int number = FIRST; number < end; ++number) {
        if (seen[number] == 0) continue;
        const int flags = fcntl(number, F_GETFD);
        if (flags < 0 || (flags & FD_CLOEXEC) == 0 || identity(number) != seen[number]) continue;
        if (!read) read_announced(program, &announced); /* once, and seldom at all */
        read = true;
        const bool passed = has(&announced, number) || passing == TO_ITSELF ||
                            (passing == IN_PLACE && was_given(number));
        if (!passed) add_to(stopped, number);
        if (passed || !settings.stop) fcntl(number, F_SETFD, 0);
    }
}

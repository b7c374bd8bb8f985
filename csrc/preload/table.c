/* The descriptors of this process: which are inheritable, and marking them. */
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

/* As which file a number was inheritable when we marked it.  A child of vfork writes it on
 * its parent's memory, where it is as true; a number that has become another file, or that
 * is not marked, is not ours. */
static _Atomic uint64_t seen[NUMBERS];
static _Atomic int seen_end = FIRST;
/* What this program was given when it was executed. */
static uint64_t given[NUMBERS];

/* statx(2), which an older musl does not declare. */
struct Statx {
    uint32_t others_before[8];
    uint64_t inode;
    uint32_t others_between[24];
    uint32_t device_major, device_minor;
    uint64_t others_after[14];
};
_Static_assert(sizeof(struct Statx) == 256, "as the kernel has it");
#define STATX_WANT_INODE 0x100U
/* AT_EMPTY_PATH | AT_STATX_DONT_SYNC: a file system that is far away, or gone, is not waited
 * for. */
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

/* Epolls and their kin have one inode, so they are told apart by number alone. */
static uint64_t identity(int number) { return identity_at(number, ""); }

static bool is_inheritable(int number) {
    const int flags = fcntl(number, F_GETFD);
    return flags >= 0 && (flags & FD_CLOEXEC) == 0;
}

/* Calls visit for the numbers above 2 that are open; without /proc for all that may be. */
static void walk(void (*visit)(int)) {
    struct Entry { /* getdents64(2) */
        uint64_t inode;
        int64_t offset;
        unsigned short length;
        unsigned char type;
        char name[];
    };
    _Alignas(struct Entry) char buffer[1024];
    /* By syscall(): libc's open is a place where threads are cancelled. */
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

/* A shell marks what is its own: what else it has opened is a redirection, whether it does
 * them before it forks (dash) or after (bash). */
static bool is_meant(int number) {
    return is_kept(number) || (settings.shell && number < NUMBERS && !was_given(number));
}

static void see(int number) {
    if (number >= NUMBERS || !is_inheritable(number) || is_meant(number)) return;
    seen[number] = identity(number);
    int end = seen_end;
    while (end <= number && !atomic_compare_exchange_weak(&seen_end, &end, number + 1)) {}
}

/* Of the flags there is only this one, fcntl(2). */
static void mark(int number) {
    if (is_inheritable(number) && !is_meant(number)) fcntl(number, F_SETFD, FD_CLOEXEC);
}

/* Where nothing is to be stopped, no more than settle() can undo. */
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

/* Everything but what is meant. */
void mark_all(void) {
    if (!settings.stop || settings.shell) {
        walk(see_and_mark);
        return;
    }
    walk(see);
    /* One call for each gap: no other thread's open() slips in between, as it could between
     * single ones. */
    unsigned first = FIRST;
    bool done = true;
    for (int i = 0; i < settings.kept_count && done; ++i) {
        done = mark_range(first, (unsigned)settings.kept[i] - 1);
        first = (unsigned)settings.kept[i] + 1;
    }
    if (!done || !mark_range(first, UINT_MAX)) walk(mark);
}

/* What the program has opened itself. */
void mark_own(void) { walk(see_and_mark_own); }

/* Takes the mark off again where we have set it and the descriptor is passed, not leaked;
 * the others are the stopped ones. */
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

/* libforkfd_preload.so: the interface between its files.
 *
 * The rule is in docs/preload.md.  In short: a child is born with all descriptors above 2 marked
 * close-on-exec.  A descriptor that the child makes inheritable afterwards is passed on purpose,
 * and so is one whose number the executed program is given by its arguments or environment, and
 * everything when a program executes itself in its own place.
 *
 * All of this may run in the child of fork(2) of a process with threads, or of vfork(2) on
 * its parent's memory: no allocation, no lock, no stdio.  Memory that a child of vfork writes
 * must be true for the parent too. */
#pragma once

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/types.h>

#define EXPORT __attribute__((visibility("default")))

enum {
    FIRST = 3,        /* 0, 1 and 2 are always passed */
    NUMBERS = 4096,   /* descriptors above are marked, but not remembered */
    MAX_KEPT = 64,
    MAX_VARIABLES = 16,
    PATH_SIZE = 4096,
};

/* settings.c: the settings in the environment, read once. */
extern char program_path[PATH_SIZE]; /* of /proc/self/exe; or "" */
struct Settings {
    bool stop;                             /* false: report leaks, and let them through */
    bool shell;                            /* this program is a shell */
    int kept[MAX_KEPT];                    /* ascending */
    int kept_count;
    const char *variables[MAX_VARIABLES];  /* their values name descriptors to keep */
    int variable_count;
    int log_fd;                            /* -1: none */
    const char *log_path;                  /* NULL: none */
};
extern struct Settings settings;
void read_settings(void);
bool is_kept(int number);

/* A set of descriptors; those from NUMBERS up are in none. */
struct Numbers {
    uint8_t bits[NUMBERS / 8];
};
static inline bool has(const struct Numbers *set, int number) {
    return number >= 0 && number < NUMBERS && (set->bits[number / 8] >> number % 8 & 1) != 0;
}
static inline void add_to(struct Numbers *set, int number) {
    if (number >= 0 && number < NUMBERS) set->bits[number / 8] |= (uint8_t)(1U << number % 8);
}

static inline bool begins_with(const char *text, const char *start) {
    return strncmp(text, start, strlen(start)) == 0;
}

/* The program that is to be executed. */
struct Program {
    const char *path;  /* of its file; "": that of a descriptor; NULL: unknown */
    char *const *argv;
    char *const *envp;
    int executed;  /* the executed descriptor, or the one that a path starts at; or -1 */
    bool new_pid;  /* it runs in another process than this one */
};

/* announced.c: the descriptors that the next program is given by number. */
void read_announced(const struct Program *program, struct Numbers *found);
const char *value_of(char *const *envp, const char *name); /* of a variable; NULL: not set */

/* restart.c: whether this program executes itself in its own place. */
void remember_program(void);
bool is_restart(const struct Program *program);

/* table.c: the descriptors of this process. */
enum Passing {
    TO_CHILD,   /* announced descriptors pass */
    IN_PLACE,   /* and those that this program was given */
    TO_ITSELF,  /* all pass: the program executes itself */
};
uint64_t identity_at(int folder, const char *path); /* never 0; 1 where it is unknown */
void remember_given(void);
void mark_all(void);
void mark_own(void);
void settle(const struct Program *program, enum Passing passing, struct Numbers *stopped);

/* log.c */
void report(const struct Numbers *stopped, const char *how, const char *command,
            const char *unless);

/* wrap_fork.c: mark a child at its birth; whether this process was marked so; whether its parent
 * has ended since, as a daemon's. */
void born(bool in_shared_memory, pid_t parent);
bool was_born(void);
bool is_daemon(void);

/* real.c: the wrapped functions, of libc or of the next library. */
#define FUNCTIONS(X)                                                                          \
    X(fork) X(_Fork) X(clone) X(forkpty) X(daemon)                                            \
    X(execve) X(execv) X(execvp) X(execvpe) X(execveat) X(fexecve)                            \
    X(posix_spawn) X(posix_spawnp) X(pidfd_spawn) X(pidfd_spawnp) X(system) X(popen)
#define NUMBER_OF(name) REAL_##name,
enum Function { FUNCTIONS(NUMBER_OF) FUNCTION_COUNT };
#undef NUMBER_OF
void *find_real(enum Function function); /* NULL: libc has none */

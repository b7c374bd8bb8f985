/* Wrappers of the exec functions. */
#include "preload.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))find_real(REAL_##name))

extern char **environ;
EXPORT int execveat(int, const char *, char *const[], char *const[], int);
EXPORT int forkfd_preload_exec(const char *, char *const[], char *const[]);
/* Under other names, since headers declare the first argument as nonnull. */
EXPORT int list_execl(const char *, const char *, ...) __asm__("execl");
EXPORT int list_execlp(const char *, const char *, ...) __asm__("execlp");
EXPORT int list_execle(const char *, const char *, ...) __asm__("execle");

/* command: the program that will run, or NULL where exec is going to fail. */
static void before_program(const struct Program *program, const char *command) {
    const int err = errno;
    const bool restart = is_restart(program), in_place = !was_born();
    struct Numbers stopped;
    if (in_place && !restart) mark_own();
    if (command != NULL) {
        settle(program, restart ? TO_ITSELF : in_place ? IN_PLACE : TO_CHILD, &stopped);
        report(&stopped, "", command, "");
    }
    errno = err;
}

static void before(const char *path, const char *command, char *const argv[],
                   char *const envp[]) {
    const struct Program program = {path, argv, envp, -1, false};
    before_program(&program, command);
}

/* The interpreter of a script opens /dev/fd/N, or a path below it: N is passed. */
static void before_descriptor(int executed, const char *path, char *const argv[],
                              char *const envp[]) {
    const struct Program program = {path, argv, envp, executed, false};
    before_program(&program, *path != '\0' ? path : "a descriptor's program");
}

/* Programs try one directory of PATH after the other: only the one that exists is logged. */
static const char *if_executable(const char *path) {
    const int err = errno;
    const bool found = access(path, X_OK) == 0;
    errno = err;
    return found ? path : NULL;
}

/* Find the program as execvp(3) will. */
static const char *search(const char *file, char *path, size_t size) {
    if (strchr(file, '/') != NULL) return if_executable(file);
    const char *at = value_of(environ, "PATH");
    if (at == NULL) at = "/bin:/usr/bin";
    for (;; ++at) {
        const size_t length = strcspn(at, ":"), rest = strlen(file) + 1;
        if (length + 1 + rest <= size) {
            memcpy(path, at, length);
            path[length] = '/';
            memcpy(path + length + (length != 0), file, rest);
            if (if_executable(path) != NULL) return path;
        }
        at += length;
        if (*at == '\0') return NULL;
    }
}

static void before_search(const char *file, char *const argv[], char *const envp[]) {
    char buffer[1024];
    const char *path = search(file, buffer, sizeof buffer);
    before(path != NULL ? path : file, path, argv, envp);
}

EXPORT int execve(const char *path, char *const argv[], char *const envp[]) {
    before(path, if_executable(path), argv, envp);
    return REAL(execve)(path, argv, envp);
}

EXPORT int execv(const char *path, char *const argv[]) {
    before(path, if_executable(path), argv, environ);
    return REAL(execv)(path, argv);
}

EXPORT int execvp(const char *file, char *const argv[]) {
    before_search(file, argv, environ);
    return REAL(execvp)(file, argv);
}

EXPORT int execvpe(const char *file, char *const argv[], char *const envp[]) {
    before_search(file, argv, envp);
    return REAL(execvpe)(file, argv, envp);
}

EXPORT int fexecve(int program, char *const argv[], char *const envp[]) {
    before_descriptor(program, "", argv, envp);
    return REAL(fexecve)(program, argv, envp);
}

EXPORT int execveat(int folder, const char *path, char *const argv[], char *const envp[],
                    int flags) {
    before_descriptor(folder, path, argv, envp);
    if (REAL(execveat) == NULL)
        return (int)syscall(SYS_execveat, folder, path, argv, envp, flags);
    return REAL(execveat)(folder, path, argv, envp, flags);
}

/* Declare argv, of first and all that follows up to NULL; the list is then behind the NULL. */
#define COLLECT(first, list, argv)                                                            \
    va_list list;                                                                             \
    size_t count = 1;                                                                         \
    va_start(list, first);                                                                    \
    if (first != NULL)                                                                        \
        for (++count; va_arg(list, char *) != NULL; ++count) {}                               \
    va_end(list);                                                                             \
    char *argv[count];                                                                        \
    argv[0] = (char *)first;                                                                  \
    va_start(list, first);                                                                    \
    for (size_t i = 1; i < count; ++i) argv[i] = va_arg(list, char *)

int list_execl(const char *path, const char *first, ...) {
    COLLECT(first, list, argv);
    va_end(list);
    before(path, if_executable(path), argv, environ);
    return REAL(execv)(path, argv);
}

int list_execlp(const char *file, const char *first, ...) {
    COLLECT(first, list, argv);
    va_end(list);
    before_search(file, argv, environ);
    return REAL(execvp)(file, argv);
}

int list_execle(const char *path, const char *first, ...) {
    COLLECT(first, list, argv);
    char *const *envp = va_arg(list, char *const *);
    va_end(list);
    before(path, if_executable(path), argv, envp);
    return REAL(execve)(path, argv, envp);
}

/* For `python -m pyforkfd run`, which loads the library: its first program gets the descriptors
 * that a child would, and no others. */
EXPORT int forkfd_preload_exec(const char *path, char *const argv[], char *const envp[]) {
    born(false, 0);
    before(path, path, argv, envp);
    return REAL(execve)(path, argv, envp);
}

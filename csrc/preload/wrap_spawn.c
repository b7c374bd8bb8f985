/* Wrappers of posix_spawn and kin, whose children run none of this library before they execute:
 * the marks are set in the caller and stay.  File actions pass by a dup2 in the child. */
#include "preload.h"

#include <errno.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))find_real(REAL_##name))

extern char **environ;

typedef int Spawn(int *restrict, const char *restrict, const posix_spawn_file_actions_t *restrict,
                  const posix_spawnattr_t *restrict, char *const[restrict], char *const[restrict]);
EXPORT Spawn pidfd_spawn, pidfd_spawnp; /* glibc 2.39 */

static void before(char *const argv[], char *const envp[], struct Numbers *stopped) {
    const int err = errno;
    const struct Program program = {NULL, argv, envp, -1, true};
    mark_all();
    settle(&program, TO_CHILD, stopped);
    errno = err;
}

static int spawn(Spawn *real, int *child, const char *path,
                 const posix_spawn_file_actions_t *actions, const posix_spawnattr_t *attributes,
                 char *const argv[], char *const envp[]) {
    if (real == NULL) return ENOSYS;
    struct Numbers stopped;
    before(argv, envp, &stopped);
    const int rc = real(child, path, actions, attributes, argv, envp);
    const int err = errno;
    /* Only libc can read which descriptors the actions close or pass. */
    const char *unless = actions != NULL ? ", unless its file actions close or pass it" : "";
    if (rc == 0) report(&stopped, "", path, unless);
    errno = err;
    return rc;
}

#define SPAWN(name)                                                                           \
    EXPORT int name(int *restrict child, const char *restrict path,                           \
                    const posix_spawn_file_actions_t *restrict actions,                       \
                    const posix_spawnattr_t *restrict attributes, char *const argv[restrict], \
                    char *const envp[restrict]) {                                             \
        return spawn(REAL(name), child, path, actions, attributes, argv, envp);               \
    }
SPAWN(posix_spawn)
SPAWN(posix_spawnp)
SPAWN(pidfd_spawn)
SPAWN(pidfd_spawnp)

static void before_shell(const char *command) {
    char *const argv[] = {(char *)"sh", (char *)"-c", (char *)command, NULL};
    struct Numbers stopped;
    before(argv, environ, &stopped);
    const int err = errno;
    report(&stopped, "sh -c ", command, "");
    errno = err;
}

EXPORT int system(const char *command) {
    if (command != NULL) before_shell(command);
    return REAL(system)(command);
}

EXPORT FILE *popen(const char *command, const char *type) {
    before_shell(command);
    return REAL(popen)(command, type);
}

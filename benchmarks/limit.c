/* The lower bound of starting a program here: vfork, execve, waitpid, nothing else.
 * Called through ctypes, in the process of the compared ways, with the GIL released. */
#define _DEFAULT_SOURCE
#include <errno.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static long long now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* Nanoseconds from before the vfork until the child is reaped; -errno when that fails or
 * the child exits with anything but 0. */
long long limit_run(const char *path) {
    char *const argv[] = {(char *)path, NULL};
    int status = 0;
    const long long begin = now_ns();
    const pid_t pid = vfork();
    if (pid == 0) {
        execve(path, argv, environ);
        _exit(127);
    }
    if (pid < 0) return -errno;
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR) return -errno;
    const long long taken = now_ns() - begin;
    return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? taken : -ECHILD;
}

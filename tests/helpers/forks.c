/* Forks in C, unknown to the interpreter.  The child's exit code is the state of a descriptor. */
#include <errno.h>
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/wait.h>
#include <unistd.h>

static int look(int fd) {
    int flags = fcntl(fd, F_GETFD);
    return flags < 0 ? 2 : flags & FD_CLOEXEC ? 0 : 1;
}

static int exit_code(pid_t pid) {
    int status;
    while (waitpid(pid, &status, 0) < 0) {}
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* 0: open and close-on-exec, 1: open and inheritable, 2: closed */
int fork_and_look(int fd) {
    pid_t pid = fork();
    if (pid == 0) _exit(look(fd));
    return exit_code(pid);
}

int vfork_and_look(int fd) {
    pid_t pid = vfork();
    if (pid == 0) _exit(look(fd));
    return exit_code(pid);
}

/* Takes a number out of an epoll, in the child: 0 it could. */
int fork_and_unwatch(int epfd, int fd) {
    pid_t pid = fork();
    if (pid == 0) _exit(epoll_ctl(epfd, EPOLL_CTL_DEL, fd, 0) == 0 ? 0 : errno);
    return exit_code(pid);
}

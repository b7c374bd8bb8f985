/* leak WAY COMMAND [ARGUMENT...]: opens an inheritable 7, and starts COMMAND in one of many
 * ways; its exit status is COMMAND's.  "leak show" prints the open descriptors above 2. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <pty.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;
extern pid_t _Fork(void) __attribute__((weak));
extern int execveat(int, const char *, char *const[], char *const[], int) __attribute__((weak));

static char **command;
static char line[4096];

static void die(const char *what) {
    perror(what);
    _exit(99);
}

static void show(void) {
    for (int fd = 3; fd < 5000; ++fd)
        if (fcntl(fd, F_GETFD) >= 0) printf("%d ", fd);
    printf("\n");
}

static int finish(pid_t pid) {
    int status;
    if (pid < 0) die("start");
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR) die("waitpid");
    return WIFEXITED(status) ? WEXITSTATUS(status) : 98;
}

static int run_command(void *unused) {
    (void)unused;
    execv(command[0], command);
    _exit(97);
}

/* The child makes 9 of 7, and passes 7 by clearing a mark that was not there. */
static void pass(void) {
    if (dup2(7, 9) < 0 || fcntl(7, F_SETFD, 0) < 0) _exit(96);
}

#define BY_FORK(call)             \
    pid_t pid = fork();           \
    if (pid == 0) {               \
        call;                     \
        _exit(97);                \
    }                             \
    return finish(pid)

static int by_fork(void) { BY_FORK(execve(command[0], command, environ)); }
static int by_fork_pass(void) { BY_FORK(pass(); run_command(NULL)); }
static int by_fork_open(void) { BY_FORK(if (open("/dev/null", O_RDONLY) < 0) _exit(95); run_command(NULL)); }
static int by_execv(void) { BY_FORK(execv(command[0], command)); }
static int by_execvp(void) { BY_FORK(execvp(command[0], command)); }
static int by_execvpe(void) { BY_FORK(execvpe(command[0], command, environ)); }
static int by_execl(void) { BY_FORK(execl(command[0], command[0], command[1], (char *)NULL)); }
static int by_execlp(void) { BY_FORK(execlp(command[0], command[0], command[1], (char *)NULL)); }
static int by_execle(void) {
    BY_FORK(execle(command[0], command[0], command[1], (char *)NULL, environ));
}
static int by_fexecve(void) {
    int file = open(command[0], O_RDONLY | O_CLOEXEC);
    BY_FORK(fexecve(file, command, environ));
}
static int by_execveat(void) {
    if (!execveat) return 77;
    int file = open(command[0], O_PATH | O_CLOEXEC);
    BY_FORK(execveat(file, "", command, environ, AT_EMPTY_PATH));
}
/* As CPython does it: one directory of PATH after the other. */
static int by_search(void) {
    BY_FORK(execve("/nonexistent/leak", command, environ); execv(command[0], command));
}
static int by_twice(void) {
    pid_t pid = fork();
    if (pid == 0) _exit(by_fork());
    return finish(pid);
}
static int by__Fork(void) {
    if (!_Fork) return 77;
    pid_t pid = _Fork();
    if (pid == 0) run_command(NULL);
    return finish(pid);
}
static int by_vfork(void) {
    pid_t pid = vfork();
    if (pid == 0) {
        execve(command[0], command, environ);
        _exit(97);
    }
    return finish(pid);
}
static int by_vfork_pass(void) {
    pid_t pid = vfork();
    if (pid == 0) {
        pass();
        execve(command[0], command, environ);
        _exit(97);
    }
    return finish(pid);
}
/* vfork stays vfork: the child writes to our memory before we go on. */
static int by_vfork_memory(void) {
    volatile int written = 0;
    pid_t pid = vfork();
    if (pid == 0) {
        written = 1;
        _exit(0);
    }
    int status = finish(pid);
    printf("%d %d\n", written, (fcntl(7, F_GETFD) & FD_CLOEXEC) != 0);
    return status;
}
static int by_vfork_failed(void) {
    const struct rlimit none = {0, 0};
    if (setrlimit(RLIMIT_NPROC, &none) != 0 || setresuid(65534, 65534, 65534) != 0) die("limit");
    pid_t pid = vfork();
    if (pid == 0) _exit(0);
    printf("%d %s\n", (int)pid, strerror(errno));
    return 0;
}
static _Alignas(16) char stack[65536];
static int by_clone_vfork(void) {
    return finish(clone(run_command, stack + sizeof stack, CLONE_VM | CLONE_VFORK | SIGCHLD, NULL));
}
static int by_clone(void) {
    return finish(clone(run_command, stack + sizeof stack, SIGCHLD, NULL));
}
static int by_raw(void) {
    pid_t pid = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    if (pid == 0) run_command(NULL);
    return finish(pid);
}
static int by_posix_spawn(void) {
    pid_t pid;
    errno = posix_spawn(&pid, command[0], NULL, NULL, command, environ);
    return errno ? 97 : finish(pid);
}
static int by_posix_spawnp(void) {
    pid_t pid;
    errno = posix_spawnp(&pid, command[0], NULL, NULL, command, environ);
    return errno ? 97 : finish(pid);
}
static int by_posix_spawn_pass(void) {
    pid_t pid;
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, 7, 7);
    posix_spawn_file_actions_adddup2(&actions, 7, 9);
    errno = posix_spawn(&pid, command[0], &actions, NULL, command, environ);
    posix_spawn_file_actions_destroy(&actions);
    return errno ? 97 : finish(pid);
}
static int by_posix_spawn_failed(void) {
    pid_t pid;
    printf("%s\n", strerror(posix_spawn(&pid, "/nonexistent", NULL, NULL, command, environ)));
    return 0;
}
static int by_pidfd_spawn(void) {
    int (*spawn)(int *, const char *, const posix_spawn_file_actions_t *,
                 const posix_spawnattr_t *, char *const[], char *const[]) =
        (__typeof__(spawn))dlsym(RTLD_DEFAULT, "pidfd_spawn");
    int pidfd;
    siginfo_t info;
    if (!spawn || (errno = spawn(&pidfd, command[0], NULL, NULL, command, environ)) == ENOSYS)
        return 77;
    if (errno) die("pidfd_spawn");
    return waitid((idtype_t)3 /* P_PIDFD */, (id_t)pidfd, &info, WEXITED) ? 98 : info.si_status;
}
static int by_system(void) {
    int status = system(line);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 98;
}
static int by_popen(void) {
    char read[4096];
    FILE *stream = popen(line, "r");
    while (fgets(read, sizeof read, stream)) fputs(read, stdout);
    int status = pclose(stream);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 98;
}
static int by_forkpty(void) {
    int terminal, out = dup(1);
    fcntl(out, F_SETFD, FD_CLOEXEC);
    pid_t pid = forkpty(&terminal, NULL, NULL, NULL);
    if (pid == 0) {
        dup2(out, 1);
        run_command(NULL);
    }
    return finish(pid);
}
/* The parent that daemon() ends is not us. */
static int by_daemon(void) {
    int ends[2];
    char end;
    if (pipe2(ends, O_CLOEXEC) != 0) die("pipe");
    if (fork() == 0) {
        fcntl(7, F_SETFD, 0);
        if (daemon(1, 1) != 0) _exit(97);
        run_command(NULL);
    }
    close(ends[1]);
    (void)!read(ends[0], &end, 1); /* until all children have executed, or ended */
    wait(NULL);
    return 0;
}
static int in_place(void) { return run_command(NULL); }
static int in_place_after_failure(void) {
    execv("/nonexistent", command);
    return run_command(NULL);
}

/* The program itself is what it was before it had children. */
static int in_place_after_spawn(void) {
    pid_t pid;
    char *const argv[] = {(char *)"true", NULL};
    errno = posix_spawn(&pid, "/bin/true", NULL, NULL, argv, environ);
    if (errno || finish(pid) != 0) return 96;
    return run_command(NULL);
}
static void vfork_and_pass(void) {
    pid_t pid = vfork();
    if (pid == 0) _exit(0);
    if (finish(pid) != 0) _exit(95);
    pass();
}
static int by_fork_vfork_pass(void) { BY_FORK(vfork_and_pass(); run_command(NULL)); }

static void *vfork_often(void *failed) {
    for (int i = 0; i < 500; ++i) {
        pid_t pid = vfork();
        if (pid == 0) {
            execve("/nonexistent", command, environ);
            execve("/bin/true", (char *[]){(char *)"true", NULL}, environ);
            _exit(97);
        }
        if (finish(pid) != 0) *(volatile int *)failed = 1;
    }
    return NULL;
}
static int by_many_threads(void) {
    pthread_t threads[8];
    int failed = 0;
    for (int i = 0; i < 8; ++i) pthread_create(&threads[i], NULL, vfork_often, &failed);
    for (int i = 0; i < 8; ++i) pthread_join(threads[i], NULL);
    return failed;
}

#define WAY(name) {#name, name}
static const struct {
    const char *name;
    int (*function)(void);
} ways[] = {
    WAY(by_fork), WAY(by_fork_pass), WAY(by_fork_open), WAY(by_execv), WAY(by_execvp),
    WAY(by_execvpe), WAY(by_execl), WAY(by_execlp), WAY(by_execle), WAY(by_fexecve),
    WAY(by_execveat), WAY(by_search), WAY(by_twice), WAY(by__Fork), WAY(by_vfork),
    WAY(by_vfork_pass), WAY(by_vfork_memory), WAY(by_vfork_failed), WAY(by_clone_vfork),
    WAY(by_clone), WAY(by_raw), WAY(by_posix_spawn), WAY(by_posix_spawnp),
    WAY(by_posix_spawn_pass), WAY(by_posix_spawn_failed), WAY(by_pidfd_spawn), WAY(by_system),
    WAY(by_popen), WAY(by_forkpty), WAY(by_daemon), WAY(in_place), WAY(in_place_after_failure),
    WAY(in_place_after_spawn),
    WAY(by_fork_vfork_pass), WAY(by_many_threads),
};

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc >= 2 && strcmp(argv[1], "show") == 0) {
        show();
        return 0;
    }
    if (argc < 3) return 2;
    command = argv + 2;
    /* With a second command, so that the shell does not execute the first in its place. */
    for (char **word = command; *word; ++word) {
        strcat(line, *word);
        strcat(line, " ");
    }
    strcat(line, "&& true");
    int file = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (file < 0 || dup2(file, 7) != 7) die("7");
    for (size_t i = 0; i < sizeof ways / sizeof *ways; ++i)
        if (strcmp(ways[i].name, argv[1]) == 0) {
            int status = ways[i].function();
            fflush(stdout);
            _exit(status);
        }
    return 2;
}

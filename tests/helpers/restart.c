/* restart [ARGUMENT...]: leaves 7 inheritable and executes its own program, as WAY has it;
 * what then runs prints what is open above 2, and that way. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static void open_7(void) {
    int file = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (file < 0 || dup2(file, 7) != 7) _exit(99);
}

static int show(const char *how) {
    for (int fd = 3; fd < 5000; ++fd)
        if (fcntl(fd, F_GETFD) >= 0) printf("%d ", fd);
    printf("%s\n", how);
    return 0;
}

/* In a child whose parent has ended, as daemons are, or not. */
static void as_child(int parent_ends) {
    int ends[2];
    char end;
    if (pipe2(ends, O_CLOEXEC) != 0) _exit(98);
    const pid_t parent = getpid(), pid = fork();
    if (pid != 0) {
        if (parent_ends) _exit(0);
        close(ends[1]);
        (void)!read(ends[0], &end, 1);
        waitpid(pid, NULL, 0);
        _exit(0);
    }
    while (parent_ends && getppid() == parent) usleep(1000);
}

int main(int argc, char **argv) {
    (void)argc;
    const char *restarted = getenv("RESTARTED");
    if (restarted != NULL) return show(restarted);
    const char *way = getenv("WAY");
    setenv("RESTARTED", way, 1);
    if (strcmp(way, "early daemon") != 0) open_7();
    if (strcmp(way, "path") == 0) execv(argv[0], argv);
    if (strcmp(way, "link") == 0) execv("/proc/self/exe", argv);
    if (strcmp(way, "name") == 0) execvp("restart", argv);
    if (strcmp(way, "descriptor") == 0)
        fexecve(open("/proc/self/exe", O_RDONLY | O_CLOEXEC), argv, environ);
    if (strcmp(way, "at") == 0)
        execveat(open(getenv("FOLDER"), O_PATH | O_CLOEXEC), "restart", argv, environ, 0);
    if (strcmp(way, "new arguments") == 0)
        execl(argv[0], argv[0], "--resume", "12", argv[1], (char *)NULL);
    if (strcmp(way, "fewer arguments") == 0) execl(argv[0], argv[0], (char *)NULL);
    if (strcmp(way, "other operand") == 0) execl(argv[0], argv[0], "other", (char *)NULL);
    if (strcmp(way, "upgrade") == 0) { /* another file at the path, as packages are installed */
        if (system("cp restart new && mv new restart") != 0) return 96;
        execl("./restart", argv[0], argv[1], (char *)NULL);
    }
    if (strcmp(way, "after children") == 0) { /* which are not to have it */
        if (system("test ! -e /proc/$$/fd/7") != 0) return 95;
        const pid_t pid = vfork();
        if (pid == 0) _exit(0);
        waitpid(pid, NULL, 0);
        execv(argv[0], argv);
    }
    if (strcmp(way, "child") == 0) {
        as_child(0);
        execv(argv[0], argv);
    }
    if (strcmp(way, "vfork") == 0) {
        const pid_t pid = vfork();
        if (pid == 0) execv(argv[0], argv);
        waitpid(pid, NULL, 0);
        return 0;
    }
    if (strcmp(way, "raw") == 0) {
        const pid_t pid = (pid_t)syscall(SYS_clone, 17 /* SIGCHLD */, 0, 0, 0, 0);
        if (pid == 0) execv(argv[0], argv);
        waitpid(pid, NULL, 0);
        return 0;
    }
    if (strcmp(way, "daemon") == 0 || strcmp(way, "early daemon") == 0) {
        as_child(1);
        if (strcmp(way, "daemon") != 0) open_7();
        execv(argv[0], argv);
    }
    if (strcmp(way, "libc daemon") == 0) {
        if (daemon(1, 1) != 0) return 94;
        execv(argv[0], argv);
    }
    return 97;
}

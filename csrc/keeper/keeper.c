/* forkfd-keeper [-t SECONDS] [--] PROGRAM [ARGUMENT...]
 *
 * Start a supervisor, hold duplicates of the descriptors that the supervisor deposits, and
 * start it again with all of them when it was killed.  The workers live on meanwhile: orphans
 * are reparented to the keeper (PR_SET_CHILD_SUBREAPER), which reports the ends of those that
 * ended to the next supervisor.
 *
 * Keeper and supervisor exchange messages over one SOCK_SEQPACKET pair:
 *   supervisor: "+NAME" with one descriptor: hold it; "-NAME": close it; "-": close them all;
 *               "=": it serves.
 *   keeper:     struct report, for each child it has reaped.
 * FORKFD_HANDOVER="keeper=3 NAME=4 ..." names the supervisor's end and every held descriptor,
 * FORKFD_NOFILE the soft limit of descriptors that the keeper was started with: it is raised.
 *
 * The keeper ends when its supervisor ends by itself and has taken back everything that it
 * deposited.
 *
 * The keeper must survive when another process runs out of memory, so it allocates nothing:
 * all tables are static, and only a child on its way to exec calls setenv(3).
 */
#include "keeper.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    UNATTENDED_S = 60, /* give up when no supervisor has served for so long */
    PAUSE_MS = 50,     /* after the second failure in a row, doubled by each further one */
    LONGEST_PAUSE_MS = 5000,
};

static const int forwarded[] = {SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2};
enum { FORWARDED = sizeof forwarded / sizeof *forwarded };

static pid_t supervisor; /* 0: none runs */
static siginfo_t last_end;
static unsigned waiting;  /* signals for the next supervisor, a bit each */
static unsigned forwarded_now; /* signals that were sent to this supervisor */
static sigset_t original;      /* the mask that the keeper was started with */
static void (*original_pipe)(int);
static int signals = -1;
static struct rlimit descriptors; /* as the keeper was started with */

static long long now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

/* Read a file of the supervisor's in /proc; an empty text where there is none. */
static void read_proc(const char *name, char *text, size_t size) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/%s", (int)supervisor, name);
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    const ssize_t length = fd < 0 ? 0 : read(fd, text, size - 1);
    if (fd >= 0) close(fd);
    text[length > 0 ? length : 0] = '\0';
}

/* Return whether the supervisor has ended or is about to, so that it reads no signal any more:
 * SIGKILL is pending, the process exits, or it is a zombie.  The kernel drops signals to it then.
 * proc_pid_stat(5). */
static int is_dying(void) {
    enum { EXITING = 4 }; /* PF_EXITING */
    char text[1024], state = 'Z';
    unsigned long flags = 0, pending = 0;
    read_proc("stat", text, sizeof text);
    const char *after = strrchr(text, ')'); /* the name before it may have any character */
    if (after != NULL)
        sscanf(after + 1,
               " %c %*s %*s %*s %*s %*s %lu %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s"
               " %*s %*s %*s %*s %*s %*s %*s %lu",
               &state, &flags, &pending);
    return state == 'Z' || state == 'X' || (flags & EXITING) != 0 ||
           (pending >> (SIGKILL - 1) & 1) != 0;
}

/* Hand the unread signals of a supervisor that is not reaped yet to the next one. */
static void keep_unread(void) {
    char text[4096];
    read_proc("status", text, sizeof text);
    const char *found = strstr(text, "\nShdPnd:");
    if (found == NULL) return;
    const unsigned long long pending = strtoull(found + strlen("\nShdPnd:"), NULL, 16);
    for (int i = 0; i < FORWARDED; i++)
        if (pending >> (forwarded[i] - 1) & 1) waiting |= 1u << forwarded[i];
}

static void reap(void) {
    for (;;) {
        siginfo_t info = {0};
        const int flags = WEXITED | WNOHANG | __WALL;
        if (waitid(P_ALL, 0, &info, flags | WNOWAIT) != 0 || info.si_pid == 0) return;
        if (info.si_pid == supervisor) keep_unread();
        if (waitid(P_PID, (id_t)info.si_pid, &info, flags) != 0) return;
        if (info.si_pid == supervisor) {
            supervisor = 0;
            last_end = info;
        } else {
            link_report(info.si_pid, info.si_code, info.si_status);
        }
    }
}

/* Orphans and the supervisor whose end made them so are seen together: the supervisor is reaped
 * before the ends of its orphans are sent, which it would not read. */
static void take_signals(void) {
    struct signalfd_siginfo info;
    while (read(signals, &info, sizeof info) == sizeof info) {
        const int number = (int)info.ssi_signo;
        if (number == SIGCHLD) continue; /* one may stand for many: see reap() */
        if (supervisor > 0) kill(supervisor, number); /* not reaped yet: the pid is its own */
        *(supervisor > 0 && !is_dying() ? &forwarded_now : &waiting) |= 1u << number;
    }
    reap();
}

static void wait_for_something(int timeout_ms) {
    struct pollfd fds[] = {{signals, POLLIN, 0}, {link_fd(), link_events(), 0}};
    if (poll(fds, 2, timeout_ms) < 0) return;
    if (fds[1].revents != 0) link_serve();
    if (fds[0].revents != 0) take_signals();
}

/* In the child of fork(), which has one thread: any libc function is allowed. */
static _Noreturn void become_supervisor(char **argv, int theirs, pid_t keeper) {
    char pid[24];
    /* Workers without supervisor and keeper would have no owner: without its keeper the
     * supervisor stops in order. */
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != keeper) _exit(1);
    /* The keeper forwards the terminal's signals: the supervisor must not get them twice. */
    setpgid(0, 0);
    /* A forwarded signal stays blocked until the supervisor reads it, or the first would end
     * the supervisor. */
    sigset_t mask = original;
    for (int i = 0; i < FORWARDED; i++) sigaddset(&mask, forwarded[i]);
    sigprocmask(SIG_SETMASK, &mask, NULL);
    signal(SIGPIPE, original_pipe);
    const char *listen_pid = getenv("LISTEN_PID");
    if (listen_pid != NULL && strtol(listen_pid, NULL, 10) == keeper) {
        snprintf(pid, sizeof pid, "%d", (int)getpid());
        setenv("LISTEN_PID", pid, 1);
        unsetenv("LISTEN_PIDFDID");
    }
    /* The supervisor may inherit more descriptors than the former limit would let it open
     * beside them: it keeps the raised one, and gives the former to the workers. */
    snprintf(pid, sizeof pid, "%llu", (unsigned long long)descriptors.rlim_cur);
    setenv("FORKFD_NOFILE", pid, 1);
    link_hand_over(theirs);
    execvp(argv[0], argv);
    const int error = errno;
    keeper_report(argv[0], strerror(error));
    _exit(error == ENOENT ? 127 : 126);
}

static int start(char **argv) {
    const int theirs = link_open();
    if (theirs < 0) return -1;
    const pid_t keeper = getpid();
    const pid_t pid = fork();
    if (pid == 0) become_supervisor(argv, theirs, keeper);
    const int error = errno;
    close(theirs);
    if (pid < 0) {
        errno = error;
        return -1;
    }
    supervisor = pid;
    for (int i = 0; i < FORWARDED; i++)
        if (waiting >> forwarded[i] & 1) kill(pid, forwarded[i]);
    forwarded_now = waiting;
    waiting = 0;
    return 0;
}

/* Children of a killed process become the keeper's in turn, until none is left. */
static void kill_all(void) {
    char path[64], text[4096];
    snprintf(path, sizeof path, "/proc/self/task/%d/children", (int)getpid());
    siginfo_t info;
    do {
        link_kill_held(); /* for kernels that do not list children */
        const int fd = open(path, O_RDONLY | O_CLOEXEC);
        ssize_t size = fd < 0 ? 0 : read(fd, text, sizeof text - 1);
        if (fd >= 0) close(fd);
        text[size > 0 ? size : 0] = '\0';
        char *end, *at = text;
        for (long pid; (pid = strtol(at, &end, 10)) > 0 && *end == ' '; at = end) {
            kill(-(pid_t)pid, SIGKILL);
            kill((pid_t)pid, SIGKILL);
        }
    } while (waitid(P_ALL, 0, &info, WEXITED | __WALL) == 0);
}

static void report_end(void) {
    char text[64];
    const int killed = last_end.si_code != CLD_EXITED;
    snprintf(text, sizeof text, "%s %d", killed ? "signal" : "exit code", last_end.si_status);
    keeper_report("the supervisor has died", text);
}

static int keep(char **argv, int patience_s) {
    int failures = 0;
    long long unattended = now_ms();
    for (;;) {
        if (start(argv) != 0) {
            keeper_report("the supervisor could not be started", strerror(errno));
            if (link_held() == 0) return 1;
        }
        while (supervisor > 0) wait_for_something(-1);
        link_close(); /* reads its last messages */
        if (last_end.si_code == CLD_EXITED && link_held() == 0) return last_end.si_status;
        report_end();
        failures = link_served() ? 0 : failures + 1;
        if (link_served())
            unattended = now_ms();
        else
            waiting |= forwarded_now; /* it has not read them */
        if (now_ms() - unattended >= patience_s * 1000LL) {
            keeper_report("no supervisor serves", "killing all that is left, giving up");
            kill_all();
            return 1;
        }
        if (failures < 2 || waiting != 0) continue;
        long long patience = (long long)PAUSE_MS << (failures < 12 ? failures - 2 : 10);
        if (patience > LONGEST_PAUSE_MS) patience = LONGEST_PAUSE_MS;
        const long long until = now_ms() + patience;
        for (long long left; (left = until - now_ms()) > 0 && waiting == 0;)
            wait_for_something((int)left);
    }
}

int main(int argc, char **argv) {
    int patience_s = UNATTENDED_S, option;
    opterr = 0;
    while ((option = getopt(argc, argv, "+t:")) != -1) {
        char *end = NULL;
        if (option == 't') patience_s = (int)strtol(optarg, &end, 10);
        if (option != 't' || *end != '\0' || patience_s < 1) optind = argc;
    }
    if (optind >= argc) {
        dprintf(2, "usage: forkfd-keeper [-t SECONDS] [--] PROGRAM [ARGUMENT...]\n");
        return 2;
    }
    /* A held descriptor must not become a child's standard stream. */
    for (int fd; (fd = open("/dev/null", O_RDWR | O_CLOEXEC)) >= 0;)
        if (fd > 2) {
            close(fd);
            break;
        } else {
            fcntl(fd, F_SETFD, 0);
        }
    if (getrlimit(RLIMIT_NOFILE, &descriptors) == 0) {
        const struct rlimit raised = {descriptors.rlim_max, descriptors.rlim_max};
        setrlimit(RLIMIT_NOFILE, &raised); /* refused: what is above is reported when it comes */
    }
    sigset_t taken;
    sigemptyset(&taken);
    sigaddset(&taken, SIGCHLD);
    for (int i = 0; i < FORWARDED; i++) sigaddset(&taken, forwarded[i]);
    sigprocmask(SIG_BLOCK, &taken, &original);
    original_pipe = signal(SIGPIPE, SIG_IGN); /* the reader of standard error may be gone */
    signals = signalfd(-1, &taken, SFD_CLOEXEC | SFD_NONBLOCK);
    if (signals < 0 || prctl(PR_SET_CHILD_SUBREAPER, 1) != 0) {
        keeper_report("signalfd, prctl", strerror(errno));
        return 1;
    }
    return keep(argv + optind, patience_s);
}

/* forkfd-keeper [-t SECONDS] [--] PROGRAM [ARGUMENT...]
 *
 * Starts a supervisor, holds duplicates of the descriptors that it deposits, and starts it
 * again with all of them when it was killed.  Its workers live on meanwhile: they are
 * reparented to the keeper (PR_SET_CHILD_SUBREAPER), which tells the next supervisor how those
 * ended that did.
 *
 * Everything the two say to one another goes over one SOCK_SEQPACKET pair:
 *   supervisor: "+NAME" with one descriptor: hold it; "-NAME": close it; "-": close them all;
 *               "=": it serves.
 *   keeper:     struct report, for each child it has reaped.
 * A supervisor finds its end and what is held in FORKFD_HANDOVER="keeper=3 NAME=4 ...".
 *
 * It ends when its supervisor ends by itself and has taken back everything it deposited.
 *
 * What it must survive is somebody else's memory running out, so it allocates nothing: all
 * tables are static, and only a child on its way to exec calls setenv(3).
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
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    UNATTENDED_S = 60, /* if none has got as far as to serve for so long, then we give up */
    PAUSE_MS = 50,     /* after the second in a row, doubled by each further one */
    LONGEST_PAUSE_MS = 5000,
};

static const int forwarded[] = {SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2};
enum { FORWARDED = sizeof forwarded / sizeof *forwarded };

static pid_t supervisor; /* 0: there is none */
static siginfo_t last_end;
static unsigned waiting;  /* signals for a supervisor that is not there yet, a bit each */
static unsigned told;     /* what was sent to this one */
static sigset_t original; /* the mask that we were started with */
static void (*original_pipe)(int);
static int signals = -1;

static long long now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

void keeper_say(const char *what, const char *detail) {
    struct pollfd room = {2, POLLOUT, 0};
    if (poll(&room, 1, 0) != 1 || (room.revents & POLLOUT) == 0) return; /* it must not wait */
    dprintf(2, "forkfd-keeper: %s%s%s\n", what, *detail ? ": " : "", detail);
}

/* Reads a file of the supervisor's in /proc; an empty text where that is not there. */
static void read_proc(const char *name, char *text, size_t size) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/%s", (int)supervisor, name);
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    const ssize_t length = fd < 0 ? 0 : read(fd, text, size - 1);
    if (fd >= 0) close(fd);
    text[length > 0 ? length : 0] = '\0';
}

/* Whether the supervisor has ended or is about to, so that it reads no signal any more: SIGKILL
 * is pending (until it is seen to), or the process exits, or it is a zombie.  The kernel drops
 * what is sent to it then.  proc_pid_stat(5). */
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

/* The supervisor, not reaped yet, has left signals unread: they are for the next one. */
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

/* Orphans and the supervisor whose end made them so are seen together: it is reaped before
 * anything of them is told, which it would not read. */
static void take_signals(void) {
    struct signalfd_siginfo info;
    while (read(signals, &info, sizeof info) == sizeof info) {
        const int number = (int)info.ssi_signo;
        if (number == SIGCHLD) continue; /* one may stand for many: reap() looks itself */
        if (supervisor > 0) kill(supervisor, number); /* not reaped yet: the number is its own */
        *(supervisor > 0 && !is_dying() ? &told : &waiting) |= 1u << number;
    }
    reap();
}

static void wait_for_something(int timeout_ms) {
    struct pollfd fds[] = {{signals, POLLIN, 0}, {link_fd(), link_events(), 0}};
    if (poll(fds, 2, timeout_ms) < 0) return;
    if (fds[1].revents != 0) link_serve();
    if (fds[0].revents != 0) take_signals();
}

/* In the child, which has one thread: everything is allowed. */
static _Noreturn void become_supervisor(char **argv, int theirs, pid_t keeper) {
    char pid[16];
    /* Workers left without both would be nobody's: without us it stops in order. */
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != keeper) _exit(1);
    /* The terminal's signals are for us, who forward them: it shall not get them twice. */
    setpgid(0, 0);
    /* What we forward stays blocked until it is read there, or the first one would end it. */
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
    link_hand_over(theirs);
    execvp(argv[0], argv);
    const int error = errno;
    keeper_say(argv[0], strerror(error));
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
    told = waiting;
    waiting = 0;
    return 0;
}

/* Children of what is killed become ours in turn, until nothing is left. */
static void kill_all(void) {
    char path[64], text[4096];
    snprintf(path, sizeof path, "/proc/self/task/%d/children", (int)getpid());
    siginfo_t info;
    do {
        link_kill_held(); /* where the kernel does not list children */
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

static void say_how_it_ended(void) {
    char text[64];
    const int killed = last_end.si_code != CLD_EXITED;
    snprintf(text, sizeof text, "%s %d", killed ? "signal" : "exit code", last_end.si_status);
    keeper_say("the supervisor has died", text);
}

static int keep(char **argv, int patience_s) {
    int failures = 0;
    long long unattended = now_ms();
    for (;;) {
        if (start(argv) != 0) {
            keeper_say("the supervisor could not be started", strerror(errno));
            if (link_held() == 0) return 1;
        }
        while (supervisor > 0) wait_for_something(-1);
        link_close(); /* with all that it had still said */
        if (last_end.si_code == CLD_EXITED && link_held() == 0) return last_end.si_status;
        say_how_it_ended();
        failures = link_served() ? 0 : failures + 1;
        if (link_served())
            unattended = now_ms();
        else
            waiting |= told; /* it has not read them */
        if (now_ms() - unattended >= patience_s * 1000LL) {
            keeper_say("none gets as far as to serve", "killing all that is left, giving up");
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
    /* A descriptor that we hold must not become somebody's standard stream. */
    for (int fd; (fd = open("/dev/null", O_RDWR | O_CLOEXEC)) >= 0;)
        if (fd > 2) {
            close(fd);
            break;
        } else {
            fcntl(fd, F_SETFD, 0);
        }
    sigset_t taken;
    sigemptyset(&taken);
    sigaddset(&taken, SIGCHLD);
    for (int i = 0; i < FORWARDED; i++) sigaddset(&taken, forwarded[i]);
    sigprocmask(SIG_BLOCK, &taken, &original);
    original_pipe = signal(SIGPIPE, SIG_IGN); /* whoever reads our standard error may be gone */
    signals = signalfd(-1, &taken, SFD_CLOEXEC | SFD_NONBLOCK);
    if (signals < 0 || prctl(PR_SET_CHILD_SUBREAPER, 1) != 0) {
        keeper_say("signalfd, prctl", strerror(errno));
        return 1;
    }
    return keep(argv + optind, patience_s);
}

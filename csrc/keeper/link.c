/* The keeper's end of the socket pair, and the descriptors held for the supervisor. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "keeper.h"

#ifndef SYS_pidfd_send_signal
#define SYS_pidfd_send_signal 424 /* Linux 5.1, the same number everywhere but on alpha */
#endif

enum {
    MOST = 4096,   /* held descriptors are below this number: as many as the variable can name */
    NAME = 20,     /* the longest name with its NUL */
    REPORTS = 256, /* the last ends, sent to each supervisor: the one before may not have read */
};

struct report {
    int32_t pid, code, status;
};

static char names[MOST][NAME]; /* by number; empty: not held */
static int held;
static int ours = -1;
static int served;
static struct report reports[REPORTS];
static unsigned first, count, sent; /* the oldest; how many there are; how many were sent */

int link_fd(void) { return ours; }
int link_held(void) { return held; }
int link_served(void) { return served; }
short link_events(void) { return (short)(POLLIN | (sent < count ? POLLOUT : 0)); }

static void drop(int fd) {
    names[fd][0] = '\0';
    held--;
    close(fd);
}

static void drop_named(const char *name) {
    for (int fd = 0; fd < MOST && held > 0; fd++)
        if (names[fd][0] != '\0' && (*name == '\0' || strcmp(names[fd], name) == 0)) drop(fd);
}

static void hold(const char *name, int fd) {
    if (fd >= MOST) {
        keeper_report("no free place to hold a descriptor", name);
        close(fd);
        return;
    }
    drop_named(name);
    strcpy(names[fd], name); /* its length was checked */
    held++;
}

static int name_is_good(const char *name, size_t length) {
    static const char allowed[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.";
    return length < NAME && strlen(name) == length && strspn(name, allowed) == length;
}

static void perform(char *message, size_t length, int fd) {
    message[length] = '\0';
    const char *name = message + 1;
    const int named = length > 1 && name_is_good(name, length - 1);
    if (message[0] == '+' && named && fd >= 0) {
        hold(name, fd);
        return;
    }
    if (fd >= 0) close(fd);
    if (message[0] == '-' && (named || length == 1))
        drop_named(name);
    else if (message[0] == '=' && length == 1)
        served = 1;
    else
        keeper_report("message of the supervisor ignored: unknown or malformed", name);
}

/* The one descriptor of a message, -1 if it has none. */
static int descriptor_in(struct msghdr *message) {
    int fd = -1;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c != NULL; c = CMSG_NXTHDR(message, c))
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS &&
            c->cmsg_len == CMSG_LEN(sizeof fd))
            memcpy(&fd, CMSG_DATA(c), sizeof fd);
    return fd;
}

static void receive_requests(void) {
    while (ours >= 0) {
        char text[NAME + 2];
        union {
            char bytes[CMSG_SPACE(sizeof(int))];
            struct cmsghdr align;
        } control;
        struct iovec part = {text, sizeof text - 1};
        struct msghdr message = {0};
        message.msg_iov = &part;
        message.msg_iovlen = 1;
        message.msg_control = control.bytes;
        message.msg_controllen = CMSG_LEN(sizeof(int)); /* one; padding would hold two */
        const ssize_t size = recvmsg(ours, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        if (size < 0 && errno == EINTR) continue;
        if (size < 0) return;
        if (size == 0) { /* the supervisor has closed its end: SIGCHLD follows */
            close(ours);
            ours = -1;
            return;
        }
        const int fd = descriptor_in(&message);
        if (fd < 0 && (message.msg_flags & MSG_CTRUNC)) {
            text[size] = '\0';
            keeper_report("RLIMIT_NOFILE is reached: a descriptor is not held", text + 1);
            continue;
        }
        perform(text, (size_t)size, fd);
    }
}

static void send_reports(void) {
    for (; ours >= 0 && sent < count; sent++) {
        const struct report *const next = &reports[(first + sent) % REPORTS];
        if (send(ours, next, sizeof *next, MSG_DONTWAIT | MSG_NOSIGNAL) < 0) return;
    }
}

void link_serve(void) {
    receive_requests();
    send_reports();
}

void link_report(pid_t pid, int code, int status) {
    if (count == REPORTS) {
        first = (first + 1) % REPORTS;
        count--;
        if (sent > 0) sent--;
    }
    reports[(first + count) % REPORTS] = (struct report){pid, code, status};
    count++;
}

int link_open(void) {
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) return -1;
    ours = ends[0];
    served = 0;
    sent = 0;
    send_reports();
    return ends[1];
}

void link_close(void) {
    receive_requests();
    if (ours >= 0) close(ours);
    ours = -1;
}

void link_hand_over(int theirs) {
    static char text[MOST * (NAME + 8)];
    size_t used = (size_t)snprintf(text, sizeof text, "keeper=%d", theirs);
    fcntl(theirs, F_SETFD, 0);
    for (int fd = 0; fd < MOST; fd++)
        if (names[fd][0] != '\0') {
            fcntl(fd, F_SETFD, 0);
            used += (size_t)snprintf(text + used, sizeof text - used, " %s=%d", names[fd], fd);
        }
    setenv("FORKFD_HANDOVER", text, 1);
}

void link_kill_held(void) {
    for (int fd = 0; fd < MOST; fd++)
        if (names[fd][0] != '\0') syscall(SYS_pidfd_send_signal, fd, SIGKILL, NULL, 0);
}

/* The lower bound of passing descriptors here: sendmsg, recvmsg, and close for each,
 * nothing else.  Called through ctypes, timed inside, with the GIL released. */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* Processor time, as the other ways take it: nothing here waits, and a busy machine does not
 * count. */
static long long now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* Nanoseconds for so many messages of one byte and `count` times `fd`; -errno on failure. */
long long pass_run(int sender, int receiver, int fd, int count, int messages) {
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(253 * sizeof(int))];
    } control;
    char byte = 'x';
    struct iovec data = {&byte, 1};
    const size_t room = CMSG_SPACE(count * sizeof(int));
    const long long begin = now_ns();
    for (int i = 0; i < messages; ++i) {
        struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1,
                                 .msg_control = &control, .msg_controllen = room};
        control.header.cmsg_len = CMSG_LEN(count * sizeof(int));
        control.header.cmsg_level = SOL_SOCKET;
        control.header.cmsg_type = SCM_RIGHTS;
        int *fds = (int *)CMSG_DATA(&control.header);
        for (int k = 0; k < count; ++k) fds[k] = fd;
        if (sendmsg(sender, &message, 0) != 1) return -errno;
        message.msg_controllen = room;
        if (recvmsg(receiver, &message, MSG_CMSG_CLOEXEC) != 1) return -errno;
        if (control.header.cmsg_len != CMSG_LEN(count * sizeof(int))) return -EBADMSG;
        for (int k = 0; k < count; ++k) close(fds[k]);
    }
    return now_ns() - begin;
}

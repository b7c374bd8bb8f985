/* The log: one line for each stopped descriptor, by one write. */
#include "preload.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

struct Line {
    char text[1024];
    size_t length;
    size_t room;
};
enum { ADVICE = 64 }; /* what it takes behind a command that is cut */

/* Append text; cut what is too long, and replace control characters, which could begin a line. */
static void add(struct Line *line, const char *text) {
    for (; *text != '\0' && line->length < line->room; ++text)
        line->text[line->length++] = (unsigned char)*text < ' ' || *text == 127 ? '?' : *text;
}

static void add_number(struct Line *line, int number) {
    char digits[12];
    char *at = digits + sizeof digits;
    *--at = '\0';
    do *--at = (char)('0' + number % 10);
    while ((number /= 10) != 0);
    add(line, at);
}

static void add_target(struct Line *line, int number) {
    struct Line path = {.room = sizeof path.text - 1};
    char target[256];
    add(&path, "/proc/thread-self/fd/");
    add_number(&path, number);
    path.text[path.length] = '\0';
    const long length = syscall(SYS_readlinkat, AT_FDCWD, path.text, target, sizeof target - 1);
    if (length < 0) return;
    target[length] = '\0';
    add(line, " (");
    add(line, target);
    add(line, ")");
}

/* A log pipe without a reader must not kill the program by SIGPIPE. */
static void write_line(int log, const struct Line *line) {
    sigset_t pipe_signal, mask, pending;
    sigemptyset(&pipe_signal);
    sigaddset(&pipe_signal, SIGPIPE);
    sigemptyset(&pending);
    sigpending(&pending);
    pthread_sigmask(SIG_BLOCK, &pipe_signal, &mask);
    if (syscall(SYS_write, log, line->text, line->length) < 0 && errno == EPIPE &&
        !sigismember(&pending, SIGPIPE)) {
        const struct timespec now = {0, 0};
        sigtimedwait(&pipe_signal, NULL, &now);
    }
    pthread_sigmask(SIG_SETMASK, &mask, NULL);
}

static void add_advice(struct Line *line, int number) {
    line->room = sizeof line->text - 1;
    add(line, "; to pass it on: --keep ");
    add_number(line, number);
    add(line, ", or FORKFD_KEEP=");
    add_number(line, number);
}

void report(const struct Numbers *stopped, const char *how, const char *command,
            const char *unless) {
    static const struct Numbers none;
    if (memcmp(stopped, &none, sizeof none) == 0) return;
    int log = settings.log_fd;
    if (settings.log_path != NULL)
        /* O_NONBLOCK: never wait for the reader of a FIFO. */
        log = (int)syscall(SYS_openat, AT_FDCWD, settings.log_path,
                           O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0666);
    if (log < 0) return;
    for (int number = FIRST; number < NUMBERS; ++number) {
        if (!has(stopped, number)) continue;
        struct Line line = {.room = sizeof line.text - 1 - ADVICE};
        add(&line, "pid ");
        add_number(&line, getpid());
        add(&line, ": descriptor ");
        add_number(&line, number);
        add_target(&line, number);
        add(&line, settings.stop ? " would have leaked to " : " leaked to ");
        add(&line, how);
        add(&line, command);
        add(&line, unless);
        if (settings.stop) add_advice(&line, number);
        line.text[line.length++] = '\n';
        write_line(log, &line);
    }
    if (settings.log_path != NULL) syscall(SYS_close, log);
}

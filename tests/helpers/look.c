/* A child that reports its state: `look FD [wait]` writes one JSON object to FD.
 * Static and without an interpreter, so that nothing is opened, ignored or reset before
 * the report, and so that it runs in an empty root directory.  With `wait` it then reads
 * its 0 to the end, so that the test decides how long it lives. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <termios.h>
#include <unistd.h>

extern char** environ;

static void text(FILE* out, const char* s) {
    putc('"', out);
    for (; *s != '\0'; ++s) {
        /* Latin-1 as JSON has it: every byte comes back. */
        const unsigned char c = (unsigned char)*s;
        if (c < 0x20 || c >= 0x7f || c == '"' || c == '\\') fprintf(out, "\\u%04x", c);
        else putc(c, out);
    }
    putc('"', out);
}

static void texts(FILE* out, const char* name, char** list) {
    fprintf(out, "\"%s\": [", name);
    for (char** s = list; *s != NULL; ++s) {
        if (s != list) fputs(", ", out);
        text(out, *s);
    }
    fputs("], ", out);
}

static void descriptor(FILE* out, int fd, int* first) {
    struct stat s;
    if (fstat(fd, &s) != 0) return;
    fprintf(out, "%s\"%d\": [%llu, %llu, %d, %d]", *first ? "" : ", ", fd,
            (unsigned long long)s.st_dev, (unsigned long long)s.st_ino,
            fcntl(fd, F_GETFL) & O_ACCMODE, (fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0);
    *first = 0;
}

static void descriptors(FILE* out) {
    int first = 1;
    DIR* dir = opendir("/proc/self/fd");
    fputs("\"fds\": {", out);
    if (dir == NULL) {
        for (int fd = 0; fd < 4096; ++fd) descriptor(out, fd, &first);
    } else {
        for (struct dirent* e; (e = readdir(dir)) != NULL;)
            if (e->d_name[0] != '.' && atoi(e->d_name) != dirfd(dir))
                descriptor(out, atoi(e->d_name), &first);
        closedir(dir);
    }
    fputs("}, ", out);
}

static void signals(FILE* out) {
    struct { void* handler; unsigned long flags; void* restorer; unsigned long mask; } action;
    unsigned long mask = 0, ignored = 0, handled = 0;
    syscall(SYS_rt_sigprocmask, SIG_BLOCK, NULL, &mask, sizeof mask);
    for (int sig = 1; sig <= 64; ++sig) {
        syscall(SYS_rt_sigaction, sig, NULL, &action, sizeof mask);
        if (action.handler == SIG_IGN) ignored |= 1UL << (sig - 1);
        else if (action.handler != SIG_DFL) handled |= 1UL << (sig - 1);
    }
    fprintf(out, "\"blocked\": %lu, \"ignored\": %lu, \"handled\": %lu, ", mask, ignored, handled);
}

static void capabilities(FILE* out) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct d[2] = {{0}};
    unsigned long bounding = 0, ambient = 0;
    syscall(SYS_capget, &header, d);
    for (int cap = 0; cap < 64; ++cap) {
        if (prctl(PR_CAPBSET_READ, cap) == 1) bounding |= 1UL << cap;
        if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, cap, 0, 0) == 1) ambient |= 1UL << cap;
    }
#define BOTH(set) ((unsigned long)d[1].set << 32 | d[0].set)
    fprintf(out,
            "\"capabilities\": {\"permitted\": %lu, \"effective\": %lu, \"inheritable\": %lu, "
            "\"bounding\": %lu, \"ambient\": %lu}, ",
            BOTH(permitted), BOTH(effective), BOTH(inheritable), bounding, ambient);
}

static void identity(FILE* out) {
    uid_t uid[3];
    gid_t gid[3], groups[1024];
    const int n = getgroups(1024, groups);
    getresuid(&uid[0], &uid[1], &uid[2]);
    getresgid(&gid[0], &gid[1], &gid[2]);
    fprintf(out, "\"uid\": [%u, %u, %u], \"gid\": [%u, %u, %u], \"groups\": [", uid[0], uid[1],
            uid[2], gid[0], gid[1], gid[2]);
    for (int i = 0; i < n; ++i) fprintf(out, "%s%u", i == 0 ? "" : ", ", groups[i]);
    fputs("], ", out);
}

static void resources(FILE* out) {
    cpu_set_t cpus;
    struct sched_param param = {0};
    const mode_t mask = umask(0);
    umask(mask);
    fprintf(out, "\"umask\": %u, \"nice\": %d, ", mask, getpriority(PRIO_PROCESS, 0));
    sched_getparam(0, &param);
    fprintf(out, "\"scheduler\": [%d, %d], \"cpus\": [", sched_getscheduler(0),
            param.sched_priority);
    CPU_ZERO(&cpus);
    sched_getaffinity(0, sizeof cpus, &cpus);
    for (int i = 0, n = 0; i < CPU_SETSIZE; ++i)
        if (CPU_ISSET(i, &cpus)) fprintf(out, "%s%d", n++ == 0 ? "" : ", ", i);
    fputs("], \"limits\": {", out);
    for (int i = 0; i < RLIM_NLIMITS; ++i) {
        struct rlimit limit;
        getrlimit(i, &limit);
        fprintf(out, "%s\"%d\": [%ld, %ld]", i == 0 ? "" : ", ", i, (long)limit.rlim_cur,
                (long)limit.rlim_max);
    }
    fputs("}, ", out);
}

static void places(FILE* out) {
    static const char* const names[] = {"cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"};
    char path[4096];
    fputs("\"cwd\": ", out);
    text(out, getcwd(path, sizeof path) == NULL ? "" : path);
    fputs(", \"namespaces\": {", out);
    for (unsigned i = 0; i < sizeof names / sizeof *names; ++i) {
        char target[64];
        snprintf(path, sizeof path, "/proc/self/ns/%s", names[i]);
        const ssize_t n = readlink(path, target, sizeof target - 1);
        target[n < 0 ? 0 : n] = '\0';
        fprintf(out, "%s\"%s\": \"%s\"", i == 0 ? "" : ", ", names[i], target);
    }
    fputs("}, \"cgroup\": ", out);
    FILE* file = fopen("/proc/self/cgroup", "re");
    const char* found = "";
    while (file != NULL && fgets(path, sizeof path, file) != NULL)
        if (strncmp(path, "0::", 3) == 0) {
            path[strcspn(path, "\n")] = '\0';
            found = path + 3;
            break;
        }
    text(out, found);
    if (file != NULL) fclose(file);
    fputs(", ", out);
}

int main(int argc, char** argv) {
    const int report = argc > 1 ? atoi(argv[1]) : 1;
    char* json = NULL;
    size_t size = 0;
    FILE* out = open_memstream(&json, &size);
    fputs("{", out);
    descriptors(out); /* first: nothing of ours is open yet */
    texts(out, "argv", argv);
    texts(out, "env", environ);
    const long parent = syscall(SYS_getppid);
    fprintf(out, "\"pid\": %d, \"ppid\": %ld, \"sid\": %d, \"pgid\": %d, ", getpid(),
            parent < 0 ? -(long)errno : parent, getsid(0), getpgrp());
    const int terminal = open("/dev/tty", O_RDWR | O_CLOEXEC);
    struct stat s = {0};
    if (terminal >= 0) fstat(terminal, &s);
    fprintf(out, "\"terminal\": %s, \"foreground\": %d, ", terminal < 0 ? "false" : "true",
            terminal < 0 ? -1 : tcgetpgrp(terminal));
    if (terminal >= 0) close(terminal);
    const int self = (int)syscall(SYS_pidfd_open, getpid(), 0);
    memset(&s, 0, sizeof s);
    if (self >= 0) fstat(self, &s);
    if (self >= 0) close(self);
    fprintf(out, "\"pidfd_inode\": %llu, ", (unsigned long long)s.st_ino);
    int death = 0;
    prctl(PR_GET_PDEATHSIG, &death);
    fprintf(out, "\"death_signal\": %d, \"no_new_privs\": %d, \"seccomp\": %d, ", death,
            prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), prctl(PR_GET_SECCOMP));
    signals(out);
    capabilities(out);
    identity(out);
    resources(out);
    places(out);
    fputs("\"end\": true}", out);
    fclose(out);
    for (size_t at = 0; at < size;) {
        const ssize_t n = write(report, json + at, size - at);
        if (n < 0) return 1;
        at += (size_t)n;
    }
    if (argc > 2 && strcmp(argv[2], "wait") == 0) {
        close(report);
        for (char c; read(0, &c, 1) > 0;) {}
    }
    return 0;
}

/* The lower bound of a worker's start: a bare fork in C of a process that has so many megabytes
 * resident, in small pages.  For each byte on stdin: two decimal numbers on stdout, the
 * nanoseconds until the child's first instruction and until it is reaped. */
#define _DEFAULT_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static long long now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

int main(int argc, char **argv) {
    const size_t size = (size_t)atol(argc > 1 ? argv[1] : "0") << 20;
    char *const memory = malloc(size + 1);
    long long *const first = mmap(NULL, sizeof *first, PROT_READ | PROT_WRITE,
                                  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == NULL || first == MAP_FAILED) return 1;
    const uintptr_t page = 4096, start = ((uintptr_t)memory + page - 1) / page * page;
    if (size > page) madvise((void *)start, size / page * page - page, MADV_NOHUGEPAGE);
    memset(memory, 1, size + 1);
    char byte;
    while (read(0, &byte, 1) == 1) {
        const long long begin = now_ns();
        const pid_t pid = fork();
        if (pid == 0) {
            *first = now_ns();
            _exit(0);
        }
        if (pid < 0 || waitpid(pid, NULL, 0) != pid) return 1;
        const long long end = now_ns();
        printf("%lld %lld\n", *first - begin, end - begin);
        fflush(stdout);
    }
    return 0;
}

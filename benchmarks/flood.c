/* Writes lines of 100 bytes to its standard output without a pause, 64 KiB in each write(2). */
#include <errno.h>
#include <string.h>
#include <unistd.h>

enum { LINE = 100, BLOCK = 65500 };

int main(void) {
    static char block[BLOCK];
    memset(block, 'x', sizeof block);
    for (int end = LINE; end <= BLOCK; end += LINE) block[end - 1] = '\n';
    for (int at = 0;;) {
        const ssize_t written = write(1, block + at, (size_t)(BLOCK - at));
        if (written < 0 && errno != EINTR) return 1;
        if (written > 0) at = (at + (int)written) % BLOCK;
    }
}

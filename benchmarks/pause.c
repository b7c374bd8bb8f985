/* A worker that does nothing: it waits for a signal. */
#include <unistd.h>

int main(void) {
    for (;;) pause();
}

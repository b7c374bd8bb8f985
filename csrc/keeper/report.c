/* Messages of the keeper, on its standard error. */
#include <poll.h>
#include <stdio.h>

#include "keeper.h"

void keeper_report(const char *event, const char *detail) {
    /* Dropped where the reader of standard error does not read: the keeper must not wait. */
    struct pollfd stream = {2, POLLOUT, 0};
    if (poll(&stream, 1, 0) != 1 || (stream.revents & POLLOUT) == 0) return;
    dprintf(2, "forkfd-keeper: %s%s%s\n", event, *detail ? ": " : "", detail);
}

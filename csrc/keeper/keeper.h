/* The interface between the files of the keeper. */
#ifndef FORKFD_KEEPER_H
#define FORKFD_KEEPER_H

#include <sys/types.h>

/* report.c: write one line on standard error; `detail` may be empty.  Never waits. */
void keeper_report(const char *event, const char *detail);

/* link.c: make a new pair of sockets and send the remembered reports; return the supervisor's
 * end, or -1 and errno. */
int link_open(void);
/* Return the keeper's end, -1 if there is none, and the events to poll it for. */
int link_fd(void);
short link_events(void);
/* Perform the requests of the supervisor, and send it the reports that are due; never wait. */
void link_serve(void);
/* Perform the last requests of a supervisor that has ended, and close the keeper's end. */
void link_close(void);
/* Remember the end of a child; link_serve() sends it. */
void link_report(pid_t pid, int code, int status);
/* Return whether the supervisor of this link, or of the last, has reported that it serves. */
int link_served(void);
/* Return the number of held descriptors. */
int link_held(void);
/* In the child: make all held descriptors and its end inheritable, and set FORKFD_HANDOVER. */
void link_hand_over(int theirs);
/* Send SIGKILL to every process whose pidfd is held. */
void link_kill_held(void);

#endif

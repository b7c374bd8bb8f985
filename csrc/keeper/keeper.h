/* What the two files of the keeper tell one another. */
#ifndef FORKFD_KEEPER_H
#define FORKFD_KEEPER_H

#include <sys/types.h>

/* One line on standard error. */
void keeper_say(const char *what, const char *detail);

/* A fresh pair of sockets; returns the supervisor's end, or -1 and errno.  What is remembered
 * waits in it to be read. */
int link_open(void);
/* Our end, -1 if there is none, and what to poll it for. */
int link_fd(void);
short link_events(void);
/* Does what the supervisor has asked for, and tells what it is to know; never waits. */
void link_serve(void);
/* The supervisor has ended: does what it had still asked for. */
void link_close(void);
/* Remembers how a child has ended; link_serve() tells it. */
void link_report(pid_t pid, int code, int status);
/* The supervisor of this link, or of the last, has said that it serves. */
int link_served(void);
/* How many descriptors are held. */
int link_held(void);
/* In the child: lets it inherit all that is held and its end, and tells it their numbers. */
void link_hand_over(int theirs);
/* SIGKILL to every process whose pidfd is held. */
void link_kill_held(void);

#endif

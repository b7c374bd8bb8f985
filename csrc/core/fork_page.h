// What every fork writes lies side by side.  A fork leaves all pages protected, and the first
// write to each costs a fault, longer than all that is written takes: in the heap these few
// words would be in five pages.
//
//     alignas(T) FORKFD_FORK_PAGE static unsigned char place[sizeof(T)];
//     static T* const made = new (place) T;  // never destroyed: threads may still fork
#pragma once

#define FORKFD_FORK_PAGE __attribute__((section("forkfd_fork_page")))

// Placement of the data that every fork writes, and of the code that its child runs: side by
// side.  A fork leaves all pages write-protected, and its child has no page of the program
// mapped: the first touch of each costs a page fault, which takes longer than all the work done
// there.  In the heap these few words would be in five pages.
//
//     alignas(T) FORKFD_FORK_PAGE static unsigned char place[sizeof(T)];
//     static T* const made = new (place) T;  // never destroyed: threads may still fork
#pragma once

#define FORKFD_FORK_PAGE __attribute__((section("forkfd_fork_page")))
#define FORKFD_IN_CHILD __attribute__((hot))  // linkers place hot functions together

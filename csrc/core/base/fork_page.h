// What every fork writes, and what its child runs, lies side by side.  A fork leaves all pages
// protected, and its child has none of the program's mapped: the first touch of each costs a
// fault, longer than all that is done there takes.  In the heap these few words would be in
// five pages.
//
//     alignas(T) FORKFD_FORK_PAGE static unsigned char place[sizeof(T)];
//     static T* const made = new (place) T;  // never destroyed: threads may still fork
#pragma once

#define FORKFD_FORK_PAGE __attribute__((section("forkfd_fork_page")))
#define FORKFD_IN_CHILD __attribute__((hot))  // linkers put what is hot together

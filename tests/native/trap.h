// The allocation trap: an allocator that notices when it is called in the child.
//
// The allocator replaces the C library's, so that what libc itself allocates is seen too.
// A child is identified by its pid, from the kernel: with CLONE_VM it runs on our memory, and no
// variable distinguishes it from us.  What it did is counted in MAP_SHARED memory: without
// CLONE_VM its own memory is a copy.
#pragma once

namespace trap {

void arm();                  // from now on, processes other than this one are children
void disarm();
int sprung();                // how often a child called the allocator since arm()
const char* last_call();     // "malloc", or "" when it never sprang

}  // namespace trap

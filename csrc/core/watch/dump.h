// Dumps the stacks of a process whose threads may be running.
#pragma once

#include <atomic>
#include <cstdint>

namespace forkfd {

// Sends the signal, whose handler dumps, to a copy of this process: there no other thread
// runs, so nothing changes while it is read, and should what was copied in mid-change be
// unreadable, it is the copy that dies.  No at-fork handler runs, no SIGCHLD comes, and
// waitpid(-1) sees nothing of it.  Waits for the copy's end; it is killed after five seconds,
// or once `give_up` is set, for its reader may be stuck too.  0, or errno of clone(2): EINVAL under qemu's user mode.
//
// Raw system calls only; every other signal must be blocked.
int dump_in_a_copy(int signal, const std::atomic<std::uint32_t>& give_up) noexcept;

}  // namespace forkfd

// Dumps the stacks of a process whose threads may be running.
#pragma once

#include <atomic>
#include <cstdint>

namespace forkfd {

// Sends the signal, whose handler dumps, to a copy of this process.  No other thread runs in the
// copy, so nothing changes while it is read; if data was copied in the middle of a change, only
// the copy crashes.  No at-fork handler runs, no SIGCHLD is sent, and waitpid(-1) does not see
// it.  Waits for the copy's end; kills it after five seconds, or once `give_up` is set, since
// the reader of its output may be stuck too.  Returns 0, or errno of clone(2): EINVAL under
// qemu's user mode.
//
// Raw system calls only; every other signal must be blocked.
int dump_in_a_copy(int signal, const std::atomic<std::uint32_t>& give_up) noexcept;

}  // namespace forkfd

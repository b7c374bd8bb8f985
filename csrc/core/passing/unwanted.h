// Descriptors that a process with fewer privileges has passed and nobody wants: closed without
// a wait.  The close of a connected socket with SO_LINGER waits, socket(7), wherever it happens:
// in close(2), in a recvmsg(2) that has no space for it, and with the socket it is queued in.
#pragma once

#include <cstddef>

namespace forkfd {

// Closes descriptors; a socket among them drops what is not sent, if nobody else has it.
void discard_fds(const int* fds, std::size_t count) noexcept;

// Makes the close of a socket that other processes share free of a wait.
void end_linger(int sock) noexcept;

// Shuts down the receiving side of a Unix socket, then receives and discards what waits in it, at
// most `most` messages.  Nothing can be sent to it any more, so nothing is left to be closed.
void drain(int sock, unsigned most) noexcept;

// Shuts down a Unix listener; accepts, drains and closes the connections that wait in it, at most
// `most`.  For a listener that no other process accepts from.
void drain_backlog(int listener, unsigned most) noexcept;

}  // namespace forkfd

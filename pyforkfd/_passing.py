"""Descriptors from process to process, over UNIX sockets."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import TypeAlias

from . import _core
from ._checks import as_fd
from ._errors import PassingError
from ._fd import Fd
from ._types import HasFileno

Buffer: TypeAlias = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """A process as the kernel vouches for it: struct ucred of unix(7).

    Attributes:
        pid: its number, in our pid namespace; 0 if it has none there.
        uid: its effective user.
        gid: its effective group.
    """

    pid: int
    uid: int
    gid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """What one call has received.  As a context manager it closes what is left of it.

    Attributes:
        data: the bytes; on a socket with connections none, and no descriptors, is its end.
        fds: the descriptors in the order sent, owned and close-on-exec.  ``detach()`` those
            that shall outlive this object.
        flags: what recvmsg(2) said of the message: MSG_EOR and kin.
        credentials: the sender's, where :func:`pass_credentials` is on.
        pidfd: the sender's, where :func:`pass_pidfd` is on and it lived; owned.
    """

    data: bytes
    fds: tuple[Fd, ...]
    flags: int
    credentials: Credentials | None
    pidfd: Fd | None

    def close(self) -> None:
        """Close the descriptors that are neither closed nor detached.

        Neighbouring numbers go at once, close_range(2), and what closing says of a file is
        not reported: close that one yourself to hear it.
        """
        _core.close_received(self)

    def __enter__(self) -> Received:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _core.close_received(self)


_core.register_passing(Fd, Received, Credentials, PassingError, socket.socket)


def send_fds(
    sock: int | HasFileno,
    data: Buffer | Iterable[Buffer],
    fds: Iterable[int | HasFileno] = (),
    *,
    flags: int = 0,
    timeout: float | None = None,
    credentials: Credentials | None = None,
) -> int:
    """Send data and descriptors over a UNIX socket, sendmsg(2) with SCM_RIGHTS.

    The receiver gets descriptors of its own for the same open files, unix(7): they live on
    when ours are closed, also while nobody has received them yet.  The GIL is released.

    Up to 253, the kernel's limit, go in one message that any program can receive.  More go
    in several, each with the same marker before at most 252 of them, which
    :func:`recv_fds` and :class:`FdChannel` put together; all or none arrive.  If such a
    transfer fails half-way, the error says so, and the socket is of no more use.

    Args:
        sock: borrowed; connected.
        data: bytes-like, or an iterable of such, sent as one.  On a stream at least one byte
            must go with descriptors: with none the kernel would drop them.
        fds: borrowed; they may be closed after the return.
        flags: for sendmsg(2).  MSG_NOSIGNAL is always set.
        timeout: seconds that it may take; None: as the socket is, which for a
            ``socket.socket`` is its own timeout, and else whether it is non-blocking.
        credentials: SCM_CREDENTIALS, what the receiver is to be told of us; other than
            our own are for the privileged.  It sees the real ones without, if it asks.

    Returns:
        How many bytes were sent: on a stream that does not block perhaps not all.  The
        descriptors went with the first.

    Raises:
        ValueError: no data with descriptors on a stream; a number that is no descriptor.
        BlockingIOError: the socket is full, and does not wait.
        TimeoutError: it was full for that long.
        BrokenPipeError: the receiver is gone.
        OSError: EBADF, it names the descriptor that is not open; EMSGSIZE, with both sizes;
            ETOOMANYREFS, more than RLIMIT_NOFILE are under way and not received.
    """
    return _core.send_fds(sock, data, fds, flags, timeout, credentials)


def recv_fds(
    sock: int | HasFileno,
    max_bytes: int,
    max_fds: int,
    *,
    flags: int = 0,
    timeout: float | None = None,
) -> Received:
    """Receive data and descriptors from a UNIX socket, recvmsg(2).

    Every descriptor is close-on-exec from its first moment (MSG_CMSG_CLOEXEC) and owned by
    what is returned.  Nothing is lost silently: if descriptors or part of a datagram did not
    arrive, those that did are closed and the error says what was lost and why.  The GIL is
    released.

    Args:
        sock: borrowed.
        max_bytes: room for data.  On a stream the rest comes next time, and a message with
            descriptors ends what one call returns.
        max_fds: descriptors that may come; more are an error.  If it is above 253, transfers
            of several messages are put together, see :func:`send_fds`.
        flags: for recvmsg(2).  With MSG_TRUNC a datagram may be cut, and ``flags`` of what
            is returned says so.
        timeout: as for :func:`send_fds`.

    Raises:
        PassingError: EMSGSIZE, more descriptors or bytes than there is room for; EMFILE,
            RLIMIT_NOFILE was reached; EPROTO or ECONNRESET, a transfer was broken off.  It
            has the data that came.
        BlockingIOError: nothing is there, and the socket does not wait.
        TimeoutError: nothing came in time.
        OSError: as recvmsg(2) says.
    """
    return _core.recv_fds(sock, max_bytes, max_fds, flags, timeout)


def peer_credentials(sock: int | HasFileno) -> Credentials:
    """Who connected, listened or made the pair at the other end: SO_PEERCRED, unix(7).

    As they were then: the process may have changed its user or ended since.

    Args:
        sock: borrowed; a connected UNIX stream or seqpacket socket.

    Raises:
        OSError: it is no socket.
    """
    return _core.peer_credentials(as_fd(sock, "peer_credentials"))


def peer_pidfd(sock: int | HasFileno, *, by_pid: bool = False) -> Fd:
    """A pidfd of the process that :func:`peer_credentials` means: SO_PEERPIDFD, Linux 6.5.

    Args:
        sock: borrowed.
        by_pid: where the kernel does not know SO_PEERPIDFD, open the pidfd by the pid of
            SO_PEERCRED.  If the peer has ended, that number may be another process by now.

    Returns:
        The pidfd, owned.

    Raises:
        OSError: ENOPROTOOPT, the kernel does not know it; ESRCH and kin, the peer has ended.
    """
    number = as_fd(sock, "peer_pidfd")
    try:
        return _core.peer_pidfd(number)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT or not by_pid:
            raise
    return Fd(os.pidfd_open(peer_credentials(number).pid))


def pass_credentials(sock: int | HasFileno, on: bool = True) -> None:
    """Have every message received here come with its sender's credentials: SO_PASSCRED.

    Descriptors can be received without.

    Args:
        sock: borrowed.  The option belongs to the open socket, so to all who share it.
        on: or no longer.

    Raises:
        OSError: as setsockopt(2) says.
    """
    _core.pass_credentials(as_fd(sock, "pass_credentials"), on)


def pass_pidfd(sock: int | HasFileno, on: bool = True) -> None:
    """Have every message received here come with its sender's pidfd: SO_PASSPIDFD, Linux 6.5.

    Args:
        sock: borrowed.  The option belongs to the open socket, so to all who share it.
        on: or no longer.

    Raises:
        OSError: ENOPROTOOPT, the kernel does not know it: there is no other way.
    """
    _core.pass_pidfd(as_fd(sock, "pass_pidfd"), on)

"""Descriptors passed from process to process, over UNIX sockets."""

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
    """The identity of a process, verified by the kernel: struct ucred of unix(7).

    Attributes:
        pid: the process, in our pid namespace; 0 if it has no number there.
        uid: its effective user.
        gid: its effective group.
    """

    pid: int
    uid: int
    gid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """The message that one call has received.

    As a context manager it closes the descriptors that are left.

    Attributes:
        data: the bytes; on a socket with connections, no bytes and no descriptors are its end.
        fds: the descriptors in the order sent, owned and close-on-exec.  ``detach()`` those
            that shall outlive this object.
        flags: the flags that recvmsg(2) returned: MSG_EOR and kin.
        credentials: the sender's, where :func:`pass_credentials` is on.
        pidfd: the sender's, where :func:`pass_pidfd` is on and the sender lived; owned.
    """

    data: bytes
    fds: tuple[Fd, ...]
    flags: int
    credentials: Credentials | None
    pidfd: Fd | None

    def close(self) -> None:
        """Close the descriptors that are neither closed nor detached.

        Neighbouring numbers are closed by one close_range(2), which does not report errors of
        the files: close a descriptor by itself to see its error.
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
    when ours are closed, even before the message is received.  The GIL is released.

    Up to 253, the kernel's limit, go in one message that any program can receive.  More go
    in several, each with the same marker before at most 252 of them, which
    :func:`recv_fds` and :class:`FdChannel` put together; all or none arrive.  If such a
    transfer fails half-way, the message of the error names that, and the socket cannot be
    used any more.

    Args:
        sock: a connected socket; borrowed.
        data: bytes-like, or an iterable of such, sent as one.  On a stream at least one byte
            must go with descriptors: with none the kernel would drop them.
        fds: descriptors; borrowed, they may be closed after the return.
        flags: for sendmsg(2).  MSG_NOSIGNAL is always set.
        timeout: seconds that it may take; None: as the socket is, which for a
            ``socket.socket`` is its own timeout, and else whether it is non-blocking.
        credentials: SCM_CREDENTIALS, the identity that is sent to the receiver; one other
            than our own needs privilege.  Without it a receiver that requests credentials
            gets the real ones.

    Returns:
        The number of bytes sent: on a stream that does not block perhaps not all.  The
        descriptors went with the first.

    Raises:
        ValueError: no data with descriptors on a stream; a number that is no descriptor.
        BlockingIOError: the socket is full, and does not wait.
        TimeoutError: the socket was full for that long.
        BrokenPipeError: the receiver is gone.
        OSError: EBADF, and the message names the descriptor that is not open; EMSGSIZE, with
            both sizes; ETOOMANYREFS, more than RLIMIT_NOFILE are under way and not received.
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
    the object returned.  Nothing is lost silently: if descriptors or part of a datagram did
    not arrive, those that did are closed, and the error names the loss and its cause.  The
    GIL is released.

    Args:
        sock: a connected socket; borrowed.
        max_bytes: the most bytes of data.  On a stream the rest comes next time, and a
            message with descriptors ends the data of one call.
        max_fds: descriptors that may come; more are an error.  If it is above 253, transfers
            of several messages are put together, see :func:`send_fds`.
        flags: for recvmsg(2).  With MSG_TRUNC a datagram may be truncated, which ``flags`` of
            the result shows.
        timeout: as for :func:`send_fds`.

    Raises:
        PassingError: EMSGSIZE, more descriptors or bytes than these; EMFILE, RLIMIT_NOFILE
            was reached; EPROTO or ECONNRESET, a transfer was broken off.  It has the data
            that came.
        BlockingIOError: no message is there, and the socket does not wait.
        TimeoutError: no message came in time.
        OSError: recvmsg(2) failed.
    """
    return _core.recv_fds(sock, max_bytes, max_fds, flags, timeout)


def peer_credentials(sock: int | HasFileno) -> Credentials:
    """Return the identity of the process at the other end: SO_PEERCRED, unix(7).

    That is the process that connected, listened or made the pair, as it was then: it may have
    changed its user or ended since.

    Args:
        sock: a connected UNIX stream or seqpacket socket; borrowed.

    Raises:
        OSError: the descriptor is no socket.
    """
    return _core.peer_credentials(as_fd(sock, "peer_credentials"))


def peer_pidfd(sock: int | HasFileno, *, by_pid: bool = False) -> Fd:
    """Return a pidfd of the process at the other end: SO_PEERPIDFD, Linux 6.5.

    That is the process that :func:`peer_credentials` names.

    Args:
        sock: the socket; borrowed.
        by_pid: where the kernel does not know SO_PEERPIDFD, open the pidfd by the pid of
            SO_PEERCRED.  If the peer has ended, that number may be another process by now.

    Returns:
        The pidfd, owned.

    Raises:
        OSError: ENOPROTOOPT, the kernel does not know it; ESRCH and kin, the peer
            has ended.
    """
    number = as_fd(sock, "peer_pidfd")
    try:
        return _core.peer_pidfd(number)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT or not by_pid:
            raise
    return Fd(os.pidfd_open(peer_credentials(number).pid))


def pass_credentials(sock: int | HasFileno, on: bool = True) -> None:
    """Receive the sender's credentials with every message from now on: SO_PASSCRED.

    Receiving descriptors does not need it.

    Args:
        sock: the socket; borrowed.  The option belongs to the open socket, so to all
            processes that share it.
        on: False ends it.

    Raises:
        OSError: setsockopt(2) failed.
    """
    _core.pass_credentials(as_fd(sock, "pass_credentials"), on)


def pass_pidfd(sock: int | HasFileno, on: bool = True) -> None:
    """Receive the sender's pidfd with every message from now on: SO_PASSPIDFD, Linux 6.5.

    Args:
        sock: the socket; borrowed.  The option belongs to the open socket, so to all
            processes that share it.
        on: False ends it.

    Raises:
        OSError: ENOPROTOOPT, the kernel does not know it: there is no other way.
    """
    _core.pass_pidfd(as_fd(sock, "pass_pidfd"), on)

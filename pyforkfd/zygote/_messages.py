"""The protocol of application, zygote and worker: versioned messages with descriptors.

A message is a header (magic, version, kind) and a pickled body of plain values.  A body that
does not fit into a datagram travels in a memfd, the last of the message's descriptors.  The
arguments of a worker's function are a pickle within the body: only the worker unpickles it,
after all options are applied.
"""

from __future__ import annotations

import enum
import os
import pickle
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyforkfd._channel import FdChannel
from pyforkfd._fd import Fd
from pyforkfd._passing import recv_fds, send_fds

VERSION = 2
_HEADER = struct.Struct("=4sHBB")  # magic, version, kind, whether the body is in a memfd
_MAGIC = b"FKZY"
_INLINE = 32 * 1024
_ANSWER_FDS = 2  # a pidfd, and perhaps the body
MAX_FDS = 4096
"""The greatest number of descriptors in a request."""
REPORT = struct.Struct("=5i")
"""The report of a worker's failed stage, without a header: csrc/core/spawn/child_args.h."""
SLOT = struct.Struct("=Qi")
"""The page that application and zygote share: the last request's serial, its worker's pid."""
SLOT_PID = 8
"""The offset of the pid in the slot."""


class Kind(enum.IntEnum):
    """The kind of a message; the comments name the sender, the body and the descriptors."""

    CONFIGURE = 1  # application: what to import; descriptors: the page, the sender's pidfd
    READY = 2  # zygote: serves from now on
    FAILED = 3  # zygote, worker: an error and its traceback; the sender then ends
    SPAWN = 4  # application: one worker; descriptors: where to answer, and the worker's
    BORN = 5  # zygote: pid; descriptor: pidfd
    REFUSED = 6  # zygote, worker: no worker is made, and the reason
    STARTED = 7  # worker: all options are applied, and the function is called next
    WARM = 8  # application: one worker to wait for its SPAWN; descriptor: where to answer


class ProtocolError(Exception):
    """The other end uses another version of the protocol, or another protocol."""


@dataclass(frozen=True, slots=True)
class Received:
    """One message; the receiver owns its descriptors."""

    kind: Kind
    body: Any
    fds: Sequence[Fd]


@dataclass(frozen=True, slots=True)
class Report:
    """The stage at which a worker failed while its options were applied."""

    stage: int
    index: int
    errno: int


def answer_pair() -> tuple[Fd, Fd]:
    """Make a connection for the answers to one request; each message has one sender."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Fd(ours.detach()), Fd(theirs.detach())


def send(
    channel: FdChannel | Fd,
    kind: Kind,
    body: object,
    fds: Sequence[int] = (),
    timeout: float | None = None,
) -> None:
    """Send one message; the descriptors are borrowed.

    Args:
        channel: the application's channel, or one for answers.
        kind: the kind of message.
        body: plain values.
        fds: borrowed.
        timeout: seconds to wait while the socket's buffer is full; None: without limit.

    Raises:
        OSError: EPIPE or ECONNRESET where the other end is closed; TimeoutError.
    """
    data = pickle.dumps(body, 5)
    large = len(data) > _INLINE
    header = _HEADER.pack(_MAGIC, VERSION, kind, large)
    if not large:
        _send(channel, header + data, fds, timeout)
        return
    with Fd(os.memfd_create("forkfd-message")) as body_fd:
        with open(body_fd.fileno(), "wb", closefd=False) as file:
            file.write(data)
        _send(channel, header, [*fds, body_fd.fileno()], timeout)


def _send(channel: FdChannel | Fd, data: bytes, fds: Sequence[int], timeout: float | None) -> None:
    if isinstance(channel, FdChannel):
        channel.send(data, fds, timeout=timeout)
    else:
        send_fds(channel, data, fds, timeout=timeout)


def receive(channel: FdChannel | Fd, max_fds: int = _ANSWER_FDS) -> Received | Report | None:
    """Wait for one message.

    Args:
        channel: a channel, or a connection for answers.
        max_fds: greatest number of descriptors; a channel has its own limit.

    Returns:
        The message; None when the other end is closed.

    Raises:
        ProtocolError: the message is of another version.
        OSError: an error of recvmsg(2).
    """
    try:
        message = (
            channel.recv()
            if isinstance(channel, FdChannel)
            else recv_fds(channel, 2 * _INLINE, max_fds)
        )
    except EOFError:
        return None
    data = message.data
    if not data:
        return None
    if len(data) == REPORT.size and data[:4] != _MAGIC:
        stage, index, errno, *_ = REPORT.unpack(data)
        return Report(stage, index, errno)
    fds = list(message.fds)
    magic, version, kind, large = _HEADER.unpack_from(data)
    if magic != _MAGIC or version != VERSION:
        for fd in fds:
            fd.close()
        raise ProtocolError(f"its protocol has version {version}, ours {VERSION}")
    body = memoryview(data)[_HEADER.size :]
    if not large:
        return Received(Kind(kind), pickle.loads(body), fds)
    with fds.pop() as body_fd, open(body_fd.fileno(), "rb", closefd=False) as file:
        file.seek(0)
        return Received(Kind(kind), pickle.load(file), fds)


def born_pid(data: bytes) -> int | None:
    """Return the pid in a message BORN that lost its descriptor; None: it is another message."""
    try:
        magic, version, kind, large = _HEADER.unpack_from(data)
    except struct.error:
        return None
    if (magic, version, kind, large) != (_MAGIC, VERSION, Kind.BORN, False):
        return None
    pid: int = pickle.loads(memoryview(data)[_HEADER.size :])
    return pid

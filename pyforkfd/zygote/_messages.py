"""What application, zygote and worker say to each other: versioned messages with descriptors.

A message is a header (magic, version, kind) and a pickled body of plain values.  One that does
not fit into a datagram travels in a memfd, the last of its descriptors.  The application's
arguments for a worker are a pickle within: only the worker opens it, as what it has become.
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

VERSION = 1
_HEADER = struct.Struct("=4sHBB")  # magic, version, kind, whether the body is in a memfd
_MAGIC = b"FKZY"
_INLINE = 32 * 1024
_ANSWER_FDS = 2  # a pidfd, and perhaps the body
MAX_FDS = 4096
"""The most descriptors that come with a request."""
REPORT = struct.Struct("=5i")
"""csrc/core/spawn/child_args.h: what a worker's stage writes where it fails; without a header."""
SLOT = struct.Struct("=Qi")
"""The page that application and zygote share: the last request's serial, its worker's pid."""
SLOT_PID = 8
"""Where the pid is in it."""


class Kind(enum.IntEnum):
    """What a message is, and who sends it."""

    CONFIGURE = 1  # application: what to import; descriptors: the page, a pidfd of us
    READY = 2  # zygote: serves from now on
    FAILED = 3  # zygote, worker: a traceback; whoever sent it ends
    SPAWN = 4  # application: one worker; descriptors: where to answer, and the worker's
    BORN = 5  # zygote: pid; descriptor: pidfd
    REFUSED = 6  # zygote, worker: no worker, and why
    STARTED = 7  # worker: is what was asked for, and calls its function now
    WARM = 8  # application: one worker to wait for its SPAWN; descriptor: where to answer


class ProtocolError(Exception):
    """The other end speaks another version, or something else."""


@dataclass(frozen=True, slots=True)
class Received:
    """One message; the descriptors are owned by whoever received it."""

    kind: Kind
    body: Any
    fds: Sequence[Fd]


@dataclass(frozen=True, slots=True)
class Report:
    """The stage at which a worker failed while it became what was asked for."""

    stage: int
    index: int
    errno: int


def answer_pair() -> tuple[Fd, Fd]:
    """A connection for the answers to one request, where each message has one sender."""
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
        kind: what it is.
        body: plain values.
        fds: borrowed.
        timeout: seconds to wait for room.

    Raises:
        OSError: EPIPE or ECONNRESET where the other end is gone; TimeoutError.
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
    """Wait for one message; None at the end.

    Args:
        channel: a channel, or a connection for answers.
        max_fds: descriptors that may come; a channel has its own limit.

    Raises:
        ProtocolError: it is of another version.
        OSError: what recvmsg(2) says.
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
        raise ProtocolError(f"version {version} of the messages is spoken there, {VERSION} here")
    body = memoryview(data)[_HEADER.size :]
    if not large:
        return Received(Kind(kind), pickle.loads(body), fds)
    with fds.pop() as body_fd, open(body_fd.fileno(), "rb", closefd=False) as file:
        file.seek(0)
        return Received(Kind(kind), pickle.load(file), fds)

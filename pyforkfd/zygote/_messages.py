"""The protocol of application, zygote and worker: versioned messages with descriptors.

A message is a header (magic, version, kind) and a body of plain values.  A body that does not
fit into a datagram travels in a memfd, the last of the message's descriptors.

Down, from the application to zygote and worker, a body is pickled.  The arguments of a worker's
function are a pickle within the body: only the worker unpickles it, after all options are
applied.  Up it is JSON, and in the datagram: a worker may be another user's, who must not make
the application call a function, or read from a file that never ends.
"""

from __future__ import annotations

import enum
import json
import mmap
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
SLOT = struct.Struct("=Qi4x")
"""A slot in the page that application and zygote share: a request's serial, its worker's pid."""
_SLOTS = 256  # of the last requests; those that are under way are fewer
_SLOT_PID = 8  # the offset of the pid in the slot


def slot_of(serial: int) -> int:
    """Return the offset of a request's slot in the page."""
    return serial % _SLOTS * SLOT.size


def pid_of(page: mmap.mmap, serial: int) -> memoryview:
    """Return the place in the page where the kernel writes the pid of a request's worker."""
    at = slot_of(serial) + _SLOT_PID
    return memoryview(page)[at : at + 4]


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


_ANSWERS = frozenset({Kind.READY, Kind.FAILED, Kind.BORN, Kind.REFUSED, Kind.STARTED})
_LONGEST_TEXT = 8192  # characters of one in an answer that is too long
_MOST_ITEMS = 256


class ProtocolError(Exception):
    """The other end uses another version of the protocol, or another protocol."""


@dataclass(frozen=True, slots=True)
class Received:
    """One message; the receiver owns its descriptors.

    Attributes:
        kind: the kind of message.
        body: plain values.
        fds: its descriptors.
        sender: pid of the sender, where the socket has SO_PASSCRED.
    """

    kind: Kind
    body: Any
    fds: Sequence[Fd]
    sender: int | None = None


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
    data = _answer(body, channel) if kind in _ANSWERS else pickle.dumps(body, 5)
    large = len(data) > _INLINE
    header = _HEADER.pack(_MAGIC, VERSION, kind, large)
    if not large:
        _send(channel, header + data, fds, timeout)
        return
    with Fd(os.memfd_create("forkfd-message")) as body_fd:
        with open(body_fd.fileno(), "wb", closefd=False) as file:
            file.write(data)
        _send(channel, header, [*fds, body_fd.fileno()], timeout)


def _answer(body: object, channel: FdChannel | Fd) -> bytes:
    """Encode the body of an answer; one to a request is shortened until it fits."""
    data = json.dumps(body).encode()
    if len(data) > _INLINE and not isinstance(channel, FdChannel):
        data = json.dumps(_shortened(body)).encode()
    return data


def _shortened(value: object) -> object:
    if isinstance(value, str) and len(value) > _LONGEST_TEXT:
        return f"...{value[-(_LONGEST_TEXT // 6) :]}"  # as \\uXXXX, a character may be six bytes
    if isinstance(value, list | tuple):
        return [_shortened(item) for item in value[:_MOST_ITEMS]]
    if isinstance(value, dict):
        return {key: _shortened(value[key]) for key in list(value)[:_MOST_ITEMS]}
    return value


def _send(channel: FdChannel | Fd, data: bytes, fds: Sequence[int], timeout: float | None) -> None:
    if isinstance(channel, FdChannel):
        channel.send(data, fds, timeout=timeout)
    else:
        send_fds(channel, data, fds, timeout=timeout)


def receive(
    channel: FdChannel | Fd, max_fds: int = _ANSWER_FDS, *, upward: bool = False
) -> Received | Report | None:
    """Wait for one message.

    Args:
        channel: a channel, or a connection for answers.
        max_fds: greatest number of descriptors; a channel has its own limit.
        upward: this is the application: only answers are received, and nothing is unpickled.

    Returns:
        The message; None when the other end is closed.

    Raises:
        ProtocolError: the message is of another version, or malformed.
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
    sender = None if message.credentials is None else message.credentials.pid
    fds = list(message.fds)
    try:
        kind, body = _body(data, fds, upward, isinstance(channel, FdChannel))
    except BaseException:
        for fd in fds:
            fd.close()
        raise
    return Received(kind, body, fds, sender)


def _body(data: bytes, fds: list[Fd], upward: bool, may_be_large: bool) -> tuple[Kind, Any]:
    """Decode kind and body of a message; the memfd of a large one is closed and left out."""
    if len(data) < _HEADER.size:
        raise ProtocolError(f"a message of {len(data)} bytes")
    magic, version, number, large = _HEADER.unpack_from(data)
    if magic != _MAGIC or version != VERSION:
        raise ProtocolError(f"its protocol has version {version}, ours {VERSION}")
    content = data[_HEADER.size :]
    if large:
        if not fds or (upward and not may_be_large):
            raise ProtocolError("a message without its body")
        with fds.pop() as body_fd, open(body_fd.fileno(), "rb", closefd=False) as file:
            file.seek(0)
            content = file.read()
    try:
        kind = Kind(number)
        if upward != (kind in _ANSWERS):
            raise ProtocolError(f"a message of kind {kind.name}")
        return kind, json.loads(content) if upward else pickle.loads(content)
    except (ValueError, RecursionError) as error:
        if not upward:
            raise
        raise ProtocolError(f"a message that cannot be read: {error}") from None

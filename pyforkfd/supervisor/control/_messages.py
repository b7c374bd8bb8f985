"""What a supervisor and its clients say to one another: JSON objects, one a message."""

from __future__ import annotations

import json
import os
from typing import Any

import pyforkfd as ff

VERSION = 1
LONGEST_REQUEST = 16 * 1024  # bytes; far more than any request that makes sense
_LONGEST_INLINE = 32 * 1024  # bytes; what is longer goes as a file

Body = dict[str, Any]


class ControlError(Exception):
    """A request was refused, or it failed; the message is for people."""


def send(channel: ff.FdChannel, body: Body) -> None:
    """Send one message; never waits.

    What is long is put into a memfd that goes along, so that the size of a message is
    bounded on both ends, whatever the receiver's buffer is.

    Args:
        channel: borrowed.
        body: without the version, which is added.

    Raises:
        TimeoutError: the receiver does not read.
        OSError: it has closed its end, and as :meth:`FdChannel.send`.
    """
    data = json.dumps({"v": VERSION, **body}, ensure_ascii=False).encode(errors="replace")
    if len(data) <= _LONGEST_INLINE:
        channel.send(data, timeout=0)
        return
    with ff.Fd(os.memfd_create("answer", os.MFD_CLOEXEC)) as memory:
        with open(memory.fileno(), "wb", closefd=False) as file:
            file.write(data)
        channel.send(json.dumps({"v": VERSION, "in_file": len(data)}).encode(), [memory], timeout=0)


def parse(message: ff.Received) -> Body:
    """Take a message apart.

    Args:
        message: borrowed.

    Raises:
        ControlError: it is no message of this version.
    """
    body = _loads(message.data)
    if "in_file" in body:
        size = body["in_file"]
        if not message.fds or not isinstance(size, int):
            raise ControlError("the message speaks of a file that did not come with it")
        body = _loads(_read(message.fds[0].fileno(), size))
    return body


def _read(fd: int, size: int) -> bytes:
    parts = []
    at = 0
    while at < size and (part := os.pread(fd, size - at, at)):
        parts.append(part)
        at += len(part)
    return b"".join(parts)


def _loads(data: bytes) -> Body:
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ControlError(f"not JSON: {error}") from None
    if not isinstance(body, dict):
        raise ControlError("not a JSON object")
    if body.get("v") != VERSION:
        raise ControlError(f"version {body.get('v')!r} of the protocol; this one speaks {VERSION}")
    return body

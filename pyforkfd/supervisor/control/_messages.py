"""The messages between a supervisor and its clients: one JSON object each."""

from __future__ import annotations

import json
import os
from typing import Any

import pyforkfd as ff

VERSION = 1
LONGEST_REQUEST = 16 * 1024  # bytes; far more than any request that makes sense
_LONGEST_INLINE = 32 * 1024  # bytes; a longer message goes as a file

Body = dict[str, Any]


class ControlError(Exception):
    """A request was refused or has failed; the message has the reason."""


def send(channel: ff.FdChannel, body: Body) -> None:
    """Send one message without waiting.

    A long one is put into a memfd that is passed along, so that the size of a message is
    bounded on both ends, whatever the receiver's buffer is.

    Args:
        channel: borrowed.
        body: the fields, without the version, which is added.

    Raises:
        TimeoutError: the receiver does not read, and its buffer is full.
        OSError: the receiver has closed its end, and as :meth:`FdChannel.send`.
    """
    data = json.dumps({"v": VERSION, **body}, ensure_ascii=False).encode(errors="replace")
    if len(data) <= _LONGEST_INLINE:
        channel.send(data, timeout=0)
        return
    with ff.Fd(os.memfd_create("reply", os.MFD_CLOEXEC)) as memory:
        with open(memory.fileno(), "wb", closefd=False) as file:
            file.write(data)
        channel.send(json.dumps({"v": VERSION, "in_file": len(data)}).encode(), [memory], timeout=0)


def parse(message: ff.Received) -> Body:
    """Return the fields of a message.

    Args:
        message: borrowed.

    Raises:
        ControlError: the data is no message of this version.
    """
    body = _loads(message.data)
    if "in_file" in body:
        size = body["in_file"]
        if not message.fds or not isinstance(size, int):
            raise ControlError("in_file: no descriptor was passed with the message")
        body = _loads(_read(message.fds[0].fileno(), size))
    return body


def _read(fd: int, size: int) -> bytes:
    parts = []
    offset = 0
    while offset < size and (part := os.pread(fd, size - offset, offset)):
        parts.append(part)
        offset += len(part)
    return b"".join(parts)


def _loads(data: bytes) -> Body:
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ControlError(f"not JSON: {error}") from None
    if not isinstance(body, dict):
        raise ControlError("not a JSON object")
    if body.get("v") != VERSION:
        raise ControlError(
            f"v: protocol version {body.get('v')!r} is not supported; write {VERSION}"
        )
    return body

"""What must not be taken for a message, nor for the end of a channel; as a program, a worker.

The worker sends the kind of garbage at its position, then a message that is good.  With the
argument "flood" it sends as many as the number behind it says.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator

from pyforkfd.supervisor import worker
from pyforkfd.supervisor.worker import Worker

GARBAGE: list[tuple[str, bytes, str]] = [
    ("not UTF-8", b"\xff\xfe", "not JSON"),
    ("not JSON", b"drain", "not JSON"),
    ("not an object", b"[]", "not an object"),
    ("deep", b"[" * 60_000, "not JSON"),
    ("NaN", b'{"event": "message", "order": "message", "data": NaN}', "NaN is not a number"),
    ("digits", b'{"event": "log", "order": "log", "turn": ' + b"9" * 5000 + b"}", "not JSON"),
    ("huge", b'{"event": "log", "order": "log", "turn": ' + b"9" * 99 + b"}", "turn=9999"),
    ("type", b'{"event": "log", "order": "log", "turn": "1"}', "turn='1' is not of type int"),
    ("missing", b'{"event": "log", "order": "log"}', "turn is missing"),
    ("unknown", b'{"event": "dance", "order": "dance"}', "unknown (event|order): 'dance'"),
    ("nameless", b"{}", "unknown (event|order): None"),
    ("version", b'{"event": "ready", "order": "drain", "version": 9}', "has version 9"),
    ("empty", b"", "an empty message"),
    ("too long", b'{"event": "ready", "order": "drain"}' + b" " * 70_000, "65536"),
    ("descriptors", b'{"event": "ready", "order": "drain"}', "descriptors"),
    ("only descriptors", b"", "not JSON"),
]


def send(sock: socket.socket, name: str, data: bytes) -> int | None:
    """Send one kind; return the end of a pipe whose other end went with it, if one did.

    Raises:
        PermissionError: the receiver has the kernel refuse descriptors, since Linux 6.16.
    """
    if "descriptors" not in name:
        sock.send(data)
        return None
    reader, writer = os.pipe()
    try:
        socket.send_fds(sock, [data], [writer])
    except BaseException:
        os.close(reader)
        raise
    finally:
        os.close(writer)
    return reader


def raw(me: Worker) -> socket.socket:
    return socket.socket(fileno=os.dup(me.fileno()))


def garbage_of(me: Worker) -> Iterator[int | None]:
    with raw(me) as sock:
        if sys.argv[1:] and sys.argv[1] == "flood":
            for _ in range(int(sys.argv[2])):
                sock.send(b"garbage")
            yield None
        else:
            name, data, _ = GARBAGE[me.position]
            try:
                yield send(sock, name, data)
            except PermissionError:
                me.send({"refused": me.position})
                yield None


def main() -> None:
    me = worker.current()
    assert me is not None
    for reader in garbage_of(me):
        me.send({"good": me.position})
        if reader is not None:
            assert os.read(reader, 1) == b""  # all copies of the other end are closed
            os.close(reader)
            me.send({"closed": me.position})
    me.ready()
    while not me.draining and not me.orphaned:
        me.poll(1.0)


if __name__ == "__main__":
    main()

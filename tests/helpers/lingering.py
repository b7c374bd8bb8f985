"""Sockets of which the last close waits; as a program, a worker that passes them to its supervisor.

The worker prints for each way, "channel" and "notify", whether it was refused.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

LINGER = 6  # seconds that a close waits
TOO_LONG = 5.0  # seconds: more than anything else takes


class Source:
    """A peer that reads nothing, and the sockets that are connected to it."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

    def make(self) -> socket.socket:
        """Return a socket with data that is never sent; the caller passes it on and closes it."""
        made = socket.create_connection(self._listener.getsockname())
        self._stack.enter_context(self._listener.accept()[0])
        made.setblocking(False)
        try:
            while True:
                made.send(bytes(1 << 16))
        except BlockingIOError:
            pass
        made.setblocking(True)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, LINGER))
        return made

    def send(self, sock: socket.socket, data: bytes, count: int = 1) -> None:
        """Pass lingering sockets over a Unix socket; nobody but its receiver has them then."""
        passed = [self.make() for _ in range(count)]
        try:
            socket.send_fds(sock, [data], [one.fileno() for one in passed])
        except BaseException:
            for one in passed:  # the last close is ours
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes(8))
            raise
        finally:
            for one in passed:
                one.close()


@contextmanager
def source() -> Iterator[Source]:
    with ExitStack() as stack:
        yield Source(stack)


@contextmanager
def prompt() -> Iterator[None]:
    """Demand that nothing in the block waits for a lingering close."""
    begun = time.monotonic()
    yield
    took = time.monotonic() - begun
    assert took < TOO_LONG, f"it took {took:.1f} s"


def main() -> None:
    from pyforkfd.supervisor import worker

    me = worker.current()
    assert me is not None
    with (
        source() as made,
        socket.socket(fileno=os.dup(me.fileno())) as channel,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify,
    ):
        notify.connect(os.environ["NOTIFY_SOCKET"])
        for name, sock, data in (
            ("channel", channel, b'{"event": "status", "text": "x"}'),
            ("notify", notify, b"STATUS=x"),
        ):
            try:
                for _ in range(3):
                    made.send(sock, data, 2)
                done = "sent"
            except PermissionError:
                done = "refused"
            os.write(1, f"{name}: {done}\n".encode())  # whole, between other processes' lines
        me.ready()
        while not me.draining and not me.orphaned:
            me.poll(1.0)


if __name__ == "__main__":
    main()

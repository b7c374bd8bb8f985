"""A server of the metrics page over TCP or a Unix socket, for a loop that must not wait."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pyforkfd._closing import Closing
from pyforkfd.supervisor._shortage import reserved

from ._http import Answer, Request, parse

MAX_CONNECTIONS = 16
"""Bound of the open connections; one more replaces the oldest."""

PATIENCE = 5.0
"""Seconds that a connection may take, from its acceptance to its end."""

_ACCEPTS = 16  # in one turn, so that a flood leaves time to the rest of the loop
_PART = 4096  # bytes read in one turn of a connection
_MAX_IGNORED = 65536  # bytes read after the answer
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


@dataclass(slots=True, eq=False)
class _Connection:
    sock: socket.socket
    deadline: float
    received: bytearray = field(default_factory=bytearray)
    unsent: memoryview | None = None  # the answer; None: the request is not complete yet
    ignored: int = 0


class ScrapeServer(Closing):
    """A server of GET /metrics and GET /healthz, for a loop of one thread.

    The loop watches :meth:`fileno` (an epoll with the listener and all connections in it, so
    the descriptor never changes), calls :meth:`handle` when it is readable, and :meth:`tick`
    about once a second.  No call waits, or raises for what a peer does.  A connection has
    :data:`PATIENCE` seconds in all, 8 KiB for its request, and serves one request; there are
    :data:`MAX_CONNECTIONS` at most.  While the process is out of descriptors, no connection
    is accepted until the next tick.

    A context manager.

    Args:
        listener: taken, as :func:`pyforkfd.bind` makes it: TCP or Unix, listening.  Made
            non-blocking, for every process that has it.
        render: the header Accept -> content type and text.
        degraded: the reasons why /healthz answers 503; none: it answers 200.
        clock: seconds, monotonic.

    Raises:
        OSError: the epoll cannot be made; the listener is closed.
    """

    def __init__(
        self,
        listener: socket.socket,
        render: Callable[[str], tuple[str, bytes]],
        degraded: Callable[[], Sequence[str]],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._listener = listener
        self._render = render
        self._degraded = degraded
        self._clock = clock
        self._connections: dict[int, _Connection] = {}  # oldest first
        self._exhausted = False
        try:
            listener.setblocking(False)
            self._epoll = select.epoll()
            self._epoll.register(listener, select.EPOLLIN)
        except BaseException:
            listener.close()
            raise

    def fileno(self) -> int:
        """Return the descriptor to watch for reading; borrowed."""
        return self._epoll.fileno()

    def __len__(self) -> int:
        """Return the number of open connections."""
        return len(self._connections)

    def handle(self) -> None:
        """Do what can be done without waiting; a part may be left for the next call."""
        for fd, _ in self._epoll.poll(0):
            if fd == self._listener.fileno():
                self._accept()
            elif (connection := self._connections.get(fd)) is not None:
                self._advance(connection)

    def tick(self) -> None:
        """Drop the connections whose time is over, and accept again."""
        now = self._clock()
        for connection in [c for c in self._connections.values() if c.deadline <= now]:
            self._drop(connection)
        if self._exhausted:
            self._exhausted = False
            self._epoll.modify(self._listener, select.EPOLLIN)

    def close(self) -> None:
        """Close the listener and all connections.  A second call does nothing."""
        for connection in list(self._connections.values()):
            self._drop(connection)
        self._epoll.close()
        self._listener.close()

    def _accept(self) -> None:
        for _ in range(_ACCEPTS):
            try:
                with reserved(0.5):
                    sock, _ = self._listener.accept()
            except OSError as error:  # none waits, or it was reset (accept(2) has the list)
                if error.errno in _EXHAUSTED:
                    self._exhausted = True
                    self._epoll.modify(self._listener, 0)  # it would stay readable
                return
            sock.setblocking(False)
            if len(self._connections) == MAX_CONNECTIONS:
                self._drop(next(iter(self._connections.values())))
            connection = _Connection(sock, self._clock() + PATIENCE)
            try:
                self._epoll.register(sock, select.EPOLLIN)
            except OSError:  # max_user_watches, ENOMEM
                sock.close()
                return
            self._connections[sock.fileno()] = connection
            self._advance(connection)  # most requests have arrived already

    def _advance(self, connection: _Connection) -> None:
        try:
            if connection.unsent is None:
                self._read(connection)
            elif connection.unsent:
                self._write(connection)
            else:
                self._await_end(connection)
        except BlockingIOError:
            pass
        except OSError:  # the peer has closed
            self._drop(connection)

    def _read(self, connection: _Connection) -> None:
        part = connection.sock.recv(_PART)
        if not part:
            self._drop(connection)
            return
        connection.received += part
        if (request := parse(connection.received)) is None:
            return
        answer = request if isinstance(request, Answer) else self._answer(request)
        method = request.method if isinstance(request, Request) else "GET"
        connection.unsent = memoryview(answer.wire(method))
        self._epoll.modify(connection.sock, select.EPOLLOUT)
        self._write(connection)

    def _write(self, connection: _Connection) -> None:
        assert connection.unsent is not None
        connection.unsent = connection.unsent[connection.sock.send(connection.unsent) :]
        if not connection.unsent:
            # On a close with unread bytes the kernel would send a reset, which may destroy the
            # part of the answer that the peer has not read.  So wait for the peer's end.
            connection.sock.shutdown(socket.SHUT_WR)
            self._epoll.modify(connection.sock, select.EPOLLIN)

    def _await_end(self, connection: _Connection) -> None:
        part = connection.sock.recv(_PART)
        connection.ignored += len(part)
        if not part or connection.ignored > _MAX_IGNORED:
            self._drop(connection)

    def _answer(self, request: Request) -> Answer:
        if request.method not in ("GET", "HEAD"):
            return Answer.of_text(405)
        try:
            if request.path == "/metrics":
                content_type, body = self._render(request.accept)
                return Answer(status=200, body=body, content_type=content_type)
            if request.path == "/healthz":
                reasons = ", ".join(self._degraded())
                return Answer.of_text(503, f"degraded: {reasons}") if reasons else _HEALTHY
        except Exception as error:  # a foreign collector must not end the loop
            return Answer.of_text(500, f"{request.path}: {type(error).__name__}: {error}")
        return Answer.of_text(404, f"{request.path}: not found; try /metrics or /healthz")

    def _drop(self, connection: _Connection) -> None:
        fd = connection.sock.fileno()
        del self._connections[fd]
        with contextlib.suppress(OSError):
            self._epoll.unregister(fd)  # a child that was just forked may hold the open file
        connection.sock.close()


_HEALTHY = Answer.of_text(200, "ok")

"""Clients that send requests without a pause, and count each with its outcome.

    python clients.py PORT [--keep-alive N] [--new N] [--pause SECONDS]

The only load generator: benchmarks and tests import it.  *Keep-alive* clients use a connection
for as long as the server permits; *new* ones make a connection for each request.  A request has
failed if it was sent, or its connection could not be made, and no whole successful answer came.
The first request on a connection counts among those of new connections.

:func:`http_load` runs HTTP clients in a process of their own, whose standard input ends when they
are to stop: the command above.  :class:`Load` runs clients in a thread.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self, TypeAlias

TIMEOUT = 15.0  # seconds for a request
PATIENCE = 60.0  # seconds for a number of requests

Address: TypeAlias = tuple[str, int] | str
"""Of TCP; or the path of a UNIX socket."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One whole answer.

    Attributes:
        text: its body.
        stays: whether the server leaves the connection open.
        failure: why the answer is no success; else empty.
    """

    text: str
    stays: bool
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Protocol:
    """Requests, and how their answers are read.

    Attributes:
        request: on a connection that stays.
        last: on a connection for one request.
        read: reads one answer from a socket.
        may_close: whether a server may close a connection between requests without notice.  A
            client that finds it closed before a request has then lost nothing; it connects anew.
    """

    request: bytes
    last: bytes
    read: Callable[[socket.socket], Awaitable[Answer]]
    may_close: bool


async def _read_http(sock: socket.socket) -> Answer:
    received = b""
    while b"\r\n\r\n" not in received:
        received += await _more(sock, received)
    head, _, body = received.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").lower().split("\r\n")
    fields = dict(line.split(":", 1) for line in lines[1:] if ":" in line)
    length = int(fields.get("content-length", "0"))
    while len(body) < length:
        body += await _more(sock, body)
    status = int(lines[0].split()[1])
    stays = fields.get("connection", "").strip() != "close"
    return Answer(body.decode("latin-1"), stays, "" if status == 200 else f"status {status}")


async def _read_line(sock: socket.socket) -> Answer:
    """Read a line; it ends with " close" if the connection does, or with the connection."""
    received = b""
    while not received.endswith(b"\n"):
        try:
            received += await _more(sock, received)
        except EOFError:
            if received:
                return Answer(received.decode(), stays=False)
            raise
    text = received.decode().rstrip("\n")
    return Answer(text.removesuffix(" close"), stays=not text.endswith(" close"))


HTTP = Protocol(
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n",
    _read_http,
    may_close=True,
)
LINES = Protocol(b"?\n", b"?\n", _read_line, may_close=False)


@dataclass
class Tally:
    """The outcomes of one kind of requests."""

    done: int = 0
    failed: Counter[str] = field(default_factory=Counter)


def _ignore(answer: str, failure: str) -> None:
    pass


class Clients:
    """A number of clients on one loop.

    Attributes:
        keep_alive: outcomes of all but the first request of a connection.
        new: outcomes of the first requests.
    """

    def __init__(
        self,
        address: Address,
        protocol: Protocol,
        *,
        pause: float = 0.0,
        on_outcome: Callable[[str, str], None] = _ignore,
    ) -> None:
        """Describe the clients.

        Args:
            address: of the server.
            protocol: of the requests.
            pause: mean seconds between two requests of a client.
            on_outcome: called for each request with its answer and its failure, of which one
                is empty.
        """
        self.keep_alive, self.new = Tally(), Tally()
        self._address = address
        self._protocol = protocol
        self._pause = pause
        self._on_outcome = on_outcome
        self._running = True

    async def run(self, keep_alive: int, new: int, until: Awaitable[object]) -> float:
        """Run so many clients until something is done; return the seconds."""
        begin = time.monotonic()
        tasks = [asyncio.create_task(self._keep_alive()) for _ in range(keep_alive)]
        tasks += [asyncio.create_task(self._renew()) for _ in range(new)]
        await until
        self._running = False
        seconds = time.monotonic() - begin
        await asyncio.gather(*tasks)
        return seconds

    async def _keep_alive(self) -> None:
        sock: socket.socket | None = None
        first = True
        while self._running:
            if sock is not None and self._protocol.may_close and _is_closed(sock):
                sock.close()
                sock = None
            if sock is None:
                first = True
                if (sock := await self._connect()) is None:
                    continue
            tally = self.new if first else self.keep_alive
            stays = await self._exchange(sock, self._protocol.request, tally)
            first = False
            if not stays:
                sock.close()
                sock = None
            await self._sleep()
        if sock is not None:
            sock.close()

    async def _renew(self) -> None:
        while self._running:
            if (sock := await self._connect()) is not None:
                await self._exchange(sock, self._protocol.last, self.new)
                sock.close()
            await self._sleep()

    async def _sleep(self) -> None:
        # At all distances from the last answer, so that some hit any window there is.
        if self._pause:
            await asyncio.sleep(random.uniform(0, 2 * self._pause))

    async def _connect(self) -> socket.socket | None:
        sock = socket.socket(socket.AF_UNIX if isinstance(self._address, str) else socket.AF_INET)
        sock.setblocking(False)
        if sock.family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            connected = asyncio.get_running_loop().sock_connect(sock, self._address)
            await asyncio.wait_for(connected, TIMEOUT)
        except (OSError, TimeoutError) as error:
            self._failed(self.new, f"connect: {_name(error)}")
            sock.close()
            await asyncio.sleep(0.02)  # so that a closed port does not cost a whole processor
            return None
        return sock

    async def _exchange(self, sock: socket.socket, request: bytes, tally: Tally) -> bool:
        """Send a request and read its answer; return whether the connection stays."""
        try:
            answer = await asyncio.wait_for(self._send_and_read(sock, request), TIMEOUT)
        except (OSError, TimeoutError, EOFError) as error:
            self._failed(tally, _name(error))
            return False
        if answer.failure:
            self._failed(tally, answer.failure)
            return False
        tally.done += 1
        self._on_outcome(answer.text, "")
        return answer.stays

    async def _send_and_read(self, sock: socket.socket, request: bytes) -> Answer:
        await asyncio.get_running_loop().sock_sendall(sock, request)
        return await self._protocol.read(sock)

    def _failed(self, tally: Tally, reason: str) -> None:
        tally.failed[reason] += 1
        self._on_outcome("", reason)


async def _more(sock: socket.socket, so_far: bytes) -> bytes:
    data = await asyncio.get_running_loop().sock_recv(sock, 65536)
    if not data:
        raise EOFError("closed within an answer" if so_far else "closed without an answer")
    return data


def _is_closed(sock: socket.socket) -> bool:
    """Return whether the server has closed a connection, or sent an unrequested byte."""
    try:
        sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _name(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return f"nothing within {TIMEOUT:g} s"
    return str(error) if isinstance(error, EOFError) else type(error).__name__


class Load:
    """Clients in a thread, from the beginning of a block to its end.

    Attributes:
        answers: the text of each answer, in the order in which they came.
        failures: the reason of each failure.
    """

    def __init__(
        self,
        address: Address | int,
        protocol: Protocol = LINES,
        *,
        keep_alive: int = 2,
        new: int = 1,
    ) -> None:
        """Describe the clients.

        Args:
            address: of the server; or a TCP port on the loopback interface.
            protocol: of the requests.
            keep_alive: how many clients use a connection for many requests.
            new: how many clients use a connection for each request.
        """
        self.answers: list[str] = []
        self.failures: list[str] = []
        self._address = ("127.0.0.1", address) if isinstance(address, int) else address
        self._protocol = protocol
        self._counts = keep_alive, new
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="load")
        self._started = threading.Event()

    async def _run(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        self._started.set()
        clients = Clients(self._address, self._protocol, on_outcome=self._record)
        await clients.run(*self._counts, until=self._over.wait())

    def _record(self, answer: str, failure: str) -> None:
        with self._changed:
            if failure:
                self.failures.append(failure)
            else:
                self.answers.append(answer)
            self._changed.notify_all()

    def pids(self) -> set[int]:
        """Return the pids that have answered: the last word of each answer."""
        return {int(answer.split()[-1]) for answer in self.answers}

    def more(self, count: int = 100) -> None:
        """Wait until so many more requests have succeeded or failed."""
        with self._changed:
            goal = len(self.answers) + len(self.failures) + count
            done = self._changed.wait_for(
                lambda: len(self.answers) + len(self.failures) >= goal, PATIENCE
            )
        assert done, f"fewer than {count} requests in {PATIENCE:g} s"

    def wait_for(self, count: int) -> None:
        """Wait until so many more requests have succeeded; none may fail."""
        self.more(count)
        assert not self.failures, self.failures[:5]

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(self, *exception: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()


@contextmanager
def http_load(port: int, **options: float) -> Iterator[dict[str, Any]]:
    """Run HTTP clients in a process of their own until the end of the block.

    Args:
        port: on the loopback interface.
        options: ``keep_alive``, ``new`` and ``pause``, as on the command line.

    Yields:
        A dictionary that has the counts after the block: ``seconds``, ``rate`` and, for
        ``keep_alive`` and ``new``, how many were ``done`` and ``failed``.
    """
    words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    process = subprocess.Popen(
        [sys.executable, __file__, str(port), *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    counted: dict[str, Any] = {}
    try:
        yield counted
        out, _ = process.communicate(timeout=PATIENCE)
        counted.update(json.loads(out))
    finally:
        process.kill()
        process.communicate()


async def count(port: int, keep_alive: int, new: int, pause: float) -> dict[str, object]:
    """Run HTTP clients until standard input ends, and return their counts."""
    clients = Clients(("127.0.0.1", port), HTTP, pause=pause)
    until = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    seconds = await clients.run(keep_alive, new, until)
    kinds = {"keep_alive": clients.keep_alive, "new": clients.new}
    return {
        "seconds": seconds,
        "rate": sum(tally.done for tally in kinds.values()) / seconds,
        **{name: {"done": t.done, "failed": dict(t.failed)} for name, t in kinds.items()},
    }


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("port", type=int)
    parser.add_argument("--keep-alive", type=int, default=16, help="clients (16)")
    parser.add_argument("--new", type=int, default=4, help="clients (4)")
    parser.add_argument("--pause", type=float, default=0.01, help="mean seconds (0.01)")
    args = parser.parse_args()
    json.dump(asyncio.run(count(args.port, args.keep_alive, args.new, args.pause)), sys.stdout)


if __name__ == "__main__":
    main()

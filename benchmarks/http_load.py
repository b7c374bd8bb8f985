"""HTTP clients that count every request with its outcome.

    python http_load.py PORT [--kept N] [--new N] [--pause SECONDS]

Runs until its standard input ends, then writes what it counted as JSON.  *Kept* clients use
a connection as long as the server lets them; *new* ones make one for each request.  A request
has failed if it was sent, or its connection could not be made, and no whole answer with status
200 came.  A client that finds its connection closed before it sends has lost nothing: it
looks, as good clients do, and makes another.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import socket
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

TIMEOUT = 15.0
REQUEST = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"


@dataclass
class Tally:
    """Of one kind of requests."""

    done: int = 0
    failed: Counter[str] = field(default_factory=Counter)


class Answer:
    """The head of an answer, and how much of its body is to come."""

    def __init__(self, head: bytes) -> None:
        lines = head.decode("latin-1").lower().split("\r\n")
        self.status = int(lines[0].split()[1])
        fields = dict(line.split(":", 1) for line in lines[1:] if ":" in line)
        self.length = int(fields.get("content-length", "0"))
        self.last = fields.get("connection", "").strip() == "close"


class Clients:
    """All of them, on one loop."""

    def __init__(self, port: int, pause: float) -> None:
        self.address = ("127.0.0.1", port)
        self.pause = pause
        self.kept, self.new = Tally(), Tally()
        self.running = True

    async def keep(self) -> None:
        """One client that keeps its connection."""
        sock: socket.socket | None = None
        first = True
        while self.running:
            if sock is not None and is_closed(sock):
                sock.close()
                sock = None
            if sock is None:
                first = True
                if (sock := await self._connect()) is None:
                    continue
            tally = self.new if first else self.kept
            stays = await self._ask(sock, REQUEST, tally)
            first = False
            if not stays:
                sock.close()
                sock = None
            await self._wait()
        if sock is not None:
            sock.close()

    async def renew(self) -> None:
        """One client that does not."""
        while self.running:
            if (sock := await self._connect()) is not None:
                await self._ask(sock, LAST, self.new)
                sock.close()
            await self._wait()

    async def _wait(self) -> None:
        # At all distances from the last answer, so that some hit any window there is.
        if self.pause:
            await asyncio.sleep(random.uniform(0, 2 * self.pause))

    async def _connect(self) -> socket.socket | None:
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        loop = asyncio.get_running_loop()
        try:
            await asyncio.wait_for(loop.sock_connect(sock, self.address), TIMEOUT)
        except (OSError, TimeoutError) as error:
            self.new.failed[f"connect: {name(error)}"] += 1
            sock.close()
            await asyncio.sleep(0.02)  # a server that is gone is not asked 10,000 times
            return None
        return sock

    async def _ask(self, sock: socket.socket, request: bytes, tally: Tally) -> bool:
        """Whether the connection stays."""
        try:
            answer = await asyncio.wait_for(exchange(sock, request), TIMEOUT)
        except (OSError, TimeoutError, EOFError) as error:
            tally.failed[name(error)] += 1
            return False
        if answer.status != 200:
            tally.failed[f"status {answer.status}"] += 1
            return False
        tally.done += 1
        return not answer.last


async def exchange(sock: socket.socket, request: bytes) -> Answer:
    """One request and its whole answer."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, request)
    received = b""
    while b"\r\n\r\n" not in received:
        received += await more(sock, received)
    head, _, body = received.partition(b"\r\n\r\n")
    answer = Answer(head)
    while len(body) < answer.length:
        body += await more(sock, body)
    return answer


async def more(sock: socket.socket, so_far: bytes) -> bytes:
    data = await asyncio.get_running_loop().sock_recv(sock, 65536)
    if not data:
        raise EOFError("closed within an answer" if so_far else "closed without an answer")
    return data


def is_closed(sock: socket.socket) -> bool:
    """The server has closed it, or sent what nobody asked for."""
    try:
        sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def name(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return f"nothing within {TIMEOUT:g} s"
    return str(error) if isinstance(error, EOFError) else type(error).__name__


async def run(port: int, kept: int, new: int, pause: float) -> dict[str, object]:
    clients = Clients(port, pause)
    begin = time.monotonic()
    tasks = [asyncio.create_task(clients.keep()) for _ in range(kept)]
    tasks += [asyncio.create_task(clients.renew()) for _ in range(new)]
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    clients.running = False
    seconds = time.monotonic() - begin
    done = clients.kept.done + clients.new.done
    await asyncio.gather(*tasks)
    return {
        "seconds": seconds,
        "rate": done / seconds,
        "kept": {"done": clients.kept.done, "failed": dict(clients.kept.failed)},
        "new": {"done": clients.new.done, "failed": dict(clients.new.failed)},
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--kept", type=int, default=16)
    parser.add_argument("--new", type=int, default=4)
    parser.add_argument("--pause", type=float, default=0.01)
    asked = parser.parse_args()
    json.dump(asyncio.run(run(asked.port, asked.kept, asked.new, asked.pause)), sys.stdout)


if __name__ == "__main__":
    main()

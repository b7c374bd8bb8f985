"""The load generator: no failure goes uncounted, and what is no failure is not counted as one."""

from __future__ import annotations

import asyncio
import socket

import pytest
from clients import HTTP, LINES, Clients, Load, Protocol

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
LAST = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"


async def served(protocol: Protocol, script: list[bytes]) -> Clients:
    """Run one keep-alive client against a server that sends these answers, and then closes.

    The server closes the connection instead of an empty answer, and after one that contains
    "close" or ends with "<".
    """
    over = asyncio.Event()
    left = iter(script)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1000):
            if (answer := next(left, None)) is None:
                over.set()
            if not answer:
                break
            writer.write(answer)
            if b"close" in answer or answer.endswith(b"<"):
                break
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        clients = Clients(server.sockets[0].getsockname()[:2], protocol)
        await clients.run(1, 0, over.wait())
    return clients


@pytest.mark.parametrize(
    ("protocol", "script", "done", "failed"),
    [
        (LINES, [b"1\n", b"2\n", b"3 close\n", b"4\n"], 4, {}),
        (LINES, [b"1\n", b"", b"2\n"], 2, {"closed without an answer": 1}),
        (HTTP, [OK, LAST, OK], 3, {}),
        (HTTP, [OK, b"", OK], 2, {"closed without an answer": 1}),
        (HTTP, [OK[:-1] + b"<", LAST], 2, {}),
        (HTTP, [OK[:-2] + b"<", LAST], 1, {"closed within an answer": 1}),
        (HTTP, [OK.replace(b"200", b"503"), OK], 1, {"status 503": 1}),
    ],
)
def test_outcomes(
    protocol: Protocol, script: list[bytes], done: int, failed: dict[str, int]
) -> None:
    clients = asyncio.run(served(protocol, script))
    # The request after the script is not answered.
    counted = clients.new.failed + clients.keep_alive.failed
    counted -= type(counted)({"closed without an answer": 1})
    assert clients.new.done + clients.keep_alive.done == done
    assert counted == failed


def test_only_http_servers_may_close_between_requests() -> None:
    """An HTTP client checks its connection before it sends; with lines a close is a failure."""

    async def run(protocol: Protocol, answer: bytes) -> int:
        over = asyncio.Event()
        count = 0

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal count
            await reader.read(1000)
            writer.write(answer)
            writer.close()  # without notice
            if (count := count + 1) == 20:
                over.set()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            clients = Clients(server.sockets[0].getsockname()[:2], protocol, pause=0.01)
            await clients.run(1, 0, over.wait())
        return (clients.new.failed + clients.keep_alive.failed).total()

    assert asyncio.run(run(HTTP, OK)) <= 1  # a close may cross with a request
    assert asyncio.run(run(LINES, b"1\n")) >= 5


def test_a_load_in_a_thread() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with Load(port, keep_alive=1, new=0) as load:
            connection, _ = listener.accept()
            with connection:
                for _ in range(3):
                    assert connection.recv(100) == b"?\n"
                    connection.sendall(b"worker 7\n")
                assert connection.recv(100) == b"?\n"
                load.wait_for(0)
                assert load.answers == ["worker 7"] * 3 and load.pids() == {7}
            load.more(1)
            assert load.failures[0] == "closed without an answer"
            with pytest.raises(AssertionError, match="closed without an answer"):
                load.wait_for(0)
            listener.close()

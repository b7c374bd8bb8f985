"""The metrics page over real sockets: good clients are served, hostile ones take bounded time."""

from __future__ import annotations

import contextlib
import http.client
import os
import resource
import select
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import parser

import pyforkfd as ff
from pyforkfd.supervisor.metrics import _server
from pyforkfd.supervisor.metrics._counters import Metrics
from pyforkfd.supervisor.metrics._http import MAX_HEAD, Answer, Request, parse
from pyforkfd.supervisor.metrics._prometheus import Exposition
from pyforkfd.supervisor.metrics._server import MAX_CONNECTIONS, PATIENCE, ScrapeServer

REQUEST = b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n"
LARGE = b"x" * 8_000_000  # more than the sockets of both ends hold


class Page:
    """A server whose loop and clock a test turns itself."""

    def __init__(self, address: str) -> None:
        self.now = 0.0
        self.body = b"# nothing\n"
        self.reasons: list[str] = []
        listener = ff.bind(address)
        self.address = listener.getsockname()
        self.family = listener.family
        self.server = ScrapeServer(listener, self.render, self.degraded, clock=lambda: self.now)
        self._clients: list[socket.socket] = []

    def render(self, accept: str) -> tuple[str, bytes]:
        return "text/plain", self.body

    def degraded(self) -> list[str]:
        return self.reasons

    def connect(self, sent: bytes = b"") -> socket.socket:
        client = socket.socket(self.family, socket.SOCK_STREAM)
        self._clients.append(client)
        client.settimeout(60)
        client.connect(self.address)
        client.sendall(sent)
        return client

    def turn(self) -> None:
        """Run the loop until nothing is left to do now."""
        while select.select([self.server], [], [], 0)[0]:
            self.server.handle()

    def turn_until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 60
        while not condition():
            select.select([self.server], [], [], 0.01)
            self.server.handle()
            assert time.monotonic() < end, "the condition never held"

    def get(self, sent: bytes = REQUEST) -> bytes:
        return self.read(self.connect(sent))

    def read(self, client: socket.socket) -> bytes:
        """Read a whole answer, while the loop runs."""
        got = bytearray()
        client.setblocking(False)

        def ended() -> bool:
            try:
                while part := client.recv(65536):
                    got.extend(part)
            except BlockingIOError:
                return False
            return True

        self.turn_until(ended)
        client.close()
        return bytes(got)

    def close(self) -> None:
        for client in self._clients:
            client.close()
        self.server.close()


@pytest.fixture(params=["tcp", "unix"])
def page(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Page]:
    page = Page("tcp://127.0.0.1:0" if request.param == "tcp" else f"unix:{tmp_path}/metrics")
    yield page
    page.close()


@contextlib.contextmanager
def served(server: ScrapeServer) -> Iterator[None]:
    """Run a loop such as the supervisor's on a thread."""
    reader, writer = os.pipe()

    def loop() -> None:
        while reader not in select.select([server.fileno(), reader], [], [], 0.2)[0]:
            server.handle()
            server.tick()

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        os.write(writer, b"x")
        thread.join()
        os.close(reader)
        os.close(writer)


def test_foreign_clients_are_served() -> None:
    reasons: list[str] = []
    with ff.bind("tcp://127.0.0.1:0") as listener:
        metrics = Metrics()
        metrics.component("web", wanted=2)
        base = "http://{}:{}".format(*listener.getsockname())
        render = Exposition(metrics).render
        with ScrapeServer(listener, render, lambda: reasons) as server, served(server):
            with urllib.request.urlopen(f"{base}/metrics?x=1") as answer:
                text = answer.read().decode()
                assert "version=0.0.4" in answer.headers["Content-Type"]
            read = {f.name: f for f in parser.text_string_to_metric_families(text)}
            assert read["forkfd_workers_wanted"].samples[0].value == 2
            accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
            with urllib.request.urlopen(
                urllib.request.Request(f"{base}/metrics", None, accept)
            ) as a:
                assert a.read().endswith(b"# EOF\n")
            with urllib.request.urlopen(f"{base}/healthz") as answer:
                assert (answer.status, answer.read()) == (200, b"ok\n")
            reasons += ["web", "crypto"]
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(f"{base}/healthz")
            assert caught.value.code == 503
            assert caught.value.read() == b"degraded: web, crypto\n"
            caught.value.close()
            client = http.client.HTTPConnection(*listener.getsockname())
            for method, path, status in (
                ("HEAD", "/metrics", 200),
                ("POST", "/metrics", 405),
                ("GET", "/", 404),
                ("GET", "/metrics/", 404),
            ):
                client.request(method, path, body=b"x" * 3000 if method == "POST" else None)
                answer = client.getresponse()
                assert answer.status == status
                assert (answer.read() == b"") == (method == "HEAD")
            client.close()


def test_a_request_may_come_in_any_parts(page: Page) -> None:
    whole = page.get()
    assert whole.startswith(b"HTTP/1.1 200 OK\r\n") and whole.endswith(b"\r\n\r\n# nothing\n")
    client = page.connect()
    for at in range(len(REQUEST)):
        client.send(REQUEST[at : at + 1])
        page.turn()
    assert client.makefile("rb").read() == whole


def test_a_large_answer_waits_for_its_reader_and_delays_no_other(page: Page) -> None:
    page.body = LARGE
    slow = page.connect(REQUEST)
    page.turn()
    page.body = b"small\n"
    assert page.get().endswith(b"\r\n\r\nsmall\n")
    page.turn_until(lambda: len(page.server) == 1)
    assert page.read(slow).partition(b"\r\n\r\n")[2] == LARGE


@pytest.mark.parametrize("sent", [b"", b"GET /metrics HTTP/1.1\r\n", REQUEST])
def test_a_slow_client_is_dropped_after_its_time(page: Page, sent: bytes) -> None:
    page.body = LARGE
    client = page.connect(sent)
    page.turn_until(lambda: len(page.server) == 1)
    page.now += PATIENCE - 0.01
    page.server.tick()
    assert len(page.server) == 1
    page.now += 0.01
    page.server.tick()
    assert len(page.server) == 0
    with contextlib.suppress(ConnectionResetError):
        while client.recv(65536):
            pass  # to the end: the server has closed


def test_connections_are_bounded_and_the_oldest_is_dropped_first(page: Page) -> None:
    clients = []
    for _ in range(MAX_CONNECTIONS + 3):
        clients.append(page.connect(b"GET "))
        page.turn()
    assert len(page.server) == MAX_CONNECTIONS
    for client in clients[:3]:
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""
    for client in clients[3:]:
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.recv(1)
    assert b"200 OK" in page.get()


def test_a_client_that_sends_without_end_is_cut_off(page: Page) -> None:
    assert page.get(b"GET / HTTP/1.1\r\nA: " + b"a" * MAX_HEAD).startswith(b"HTTP/1.1 431 ")
    client = page.connect(REQUEST)
    page.turn()
    client.setblocking(False)

    def send_on() -> None:
        for _ in range(20 * _server._MAX_IGNORED // 4000):
            with contextlib.suppress(BlockingIOError):
                client.send(b"more" * 1000)
            page.turn()

    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        send_on()
    assert len(page.server) == 0


def test_a_client_that_closes_at_any_moment_leaves_nothing(page: Page) -> None:
    page.body = LARGE
    for sent in (b"", b"GET", REQUEST):
        for abort in (False, True):
            client = page.connect(sent)
            page.turn()
            if abort:  # a reset, where there are such
                linger = struct.pack("ii", 1, 0)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            client.close()
            page.turn_until(lambda: len(page.server) == 0)


def test_a_descriptor_is_missing_for_a_while_only(page: Page) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    client = page.connect(REQUEST)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        page.server.handle()
        assert len(page.server) == 0
        # The listener does not keep the loop busy meanwhile.
        assert select.select([page.server], [], [], 0)[0] == []
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    page.server.tick()
    page.turn()
    client.shutdown(socket.SHUT_WR)
    page.turn()
    assert client.makefile("rb").read().startswith(b"HTTP/1.1 200 OK")


def test_a_flood_leaves_time_to_the_loop(page: Page) -> None:
    for _ in range(2 * _server._ACCEPTS + 1):
        page.connect()
    page.server.handle()
    assert len(page.server) <= MAX_CONNECTIONS
    assert select.select([page.server], [], [], 0)[0]  # the rest waits for the next turn
    page.turn()


def test_a_collector_that_fails_is_an_answer(page: Page) -> None:
    def fail(accept: str) -> tuple[str, bytes]:
        raise ZeroDivisionError("of a collector")

    page.server._render = fail
    assert b"/metrics: ZeroDivisionError: of a collector\n" in page.get()


def test_closing_closes_everything(page: Page) -> None:
    client = page.connect(b"GET")
    page.turn()
    page.server.close()
    page.server.close()
    assert client.recv(1) == b""
    with pytest.raises(OSError):
        page.connect()


def test_a_listener_that_is_closed_is_an_error() -> None:
    listener = ff.bind("tcp://127.0.0.1:0")
    listener.close()
    with pytest.raises(OSError):
        ScrapeServer(listener, lambda accept: ("", b""), list)


@given(
    st.binary(max_size=200) | st.binary(max_size=50).map(lambda b: REQUEST[:-2] + b + b"\r\n\r\n")
)
def test_any_bytes_are_a_request_or_refused(sent: bytes) -> None:
    found = parse(sent)
    if b"\r\n\r\n" not in sent:
        assert found is None
    elif isinstance(found, Answer):
        assert found.status == 400
    else:
        assert isinstance(found, Request)
    # The result does not depend on the parts in which it arrives.
    assert all(parse(sent[:n]) is None for n in range(sent.find(b"\r\n\r\n") + 4))


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /metrics", 400),
        (b"GET /metrics HTTP/2", 400),
        (b"GET  /metrics HTTP/1.1", 400),
        (b"GET /metrics HTTP/1.1\r\nno colon", 400),
        (b"GET /metrics HTTP/1.1\r\nAccept : x", 400),
        (b"GET /metrics HTTP/1.1\r\n: x", 400),
    ],
)
def test_a_malformed_request_is_refused(head: bytes, status: int) -> None:
    found = parse(head + b"\r\n\r\n")
    assert isinstance(found, Answer) and found.status == status


def test_headers_of_one_name_are_one_list() -> None:
    found = parse(b"GET /a?b HTTP/1.0\r\naccept: x\r\nACCEPT:y;q=1\r\n\r\nrest")
    assert found == Request(method="GET", path="/a", accept="x,y;q=1")

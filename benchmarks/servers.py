"""Servers of three workers, each started and reloaded as documented by its authors."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyforkfd as ff

WORKERS = 3
STALE = 5  # seconds after which a blocked worker is stale, where that can be configured
PATIENCE = 30.0

ASGI = """
import os
import time

def a_handler_that_blocks():
    time.sleep(600)

async def app(scope, receive, send):
    if scope["type"] != "http":
        raise NotImplementedError
    if scope["path"] == "/block":
        a_handler_that_blocks()
    body = b"%d" % os.getpid()
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
"""
WSGI = """
import os

def app(environ, start_response):
    body = b"%d" % os.getpid()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""
BROKEN = 'raise RuntimeError("a broken deploy")\n'
TOML = """
name = "bench"
[listeners.web]
address = "tcp://127.0.0.1:{port}"
[zygotes.python]
preload = ["application"]
[components.web]
function = "pyforkfd.supervisor.{kind}:serve"
kwargs = {kwargs}
zygote = "python"
workers = {workers}
listen = ["web"]
heartbeat = {{ stale_after = {stale} }}
stdout = "inherit"
stderr = "inherit"
"""

Command = Callable[[int], list[str]]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of server.

    Attributes:
        name: of its row.
        command: port -> the command that starts it.
        wsgi: it has threads, and no loop that could be blocked.
        ours: keyword arguments of the recipe, for a server under our supervisor.
    """

    name: str
    command: Command
    wsgi: bool = False
    ours: str = ""


def _python(*arguments: str) -> list[str]:
    return [sys.executable, "-m", *arguments]


def _gunicorn(*arguments: str) -> Command:
    options = [f"--workers={WORKERS}", f"--timeout={STALE}", "--log-level=warning", *arguments]
    return lambda port: _python("gunicorn", f"--bind=127.0.0.1:{port}", *options, "application:app")


def _ours(port: int) -> list[str]:
    return _python("pyforkfd", "serve", "service.toml")


KINDS = (
    Kind(
        "uvicorn",
        lambda port: _python(
            *("uvicorn", f"--port={port}", f"--workers={WORKERS}", "--no-access-log"),
            *("--log-level=warning", "application:app"),
        ),
    ),
    Kind("gunicorn (uvicorn)", _gunicorn("--worker-class=uvicorn.workers.UvicornWorker")),
    Kind("gunicorn (asgi)", _gunicorn("--worker-class=asgi")),
    Kind("gunicorn (gthread)", _gunicorn("--worker-class=gthread", "--threads=4"), wsgi=True),
    Kind(
        "granian",
        lambda port: _python(
            *("granian", "--interface=asgi", f"--port={port}", f"--workers={WORKERS}"),
            *("--log-level=warning", "application:app"),
        ),
    ),
    Kind(
        "pyforkfd (uvicorn)",
        _ours,
        ours='{ app = "application:app", access_log = false, log_level = "warning" }',
    ),
    Kind(
        "pyforkfd (gunicorn)",
        _ours,
        wsgi=True,
        ours='{ app = "application:app", threads = 4, loglevel = "warning" }',
    ),
)


class Server:
    """A running server.

    Attributes:
        port: of its listener, on the loopback interface.
        process: its master.
        log: path of the output of master and workers.
    """

    def __init__(self, kind: Kind, directory: Path) -> None:
        self.kind = kind
        self._directory = directory
        self.port = free_port()
        self.log = directory / f"log-{self.port}"
        self.deploy(broken=False)
        if kind.ours:
            text = TOML.format(
                port=self.port,
                kind="wsgi" if kind.wsgi else "asgi",
                kwargs=kind.ours,
                workers=WORKERS,
                stale=STALE,
            )
            (directory / "service.toml").write_text(text)
        path = {"PYTHONPATH": str(directory), "PYTHONWARNINGS": "ignore"}
        with open(self.log, "wb") as log:
            self.process = ff.spawn(
                kind.command(self.port),
                fds={1: log, 2: log},
                cwd=directory,
                env={**os.environ, **path},
                process_group=0,
            )

    def deploy(self, *, broken: bool) -> None:
        """Write the application that the next reload imports."""
        text = BROKEN if broken else WSGI if self.kind.wsgi else ASGI
        path = self._directory / "application.py"
        new = path.with_suffix(".new")
        new.write_text(text)
        # Python compares only name and time to decide whether cached code is of another file.
        stamp = time.time() - (5 if broken else 0)
        os.utime(new, (stamp, stamp))
        new.replace(path)

    def reload(self) -> None:
        self.process.send_signal(signal.SIGHUP)

    def request_pid(self, timeout: float = 5.0) -> int | None:
        """As :func:`request_pid`."""
        return request_pid(self.port, timeout)

    def all_answer(self, but: set[int], patience: float) -> set[int] | None:
        """Wait until all workers answer, and none of these pids.

        Returns:
            The workers' pids; None if time ran out.
        """
        seen: set[int] = set()
        streak = 0
        end = time.monotonic() + patience
        while time.monotonic() < end:
            pid = self.request_pid()
            if pid is None or pid in but:
                seen, streak = set(), 0
            else:
                seen.add(pid)
                streak += 1
            # A worker that is seldom chosen may be missed; so many answers in a row are enough.
            if streak >= 20 and (len(seen) >= WORKERS or streak >= 200):
                return seen
            time.sleep(0.005)
        return None

    def tree(self) -> list[int]:
        """Return the master's descendants, from /proc."""
        found, waiting = [], [self.process.pid]
        while waiting:
            pid = waiting.pop()
            for task in Path(f"/proc/{pid}/task").glob("*/children"):
                children = [int(child) for child in task.read_text().split()]
                found += children
                waiting += children
        return found

    def close(self) -> None:
        """Kill the master and all that is left of its processes."""
        pids = self.tree()
        self.process.kill()
        self.process.wait()
        self.process.close()
        kill(pids)


@contextmanager
def running(kind: Kind, directory: Path) -> Iterator[Server]:
    server = Server(kind, directory)
    try:
        if server.all_answer(set(), PATIENCE) is None:
            raise RuntimeError(f"{kind.name} does not start:\n{server.log.read_text()}")
        yield server
    finally:
        server.close()


def request_pid(port: int, timeout: float = 5.0) -> int | None:
    """Return the pid of the worker that answers a new connection; None if none does."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=timeout) as sock:
            return answer(sock)
    except OSError:
        return None


def all_workers(port: int) -> list[int]:
    """Wait until all workers have answered, and return their pids.

    Raises:
        TimeoutError: some did not answer.
    """
    seen: set[int] = set()
    end = time.monotonic() + PATIENCE
    while len(seen) < WORKERS:
        if (pid := request_pid(port)) is not None:
            seen.add(pid)
        if time.monotonic() > end:
            raise TimeoutError(f"port {port}: of {WORKERS} workers, only {seen} answer")
    return sorted(seen)


def answer(sock: socket.socket) -> int | None:
    """Send a request, and return the pid of the answer; None if the connection was closed."""
    sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    received = b""
    while data := sock.recv(65536):
        received += data
    head, _, body = received.partition(b"\r\n\r\n")
    return int(body) if head.startswith(b"HTTP/1.1 200") and body else None


def alive(pids: list[int]) -> list[int]:
    """Return those processes that have not ended; a zombie has."""
    living = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state not in "ZX":
            living.append(pid)
    return living


def kill(pids: list[int]) -> None:
    for pid in alive(pids):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port

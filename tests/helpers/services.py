"""Services that tests run: a supervisor as a child, its log line by line, clients for it."""

from __future__ import annotations

import http.client
import itertools
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Self

from clients import http_load
from processes import descendants, kill

import pyforkfd as ff

PATIENCE = 60.0

_RUNNER = Path(__file__).with_name("run_service.py")


class Lines:
    """The lines that a program writes, read by a thread."""

    def __init__(self, source: int) -> None:
        """Read from a descriptor, which this object owns from now on."""
        self._lines: list[str] = []
        self._seen = 0
        self._changed = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._read, args=(source,), name="lines")
        self._thread.start()

    def _read(self, source: int) -> None:
        with open(source, errors="replace") as file:
            for line in file:
                with self._changed:
                    self._lines.append(line.rstrip("\n"))
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wait_for(self, pattern: str, *, count: int = 1, after: int = 0) -> re.Match[str]:
        """Wait for the ``count``-th line with this pattern, after the first ``after`` lines."""
        return self._wait_for(pattern, count, after)[1]

    def next(self, pattern: str) -> re.Match[str]:
        """Wait for the next line with this pattern, after the line that was found last."""
        self._seen, match = self._wait_for(pattern, 1, self._seen)
        return match

    def _wait_for(self, pattern: str, count: int, after: int) -> tuple[int, re.Match[str]]:
        def find() -> tuple[int, re.Match[str]] | None:
            lines = enumerate(self._lines[after:], after + 1)
            hits = ((number, m) for number, line in lines if (m := re.search(pattern, line)))
            return next(itertools.islice(hits, count - 1, None), None)

        with self._changed:
            self._changed.wait_for(lambda: find() or self._ended, PATIENCE)
            found = find()
        assert found, f"no {pattern!r} ({count}) in:\n" + self.text()
        return found

    def __len__(self) -> int:
        with self._changed:
            return len(self._lines)

    def text(self, after: int = 0) -> str:
        with self._changed:
            return "\n".join(self._lines[after:])

    def join(self) -> None:
        self._thread.join()


class Service:
    """A supervisor in a process of its own.

    A context manager: at its end the supervisor and all its descendants end.

    Attributes:
        process: the supervisor, or its keeper.
        directory: where it runs.
        log: lines of the supervisor, and of workers whose output it does not capture.
    """

    def __init__(
        self,
        command: Sequence[ff.StrPath],
        directory: Path,
        *,
        env: Mapping[str, str] | None = None,
        fds: Mapping[int, ff.FdSource] | None = None,
        listen: Mapping[str, ff.HasFileno] | None = None,
        cgroup: Path | None = None,
        seccomp: bytes | None = None,
    ) -> None:
        """Start the supervisor.

        Args:
            command: of the supervisor.
            directory: where it runs.
            env: variables on top of ours.
            fds: as for :class:`ff.Command`, with one pipe; None: standard output and error.
            listen: as for :class:`ff.Command`.
            cgroup: where it is started.
            seccomp: a filter that it is started with.
        """
        self.directory = directory
        self.process = ff.spawn(
            command,
            cwd=directory,
            env={**os.environ, **(env or {})},
            fds=fds or {1: ff.PIPE, 2: ff.STDOUT},
            listen=listen,
            process_group=0,
            cgroup=cgroup,
            seccomp=seccomp,
            no_new_privs=seccomp is not None,
        )
        (pipe,) = self.process.pipes.values()
        self.log = Lines(os.dup(pipe.fileno()))

    def wait(self) -> int:
        """Wait until it has ended and its log is read, and return the exit code."""
        status = self.process.wait(timeout=PATIENCE)
        self.log.join()
        assert status.code is not None, f"{status}\n{self.log.text()}"
        return status.code

    def stop(self) -> None:
        """Stop the service by SIGTERM; its exit code must be 0."""
        self.process.terminate()
        assert self.wait() == 0, self.log.text()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        try:
            if kind is None and self.process.poll() is None:
                self.stop()
        finally:
            if self.process.poll() is None:
                for pid in descendants(self.process.pid):
                    kill(pid)
                self.process.kill()
                self.process.wait()
            self.process.close()
            self.log.join()


class Running(Service):
    """A service of :file:`run_service.py`.

    Attributes:
        port: of its listener.
        config: path of its configuration.
    """

    port: int
    config: Path

    def reload(self) -> None:
        """Reload, and wait until the new generation serves."""
        after = len(self.log)
        self.process.send_signal(signal.SIGHUP)
        self.log.wait_for(r"generation \d+ serves", after=after)

    def connect(self) -> http.client.HTTPConnection:
        """Connect a client, which the caller closes."""
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        client.connect()
        return client

    def get(self, path: str = "/") -> bytes:
        """Send one request on a connection of its own, and return the answer's body."""
        client = self.connect()
        try:
            return fetch(client, path)[0]
        finally:
            client.close()

    def get_until(self, pattern: bytes) -> None:
        """Send requests on new connections until an answer has this pattern.

        Orders to workers take effect a moment later.
        """
        end = time.monotonic() + PATIENCE
        while not re.search(pattern, body := self.get()):
            assert time.monotonic() < end, f"the last answer is {body!r}, without {pattern!r}"


def fetch(client: http.client.HTTPConnection, path: str = "/") -> tuple[bytes, bool]:
    """Send a request, and return the answer's body and whether the connection stays."""
    client.request("GET", path)
    answer = client.getresponse()
    body = answer.read()
    assert answer.status == 200, (answer.status, body)
    return body, not answer.will_close


@contextmanager
def service(
    directory: Path,
    config: str,
    *,
    ready: int = 1,
    env: Mapping[str, str] | None = None,
    cgroup: Path | None = None,
) -> Iterator[Running]:
    """Run a supervisor; stop it at the end, if it still runs.

    Args:
        directory: of the configuration, and of the workers' modules.
        config: TOML; the listener of address "systemd:web" is ours.
        ready: how many workers to wait for.
        env: variables on top of ours.
        cgroup: in which the supervisor is started.
    """
    path = directory / "service.toml"
    path.write_text(config)
    with ff.bind("tcp://127.0.0.1:0") as listener:
        running = Running(
            [sys.executable, _RUNNER, path],
            directory,
            listen={"web": listener},
            env={"PYTHONPATH": str(directory), **(env or {})},
            cgroup=cgroup,
        )
        running.port, running.config = listener.getsockname()[1], path
    with running:
        running.log.wait_for("ready after", count=ready)
        yield running


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """Return a port of the loopback interface that is free now."""
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def raw(port: int) -> socket.socket:
    """Connect, and send nothing."""
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)


def until_last(client: http.client.HTTPConnection) -> set[bytes]:
    """Send requests until an answer closes the connection; return all answers' first words.

    The worker may receive one more request before it receives the order to leave.
    """
    bodies = set()
    stays = True
    while stays:
        body, stays = fetch(client)
        bodies.add(body.split()[0])
        assert client.sock is not None or not stays  # http.client would connect anew
    client.close()
    return bodies


def load(port: int) -> AbstractContextManager[dict[str, Any]]:
    """Run HTTP clients until the end of the block; then the dictionary has their counts."""
    return http_load(port, keep_alive=8, new=2)

"""Services that tests run: a supervisor as a child, its log line by line, clients for it."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyforkfd as ff

PATIENCE = 60.0
_LOAD = Path(__file__).parents[2] / "benchmarks" / "http_load.py"
_RUNNER = Path(__file__).with_name("run_service.py")


class Lines:
    """What a program writes, as it comes, from a thread."""

    def __init__(self, source: int) -> None:
        """Read from a descriptor that is taken."""
        self._lines: list[str] = []
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
        """The ``count``-th line after the first ``after`` lines in which the pattern is."""

        def found() -> re.Match[str] | None:
            hits = [m for line in self._lines[after:] if (m := re.search(pattern, line))]
            return hits[count - 1] if len(hits) >= count else None

        with self._changed:
            self._changed.wait_for(lambda: found() or self._ended, PATIENCE)
            match = found()
        assert match, f"no {pattern!r} ({count}) in:\n" + self.text()
        return match

    def __len__(self) -> int:
        with self._changed:
            return len(self._lines)

    def text(self, after: int = 0) -> str:
        with self._changed:
            return "\n".join(self._lines[after:])

    def join(self) -> None:
        self._thread.join()


class Running:
    """A supervisor that runs.

    Attributes:
        process: its.
        log: what it and its workers have written.
        port: of its listener.
        config: path of its configuration.
    """

    def __init__(self, process: ff.Process, log: Lines, port: int, config: Path) -> None:
        self.process = process
        self.log = log
        self.port = port
        self.config = config

    def reload(self) -> None:
        """Reload, and wait until the new generation serves."""
        after = len(self.log)
        self.process.send_signal(signal.SIGHUP)
        self.log.wait_for(r"generation \d+ serves", after=after)

    def connect(self) -> http.client.HTTPConnection:
        """A client of its own; to be closed."""
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        client.connect()
        return client

    def get(self, path: str = "/") -> bytes:
        """One request on a connection of its own."""
        client = self.connect()
        try:
            return ask(client, path)[0]
        finally:
            client.close()

    def get_until(self, pattern: bytes) -> None:
        """Ask on new connections until an answer has this: an order takes effect in a moment."""
        end = time.monotonic() + PATIENCE
        while not re.search(pattern, body := self.get()):
            assert time.monotonic() < end, f"the last answer is {body!r}, without {pattern!r}"

    def stop(self) -> None:
        """Stop it in good order."""
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(timeout=PATIENCE)
        assert status.success, f"{status}\n{self.log.text()}"


def ask(client: http.client.HTTPConnection, path: str = "/") -> tuple[bytes, bool]:
    """The body of the answer, and whether the connection stays."""
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
    """Run a supervisor until it has been stopped; it is stopped if nobody has done so.

    Args:
        directory: where its configuration is put, and where its workers find modules.
        config: TOML; the listener of address "systemd:web" is ours.
        ready: wait until so many workers are.
        env: variables on top of ours.
        cgroup: where the supervisor is started.
    """
    path = directory / "service.toml"
    path.write_text(config)
    with ff.bind("tcp://127.0.0.1:0") as listener:
        port = listener.getsockname()[1]
        process = ff.spawn(
            [sys.executable, _RUNNER, path],
            listen={"web": listener},
            fds={1: ff.PIPE, 2: ff.STDOUT},
            cwd=directory,
            env={**os.environ, "PYTHONPATH": str(directory), **(env or {})},
            cgroup=cgroup,
        )
    log = Lines(os.dup(process.pipes[1].fileno()))
    running = Running(process, log, port, path)
    try:
        log.wait_for("ready after", count=ready)
        yield running
        if process.poll() is None:
            running.stop()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.close()
        log.join()


def raw(port: int) -> socket.socket:
    """A connection that says nothing yet."""
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)


def until_last(client: http.client.HTTPConnection) -> set[bytes]:
    """Ask until an answer says that it was the last; the first words of all of them.

    The worker may be asked once more before it is told to leave.
    """
    bodies = set()
    stays = True
    while stays:
        body, stays = ask(client)
        bodies.add(body.split()[0])
        assert client.sock is not None or not stays  # http.client would connect anew
    client.close()
    return bodies


@contextmanager
def load(port: int) -> Iterator[dict[str, Any]]:
    """Clients that never stop, benchmarks/http_load.py; at the end, what they counted."""
    process = subprocess.Popen(
        [sys.executable, _LOAD, str(port), "--kept=8", "--new=2"],
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

"""A supervisor in a process of its own, known by what it logs."""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

HERE = Path(__file__).parent
_PATIENCE = 30.0


class Running:
    """A service of :file:`serve.py`.  A context manager that ends it and all that is left.

    Attributes:
        main: the process that was started: the supervisor, or its keeper.
        supervisor: the pid of whoever logged last.
        lines: all that was logged.
    """

    def __init__(self, config: Path, program: Sequence[str] | None = None) -> None:
        command = [sys.executable, os.fspath(HERE / "serve.py")] if program is None else program
        self.main = subprocess.Popen(
            [*command, os.fspath(config)],
            stderr=subprocess.PIPE,
            cwd=config.parent,
            process_group=0,
        )
        assert self.main.stderr is not None
        self._stderr = self.main.stderr.fileno()
        self._rest = b""
        self.lines: list[str] = []
        self._seen = 0
        self.supervisor = self.main.pid

    def wait_for(self, pattern: str) -> re.Match[str]:
        """The next line in which it is found, after the last that was found."""
        until = time.monotonic() + _PATIENCE
        while True:
            while self._seen < len(self.lines):
                line = self.lines[self._seen]
                self._seen += 1
                if match := re.search(pattern, line):
                    if found := re.match("([0-9]+) ", line):
                        self.supervisor = int(found[1])
                    return match
            left = until - time.monotonic()
            if left <= 0 or not self._read(left):
                raise AssertionError(f"no line with {pattern!r}:\n" + "\n".join(self.lines))

    def _read(self, timeout: float) -> bool:
        if not select.select([self._stderr], [], [], timeout)[0]:
            return False
        data = os.read(self._stderr, 65536)
        *lines, self._rest = (self._rest + data).split(b"\n")
        self.lines.extend(line.decode() for line in lines)
        return bool(data)

    def workers(self, count: int) -> None:
        """Wait until so many more are ready."""
        for _ in range(count):
            self.wait_for("ready after")

    def kill(self) -> None:
        """SIGKILL to the supervisor."""
        os.kill(self.supervisor, signal.SIGKILL)

    def stop(self) -> int:
        """Have it end in order; returns the exit code."""
        self.main.terminate()
        return self.main.wait(_PATIENCE)

    def __enter__(self) -> Running:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.main.poll() is None:
            for pid in descendants(self.main.pid):
                _kill(pid)
            self.main.kill()
        self.main.wait()
        assert self.main.stderr is not None
        self.main.stderr.close()


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def children(pid: int) -> set[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return set()
    return {int(word) for word in text.split()}


def descendants(pid: int) -> set[int]:
    below = children(pid)
    return below.union(*(descendants(child) for child in below))


def alive(pid: int) -> bool:
    """It has not ended, whether or not it was reaped."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat[stat.rindex(")") + 2] != "Z"


def descriptors(pid: int) -> dict[int, str]:
    """What a process has open, but for numbers that differ from one moment to the next."""
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
        except FileNotFoundError:
            pass
    return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


START = f'command = ["{sys.executable}", "-S", "{HERE / "pid_server.py"}"]'


def config(path: Path, *, keeper: bool = False, workers: int = 2, start: str = START) -> int:
    """A service of pid_server.py; returns its port."""
    port = free_port()
    write(path, port, keeper=keeper, workers=workers, start=start)
    return port


def write(path: Path, port: int, *, keeper: bool, workers: int = 2, start: str = START) -> None:
    path.write_text(
        f"""
name = "test"
keeper = {str(keeper).lower()}
[listeners.http]
address = "tcp://127.0.0.1:{port}"
[components.web]
{start}
workers = {workers}
listen = ["http"]
cgroup = "off"
stdout = "inherit"
stderr = "inherit"
"""
    )

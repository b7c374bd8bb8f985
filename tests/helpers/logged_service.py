"""Services of pid_server.py: a supervisor, and perhaps its keeper, followed by its log."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from services import Service, free_port

import pyforkfd as ff

HERE = Path(__file__).parent


class LoggedService(Service):
    """A service of :file:`serve.py`; ``process`` is the supervisor, or its keeper.

    Attributes:
        supervisor: the pid of the process that logged last.
    """

    def __init__(
        self, config: Path, program: Sequence[str] | None = None, *, cgroup: Path | None = None
    ) -> None:
        command = [sys.executable, HERE / "serve.py"] if program is None else program
        # Supervisors log to standard error, with their pid.
        super().__init__([*command, config], config.parent, fds={2: ff.PIPE}, cgroup=cgroup)
        self.supervisor = self.process.pid

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait for the next line with this pattern, after the line that was found last."""
        match = self.log.next(pattern)
        if found := re.match("([0-9]+) ", match.string):
            self.supervisor = int(found[1])
        return match

    def ready(self, count: int) -> None:
        """Wait until so many more workers are ready."""
        for _ in range(count):
            self.wait_for("ready after")

    def kill(self) -> None:
        """Send SIGKILL to the supervisor."""
        os.kill(self.supervisor, signal.SIGKILL)


START = f'command = ["{sys.executable}", "-S", "{HERE / "pid_server.py"}"]'


def config(path: Path, *, keeper: bool = False, workers: int = 2, start: str = START) -> int:
    """Write the configuration of a service of pid_server.py, and return its port."""
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

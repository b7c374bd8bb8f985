"""A service under ``pyforkfd serve``, in a process of its own, with a service manager."""

from __future__ import annotations

import os
import re
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import clients
from services import PATIENCE, Service

from pyforkfd.supervisor.control._client import ControlClient

SERVER = Path(__file__).with_name("tiny_server.py")


class Manager:
    """The service manager's end of NOTIFY_SOCKET.

    Attributes:
        path: of the socket.
        messages: that were received, oldest first.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.messages: list[dict[str, str]] = []
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(str(path))
        path.chmod(0o666)

    def until(self, pidfd: int, wanted: Callable[[dict[str, str]], object]) -> dict[str, str]:
        """Receive messages until one matches, and return it.

        Raises:
            TimeoutError: it did not come in time, or the process has ended.
        """
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        poll.register(pidfd, select.POLLIN)
        deadline = time.monotonic() + PATIENCE
        while True:
            ready = [fd for fd, _ in poll.poll(max(0.0, deadline - time.monotonic()) * 1000)]
            if self._sock.fileno() not in ready:
                raise TimeoutError("the service has ended" if ready else "no message came")
            text = self._sock.recv(4096).decode()
            self.messages.append(dict(line.split("=", 1) for line in text.splitlines()))
            if wanted(self.messages[-1]):
                return self.messages[-1]

    def close(self) -> None:
        self._sock.close()
        self.path.unlink(missing_ok=True)


class Supervised(Service):
    """A service of ``pyforkfd serve`` that notifies a service manager."""

    def __init__(
        self,
        directory: Path,
        config: str | None = None,
        *,
        arguments: Sequence[str] = (),
        prefix: Sequence[str] = (),
        env: dict[str, str] | None = None,
        seccomp: bytes | None = None,
    ) -> None:
        self.config = directory / "service.toml"
        self.control = directory / "control"
        what = list(arguments)
        if config is not None:
            self.config.write_text(config)
            what = [str(self.config)]
        command = [sys.executable, "-P", "-m", "pyforkfd", "serve", "--control", str(self.control)]
        self.manager = Manager(directory / "manager")
        try:
            manager = {"NOTIFY_SOCKET": str(self.manager.path)}
            super().__init__(
                [*prefix, *command, *what],
                directory,
                env=manager | (env or {}),
                seccomp=seccomp,
            )
        except BaseException:
            self.manager.close()
            raise

    def until(self, pattern: str) -> str:
        """Wait for a status line with this pattern, and return it."""
        return self.notified(lambda message: re.search(pattern, message.get("STATUS", "")))[
            "STATUS"
        ]

    def notified(self, wanted: Callable[[dict[str, str]], object]) -> dict[str, str]:
        """Wait for a message to the service manager, and return it."""
        pidfd = os.pidfd_open(self.process.pid)
        try:
            return self.manager.until(pidfd, wanted)
        except TimeoutError as error:
            raise AssertionError(f"{error}: {self.manager.messages}\n{self.log.text()}") from None
        finally:
            os.close(pidfd)

    def client(self) -> ControlClient:
        return ControlClient(str(self.control))

    def command(self, name: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the command line on this service."""
        return subprocess.run(
            [sys.executable, "-P", "-m", "pyforkfd", name, "--control", str(self.control), *words],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def workers(self, component: str | None = None) -> list[dict[str, Any]]:
        with self.client() as client:
            found = client.request("status")["status"]["components"]
        return [
            worker for one in found for worker in one["workers"] if component in (None, one["name"])
        ]

    def __exit__(self, *exception: object) -> None:
        try:
            super().__exit__(*exception)
        finally:
            self.manager.close()


class Load(clients.Load):
    """Clients of tiny_server.py, which make a connection for each request."""

    def __init__(self, address: clients.Address) -> None:
        super().__init__(address, keep_alive=0, new=4)


def fetch(address: tuple[str, int] | str) -> str:
    """Send one request on a connection of its own, and return the answer."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(address)
        sock.sendall(b"?")
        return sock.recv(100).decode()


def toml(
    port: int, *, answer: str = "one", how: Sequence[str] = (), more: str = "", head: str = ""
) -> str:
    """Return the configuration of a service of one component, "web", on a TCP port."""
    command = [sys.executable, "-S", str(SERVER), answer, *how]
    return f"""
{head}
[listeners.http]
address = "tcp://127.0.0.1:{port}"
[components.web]
command = {command!r}
listen = ["http"]
workers = 2
{more}
"""

"""A service under ``pyforkfd serve``, in a process of its own, watched as systemd would."""

from __future__ import annotations

import os
import re
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from services import PATIENCE, Service

from pyforkfd.supervisor.control._client import ControlClient

SERVER = Path(__file__).with_name("tiny_server.py")


class Manager:
    """NOTIFY_SOCKET, the other end: what a service says of itself, as it says it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.said: list[dict[str, str]] = []
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(str(path))
        path.chmod(0o666)

    def until(self, pidfd: int, wanted: Callable[[dict[str, str]], object]) -> dict[str, str]:
        """The first message that is wanted.

        Raises:
            TimeoutError: it did not come, and will not if the process has ended.
        """
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        poll.register(pidfd, select.POLLIN)
        deadline = time.monotonic() + PATIENCE
        while True:
            ready = [fd for fd, _ in poll.poll(max(0.0, deadline - time.monotonic()) * 1000)]
            if self._sock.fileno() not in ready:
                raise TimeoutError("it has ended" if ready else "nothing came")
            text = self._sock.recv(4096).decode()
            self.said.append(dict(line.split("=", 1) for line in text.splitlines()))
            if wanted(self.said[-1]):
                return self.said[-1]

    def close(self) -> None:
        self._sock.close()
        self.path.unlink(missing_ok=True)


class Supervised(Service):
    """A service of ``pyforkfd serve``, which has a manager."""

    def __init__(
        self,
        directory: Path,
        config: str | None = None,
        *,
        arguments: Sequence[str] = (),
        prefix: Sequence[str] = (),
        env: dict[str, str] | None = None,
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
            super().__init__([*prefix, *command, *what], directory, env=manager | (env or {}))
        except BaseException:
            self.manager.close()
            raise

    def until(self, pattern: str) -> str:
        """Wait until it describes itself so; its status line."""
        return self.told(lambda said: re.search(pattern, said.get("STATUS", "")))["STATUS"]

    def told(self, wanted: Callable[[dict[str, str]], object]) -> dict[str, str]:
        """Wait for what it tells its manager."""
        pidfd = os.pidfd_open(self.process.pid)
        try:
            return self.manager.until(pidfd, wanted)
        except TimeoutError as error:
            raise AssertionError(f"{error}: {self.manager.said}\n{self.log.text()}") from None
        finally:
            os.close(pidfd)

    def client(self) -> ControlClient:
        return ControlClient(str(self.control))

    def command(self, name: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the command line on it."""
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


class Load:
    """Clients that make a connection for each request, until the block ends."""

    def __init__(self, address: tuple[str, int] | str, *, clients: int = 4) -> None:
        self._address = address
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]
        self._changed = threading.Condition()
        self.answers: list[str] = []
        self.failures: list[str] = []

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def more(self, count: int = 100) -> None:
        """Wait until so many more requests were made."""
        with self._changed:
            goal = len(self.answers) + len(self.failures) + count
            assert self._changed.wait_for(
                lambda: len(self.answers) + len(self.failures) >= goal, PATIENCE
            )

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                answer = ask(self._address)
                failure = "" if answer else "closed without an answer"
            except OSError as error:
                answer, failure = "", str(error)
            with self._changed:
                if failure:
                    self.failures.append(failure)
                else:
                    self.answers.append(answer)
                self._changed.notify_all()


def ask(address: tuple[str, int] | str) -> str:
    """One request."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(address)
        sock.sendall(b"?")
        return sock.recv(100).decode()


def toml(
    port: int, *, answer: str = "one", how: Sequence[str] = (), more: str = "", head: str = ""
) -> str:
    """A service of one component, "web", on a TCP port."""
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

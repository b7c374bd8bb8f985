"""php-fpm under the library for LD_PRELOAD: SIGUSR2 has it execute itself in its own place."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from children import needs_root
from leaks import gone as reached
from preloaded import Preloaded
from tools import tool

import pyforkfd as ff

PR_SET_CHILD_SUBREAPER = 36
CONFIG = """
[global]
pid = {folder}/pid
error_log = {folder}/log
daemonize = {daemonize}
[www]
user = root
group = root
listen = 127.0.0.1:{port}
ping.path = /ping
pm = static
pm.max_children = 1
"""


def record(kind: int, content: bytes) -> bytes:
    return bytes([1, kind, 0, 1]) + len(content).to_bytes(2, "big") + b"\0\0" + content


def ping(port: int) -> bool:
    """Whether a worker answers, by FastCGI."""
    variables = {"SCRIPT_NAME": "/ping", "SCRIPT_FILENAME": "/ping", "REQUEST_METHOD": "GET"}
    text = b"".join(
        bytes([len(name), len(value)]) + name.encode() + value.encode()
        for name, value in variables.items()
    )
    begin = record(1, bytes([0, 1, 0, 0, 0, 0, 0, 0]))
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(begin + record(4, text) + record(4, b"") + record(5, b""))
        with client.makefile("rb") as answer:
            return b"pong" in answer.read()


def sockets(pid: int) -> set[str]:
    return {row.target for row in ff.fd_table(pid).values() if row.target.startswith("socket:")}


@pytest.fixture
def orphans() -> Iterator[None]:
    """Masters leave who has started them, and come to us, who end them."""
    adopt = ctypes.CDLL(None).prctl
    adopt(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    yield
    while masters := list(children("php-fpm")):  # whose workers come next
        for pid in masters:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    adopt(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def children(name: str) -> Iterator[int]:
    for path in Path("/proc/self/task").glob("*/children"):
        for pid in path.read_text().split():
            if Path(f"/proc/{pid}/comm").read_text().startswith(name):
                yield int(pid)


@pytest.fixture
def php_fpm() -> str:
    """Its path; Debian has the version in its name."""
    found = sorted(Path("/usr/sbin").glob("php-fpm*"))
    return str(found[-1]) if found else tool("php-fpm", "php-fpm")


@needs_root
@pytest.mark.parametrize("daemonize", ["no", "yes"])
def test_its_listener_survives(
    daemonize: str, php_fpm: str, shared_path: Path, orphans: None
) -> None:
    preloaded = Preloaded(shared_path / "leaks", ff.preload_library())
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config, pidfile = shared_path / "config", shared_path / "pid"
    config.write_text(CONFIG.format(folder=shared_path, port=port, daemonize=daemonize))
    log = shared_path / "log"

    def ready(times: int) -> bool:
        return log.exists() and log.read_text().count("ready to handle connections") == times

    with ff.spawn(
        [php_fpm, "--nodaemonize" if daemonize == "no" else "--daemonize", "-R", "-y", config],
        fds={1: ff.DEVNULL, 2: ff.DEVNULL},
        env=preloaded.environment(),
    ) as starter:
        try:
            assert reached(lambda: ready(1))
            first = int(pidfile.read_text())
            assert ping(port)
            before = sockets(first)
            os.kill(first, signal.SIGUSR2)
            assert reached(lambda: ready(2)), log.read_text()
            master = int(pidfile.read_text())
            assert "using inherited socket" in log.read_text()
            assert before & sockets(master)  # the listener
            assert ping(port)
            os.kill(master, signal.SIGQUIT)
            assert starter.wait(timeout=30).success
        finally:
            starter.kill()
    assert preloaded.logged() == []

"""Servers and managers of others, unmodified, at the other end of a hand-over."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import sys
from pathlib import Path

import pytest
from tools import tool

import pyforkfd as ff

WSGI = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "5")])
    return [b"hello"]
"""
ASGI = """
async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    await send({"type": "http.response.start", "status": 200,
                "headers": [(b"content-length", b"5")]})
    await send({"type": "http.response.body", "body": b"hello"})
"""
ACTIVATED = """
import os, sys
import pyforkfd as ff
(passed,) = ff.listen_fds()
assert passed.name == "web" and "LISTEN_FDS" not in os.environ
with passed.listener() as listener:
    connection, _ = listener.accept()
    with connection:
        connection.sendall(b"activated")
"""


def get(port: int) -> bytes:
    """The kernel keeps the request until the server is up: there is no need to poll."""
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        client.request("GET", "/")
        return client.getresponse().read()
    finally:
        client.close()


def end(server: ff.Process) -> None:
    server.terminate()
    status = server.wait(timeout=30)
    assert status.success or status.signal == signal.SIGTERM, status


def test_gunicorn_takes_listen_fds(tmp_path: Path) -> None:
    (tmp_path / "application.py").write_text(WSGI)
    # A worker that is told to end while it boots does not hear it: gunicorn waits, then kills it.
    args = [sys.executable, "-m", "gunicorn", "--graceful-timeout=3", "--log-level=error"]
    env = {**os.environ, "HOME": str(tmp_path)}
    with (
        ff.bind("tcp://127.0.0.1:0") as listener,
        ff.spawn(
            [*args, "--workers=2", "--no-control-socket", "application:app"],
            cwd=tmp_path,
            env=env,
            listen={"http": listener},
        ) as server,
    ):
        for _ in range(3):
            assert get(listener.getsockname()[1]) == b"hello"
        end(server)


@pytest.mark.parametrize("number", [3, 9])
def test_uvicorn_takes_a_descriptor(tmp_path: Path, number: int) -> None:
    (tmp_path / "application.py").write_text(ASGI)
    args = [sys.executable, "-m", "uvicorn", "--fd", str(number), "--log-level=error"]
    with (
        ff.bind("tcp://127.0.0.1:0") as listener,
        ff.spawn([*args, "application:app"], cwd=tmp_path, fds={number: listener}) as server,
    ):
        for _ in range(3):
            assert get(listener.getsockname()[1]) == b"hello"
        end(server)


def test_systemd_socket_activate_starts_us(tmp_path: Path) -> None:
    activate = tool("systemd-socket-activate", "systemd")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    args = [activate, f"--listen=127.0.0.1:{port}", "--fdname=web"]
    with ff.spawn(
        [*args, sys.executable, "-I", "-c", ACTIVATED], fds={2: ff.PIPE}, cwd=tmp_path
    ) as child:
        assert child.stderr is not None
        assert b"Listening" in child.stderr.readline()
        with socket.create_connection(("127.0.0.1", port)) as client, client.makefile("rb") as got:
            assert got.read() == b"activated"
        child.stderr.read()
    assert child.status is not None and child.status.success

"""A listener goes to a Go program and comes from one."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pyforkfd as ff

GO = Path(__file__).parent / "go"
ADOPT = """
import pyforkfd as ff
with ff.listener_from_fd(3) as listener:
    connection, _ = listener.accept()
    with connection:
        connection.sendall(b"python")
"""


def answer(address: tuple[str, int] | str) -> bytes:
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as client:
        client.settimeout(30)
        client.connect(address)
        with client.makefile("rb") as received:
            return received.read()


def test_ours_to_go(go: Callable[[Path], Path], tmp_path: Path) -> None:
    program = go(GO / "accept.go")
    for address, network in (("tcp://127.0.0.1:0", b"tcp"), (f"unix:{tmp_path}/socket", b"unix")):
        with ff.bind(address) as listener:
            with ff.spawn([program, "extra"], fds={3: listener}) as child:
                assert answer(listener.getsockname()) == b"go " + network
            assert child.status is not None and child.status.success
            with ff.spawn([program, "listen"], listen={"web": listener}) as child:
                assert answer(listener.getsockname()) == b"go " + network
            assert child.status is not None and child.status.success


def test_gos_to_us(go: Callable[[Path], Path]) -> None:
    with ff.spawn([go(GO / "hand_over.go"), sys.executable, "-I", "-c", ADOPT], fds={1: ff.PIPE}) as child:
        assert child.stdout is not None
        port = int(child.stdout.readline())
        assert answer(("127.0.0.1", port)) == b"python"
    assert child.status is not None and child.status.success

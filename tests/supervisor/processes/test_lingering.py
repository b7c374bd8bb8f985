"""No worker and no client makes the supervisor wait for the close of a descriptor, SO_LINGER."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import lingering
import pytest
from lingering import prompt
from places import HELPERS
from sandbox import before_6_16, kernel_refuses
from supervised import Supervised

CONFIG = f"""
{{head}}
[components.odd]
command = {[sys.executable, "-P", str(HELPERS / "lingering.py")]!r}
stdout = "inherit"
stderr = "inherit"
"""


@pytest.fixture(params=["today", "before 6.16", "before 6.16, keeper"])
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Supervised, bool]]:
    """A service whose worker has passed its sockets, and whether the kernel refuses them."""
    older = request.param != "today"
    head = "keeper = true" if "keeper" in request.param else ""
    with Supervised(
        tmp_path,
        CONFIG.format(head=head),
        env={"PYTHONPATH": str(HELPERS)},
        seccomp=before_6_16() if older else None,
    ) as running:
        with prompt():
            running.until("^ready: odd 1/1")
        yield running, not older and kernel_refuses()


def test_a_worker(service: tuple[Supervised, bool]) -> None:
    running, refused = service
    with prompt():
        running.log.wait_for(f"^channel: {'refused' if refused else 'sent'}$")
        running.log.wait_for("^notify: sent$")
        assert running.workers("odd")
        if not refused:
            running.log.wait_for("odd: worker 1: message refused: event status: 2 descriptors")
        running.process.send_signal(signal.SIGHUP)
        running.until("^ready: odd 1/1; generation 2")
        running.stop()


def test_a_client(service: tuple[Supervised, bool]) -> None:
    """Messages that are read, those that wait behind them, and a connection that is refused."""
    running, refused = service
    address = str(running.control)
    with lingering.source() as source, prompt():
        for count in (1, 2, 100):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
                client.connect(address)
                for _ in range(3):
                    try:
                        source.send(client, b'{"v": 1, "do": "ping"}', count)
                        assert not refused
                    except PermissionError:
                        assert refused
                    except OSError:
                        pass  # disconnected since
            assert running.workers("odd")
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            client.connect(address)
            with suppress(OSError):
                source.send(client, b'{"v": 1, "do": "stop"}')
            running.stop()

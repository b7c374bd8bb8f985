"""NOTIFY_SOCKET: what is read, and when it is removed."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyforkfd as ff
from pyforkfd.supervisor.processes._notify_socket import NotifySocket


@pytest.fixture
def notify(tmp_path: Path) -> Iterator[NotifySocket]:
    with NotifySocket(str(tmp_path / "notify")) as made:
        yield made


@pytest.fixture
def worker(notify: NotifySocket) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect(notify.path)
        yield sock


def test_a_message_stays_until_it_was_acted_on(notify: NotifySocket, worker: socket.socket) -> None:
    """A supervisor that is killed meanwhile leaves it to its successor."""
    worker.send(b"READY=1\nSTATUS=one")
    for pid, fields in notify.read():
        assert (pid, fields) == (os.getpid(), {"READY": "1", "STATUS": "one"})
        # A successor has the same socket.
        with socket.socket(fileno=os.dup(notify.fileno())) as same:
            assert same.recv(100, socket.MSG_PEEK | socket.MSG_DONTWAIT).startswith(b"READY=1")
    assert list(notify.read()) == []


def test_a_message_whose_handling_fails_is_removed(
    notify: NotifySocket, worker: socket.socket
) -> None:
    worker.send(b"READY=1")
    worker.send(b"STATUS=two")
    messages = notify.read()
    next(messages)
    messages.close()  # type: ignore[attr-defined]  # as a loop that ends by an exception
    assert [fields for _, fields in notify.read()] == [{"STATUS": "two"}]


def test_descriptors_and_long_messages_are_dropped(
    notify: NotifySocket, worker: socket.socket
) -> None:
    reader, writer = os.pipe()
    with open(reader, "rb") as end:
        ff.send_fds(worker, b"FDSTORE=1", [writer])
        os.close(writer)
        worker.send(b"X=" + b"y" * 5000)
        worker.send(b"STATUS=after")
        fields = [fields for _, fields in notify.read()]
        assert fields == [{"FDSTORE": "1"}, {"STATUS": "after"}]
        assert end.read() == b""  # every copy of the writing end is closed


def test_a_turn_is_bounded(notify: NotifySocket, worker: socket.socket) -> None:
    worker.setblocking(False)
    sent = 0
    try:
        while sent < 100:
            worker.send(b"STATUS=x")
            sent += 1
    except BlockingIOError:
        pass
    first = len(list(notify.read()))
    assert first == min(sent, 16)

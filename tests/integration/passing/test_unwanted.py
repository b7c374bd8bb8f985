"""Descriptors of which a close waits, SO_LINGER: nobody who was passed one waits for it."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from pathlib import Path

import lingering
import pytest
from lingering import Source, prompt

import pyforkfd as ff
from pyforkfd._untrusted_peers import (
    close_listening,
    discard,
    drain,
    drain_backlog,
    refuse_descriptors,
)

KINDS = [socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM]


@pytest.fixture
def source() -> Iterator[Source]:
    with lingering.source() as made:
        yield made


@pytest.fixture(params=KINDS, ids=["stream", "packet", "gram"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, request.param)
    with ours, theirs:
        yield ours, theirs


def test_what_is_discarded_does_not_linger(
    pair: tuple[socket.socket, socket.socket], source: Source
) -> None:
    ours, theirs = pair
    source.send(theirs, b"x", 3)
    with prompt():
        received = ff.recv_fds(ours, 10, 253)
        assert len(received.fds) == 3
        discard(received)
        assert all(fd.closed for fd in received.fds)


@pytest.mark.parametrize("most", [0, 2])
def test_what_is_too_much_does_not_linger(
    pair: tuple[socket.socket, socket.socket], source: Source, most: int
) -> None:
    """So many that they would not fit beside the space for other control messages."""
    ours, theirs = pair
    source.send(theirs, b"x", 80)
    with prompt(), pytest.raises(ff.PassingError, match="more descriptors came") as caught:
        ff.recv_fds(ours, 10, most)
    assert (caught.value.errno, caught.value.closed) == (errno.EMSGSIZE, 80)


def test_what_waits_in_a_socket_that_is_drained_does_not_linger(
    pair: tuple[socket.socket, socket.socket], source: Source
) -> None:
    ours, theirs = pair
    for number in range(4):
        source.send(theirs, b"" if number == 1 and ours.type != socket.SOCK_STREAM else b"data")
    with prompt():
        drain(ours)
        with pytest.raises(OSError):
            source.send(theirs, b"more")
        ours.close()


def test_urgent_data_is_drained_too(source: Source) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, source.make() as passed:
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed.fileno().to_bytes(4, "little"))]
        theirs.sendmsg([b"!"], control, socket.MSG_OOB)
        passed.close()
        with prompt():
            drain(ours)
            ours.close()


def test_a_socket_whose_other_end_is_closed_is_drained(source: Source) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        source.send(theirs, b"x")
        ours.send(b"unread: the other end is reset")
        theirs.close()
        with prompt():
            drain(ours)
            ours.close()


@pytest.mark.parametrize("kind", KINDS[:2], ids=["stream", "packet"])
def test_connections_that_wait_are_drained(kind: socket.SocketKind, source: Source) -> None:
    with socket.socket(socket.AF_UNIX, kind) as listener, socket.socket(socket.AF_UNIX, kind) as c:
        listener.bind("")  # a name of the kernel's choice
        listener.listen()
        c.connect(listener.getsockname())
        source.send(c, b"x")
        source.send(c, b"y")
        with prompt():
            drain_backlog(listener)
            listener.close()
        with pytest.raises(OSError):
            c.send(b"z")


@pytest.mark.parametrize(
    "address", ["tcp://127.0.0.1:0", "unix:{}/s", "unixpacket:{}/s", "unixgram:{}/s"]
)
def test_a_listener_that_a_worker_had_is_closed_at_once(
    address: str, tmp_path: Path, source: Source
) -> None:
    listener = ff.bind(address.format(tmp_path))
    with listener, socket.socket(socket.AF_UNIX, listener.type) as client:
        if listener.family == socket.AF_UNIX:
            client.connect(listener.getsockname())
            source.send(client, b"x")
        with prompt():
            close_listening(listener, shared=False)
        assert listener.fileno() < 0


def test_a_connected_socket_is_closed_at_once(source: Source) -> None:
    """As a worker could make one of a TCP listener."""
    with source.make() as sock, prompt():
        close_listening(sock, shared=True)


def test_the_queue_of_a_shared_listener_is_left(tmp_path: Path) -> None:
    with (
        ff.bind(f"unix:{tmp_path}/s") as listener,
        listener.dup() as workers,
        socket.socket(socket.AF_UNIX) as client,
    ):
        client.connect(listener.getsockname())
        close_listening(listener, shared=True)
        with workers.accept()[0]:
            client.send(b"it serves")


def test_the_kernel_refuses_descriptors(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    if not refuse_descriptors(ours):
        pytest.skip("Linux 6.16 is the first that has SO_PASSRIGHTS")
    with pytest.raises(PermissionError):
        socket.send_fds(theirs, [b"x"], [0])
    theirs.send(b"data")
    assert ours.recv(10) == b"data"
    socket.send_fds(ours, [b"the other direction"], [0])
    ff.recv_fds(theirs, 100, 1).close()

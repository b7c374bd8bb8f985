"""Whatever a peer sends: a message, or an error; never a descriptor left behind."""

from __future__ import annotations

import array
import os
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from leaks import Holdings

import pyforkfd as ff
from pyforkfd import _core

RIGHTS = (socket.SOL_SOCKET, socket.SCM_RIGHTS)
FUZZ = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

# One control message: descriptors by their number in the list, or what else there may be.
rights = st.tuples(st.just("rights"), st.integers(0, 260))
other = st.tuples(st.sampled_from([0, 1, 41, 255]), st.integers(0, 80), st.binary(max_size=40))
message = st.tuples(
    st.binary(max_size=40), st.lists(st.one_of(rights, other), max_size=4), st.integers(0, 6)
)


@pytest.fixture
def files() -> Iterator[list[int]]:
    fds = [os.memfd_create(f"file {i}") for i in range(3)]
    yield fds
    for fd in fds:
        os.close(fd)


@FUZZ
@given(
    kind=st.sampled_from([socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM]),
    messages=st.lists(message, max_size=6),
    credentials=st.booleans(),
    max_bytes=st.integers(0, 60),
    max_fds=st.sampled_from([0, 1, 2, 7, 253, 254, 400]),
    ends=st.booleans(),
)
def test_the_receiving_side(
    files: list[int],
    kind: socket.SocketKind,
    messages: list[tuple[bytes, list[Any], int]],
    credentials: bool,
    max_bytes: int,
    max_fds: int,
    ends: bool,
) -> None:
    before = Holdings.now()
    one, other_end = socket.socketpair(socket.AF_UNIX, kind)
    with one, other_end:
        one.setblocking(False)
        other_end.setblocking(False)
        ff.pass_credentials(other_end, credentials)
        for data, control, transfer in messages:
            ancillary = [
                (*RIGHTS, array.array("i", (files * 100)[: item[1]]).tobytes())
                if item[0] == "rights"
                else item
                for item in control
            ]
            try:
                if transfer == 6:
                    ff.send_fds(one, data, files[:1] * 300)
                else:
                    one.sendmsg([data], ancillary)
            except (OSError, ValueError):
                pass  # the kernel, or we, would not send that
        if ends:
            one.close()
        for _ in range(40):
            try:
                with ff.recv_fds(other_end, max_bytes, max_fds) as came:
                    assert len(came.data) <= max_bytes and len(came.fds) <= max_fds
                    assert all(ff.cloexec(fd) for fd in came.fds)
                    assert credentials or came.credentials is None
            except BlockingIOError:
                break
            except ff.PassingError as error:
                assert len(error.data) <= max_bytes
            except ConnectionResetError:
                pass
    assert before.leaks(patience=0) == []


def header(length: int, level: int, kind: int) -> bytes:
    return struct.pack("=Qii", length, level, kind)


def model(area: bytes) -> tuple[list[int], bool]:
    """What the parser says of an area, told in another way: descriptors to close, malformed."""
    fds: list[int] = []
    malformed = False
    seen = set()
    while len(area) >= 16:
        length, level, kind = struct.unpack("=Qii", area[:16])
        if length < 16:
            return fds, True
        malformed |= length > len(area)
        length = min(length, len(area))
        body, area = area[16:length], area[min(-(-length // 8) * 8, len(area)) :]
        if level != socket.SOL_SOCKET or kind not in (1, 2, 4):
            continue
        if kind == 2:
            malformed |= len(body) != 12 or 2 in seen
        if kind == 4 and len(body) == 4 and 4 not in seen:
            seen.add(4)
            continue
        if kind == 2:
            if len(body) == 12:
                seen.add(2)
            continue
        numbers = [n for (n,) in struct.iter_unpack("=i", body[: len(body) // 4 * 4])]
        malformed |= kind == 4 or len(body) % 4 != 0 or any(n < 0 for n in numbers)
        fds += [n for n in numbers if n >= 0]
    return fds, malformed


piece = st.one_of(
    st.binary(max_size=40),
    st.builds(
        lambda more, level, kind, body: header(16 + len(body) + more, level, kind) + body,
        st.sampled_from([0, 0, 0, 4, -4, -16, -17, 2**40]).map(lambda more: max(more, -16)),
        st.sampled_from([1, 1, 1, 0, 41]),
        st.integers(0, 5),
        st.one_of(st.binary(max_size=24), st.sampled_from([b"\5\0\0\0", b"\1\0\0\0" * 3])),
    ),
)


@FUZZ
@given(pieces=st.lists(piece, max_size=6))
def test_the_parser_against_a_model(pieces: list[bytes]) -> None:
    area = b"".join(p + b"\0" * (-len(p) % 8) for p in pieces)
    fds, _, _, malformed = _core.parse_control(area)
    assert (fds, malformed) == model(area)


def test_an_area_that_is_too_large() -> None:
    area = header(16 + 4 * 1000, *RIGHTS) + struct.pack("=1000i", *range(1000))
    fds, _, _, malformed = _core.parse_control(area)
    assert malformed and fds == list(range(len(fds))) and len(fds) < 1000

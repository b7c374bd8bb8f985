"""send_fds() and recv_fds() over real sockets: what goes, what comes, what is never lost."""

from __future__ import annotations

import array
import errno
import fcntl
import math
import os
import resource
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from children import identity, needs_root
from interrupts import Interrupted
from tools import required

import pyforkfd as ff

KINDS = {
    "stream": socket.SOCK_STREAM,
    "seqpacket": socket.SOCK_SEQPACKET,
    "datagram": socket.SOCK_DGRAM,
}
LIMIT = 253  # SCM_MAX_FD
SIZES = (0, 1, 2, 252, 253, 254, 300, 504, 505, 506, 900)
RIGHTS = (socket.SOL_SOCKET, socket.SCM_RIGHTS)


@pytest.fixture(params=KINDS)
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair(socket.AF_UNIX, KINDS[request.param])
    with one, other:
        one.settimeout(20)
        other.settimeout(20)
        yield one, other


@pytest.fixture
def packets() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other:
        yield one, other


@pytest.fixture
def files() -> Iterator[list[int]]:
    """Files that are all different."""
    fds = [os.memfd_create(f"file {i}") for i in range(8)]
    yield fds
    for fd in fds:
        os.close(fd)


@contextmanager
def most_descriptors(free: int) -> Iterator[None]:
    """RLIMIT_NOFILE such that so many more can be opened."""
    highest = os.dup(0)
    os.close(highest)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.dup(0) for _ in range(8)]  # whatever holes there were below
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(taken) + 1 + free, hard))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in taken:
            os.close(fd)


def same(ours: list[int], came: ff.Received) -> bool:
    return [identity(fd) for fd in ours] == [identity(fd.fileno()) for fd in came.fds]


@pytest.mark.parametrize("count", SIZES)
def test_every_number_of_descriptors(
    pair: tuple[socket.socket, socket.socket], files: list[int], count: int
) -> None:
    sent = [files[i % len(files)] for i in range(count)]
    assert ff.send_fds(pair[0], b"data", sent) == 4
    with ff.recv_fds(pair[1], 100, 1000) as came:
        assert came.data == b"data" and same(sent, came)
        assert all(ff.cloexec(fd) for fd in came.fds)
        assert (came.credentials, came.pidfd) == (None, None)
        assert came.flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) == 0
    assert all(fd.closed for fd in came.fds)
    pair[1].setblocking(False)
    with pytest.raises(BlockingIOError):
        ff.recv_fds(pair[1], 100, 1000)  # and nothing else had been sent


def test_many_transfers_one_after_another(
    pair: tuple[socket.socket, socket.socket], files: list[int]
) -> None:
    def send() -> None:
        for count in (300, 1, 0, 600, 253, 254, 2):
            ff.send_fds(pair[0], b"%d" % count, files[:1] * count)

    thread = threading.Thread(target=send)
    thread.start()
    seen: list[int] = []
    while sum(seen) < 300 + 1 + 600 + 253 + 254 + 2:
        with ff.recv_fds(pair[1], 100, 1000) as came:
            seen.append(len(came.fds))
            if pair[1].type != socket.SOCK_STREAM:  # which has no messages: 0 joins the 600
                assert came.data == b"%d" % seen[-1]
    thread.join()
    assert [n for n in seen if n] == [300, 1, 600, 253, 254, 2]


@pytest.mark.parametrize("count", [1, 300])
def test_a_stream_keeps_its_order(files: list[int], count: int) -> None:
    one, other = socket.socketpair()
    with one, other:
        one.sendall(b"before ")
        ff.send_fds(one, b"with them", files[:1] * count)
        one.sendall(b" after")
        with ff.recv_fds(other, 11, 300) as came:
            assert (came.data, len(came.fds)) == (b"before with", count)
        with ff.recv_fds(other, 100, 300) as came:
            assert (came.data, came.fds) == (b" them after", ())


@pytest.mark.parametrize("room", range(1, 12))
def test_a_transfer_after_other_bytes_of_a_stream(files: list[int], room: int) -> None:
    one, other = socket.socketpair()
    with one, other:
        one.sendall(b"abc")
        ff.send_fds(one, b"data", files[:1] * 254)
        data, count = b"", 0
        while len(data) < 7:
            with ff.recv_fds(other, room, 254) as came:
                data, count = data + came.data, count + len(came.fds)
        assert (data, count) == (b"abcdata", 254)


def test_plain_peers(pair: tuple[socket.socket, socket.socket], files: list[int]) -> None:
    """Up to 253 go to and come from those who know nothing of us."""
    for count in (1, 2, 252, 253):
        sent = (files * 32)[:count]
        socket.send_fds(pair[0], [b"std"], sent)
        with ff.recv_fds(pair[1], 100, 1000) as came:
            assert came.data == b"std" and same(sent, came)
        ff.send_fds(pair[0], b"ours", sent)
        data, fds, _, _ = socket.recv_fds(pair[1], 100, count)
        try:
            assert data == b"ours" and list(map(identity, fds)) == list(map(identity, sent))
        finally:
            for fd in fds:
                os.close(fd)


def test_buffers(pair: tuple[socket.socket, socket.socket]) -> None:
    for data in (
        b"ab",
        bytearray(b"ab"),
        memoryview(b"ab"),
        [b"a", bytearray(b"b")],
        iter([b"ab"]),
    ):
        assert ff.send_fds(pair[0], data) == 2  # type: ignore[arg-type]
        with ff.recv_fds(pair[1], 10, 0) as came:
            assert came.data == b"ab"
    big = os.urandom(100_000)
    sent = ff.send_fds(pair[0], big)
    with ff.recv_fds(pair[1], 200_000, 0) as came:
        assert came.data == big[: len(came.data)] and len(came.data) <= sent


def test_objects_and_numbers(
    packets: tuple[socket.socket, socket.socket], files: list[int]
) -> None:
    with ff.Fd(os.dup(files[1])) as owned, open(os.devnull) as file:
        ff.send_fds(packets[0].fileno(), b"", (fd for fd in (files[0], owned, file)))
        with ff.recv_fds(packets[1].fileno(), 10, 3) as came:
            assert same([files[0], owned.fileno(), file.fileno()], came)


def test_no_data(packets: tuple[socket.socket, socket.socket], files: list[int]) -> None:
    assert ff.send_fds(packets[0], b"", files[:2]) == 0
    with ff.recv_fds(packets[1], 10, 2) as came:
        assert came.data == b"" and same(files[:2], came)
    ff.send_fds(packets[0], b"", files[:1] * 300)
    with ff.recv_fds(packets[1], 10, 300) as came:
        assert came.data == b"" and len(came.fds) == 300
    one, other = socket.socketpair()
    with one, other:
        # The standard library loses the descriptor here, and says nothing.
        with pytest.raises(ValueError, match="a stream carries them only with data"):
            ff.send_fds(one, b"", files[:1])
        with pytest.raises(ValueError, match="a stream carries them only with data"):
            ff.send_fds(one, [b"", b""], files * 50)
        assert ff.send_fds(one, b"") == 0


def test_nothing_is_inherited(packets: tuple[socket.socket, socket.socket]) -> None:
    reader, writer = os.pipe()
    with ff.Fd(reader), ff.Fd(writer):
        os.set_inheritable(writer, True)
        ff.send_fds(packets[0], b"x", [writer])
        with ff.recv_fds(packets[1], 1, 1) as came:
            assert fcntl.fcntl(came.fds[0].fileno(), fcntl.F_GETFD) == fcntl.FD_CLOEXEC


def test_what_is_received_lives_on(
    packets: tuple[socket.socket, socket.socket], files: list[int]
) -> None:
    ff.send_fds(packets[0], b"x", files[:3])
    with ff.recv_fds(packets[1], 1, 3) as came:
        kept = ff.Fd(came.fds[1].detach())
        came.fds[0].close()
    with kept:
        assert identity(kept.fileno()) == identity(files[1])
    came.close()  # once more does nothing


def test_one_that_is_forgotten_warns_and_closes(
    packets: tuple[socket.socket, socket.socket], files: list[int]
) -> None:
    ff.send_fds(packets[0], b"x", files[:1])
    with pytest.warns(ResourceWarning, match="was forgotten"):
        ff.recv_fds(packets[1], 1, 1)


def test_the_native_fd_is_the_one_that_init_makes(
    packets: tuple[socket.socket, socket.socket], files: list[int]
) -> None:
    ff.send_fds(packets[0], b"x", files[:1])
    with ff.recv_fds(packets[1], 1, 1) as came, ff.Fd(os.dup(0)) as plain:
        (native,) = came.fds
        assert type(native) is ff.Fd
        for slot in ff.Fd.__slots__:
            if slot != "__weakref__":
                assert type(getattr(native, slot)) is type(getattr(plain, slot)), slot
        assert isinstance(native._held, list) and len(native._held) == 1
        with pytest.raises(AttributeError):
            came.data = b""  # type: ignore[misc]
        assert came == ff.Received(
            data=b"x", fds=came.fds, flags=came.flags, credentials=None, pidfd=None
        )


# Truncation: nothing is lost silently.


@pytest.mark.parametrize(("sent", "room"), [(1, 0), (2, 1), (3, 2), (40, 3), (253, 252)])
def test_more_than_were_asked_for(
    pair: tuple[socket.socket, socket.socket], files: list[int], sent: int, room: int
) -> None:
    ff.send_fds(pair[0], b"data", files[:1] * sent)
    with pytest.raises(
        ff.PassingError, match=f"more descriptors came than max_fds, which is {room}: "
    ) as caught:
        ff.recv_fds(pair[1], 100, room)
    assert caught.value.errno == errno.EMSGSIZE
    assert caught.value.data == b"data" and room <= caught.value.closed <= room + 80
    ff.send_fds(pair[0], b"next", files[:1])
    with ff.recv_fds(pair[1], 100, 1) as came:
        assert came.data == b"next" and len(came.fds) == 1


@pytest.mark.parametrize("room", [253, 299])
def test_a_transfer_of_more_than_were_asked_for(
    pair: tuple[socket.socket, socket.socket], files: list[int], room: int
) -> None:
    ff.send_fds(pair[0], b"data", files[:1] * 300)
    with pytest.raises(
        ff.PassingError, match=f"300 descriptors are being sent, max_fds is {room}; close this"
    ):
        ff.recv_fds(pair[1], 100, room)


@pytest.mark.parametrize("kind", ["seqpacket", "datagram"])
def test_a_message_that_is_too_long(kind: str, files: list[int]) -> None:
    one, other = socket.socketpair(socket.AF_UNIX, KINDS[kind])
    with one, other:
        for count in (1, 300):
            ff.send_fds(one, b"0123456789", files[:1] * count)
            with pytest.raises(
                ff.PassingError, match="a message of 10 bytes came, the buffer has 4"
            ) as caught:
                ff.recv_fds(other, 4, 300)
            assert (caught.value.errno, caught.value.data) == (errno.EMSGSIZE, b"0123")
            assert caught.value.closed >= count
        ff.send_fds(one, b"0123456789", files[:1])
        with ff.recv_fds(other, 4, 1, flags=socket.MSG_TRUNC) as came:
            assert (came.data, len(came.fds)) == (b"0123", 1)
            assert came.flags & socket.MSG_TRUNC


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("free", [0, 1, 3, 100])
def test_at_the_limit_of_descriptors_nothing_is_lost_silently(
    kind: str, files: list[int], free: int
) -> None:
    for count in (free, free + 1, 253, 300):
        one, other = socket.socketpair(socket.AF_UNIX, KINDS[kind])
        with one, other:
            ff.send_fds(one, b"data", files[:1] * count)
            if count == free:
                with most_descriptors(free), ff.recv_fds(other, 100, 1000) as came:
                    assert len(came.fds) == free
                continue
            with (
                most_descriptors(free),
                pytest.raises(
                    ff.PassingError,
                    match=rf"{free} descriptors? came, then RLIMIT_NOFILE \(\d+\) w",
                ) as caught,
            ):
                ff.recv_fds(other, 100, 1000)
            assert (caught.value.errno, caught.value.closed) == (errno.EMFILE, free)


def test_too_many_under_way(files: list[int]) -> None:
    """For one who is not privileged: RLIMIT_NOFILE, counted per user."""
    if os.geteuid() != 0:
        assert _refused(files) == 0
        return
    child = os.fork()
    if child == 0:
        try:
            os.setresuid(65534, 65534, 65534)
            os._exit(_refused(files))
        finally:
            os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _refused(files: list[int]) -> int:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
        try:
            for _ in range(300):
                ff.send_fds(one, b"x", files[:4], timeout=0)
        except BlockingIOError:
            return 2
        except OSError as error:
            said = "RLIMIT_NOFILE" in str(error)
            return 0 if error.errno == errno.ETOOMANYREFS and said else 1
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return 3


# Hostile and broken peers.


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
def test_one_that_ends_in_the_middle(kind: socket.SocketKind, files: list[int]) -> None:
    one, other = socket.socketpair(socket.AF_UNIX, kind)
    with one, other:
        _first_part(one, files)
        one.close()
        with pytest.raises(
            ff.PassingError, match="after 252 of 300 descriptors the sender was gone"
        ) as caught:
            ff.recv_fds(other, 100, 300)
        assert (caught.value.errno, caught.value.closed) == (errno.ECONNRESET, 252)


def _first_part(sock: socket.socket, files: list[int]) -> None:
    """The first message of a transfer, put together by hand as the document says."""
    content = b"forkfd descriptors 1\n".ljust(24, b"\0") + struct.pack("=Q", 300)
    marker = os.memfd_create("marker", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    with ff.Fd(marker):
        os.write(marker, content)
        fcntl.fcntl(marker, fcntl.F_ADD_SEALS, 0xF)
        socket.send_fds(sock, [b"\0"], [marker, *files[:1] * 252])


def test_a_message_put_between(pair: tuple[socket.socket, socket.socket], files: list[int]) -> None:
    for between in (0, 1, 49, 253):
        one, other = socket.socketpair(socket.AF_UNIX, pair[0].type)
        with one, other:
            _first_part(one, files)
            socket.send_fds(one, [b"other"], files[:1] * between)
            with pytest.raises(
                ff.PassingError, match="after 252 of 300 descriptors another message came"
            ) as caught:
                ff.recv_fds(other, 100, 300, timeout=10)
            assert caught.value.errno == errno.EPROTO
            assert 252 + min(between, 49) <= caught.value.closed


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"forkfd descriptors 1\n",
        b"forkfd descriptors 1\n".ljust(24, b"\0") + struct.pack("=Q", 253),
        b"forkfd descriptors 2\n".ljust(24, b"\0") + struct.pack("=Q", 300),
        b"forkfd descriptors 1\n".ljust(24, b"\0") + struct.pack("=Q", 300) + b"\0",
    ],
)
def test_what_is_almost_a_marker(
    packets: tuple[socket.socket, socket.socket], files: list[int], content: bytes
) -> None:
    fd = os.memfd_create("marker", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    with ff.Fd(fd):
        os.write(fd, content)
        for sealed in (False, True):
            if sealed:
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, 0xF)
            socket.send_fds(packets[0], [b"x"], [fd, *files[:1] * 252])
            with ff.recv_fds(packets[1], 10, 300) as came:
                assert (came.data, len(came.fds)) == (b"x", 253)


def test_a_marker_that_can_still_change_is_none(
    packets: tuple[socket.socket, socket.socket], files: list[int]
) -> None:
    fd = os.memfd_create("marker", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    with ff.Fd(fd):
        os.write(fd, b"forkfd descriptors 1\n".ljust(24, b"\0") + struct.pack("=Q", 300))
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, 0x7)  # not F_SEAL_WRITE
        socket.send_fds(packets[0], [b"x"], [fd, *files[:1] * 252])
        with ff.recv_fds(packets[1], 10, 300) as came:
            assert (came.data, len(came.fds)) == (b"x", 253)


def test_a_marker_that_promises_the_sky(
    packets: tuple[socket.socket, socket.socket], files: list[int]
) -> None:
    fd = os.memfd_create("marker", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    with ff.Fd(fd):
        content = b"forkfd descriptors 1\n".ljust(24, b"\0") + struct.pack("=Q", 2**64 - 1)
        os.write(fd, content)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, 0xF)
        socket.send_fds(packets[0], [b"\0"], [fd, *files[:1] * 252])
        with pytest.raises(ff.PassingError, match=f"{2**64 - 1} descriptors are being sent"):
            ff.recv_fds(packets[1], 10, 2**31 - 1)


def test_control_messages_of_other_levels(
    packets: tuple[socket.socket, socket.socket], files: list[int]
) -> None:
    rights = array.array("i", files[:1]).tobytes()
    # The kernel passes over what is not SOL_SOCKET, and refuses unknown types of that.
    packets[0].sendmsg([b"x"], [(socket.IPPROTO_IP, 1, rights), (*RIGHTS, rights)])
    with ff.recv_fds(packets[1], 10, 4) as came:
        assert same(files[:1], came)
    packets[0].sendmsg([b"x"], [(41, 50, rights)])
    with ff.recv_fds(packets[1], 10, 4) as came:
        assert came.fds == ()
    with pytest.raises(OSError):
        packets[0].sendmsg([b"x"], [(socket.SOL_SOCKET, 77, rights)])


def test_rights_in_several_control_messages(
    packets: tuple[socket.socket, socket.socket], files: list[int]
) -> None:
    packets[0].sendmsg([b"x"], [(*RIGHTS, array.array("i", [fd]).tobytes()) for fd in files[:3]])
    with ff.recv_fds(packets[1], 10, 4) as came:
        assert same(files[:3], came)


def test_descriptors_among_all_else_that_can_come(
    packets: tuple[socket.socket, socket.socket], files: list[int]
) -> None:
    required("SO_PASSPIDFD", lambda: ff.pass_pidfd(packets[1]))
    ff.pass_credentials(packets[1])
    for option in (29, 34):  # SO_TIMESTAMP, SO_PASSSEC
        packets[1].setsockopt(socket.SOL_SOCKET, option, 1)
    for count in (0, 1, 253, 300):
        ff.send_fds(packets[0], b"x", files[:1] * count)
        with ff.recv_fds(packets[1], 10, count) as came:
            assert len(came.fds) == count
            assert came.credentials is not None and came.credentials.pid == os.getpid()
            assert came.pidfd is not None
    ff.send_fds(packets[0], b"x", files[:2])
    with pytest.raises(ff.PassingError):
        ff.recv_fds(packets[1], 10, 1)


def test_a_flood(packets: tuple[socket.socket, socket.socket], files: list[int]) -> None:
    """What was not asked for is closed as fast as it comes."""
    for _ in range(400):
        socket.send_fds(packets[0], [b"x"], files * 31)
        with pytest.raises(ff.PassingError):
            ff.recv_fds(packets[1], 10, 0)


def test_an_unread_flood_goes_with_the_socket(files: list[int]) -> None:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def flood() -> None:
        while True:
            ff.send_fds(one, b"x", files)

    with one, other:
        one.setblocking(False)
        with pytest.raises(BlockingIOError):
            flood()


# Waiting.


def test_gone(pair: tuple[socket.socket, socket.socket], files: list[int]) -> None:
    pair[1].close()
    if pair[0].type == socket.SOCK_DGRAM:
        with pytest.raises(ConnectionRefusedError):
            ff.send_fds(pair[0], b"x", files)
        return
    with pytest.raises(BrokenPipeError, match=f"send over socket {pair[0].fileno()}: "):
        ff.send_fds(pair[0], b"x", files)
    with ff.recv_fds(pair[0], 10, 1) as came:
        assert (came.data, came.fds) == (b"", ())


def test_no_sigpipe(packets: tuple[socket.socket, socket.socket]) -> None:
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        packets[1].close()
        with pytest.raises(BrokenPipeError):
            ff.send_fds(packets[0], b"x")
    finally:
        signal.signal(signal.SIGPIPE, before)


@pytest.mark.parametrize("nonblocking", [False, True])
def test_times(nonblocking: bool, files: list[int]) -> None:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other:
        one.setblocking(not nonblocking)
        other.setblocking(not nonblocking)
        for sock in (other, other.fileno()):
            with pytest.raises(TimeoutError, match="recv_fds: timed out"):
                ff.recv_fds(sock, 10, 1, timeout=0.01)
            with pytest.raises(BlockingIOError, match="recv_fds: Resource temporarily"):
                ff.recv_fds(sock, 10, 1, timeout=0)
            with pytest.raises(BlockingIOError):
                ff.recv_fds(sock, 10, 1, flags=socket.MSG_DONTWAIT, timeout=5)
        while True:
            try:
                ff.send_fds(one, b"x" * 1000, files, timeout=0)
            except BlockingIOError:
                break
        with pytest.raises(TimeoutError, match="send_fds: timed out"):
            ff.send_fds(one, b"x", files, timeout=0.01)
        if nonblocking:
            with pytest.raises(BlockingIOError):
                ff.send_fds(one, b"x" * 1000, files)


def test_the_sockets_own_timeout(packets: tuple[socket.socket, socket.socket]) -> None:
    packets[1].settimeout(0.01)
    with pytest.raises(TimeoutError):
        ff.recv_fds(packets[1], 10, 1)
    packets[1].settimeout(0)
    with pytest.raises(BlockingIOError):
        ff.recv_fds(packets[1], 10, 1)


@pytest.mark.parametrize("timeout", [None, 20, math.inf, 1e300])
def test_waiting_for_a_sender(
    packets: tuple[socket.socket, socket.socket], files: list[int], timeout: float | None
) -> None:
    def send() -> None:
        for count in (1, 300):
            ff.send_fds(packets[0], b"x", files[:1] * count, timeout=timeout)

    thread = threading.Thread(target=send)
    thread.start()
    for count in (1, 300):
        with ff.recv_fds(packets[1], 10, 300, timeout=timeout) as came:
            assert len(came.fds) == count
    thread.join()


def test_half_a_transfer_and_no_more(
    packets: tuple[socket.socket, socket.socket], files: list[int]
) -> None:
    for timeout, kind in ((0.01, TimeoutError), (0, BlockingIOError)):
        _first_part(packets[0], files)
        with pytest.raises(kind, match="252 of 300 descriptors were transferred; close this"):
            ff.recv_fds(packets[1], 10, 300, timeout=timeout)


def test_a_transfer_that_does_not_fit(
    packets: tuple[socket.socket, socket.socket], files: list[int]
) -> None:
    packets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    count = 252 * 40
    with pytest.raises(TimeoutError, match=rf"send_fds: \d+ of {count} descriptors were"):
        ff.send_fds(packets[0], b"x", files[:1] * count, timeout=0.01)


@pytest.mark.parametrize("timeout", [None, 60])
@pytest.mark.parametrize("begun", [False, True])
def test_signal_handlers_run(
    packets: tuple[socket.socket, socket.socket],
    files: list[int],
    timeout: float | None,
    begun: bool,
) -> None:
    runs = []

    def handler(number: int, frame: object) -> None:
        runs.append(number)
        if len(runs) == 3:
            raise Interrupted

    if begun:
        _first_part(packets[0], files)
    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
        with pytest.raises(Interrupted):
            ff.recv_fds(packets[1], 10, 300, timeout=timeout)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_other_threads_run_meanwhile(packets: tuple[socket.socket, socket.socket]) -> None:
    ready = threading.Event()
    got = []

    def receive() -> None:
        ready.set()
        with ff.recv_fds(packets[1], 10, 1) as came:  # would hold the GIL for ever
            got.append(came.data)

    thread = threading.Thread(target=receive)
    thread.start()
    ready.wait()
    ff.send_fds(packets[0], b"x")
    thread.join()
    assert got == [b"x"]


def test_flags(packets: tuple[socket.socket, socket.socket], files: list[int]) -> None:
    ff.send_fds(packets[0], b"x", files[:2], flags=socket.MSG_DONTWAIT)
    for _ in range(2):
        with ff.recv_fds(packets[1], 10, 2, flags=socket.MSG_PEEK) as came:
            assert same(files[:2], came)
    with ff.recv_fds(packets[1], 10, 2) as came:
        assert same(files[:2], came)
    ff.send_fds(packets[0], b"x", files[:1] * 300)
    with pytest.raises(ff.PassingError, match="MSG_PEEK of 300 descriptors"):
        ff.recv_fds(packets[1], 10, 300, flags=socket.MSG_PEEK)
    with ff.recv_fds(packets[1], 10, 300) as came:
        assert len(came.fds) == 300
    with pytest.raises(OSError):
        ff.send_fds(packets[0], b"x", flags=socket.MSG_OOB)  # refused: it was passed on


# What makes no sense.


def test_a_closed_descriptor_is_named(packets: tuple[socket.socket, socket.socket]) -> None:
    closed = os.dup(0)
    os.close(closed)
    with pytest.raises(OSError, match=f"descriptor {closed} to pass: Bad file") as caught:
        ff.send_fds(packets[0], b"x", [0, closed])
    assert caught.value.errno == errno.EBADF
    # Not in its place the marker, which is opened meanwhile.
    with pytest.raises(OSError, match=f"descriptor {closed} to pass: Bad file"):
        ff.send_fds(packets[0], b"x", [*[0] * 299, closed])
    with pytest.raises(OSError, match=f"send over socket {closed}: Bad file descriptor"):
        ff.send_fds(closed, b"x", [0])
    with pytest.raises(OSError, match=f"receive from socket {closed}: Bad file descriptor"):
        ff.recv_fds(closed, 1, 1)


def test_what_is_no_unix_socket(files: list[int]) -> None:
    with pytest.raises(OSError, match="Socket operation on non-socket"):
        ff.send_fds(files[0], b"x", files)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        udp.connect(udp.getsockname())
        # The kernel would drop the descriptors, and so does the standard library.
        with pytest.raises(OSError, match="not a Unix socket: Address family") as caught:
            ff.send_fds(udp, b"x", files)
        assert caught.value.errno == errno.EAFNOSUPPORT
        assert ff.send_fds(udp, b"x") == 1


def test_too_long_to_send(packets: tuple[socket.socket, socket.socket]) -> None:
    size = packets[0].getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    with pytest.raises(
        OSError, match=f"a message of {size + 1} bytes, SO_SNDBUF is {size}: Message too long"
    ):
        ff.send_fds(packets[0], b"x" * (size + 1))


def test_arguments(packets: tuple[socket.socket, socket.socket]) -> None:
    bad: list[tuple[type[Exception], tuple[object, ...], dict[str, object]]] = [
        (TypeError, (b"x", 3), {}),
        (TypeError, (b"x", [None]), {}),
        (TypeError, (b"x", [True]), {}),
        (TypeError, ("x", []), {}),
        (TypeError, ([b"x", 1], []), {}),
        (TypeError, (b"x", []), {"timeout": "soon"}),
        (ValueError, (b"x", [-1]), {}),
        (ValueError, (b"x", [2**40]), {}),
        (ValueError, (b"x", []), {"timeout": -1}),
        (ValueError, (b"x", []), {"timeout": math.nan}),
    ]
    for kind, args, keywords in bad:
        with pytest.raises(kind):
            ff.send_fds(packets[0], *args, **keywords)  # type: ignore[arg-type]
    for numbers in ((-1, 0), (0, -1), (0, 2**40)):
        with pytest.raises(ValueError):
            ff.recv_fds(packets[1], *numbers)
    with pytest.raises(TypeError):
        ff.recv_fds(None, 1, 1)  # type: ignore[arg-type]


# Who sent it.


def test_credentials(pair: tuple[socket.socket, socket.socket], files: list[int]) -> None:
    ours = ff.Credentials(pid=os.getpid(), uid=os.geteuid(), gid=os.getegid())
    ff.pass_credentials(pair[1])
    for given in (None, ours):
        ff.send_fds(pair[0], b"x", files, credentials=given)
        with ff.recv_fds(pair[1], 10, 8) as came:
            assert came.credentials == ours and same(files, came)
    ff.pass_credentials(pair[1], False)
    ff.send_fds(pair[0], b"x", files)
    with ff.recv_fds(pair[1], 10, 8) as came:
        assert came.credentials is None


@needs_root
def test_credentials_of_another(packets: tuple[socket.socket, socket.socket]) -> None:
    ff.pass_credentials(packets[1])
    other = ff.Credentials(pid=1, uid=12, gid=13)
    ff.send_fds(packets[0], b"x", credentials=other)
    with ff.recv_fds(packets[1], 10, 0) as came:
        assert came.credentials == other


def test_peer(packets: tuple[socket.socket, socket.socket]) -> None:
    ours = ff.Credentials(pid=os.getpid(), uid=os.geteuid(), gid=os.getegid())
    assert ff.peer_credentials(packets[0]) == ours
    with ff.peer_pidfd(packets[0], by_pid=True) as pidfd:
        row = ff.fd_table()[pidfd.fileno()]
        assert isinstance(row.details, ff.PidfdDetails) and row.details.pid == os.getpid()
        assert ff.cloexec(pidfd)
    with pytest.raises(OSError, match="SO_PEERCRED: Socket operation on non-socket"):
        ff.peer_credentials(0)


def test_the_senders_pidfd(packets: tuple[socket.socket, socket.socket], files: list[int]) -> None:
    required("SO_PASSPIDFD", lambda: ff.pass_pidfd(packets[1]))
    ff.send_fds(packets[0], b"x", files)
    with ff.recv_fds(packets[1], 10, 8) as came:
        assert came.pidfd is not None and ff.cloexec(came.pidfd)
        row = ff.fd_table()[came.pidfd.fileno()]
        assert isinstance(row.details, ff.PidfdDetails) and row.details.pid == os.getpid()
    assert came.pidfd.closed


def test_no_room_for_the_senders_pidfd(packets: tuple[socket.socket, socket.socket]) -> None:
    required("SO_PASSPIDFD", lambda: ff.pass_pidfd(packets[1]))
    ff.send_fds(packets[0], b"x")
    with most_descriptors(0), pytest.raises(ff.PassingError, match="RLIMIT_NOFILE") as caught:
        ff.recv_fds(packets[1], 10, 8)
    assert caught.value.errno == errno.EMFILE

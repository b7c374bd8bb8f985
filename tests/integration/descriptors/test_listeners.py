"""bind() and listener_from_fd(): every address, and each way in which a descriptor is wrong."""

from __future__ import annotations

import errno
import os
import pickle
import socket
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import pyforkfd as ff


def nodelay(sock: socket.socket) -> bool:
    return bool(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))


def converse(listener: socket.socket, address: str = "") -> None:
    """A client connects, and gets what the accepted side sends."""
    with socket.socket(listener.family) as client:
        client.connect(address or listener.getsockname())
        accepted, _ = listener.accept()
        with accepted:
            accepted.sendall(b"hello")
            assert client.recv(10) == b"hello"


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:0", "tcp://localhost:0", "unix:@forkfd-{}"])
def test_bind(address: str) -> None:
    with ff.bind(address.format(os.getpid())) as listener:
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        assert not listener.get_inheritable()
        assert listener.getblocking()
        converse(listener)


def test_bind_ipv6() -> None:
    with ff.bind("tcp://[::1]:0") as listener:
        assert listener.family == socket.AF_INET6
        converse(listener)


def test_bind_every_address() -> None:
    with ff.bind("tcp://:0") as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)), socket.create_connection(("::1", port)):
            pass
    with (
        ff.bind("tcp://[::]:0", ipv6_only=True) as listener,
        pytest.raises(ConnectionRefusedError),
    ):
        socket.create_connection(("127.0.0.1", listener.getsockname()[1]))


def test_bind_vsock() -> None:
    try:
        listener = ff.bind("vsock:any:0")
    except OSError as error:
        if error.errno not in (errno.EAFNOSUPPORT, errno.ENODEV):
            raise
        pytest.skip(f"no AF_VSOCK here: {error}")
    with listener:
        assert listener.family == socket.AF_VSOCK


def test_nodelay_is_inherited_by_what_is_accepted() -> None:
    for wanted in (True, False):
        with (
            ff.bind("tcp://127.0.0.1:0", nodelay=wanted) as listener,
            socket.create_connection(listener.getsockname()),
        ):
            accepted, _ = listener.accept()
            with accepted:
                assert nodelay(accepted) is wanted


def test_reuse_port() -> None:
    with ff.bind("tcp://127.0.0.1:0", reuse_port=True) as one:
        address = f"tcp://127.0.0.1:{one.getsockname()[1]}"
        with ff.bind(address, reuse_port=True) as other:
            assert other.getsockname() == one.getsockname()
        with pytest.raises(OSError, match=f"bind {address}: Address already in use"):
            ff.bind(address)


def test_backlog() -> None:
    with ff.bind("unix:@forkfd-backlog", backlog=0) as listener:
        clients = [socket.socket(socket.AF_UNIX, type=socket.SOCK_STREAM) for _ in range(3)]
        try:
            for client in clients:
                client.setblocking(False)
            results = [client.connect_ex(listener.getsockname()) for client in clients]
        finally:
            for client in clients:
                client.close()
    assert results[0] == 0
    assert results[-1] == errno.EAGAIN


@pytest.mark.parametrize("mode", [0o600, 0o666, 0o777])
def test_mode_of_a_path(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "socket"
    ours = os.umask(0o077)
    try:
        with ff.bind(f"unix:{path}", mode=mode) as listener:
            assert stat.S_IMODE(path.stat().st_mode) == mode
            converse(listener)
    finally:
        os.umask(ours)


def test_mode_without_asking_is_the_umasks(tmp_path: Path) -> None:
    ours = os.umask(0o027)
    try:
        with ff.bind(f"unix:{tmp_path}/socket"):
            assert stat.S_IMODE((tmp_path / "socket").stat().st_mode) == 0o750
    finally:
        os.umask(ours)


def test_a_stale_path_is_replaced(tmp_path: Path) -> None:
    ff.bind(f"unix:{tmp_path}/socket").close()
    with ff.bind(f"unix:{tmp_path}/socket") as listener:
        converse(listener)


def test_a_living_listener_is_not_robbed(tmp_path: Path) -> None:
    with ff.bind(f"unix:{tmp_path}/socket") as listener:
        with pytest.raises(OSError, match=f"bind unix:{tmp_path}/socket: Address already in use"):
            ff.bind(f"unix:{tmp_path}/socket")
        converse(listener)


def test_what_is_no_socket_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(OSError, match="Address already in use"):
        ff.bind(f"unix:{tmp_path}/file")
    assert (tmp_path / "file").read_text() == "precious"


def test_one_of_many_gets_the_path(tmp_path: Path) -> None:
    """All find the path stale at once; exactly one may have it."""
    for _ in range(20):
        ff.bind(f"unix:{tmp_path}/socket").close()
        got: list[socket.socket] = []
        start = threading.Barrier(4)

        def race(got: list[socket.socket] = got, start: threading.Barrier = start) -> None:
            start.wait()
            try:
                got.append(ff.bind(f"unix:{tmp_path}/socket"))
            except OSError as error:
                assert error.errno == errno.EADDRINUSE

        threads = [threading.Thread(target=race) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with got[0]:
            converse(got[0], str(tmp_path / "socket"))
        assert len(got) == 1


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("localhost:80", "none of tcp://host:port"),
        ("tcp://localhost", "none of tcp://host:port"),
        ("tcp://::1:80", "none of tcp://host:port"),
        ("tcp://localhost:65536", "port 65536 is above 65535"),
        ("unix:", "none of"),
    ],
)
def test_addresses_that_make_no_sense(address: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ff.bind(address)


def test_options_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="reuse_port is for TCP"):
        ff.bind("unix:@forkfd-x", reuse_port=True)
    with pytest.raises(ValueError, match="only a path has a mode"):
        ff.bind("tcp://127.0.0.1:0", mode=0o600)


def test_the_kernels_refusal_names_the_address(tmp_path: Path) -> None:
    with pytest.raises(
        OSError, match=r"bind tcp://192\.0\.2\.1:0: Cannot assign requested address"
    ):
        ff.bind("tcp://192.0.2.1:0")
    with pytest.raises(FileNotFoundError, match=f"bind unix:{tmp_path}/no/socket: No such file"):
        ff.bind(f"unix:{tmp_path}/no/socket")


def test_adopt_a_listener() -> None:
    original = ff.bind("tcp://127.0.0.1:0")
    fd = original.detach()
    os.set_inheritable(fd, True)
    with ff.listener_from_fd(fd, family=socket.AF_INET) as listener:
        assert listener.fileno() == fd
        assert not listener.get_inheritable()
        assert (listener.family, listener.type) == (socket.AF_INET, socket.SOCK_STREAM)
        converse(listener)


@pytest.mark.parametrize("was", [True, False])
@pytest.mark.parametrize("wanted", [True, False, None])
def test_blocking_as_asked(was: bool, wanted: bool | None) -> None:
    original = ff.bind("tcp://127.0.0.1:0")
    original.setblocking(was)
    with ff.listener_from_fd(original.detach(), blocking=wanted) as listener:
        expected = was if wanted is None else wanted
        assert listener.getblocking() is os.get_blocking(listener.fileno()) is expected


def tcp_unbound() -> int:
    return socket.socket().detach()


def unix_connected() -> int:
    one, other = socket.socketpair()
    other.close()
    return one.detach()


def a_pipe() -> int:
    reader, writer = os.pipe()
    os.close(writer)
    return reader


WRONG: list[tuple[Callable[[], int], int, str]] = [
    (tcp_unbound, errno.EINVAL, "is a TCP socket but not listening"),
    (unix_connected, errno.EINVAL, "is a Unix stream socket but connected, not listening"),
    (
        lambda: socket.socket(type=socket.SOCK_DGRAM).detach(),
        errno.EINVAL,
        "is a UDP socket, which has no connections to listen for",
    ),
    (
        lambda: socket.socket(socket.AF_UNIX).detach(),
        errno.EINVAL,
        "is a Unix stream socket but not listening",
    ),
    (
        lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).detach(),
        errno.EINVAL,
        "is a AF_NETLINK SOCK_RAW socket, which has no connections to listen for",
    ),
    (
        lambda: ff.bind("tcp://127.0.0.1:0").detach(),
        errno.EAFNOSUPPORT,
        "listens, but is a TCP socket of AF_INET, not AF_UNIX",
    ),
    (lambda: os.open("/dev/null", os.O_RDONLY), errno.ENOTSOCK, "is a character device, not"),
    (lambda: os.open("/etc/passwd", os.O_RDONLY), errno.ENOTSOCK, "is a regular file, not"),
    (lambda: os.open("/", os.O_RDONLY), errno.ENOTSOCK, "is a directory, not a socket"),
    (a_pipe, errno.ENOTSOCK, "is a pipe, not a socket"),
    (lambda: os.eventfd(0), errno.ENOTSOCK, "is an anonymous inode"),
]


@pytest.mark.parametrize(("make", "err", "reason"), WRONG, ids=[w[2] for w in WRONG])
def test_what_is_no_listener(make: Callable[[], int], err: int, reason: str) -> None:
    fd = make()
    os.set_inheritable(fd, True)
    flags = os.get_blocking(fd)
    try:
        with pytest.raises(ff.ListenerError) as caught:
            ff.listener_from_fd(fd, family=socket.AF_UNIX, blocking=not flags)
        assert str(caught.value).startswith(f"descriptor {fd} {reason}")
        assert (caught.value.errno, caught.value.fd) == (err, fd)
        assert os.get_inheritable(fd), "left as it was"
        assert os.get_blocking(fd) is flags, "left as it was"
    finally:
        os.close(fd)


def test_another_type() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind("")
        listener.listen()
        with pytest.raises(ff.ListenerError, match="a Unix SOCK_SEQPACKET socket, not SOCK_STREAM"):
            ff.listener_from_fd(listener.fileno())
        with ff.listener_from_fd(os.dup(listener.fileno()), type=socket.SOCK_SEQPACKET):
            pass


def test_closed() -> None:
    fd = os.dup(0)
    os.close(fd)
    with pytest.raises(ff.ListenerError, match=f"descriptor {fd} is closed: .*close-on-exec"):
        ff.listener_from_fd(fd)


def test_the_error_can_be_sent_on() -> None:
    error = pickle.loads(pickle.dumps(ff.ListenerError(errno.EBADF, 3, "is closed")))
    assert (str(error), error.errno) == ("descriptor 3 is closed", errno.EBADF)

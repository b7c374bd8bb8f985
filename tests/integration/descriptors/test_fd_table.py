"""fd_table() against what the kernel itself answers, of real descriptors of every kind."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import itertools
import os
import random
import re
import select
import signal
import socket
import stat
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from leaks import gone

import pyforkfd as ff

libc = ctypes.CDLL(None, use_errno=True)
CI = os.environ.get("CI") == "true"


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as held:
        yield held


def own(stack: ExitStack, fd: int) -> int:
    assert fd >= 0, os.strerror(ctypes.get_errno())
    return stack.enter_context(ff.Fd(fd)).fileno()


@contextlib.contextmanager
def twin() -> Iterator[int]:
    """A fork of this process: its pid, while it holds what we held."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    try:
        yield pid
    finally:
        os.close(writer)
        os.close(reader)
        os.waitpid(pid, 0)


def rows(fd: int) -> Iterator[ff.FdInfo]:
    """The row of a descriptor of ours as we see it, and as we see it of another process."""
    yield ff.fd_table()[fd]
    with twin() as pid:
        yield ff.fd_table(pid)[fd]


def details(fd: int) -> Iterator[object]:
    return (row.details for row in rows(fd))


def numbers() -> set[int]:
    found = set(map(int, os.listdir("/proc/self/fd")))
    return {fd for fd in found if os.path.exists(f"/proc/self/fd/{fd}")}


# What every row has.


def test_every_column_is_what_the_kernel_says(stack: ExitStack, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("0123456789")
    for flags in (os.O_RDONLY, os.O_WRONLY | os.O_APPEND, os.O_RDWR | os.O_NONBLOCK, os.O_PATH):
        fd = own(stack, os.open(tmp_path / "file", flags))
        if flags != os.O_PATH:
            os.lseek(fd, 3, os.SEEK_SET)
        os.set_inheritable(fd, bool(flags & os.O_NONBLOCK))
    stack.enter_context(socket.socket())
    table = ff.fd_table()
    assert table.pid == os.getpid() and list(table) == sorted(table)
    assert table.keys() == numbers(), "all of them, and not what it was read by"
    with twin() as pid:
        others = ff.fd_table(pid)
    for fd, info in table.items():
        assert info.number == fd
        assert info.target == os.readlink(f"/proc/self/fd/{fd}")
        assert info.flags == fcntl.fcntl(fd, fcntl.F_GETFL)
        assert info.cloexec == bool(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC)
        assert (info.device, info.inode) == (os.fstat(fd).st_dev, os.fstat(fd).st_ino)
        if info.kind == "file" and info.access != "path":
            assert info.offset == os.lseek(fd, 0, os.SEEK_CUR)
        if fd > 2:  # another's has fewer details, and nothing else is different
            assert dataclasses_equal(info, others[fd]), (info, others[fd])
    files = [info for info in table.values() if info.target == str(tmp_path / "file")]
    assert [info.access for info in files] == ["r", "w", "rw", "path"]
    assert [info.offset for info in files] == [3, 3, 3, None]
    assert [info.nonblocking for info in files] == [False, False, True, False]
    assert [info.cloexec for info in files] == [True, True, False, True]


def dataclasses_equal(ours: ff.FdInfo, theirs: ff.FdInfo) -> bool:
    names = ("number", "kind", "target", "cloexec", "flags", "offset", "device", "inode")
    return all(getattr(ours, name) == getattr(theirs, name) for name in names)


def test_a_table_is_a_mapping() -> None:
    table = ff.fd_table()
    reader, writer = os.pipe()
    os.close(writer)
    os.close(reader)
    assert reader not in table and table.get(reader) is None
    assert repr(table) == f"<FdTable of process {os.getpid()}: {len(table)} descriptors>"
    assert ff.fd_table(os.getpid()).keys() == table.keys()


# Kinds.


def test_files(stack: ExitStack, tmp_path: Path) -> None:
    path = tmp_path / "with space and\nline"
    path.write_text("abc")
    (tmp_path / "link").symlink_to("nowhere")
    fd = own(stack, os.open(path, os.O_RDONLY))
    for row in rows(fd):
        assert (row.kind, row.target) == ("file", str(path))
        assert row.details == ff.FileDetails(size=3, links=1)
    path.unlink()
    for row in rows(fd):
        assert row.target == f"{path} (deleted)"
        assert row.details == ff.FileDetails(size=3, links=0)
    folder = own(stack, os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY))
    link = own(stack, os.open(tmp_path / "link", os.O_PATH | os.O_NOFOLLOW))
    null = own(stack, os.open("/dev/null", os.O_RDWR))
    space = own(stack, os.open("/proc/self/ns/uts", os.O_RDONLY))
    for fd, kind in ((folder, "directory"), (link, "symlink"), (null, "character device")):
        assert [row.kind for row in rows(fd)] == [kind, kind]
    assert [row.kind for row in rows(space)] == ["namespace", "namespace"]
    assert all(re.fullmatch(r"uts:\[\d+\]", row.target) for row in rows(space))


def test_long_and_odd_names(stack: ExitStack, tmp_path: Path) -> None:
    """A target may be longer than the kernel prints, and need not be UTF-8."""
    folder = own(stack, os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY))
    for _ in range(30):
        os.mkdir("d" * 200, dir_fd=folder)
        folder = own(stack, os.open("d" * 200, os.O_RDONLY | os.O_DIRECTORY, dir_fd=folder))
    fd = own(stack, os.open(b"\xff", os.O_RDWR | os.O_CREAT, dir_fd=folder))
    with pytest.raises(OSError, match="too long"):
        os.readlink(f"/proc/self/fd/{fd}")  # the kernel's d_path() has one page
    odd = own(stack, os.open(tmp_path / os.fsdecode(b"\xff"), os.O_RDWR | os.O_CREAT))
    for row in rows(fd):
        assert (row.target, row.kind) == ("", "file")
    for row in rows(odd):
        assert os.fsencode(row.target) == os.fsencode(tmp_path) + b"/\xff"


def test_terminals(stack: ExitStack) -> None:
    controller, terminal = (own(stack, fd) for fd in os.openpty())
    for fd in (controller, terminal):
        assert [row.kind for row in rows(fd)] == ["tty", "tty"]
    termios.tcgetattr(terminal)


def test_pipes(stack: ExitStack, tmp_path: Path) -> None:
    reader, writer = (own(stack, fd) for fd in os.pipe())
    fcntl.fcntl(writer, 1031, 8192)  # F_SETPIPE_SZ
    os.write(writer, b"12345")
    ours, theirs = rows(reader)
    assert ours.details == ff.PipeDetails(capacity=8192, unread=5)
    assert theirs.details is None
    table = ff.fd_table()
    assert (table[reader].access, table[writer].access) == ("r", "w")
    assert table[reader].inode == table[writer].inode
    assert table[reader].shared_with == () == table[writer].shared_with, "two open files"
    os.mkfifo(tmp_path / "fifo")
    fifo = own(stack, os.open(tmp_path / "fifo", os.O_RDWR))
    name = own(stack, os.open(tmp_path / "fifo", os.O_PATH))
    table = ff.fd_table()
    assert (table[fifo].kind, table[fifo].target) == ("pipe", str(tmp_path / "fifo"))
    assert table[fifo].details == ff.PipeDetails(capacity=65536, unread=0)
    assert (table[name].kind, table[name].details) == ("pipe", None)


def test_epoll(stack: ExitStack) -> None:
    reader, writer = os.pipe()
    stack.callback(os.close, writer)
    with select.epoll() as epoll:
        for found in details(epoll.fileno()):
            assert found == ff.EpollDetails(watches=())
        epoll.register(reader, select.EPOLLIN | select.EPOLLET)
        watched = os.fstat(reader)
        kept = own(stack, os.dup(reader))
        os.close(reader)
        # Closed, and watched as before: what is watched is the open file.
        for found in details(epoll.fileno()):
            assert isinstance(found, ff.EpollDetails)
            (watch,) = found.watches
            assert (watch.number, watch.data & 0xFFFFFFFF) == (reader, reader)
            assert watch.events & (select.EPOLLIN | select.EPOLLET | select.EPOLLOUT) == (
                select.EPOLLIN | select.EPOLLET
            )
            assert (watch.inode, watch.device) == (watched.st_ino, watched.st_dev)
        # Above the number that is gone: with it the same file is registered already.
        pipes = [own(stack, fcntl.fcntl(kept, fcntl.F_DUPFD_CLOEXEC, 100)) for _ in range(300)]
        for fd in pipes:
            epoll.register(fd, select.EPOLLIN)
        found = ff.fd_table()[epoll.fileno()].details
        assert isinstance(found, ff.EpollDetails)
        assert sorted(w.number for w in found.watches) == sorted([reader, *pipes])


def test_eventfd(stack: ExitStack) -> None:
    one = own(stack, os.eventfd(0xABC))
    two = own(stack, os.eventfd(0, os.EFD_CLOEXEC | os.EFD_SEMAPHORE))
    counts, semaphores, ids = [], [], set()
    for fd in (one, two):
        for found in details(fd):
            assert isinstance(found, ff.EventfdDetails)
            counts.append(found.count)
            semaphores.append(found.semaphore)
            ids.add(found.id)
    assert counts == [0xABC, 0xABC, 0, 0]
    assert semaphores in ([False, False, True, True], [None] * 4)
    assert len(ids) == 2 or ids == {None}


def test_timerfd(stack: ExitStack) -> None:
    fd = own(stack, libc.timerfd_create(time.CLOCK_BOOTTIME, os.O_CLOEXEC))
    assert ff.fd_table()[fd].details == ff.TimerfdDetails(
        clock=time.CLOCK_BOOTTIME, ticks=0, remaining_ns=0, interval_ns=0
    )
    when = (ctypes.c_long * 4)(2, 500, 1000, 0)  # interval, first
    assert libc.timerfd_settime(fd, 0, when, None) == 0
    for found in details(fd):
        assert isinstance(found, ff.TimerfdDetails)
        assert found.interval_ns == 2_000_000_500
        assert 0 < found.remaining_ns <= 1000 * 10**9
    assert libc.timerfd_settime(fd, 0, (ctypes.c_long * 4)(0, 0, 0, 1), None) == 0
    select.select([fd], [], [])
    for found in details(fd):
        assert isinstance(found, ff.TimerfdDetails)
        assert (found.ticks, found.remaining_ns) == (1, 0)


def test_signalfd(stack: ExitStack) -> None:
    wanted = {signal.SIGHUP, signal.SIGUSR1, signal.SIGRTMAX}
    mask = ctypes.c_uint64(sum(1 << (n - 1) for n in wanted))
    bits = (ctypes.c_uint64 * 16)(mask.value)
    fd = own(stack, libc.signalfd(-1, bits, os.O_CLOEXEC))
    for found in details(fd):
        assert found == ff.SignalfdDetails(signals=frozenset(wanted))


def test_inotify(stack: ExitStack, tmp_path: Path) -> None:
    fd = own(stack, libc.inotify_init1(os.O_CLOEXEC))
    watch = libc.inotify_add_watch(fd, os.fsencode(tmp_path), 0x100)  # IN_CREATE
    seen = os.stat(tmp_path)
    for found in details(fd):
        assert isinstance(found, ff.InotifyDetails)
        (entry,) = found.watches
        assert (entry.watch, entry.inode, entry.device) == (watch, seen.st_ino, seen.st_dev)
        assert entry.mask & 0xFFF == 0x100


def test_pidfd(stack: ExitStack) -> None:
    with twin() as pid:
        fd = own(stack, os.pidfd_open(pid))
        row = ff.fd_table()[fd]
        assert (row.kind, row.details) == ("pidfd", ff.PidfdDetails(pid=pid))
        with twin() as other:
            assert ff.fd_table(other)[fd].details == ff.PidfdDetails(pid=pid)
    assert ff.fd_table()[fd].details == ff.PidfdDetails(pid=-1), "reaped"


def test_memfd(stack: ExitStack) -> None:
    fd = own(stack, os.memfd_create("name", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    os.ftruncate(fd, 4096)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    ours, theirs = rows(fd)
    seals = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK
    assert ours.kind == "memfd" and ours.target == "/memfd:name (deleted)"
    assert ours.details == ff.MemfdDetails(size=4096, seals=seals)
    assert theirs.details == ff.MemfdDetails(size=4096, seals=None)


def test_kinds_without_details_have_the_kernels_name(stack: ExitStack) -> None:
    fd = libc.syscall(425, 1, (ctypes.c_char * 256)())  # io_uring_setup
    if fd < 0:
        pytest.skip("io_uring_setup is refused here")
    fd = own(stack, fd)
    assert [(row.kind, row.details) for row in rows(fd)] == [("io_uring", None)] * 2


# Sockets.


def bound(family: int, kind: int, where: object) -> Callable[[Path], list[socket.socket]]:
    def make(folder: Path) -> list[socket.socket]:
        made = socket.socket(family, kind)
        try:
            made.bind(str(folder / "socket") if where == "path" else where)  # type: ignore[arg-type]
        except OSError:
            made.close()
            raise
        return [made]

    return make


def listener(family: int, kind: int, where: object) -> Callable[[Path], list[socket.socket]]:
    """A listener with room for 5, two clients waiting, and both clients."""

    def make(folder: Path) -> list[socket.socket]:
        (made,) = bound(family, kind, where)(folder)
        made.listen(5)
        clients = [socket.socket(family, kind) for _ in range(2)]
        for client in clients:
            client.connect(made.getsockname())
        return [made, *clients]

    return make


def connected_datagram(folder: Path) -> list[socket.socket]:
    one, two = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    one.bind(("127.0.0.1", 0))
    two.connect(one.getsockname())
    return [one, two]


def vsock(folder: Path) -> list[socket.socket]:
    made = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    made.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
    made.listen(5)
    return [made]


V4, V6, UNIX = socket.AF_INET, socket.AF_INET6, socket.AF_UNIX
STREAM, DGRAM, SEQPACKET = socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET
ABSTRACT = f"\0pyforkfd-{os.getpid()}-\xe4\0b"
LISTENERS = {
    "tcp": listener(V4, STREAM, ("127.0.0.1", 0)),
    "tcp6": listener(V6, STREAM, ("::1", 0)),
    "unix": listener(UNIX, STREAM, "path"),
    "seqpacket": listener(UNIX, SEQPACKET, "path"),
    "abstract": listener(UNIX, STREAM, ABSTRACT),
}
SOCKETS: dict[str, Callable[[Path], list[socket.socket]]] = {
    **LISTENERS,
    "unbound tcp": lambda _: [socket.socket(V4, STREAM)],
    "bound tcp": bound(V4, STREAM, ("127.0.0.1", 0)),
    "unbound udp": lambda _: [socket.socket(V4, DGRAM)],
    "udp": bound(V4, DGRAM, ("127.0.0.1", 0)),
    "udp connected": connected_datagram,
    "udp6": bound(V6, DGRAM, ("::1", 0)),
    "unbound unix": lambda _: [socket.socket(UNIX, STREAM)],
    "unix datagram": bound(UNIX, DGRAM, "path"),
    "unix pair": lambda _: list(socket.socketpair()),
    "seqpacket pair": lambda _: list(socket.socketpair(UNIX, SEQPACKET)),
    "netlink": bound(socket.AF_NETLINK, socket.SOCK_RAW, (0, 0)),
    "vsock": vsock,
    "packet": lambda _: [socket.socket(socket.AF_PACKET, DGRAM)],
}


def open_sockets(name: str, folder: Path, stack: ExitStack) -> list[socket.socket]:
    try:
        made = SOCKETS[name](folder)
    except OSError as error:
        pytest.skip(f"no {name} socket can be made here: {error}")
    return [stack.enter_context(s) for s in made]


@pytest.mark.parametrize("name", SOCKETS)
def test_sockets(name: str, stack: ExitStack, tmp_path: Path) -> None:
    for made in open_sockets(name, tmp_path, stack):
        for row in rows(made.fileno()):
            found = row.details
            assert row.kind == "socket" and isinstance(found, ff.SocketDetails), row
            if made.family == socket.AF_PACKET:
                assert isinstance(found.local, bytes), "the sockaddr as it is"
            else:
                assert found.local == made.getsockname()
                assert type(found.local) is type(made.getsockname())
            assert (found.family, found.type) == (made.family, made.type)
            assert isinstance(found.family, socket.AddressFamily)
            assert found.protocol == made.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL)
            accepts = made.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            assert found.listening == bool(accepts)
            try:
                peer = made.getpeername()
            except OSError:
                assert found.peer is None
            else:
                assert found.peer == peer


@pytest.mark.parametrize("name", LISTENERS)
def test_queue_of_a_listener(name: str, stack: ExitStack, tmp_path: Path) -> None:
    made = open_sockets(name, tmp_path, stack)[0]

    def queue() -> list[tuple[int | None, int | None]]:
        found = list(details(made.fileno()))
        assert all(isinstance(d, ff.SocketDetails) for d in found)
        return [(d.waiting, d.backlog) for d in found if isinstance(d, ff.SocketDetails)]

    assert queue() == [(2, 5), (2, 5)]
    stack.enter_context(made.accept()[0])
    assert queue() == [(1, 5), (1, 5)]
    client = ff.fd_table()[made.fileno() + 1].details
    assert isinstance(client, ff.SocketDetails) and client.backlog is None


def test_the_name_of_a_socket_is_not_the_socket(stack: ExitStack, tmp_path: Path) -> None:
    stack.enter_context(bound(UNIX, STREAM, "path")(tmp_path)[0])
    name = own(stack, os.open(tmp_path / "socket", os.O_PATH))
    for row in rows(name):
        assert (row.kind, row.access, row.details) == ("socket", "path", None)


def test_sockets_of_another_network_namespace(stack: ExitStack) -> None:
    """sock_diag does not know them: they are duplicated for a moment."""
    script = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_INET6); s.bind(('::', 8080)); s.listen(3)\n"
        "print(s.fileno(), flush=True)\n"
        "sys.stdin.read()\n"
    )
    argv = [sys.executable, "-I", "-c", script]
    try:
        child = ff.spawn(argv, fds={0: ff.PIPE, 1: ff.PIPE}, namespaces=["net"])
    except PermissionError as error:
        pytest.skip(f"no network namespace may be made here: {error}")
    with child:
        assert child.stdout is not None
        fd = int(child.stdout.readline())
        found = ff.fd_table(child.pid)[fd].details
    assert isinstance(found, ff.SocketDetails)
    assert (found.local, found.listening) == (("::", 8080, 0, 0), True)
    assert (found.waiting, found.backlog) == (0, 3)


# The same open file.


def test_shared(stack: ExitStack) -> None:
    first = own(stack, os.open("/dev/null", os.O_RDONLY))
    again = own(stack, os.open("/dev/null", os.O_RDONLY))
    copy = own(stack, os.dup(first))
    last = own(stack, fcntl.fcntl(first, fcntl.F_DUPFD_CLOEXEC, 200))
    listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    other = stack.enter_context(listening.dup())
    tables = [ff.fd_table()]
    with twin() as pid:
        tables.append(ff.fd_table(pid))
    for table in tables:
        assert table[first].open_file == (first, copy, last)
        assert table[first].shared_with == (copy, last)
        assert table[copy].shared_with == (first, last)
        assert table[again].shared_with == ()
        assert table[other.fileno()].shared_with == (listening.fileno(),)


def test_shared_at_random(stack: ExitStack, tmp_path: Path) -> None:
    """Many open files of few inodes, each at some numbers: every group is found."""
    rng = random.Random(3)
    (tmp_path / "file").touch()
    makers: list[Callable[[], int]] = [
        lambda: os.eventfd(0),
        lambda: os.open("/dev/null", os.O_RDONLY),
        lambda: os.open(tmp_path / "file", os.O_RDWR),
        lambda: libc.epoll_create1(0),
        lambda: socket.socket().detach(),
    ]
    groups: list[list[int]] = []
    for _ in range(600):
        if groups and rng.random() < 0.5:
            group = rng.choice(groups)
            group.append(own(stack, os.dup(group[0])))
        else:
            groups.append([own(stack, rng.choice(makers)())])
    expected = {fd: tuple(sorted(group)) for group in groups for fd in group}
    table = ff.fd_table()
    assert {fd: table[fd].open_file for fd in expected} == expected


# Other processes.


def test_a_process_that_is_gone() -> None:
    with twin() as pid:
        pass
    with pytest.raises(ProcessLookupError, match=f"descriptors of process {pid}: No such process"):
        ff.fd_table(pid)
    for never in (0, -1):
        with pytest.raises(ValueError, match=f"{never} is not a process"):
            ff.fd_table(never)


def test_a_process_that_may_not_be_looked_at() -> None:
    """As another user: of a process that has more capabilities than we do."""
    if os.geteuid() != 0:
        with pytest.raises(PermissionError, match="descriptors of process 1: needs its user"):
            ff.fd_table(1)
        return
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        try:
            ff.fd_table(os.getppid())
        except PermissionError as error:
            os.write(writer, str(error).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(writer)
    with open(reader) as said:
        text = said.read()
    assert f"descriptors of process {os.getpid()}: needs its user, or CAP_SYS_PTRACE" in text


def test_children_see_nothing_of_a_snapshot(stack: ExitStack) -> None:
    """What a child was given, read from outside."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        ff.spawn(["cat"], fds={0: ff.PIPE, 1: ff.DEVNULL, 2: ff.CLOSED, 7: server}) as child,
    ):
        # The loader opens libraries, as 2 for a moment.
        assert gone(lambda: list(ff.fd_table(child.pid)) == [0, 1, 7])
        table = ff.fd_table(child.pid)
        found = table[7].details
        assert isinstance(found, ff.SocketDetails) and found.local == server.getsockname()
        assert not table[7].cloexec and ff.fd_table()[server.fileno()].cloexec


# While others open and close.


def consistent(row: ff.FdInfo) -> bool:
    """One row is of one open file, whatever its number has been before and after."""
    if row.kind == "socket":
        # Its address has its port, which its flags tell as well.
        assert isinstance(row.details, ff.SocketDetails), row
        return row.target == f"socket:[{row.inode}]" and row.nonblocking
    if row.kind == "pipe":
        return row.target == f"pipe:[{row.inode}]" and row.access == "r" and not row.nonblocking
    if row.kind == "eventfd":
        assert isinstance(row.details, ff.EventfdDetails), row
        return row.details.count == 77 and row.access == "rw"
    assert row.kind == "directory", row
    return row.target == "/" and isinstance(row.details, ff.FileDetails)


def churn_one_number(number: int, stop: Callable[[], bool]) -> None:
    """The number is one of four kinds in turn, by dup2, and now and then closed."""
    pipe, end = os.pipe()
    with (
        socket.socket(UNIX) as sock,
        ff.Fd(pipe),
        ff.Fd(end),
        ff.Fd(os.eventfd(77)) as event,
        ff.Fd(os.open("/", os.O_RDONLY)) as folder,
    ):
        sock.setblocking(False)
        sources = [sock.fileno(), pipe, event.fileno(), folder.fileno()]
        for i in itertools.count():
            if stop():
                break
            os.dup2(sources[i % 4], number)
            if i % 7 == 0:
                os.close(number)
        os.dup2(pipe, number)
        os.close(number)


@pytest.mark.parametrize("foreign", [False, True], ids=["own", "foreign"])
def test_rows_are_consistent_while_others_open_and_close(foreign: bool, stack: ExitStack) -> None:
    still = {own(stack, os.eventfd(n)) for n in range(50)}
    targets = range(500, 504)
    done = threading.Event()
    pid = None
    if foreign:
        alive, told = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(told)
            os.set_blocking(alive, False)
            churn_one_number(targets[0], lambda: bool(select.select([alive], [], [], 0)[0]))
            os._exit(0)
        os.close(alive)
        stack.callback(os.waitpid, pid, 0)
        stack.callback(os.close, told)
        threads = []
    else:
        threads = [
            threading.Thread(target=churn_one_number, args=(n, done.is_set)) for n in targets
        ]
    for thread in threads:
        thread.start()
    kinds = set()
    try:
        for _ in range(400):
            table = ff.fd_table(pid)
            assert still <= table.keys()
            for target in targets:
                if target in table:
                    assert consistent(table[target]), table[target]
                    kinds.add(table[target].kind)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert len(kinds) == 4, f"the churn was not seen: {kinds}"


def test_snapshots_of_a_process_that_ends() -> None:
    """A table or ProcessLookupError, and never half a table without a word."""
    outcomes = set()
    for _ in range(60):
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
        os.close(reader)

        def end(writer: int = writer, pid: int = pid) -> None:
            os.close(writer)
            os.waitpid(pid, 0)

        stopper = threading.Thread(target=end)
        stopper.start()
        try:
            while True:
                ff.fd_table(pid)
                outcomes.add("table")
        except ProcessLookupError:
            outcomes.add("gone")
        stopper.join()
    assert "gone" in outcomes


def test_many_threads_take_snapshots() -> None:
    expected = numbers()
    failures: list[object] = []

    def look() -> None:
        for _ in range(50):
            if missing := expected - ff.fd_table().keys():
                failures.append(missing)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_the_table_of_a_thread_that_has_its_own(stack: ExitStack) -> None:
    fd = own(stack, os.eventfd(0))
    seen: list[bool] = []

    def alone() -> None:
        ff.close_range(fd, fd, unshare=True)
        seen.append(fd in ff.fd_table())

    thread = threading.Thread(target=alone)
    thread.start()
    thread.join()
    assert seen == [False]
    assert fd in ff.fd_table()


def test_record_locks_survive(stack: ExitStack, tmp_path: Path) -> None:
    """A snapshot that opened or duplicated a file would, by closing, drop its locks."""
    with open(tmp_path / "locked", "w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        ff.fd_table()
        inode = os.fstat(file.fileno()).st_ino
        assert f":{inode} " in Path("/proc/locks").read_text()


def test_diff_of_real_tables(stack: ExitStack) -> None:
    gone = os.eventfd(0)
    kept = own(stack, os.eventfd(0))
    before = ff.fd_table()
    os.close(gone)
    new = own(stack, os.open("/", os.O_RDONLY))
    assert new == gone, "the lowest number is used again"
    os.set_inheritable(kept, True)
    found = ff.diff(before, ff.fd_table())
    assert [row.kind for row in found.closed] == ["eventfd"]
    assert [row.kind for row in found.opened] == ["directory"]
    assert [(a.cloexec, b.cloexec) for a, b in found.changed] == [(True, False)]
    assert not ff.diff(ff.fd_table(), ff.fd_table())
    assert stat.S_ISDIR(os.fstat(new).st_mode)

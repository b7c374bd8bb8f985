"""Listening sockets that a worker has spoiled for all that have them: found, named, put right."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from services import free_port
from supervised import Supervised, fetch

import pyforkfd as ff
from pyforkfd import _core
from pyforkfd.supervisor._reactor import Reactor
from pyforkfd.supervisor.processes._running import RunningWorkers
from pyforkfd.supervisor.processes._sockets import Sockets
from pyforkfd.supervisor.processes.listening._guard import SocketGuard
from pyforkfd.supervisor.processes.listening._state import Good, find_damage, restore
from pyforkfd.supervisor.spec._spec import Component, Listener, Service
from pyforkfd.supervisor.state._events import Event

ATTACH_FILTER, LOCK_FILTER, BINDTOIFINDEX = 26, 44, 62
IP_MINTTL = 21
BACKLOG = 16


def bound(kind: str, directory: Path) -> socket.socket:
    addresses = {
        "tcp": "tcp://127.0.0.1:0",
        "tcp6": "tcp://[::1]:0",
        "port": f"tcp://127.0.0.1:{free_port()}",
        "udp": "udp://127.0.0.1:0",
        "unix": f"unix:{directory}/socket",
        "abstract": f"unix:@{directory}/socket",
        "datagrams": f"unixgram:{directory}/socket",
        "packets": f"unixpacket:{directory}/socket",
    }
    return ff.bind(addresses[kind], backlog=BACKLOG)


def works(sock: socket.socket, address: Any = None) -> bool:
    """Send to an address as a client does, and take it from the socket as a worker does."""
    sock.setblocking(False)
    with socket.socket(sock.family, sock.type) as client:
        client.settimeout(5)
        try:
            client.connect(sock.getsockname() if address is None else address)
            client.sendall(b"x")
            if not select.select([sock], [], [], 1)[0]:
                return False
            if sock.type == socket.SOCK_DGRAM:
                return sock.recv(10) == b"x"
            sock.accept()[0].close()
        except OSError:
            return False
    return True


def shut_down(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError as error:
        assert error.errno == errno.ENOTCONN  # UDP's, which is shut down all the same


def shut_down_reading(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RD)
    except OSError as error:
        assert error.errno == errno.ENOTCONN


def shut_down_and_listen(sock: socket.socket) -> None:
    """Listen again: where the kernel chose the port, on another one."""
    sock.shutdown(socket.SHUT_RDWR)
    sock.listen(1)


def connect(sock: socket.socket) -> None:
    """Connect it to another socket: for a listener, after a shutdown(2)."""
    if sock.type == socket.SOCK_STREAM:
        sock.shutdown(socket.SHUT_RDWR)
    with socket.socket(sock.family, sock.type) as other:
        other.bind(("localhost", 0))
        if sock.type == socket.SOCK_STREAM:
            other.listen()
        sock.setblocking(True)
        sock.connect(other.getsockname())


def attach_filter(sock: socket.socket) -> None:
    """Attach the filter that drops everything: BPF_RET 0."""
    code = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))
    program = struct.pack("HxxxxxxQ", 1, ctypes.addressof(code))
    sock.setsockopt(socket.SOL_SOCKET, ATTACH_FILTER, program)


def lock_filter(sock: socket.socket) -> None:
    attach_filter(sock)
    sock.setsockopt(socket.SOL_SOCKET, LOCK_FILTER, 1)


def bind_to_device(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, BINDTOIFINDEX, 1 << 20)


def demand_ttl(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_IP, IP_MINTTL, 255)


Spoil = Callable[[socket.socket], None]
REPAIRED: list[tuple[str, Spoil]] = [
    *((kind, way) for kind in ("tcp", "tcp6", "port") for way in (shut_down, shut_down_reading)),
    ("tcp", shut_down_and_listen),
    ("tcp", connect),
    ("port", connect),
    ("udp", connect),
    *((kind, attach_filter) for kind in ("tcp", "udp", "datagrams")),
    ("tcp", demand_ttl),
]
REPLACED: list[tuple[str, Spoil]] = [
    *(
        (kind, way)
        for kind in ("unix", "packets", "datagrams")
        for way in (shut_down, shut_down_reading)
    ),
    ("tcp", lock_filter),
    ("port", lock_filter),
]
DEAD: list[tuple[str, Spoil]] = [("udp", shut_down), ("abstract", shut_down), ("udp", lock_filter)]


def name_of(value: object) -> str:
    return getattr(value, "__name__", str(value))


@pytest.mark.parametrize(("kind", "spoil"), REPAIRED, ids=name_of)
def test_what_a_worker_has_done_is_undone_on_the_same_socket(
    kind: str, spoil: Spoil, tmp_path: Path
) -> None:
    with bound(kind, tmp_path) as sock, sock.dup() as workers:
        good = Good.of(sock)
        assert find_damage(sock, good) == "" and works(sock)
        spoil(workers)
        assert not works(sock, good.address)
        assert find_damage(sock, good)
        restore(sock, good, BACKLOG)
        assert find_damage(sock, good) == ""
        assert sock.getsockname() == good.address
        assert works(workers), "every process that has it accepts from it"


@pytest.mark.parametrize(("kind", "spoil"), [*REPLACED, *DEAD], ids=name_of)
def test_what_cannot_be_undone_is_an_error(kind: str, spoil: Spoil, tmp_path: Path) -> None:
    with bound(kind, tmp_path) as sock, sock.dup() as workers:
        good = Good.of(sock)
        spoil(workers)
        assert find_damage(sock, good)
        with pytest.raises(OSError, match=r"it (was shut down|has a locked filter)"):
            restore(sock, good, BACKLOG)


def test_a_device_is_restored_by_those_who_may(tmp_path: Path) -> None:
    with bound("tcp", tmp_path) as sock:
        good = Good.of(sock)
        bind_to_device(sock)
        assert find_damage(sock, good) == "has SO_BINDTOIFINDEX=1048576, not 0"
        if os.geteuid() == 0:
            restore(sock, good, BACKLOG)
            assert works(sock)


class Guarded:
    """A guard of the one listener of a specification."""

    def __init__(self, address: str, *, shards: bool = False) -> None:
        listener = Listener(name="http", address=address, backlog=BACKLOG, shards=shards)
        web = Component(name="web", command=("true",), listen=("http",), workers=2)
        self.service = Service(name="s", components={"web": web}, listeners={"http": listener})
        self.events: list[Event] = []
        self.reactor, self.sockets = Reactor(), Sockets()
        self.guard = SocketGuard(self.sockets, RunningWorkers(), self.reactor, self.events.append)
        self.sockets.open(self.service)
        for position in range(2):
            self.guard.know(self.sockets.keys_of(self.service, web, position))
        self.guard.check()

    def open(self) -> list[socket.socket]:
        return list(self.sockets.all().values())

    def close(self) -> None:
        self.guard.close()
        self.sockets.close()
        self.reactor.close()


@pytest.fixture
def guarded() -> Iterator[Callable[..., Guarded]]:
    made: list[Guarded] = []

    def make(address: str, *, shards: bool = False) -> Guarded:
        made.append(Guarded(address, shards=shards))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize("shards", [False, True])
def test_a_hang_up_is_found_at_once(guarded: Callable[..., Guarded], shards: bool) -> None:
    """Wait for nothing but the event: no poll comes to its help.  So for each shard."""
    it = guarded("tcp://127.0.0.1:0", shards=shards)
    sockets = it.open()
    assert len(sockets) == 1 + shards
    for sock in sockets:
        name = sock.getsockname()
        with sock.dup() as workers:
            for _ in range(3):
                shut_down(workers)
                it.reactor.run_once(10)
                assert sock.getsockname() == name
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    assert it.guard.dead == {} and it.events == []


def test_connections_do_not_wake_the_guard(guarded: Callable[..., Guarded]) -> None:
    it = guarded("tcp://127.0.0.1:0")
    (sock,) = it.open()
    with socket.create_connection(sock.getsockname()):
        assert select.select([sock], [], [], 5)[0]
        before = time.monotonic()
        it.reactor.run_once(0.2)
        assert time.monotonic() - before >= 0.2


def test_the_backlog_is_that_of_the_specification(guarded: Callable[..., Guarded]) -> None:
    it = guarded("tcp://127.0.0.1:0")
    (sock,) = it.open()

    def backlog() -> int:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
        found: int = struct.unpack_from("I", info, 28)[0]
        return found

    assert backlog() == BACKLOG
    with sock.dup() as workers:
        workers.listen(0)
    assert backlog() == 0
    it.guard.check()
    assert backlog() == BACKLOG


@pytest.mark.parametrize(
    "address", ["unix:{}/s", "unixpacket:{}/s", "unixgram:{}/s"], ids=["stream", "packet", "gram"]
)
def test_a_path_that_is_past_repair_is_bound_anew(
    guarded: Callable[..., Guarded], address: str, tmp_path: Path
) -> None:
    it = guarded(address.format(tmp_path))
    (old,) = it.open()
    workers = old.dup()
    with workers:
        shut_down(workers)
        it.reactor.run_once(10)
        (new,) = it.open()
        assert new is not old and works(new)
    assert it.guard.dead == {}


def test_a_path_that_another_has_taken_is_not_touched(
    guarded: Callable[..., Guarded], tmp_path: Path
) -> None:
    it = guarded(f"unix:{tmp_path}/s")
    (old,) = it.open()
    (tmp_path / "s").rename(tmp_path / "moved")
    with ff.bind(f"unix:{tmp_path}/s") as other:
        shut_down(old)
        it.reactor.run_once(10)
        assert works(other)
        (why,) = it.guard.dead.values()
        assert f"listener http (unix:{tmp_path}/s): dead, and cannot be put right" in why
        assert "it is not our socket any more: restart the service" in why
        with pytest.raises(OSError, match="listener http"):
            it.guard.demand(it.service)


def test_a_dead_listener_is_alive_when_it_is_put_right(
    guarded: Callable[..., Guarded], tmp_path: Path
) -> None:
    it = guarded(f"unix:{tmp_path}/s")
    (old,) = it.open()
    (tmp_path / "s").unlink()
    shut_down(old)
    it.guard.check()
    assert len(it.guard.dead) == 1
    with ff.bind(f"unix:{tmp_path}/s"):
        pass  # a stale path, which is ours by chance or not
    it.guard.check()
    it.sockets.keep([])
    it.guard.check()
    assert it.guard.dead == {}, "it is not in use any more"


@pytest.mark.parametrize("shared", [False, True])
def test_what_waits_for_a_worker_is_left_to_it(
    guarded: Callable[..., Guarded], tmp_path: Path, shared: bool
) -> None:
    """A listener that no generation needs any more, while a worker that has it finishes."""
    it = guarded(f"unix:{tmp_path}/s")
    (listener,) = it.open()
    with listener.dup() as workers, socket.socket(socket.AF_UNIX) as client:
        client.connect(listener.getsockname())
        it.sockets.keep([], shared=[(it.service.listeners["http"], 1)] if shared else [])
        workers.setblocking(False)
        if shared:
            workers.accept()[0].close()
        else:
            with pytest.raises(BlockingIOError):
                workers.accept()


def test_disconnect_is_refused_for_what_is_no_socket() -> None:
    with open(os.devnull) as file, pytest.raises(OSError, match="connect"):
        _core.disconnect(file.fileno())


WORKER = """
import os, signal, socket, time
listener = socket.socket(fileno=3)
def leave(*_):
    {leave}
    os._exit(0)
def spoil(*_):
    {spoil}
signal.signal(signal.SIGTERM, leave)
signal.signal(signal.SIGUSR1, spoil)
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
    manager.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
while True:
    try:
        client, _ = listener.accept()
    except OSError:
        time.sleep(0.01)
        continue
    client.sendall(b"hello")
    client.close()
"""
SHUT = "listener.shutdown(socket.SHUT_RDWR)"


def config(directory: Path, address: str, more: str = "", *, leave: str = "pass") -> str:
    (directory / "worker.py").write_text(WORKER.format(leave=leave, spoil=SHUT))
    return f"""
[listeners.http]
address = "{address}"
{more}
[components.web]
command = ["{sys.executable}", "{directory}/worker.py"]
workers = 2
listen = ["http"]
drain_timeout = "1s"
cgroup = "off"
"""


def answered(address: tuple[str, int] | str) -> bool:
    try:
        return fetch(address) == "hello"
    except OSError:
        return False


def until(what: Callable[[], object], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("shards", [False, True])
def test_workers_that_shut_down_the_listener_as_they_leave_are_named(
    tmp_path: Path, shards: bool
) -> None:
    address = ("127.0.0.1", free_port())
    more = "shards = true" if shards else ""
    text = config(tmp_path, f"tcp://127.0.0.1:{address[1]}", more, leave=SHUT)
    with Supervised(tmp_path, text) as service:
        service.until("^ready")
        with service.client() as client:
            assert client.request("reload")["ok"]
        line = service.log.wait_for(r"listener http .* does not listen any more: .*: put right")
        assert re.search(r"by web: worker [12]\b", line.string)
        until(lambda: answered(address))


def test_a_worker_that_shuts_down_the_listener_while_it_serves(tmp_path: Path) -> None:
    """Nobody can tell which it was: all that have the listener are named."""
    address = ("127.0.0.1", free_port())
    with Supervised(tmp_path, config(tmp_path, f"tcp://127.0.0.1:{address[1]}")) as service:
        service.until("^ready")
        os.kill(service.workers()[0]["pid"], signal.SIGUSR1)
        line = service.log.wait_for(r"listener http .*: put right")
        assert "by web: worker 1, or web: worker 2" in line.string
        with service.client() as client:
            client.request("reload")
        until(lambda: answered(address))


def test_a_path_is_bound_anew_and_its_workers_replaced(tmp_path: Path) -> None:
    path = f"{tmp_path}/socket"
    with Supervised(tmp_path, config(tmp_path, f"unix:{path}")) as service:
        service.until("^ready")
        old = {worker["id"] for worker in service.workers()}
        os.kill(service.workers()[0]["pid"], signal.SIGUSR1)
        service.log.wait_for(r"listener http .*: replaced by a new socket")
        until(lambda: old.isdisjoint(w["id"] for w in service.workers() if w["phase"] == "ready"))
        until(lambda: answered(path))
        with service.client() as client:
            assert client.request("status")["status"]["condition"] == "ready"


def test_a_dead_listener_is_in_status_and_refuses_a_reload(tmp_path: Path) -> None:
    name = f"@{tmp_path}/socket"
    with Supervised(tmp_path, config(tmp_path, f"unix:{name}")) as service:
        service.until("^ready")
        os.kill(service.workers()[0]["pid"], signal.SIGUSR1)
        service.log.wait_for(
            r"ERROR: listener http \(unix:@.*\) was shut down \(by web: worker 1, "
        )
        status = service.command("status")
        assert status.returncode == 1 and "degraded" in status.stdout
        assert "dead, and cannot be put right" in status.stdout
        reload = service.command("reload")
        assert reload.returncode == 1 and "cannot be put right" in reload.stderr

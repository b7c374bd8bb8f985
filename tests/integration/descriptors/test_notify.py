"""notify(): what arrives at the manager's socket."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyforkfd as ff


@pytest.fixture(params=["path", "abstract"])
def manager(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[socket.socket]:
    address = f"{tmp_path}/notify" if request.param == "path" else f"@forkfd-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(address.replace("@", "\0"))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        sock.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        yield sock


def received(manager: socket.socket) -> dict[str, str]:
    """One datagram; the kernel says that it came from us."""
    data, control, flags, _ = manager.recvmsg(4096, 100)
    assert flags == socket.MSG_CMSG_CLOEXEC or flags == 0
    ((level, kind, credentials),) = control
    assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS)
    assert int.from_bytes(credentials[:4], "little") == os.getpid()
    return dict(line.split("=", 1) for line in data.decode().split("\n"))


def test_ready(manager: socket.socket) -> None:
    assert ff.notify(ready=True, status="2 workers", main_pid=17)
    assert received(manager) == {"READY": "1", "STATUS": "2 workers", "MAINPID": "17"}


def test_reloading_tells_the_time(manager: socket.socket) -> None:
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    ff.notify(reloading=True)
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    said = received(manager)
    assert said["RELOADING"] == "1"
    assert before <= int(said["MONOTONIC_USEC"]) <= after


def test_the_rest(manager: socket.socket) -> None:
    ff.notify(stopping=True, errno=5, watchdog=True, watchdog_usec=7, extend_timeout_usec=9)
    assert received(manager) == {
        "STOPPING": "1",
        "ERRNO": "5",
        "WATCHDOG": "1",
        "WATCHDOG_USEC": "7",
        "EXTEND_TIMEOUT_USEC": "9",
    }
    ff.notify(watchdog_failed=True)
    assert received(manager) == {"WATCHDOG": "trigger"}


def test_descriptor_store(manager: socket.socket) -> None:
    manager.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
    with ff.bind("tcp://127.0.0.1:0") as listener:
        assert ff.notify(ready=True, fdstore={"web": [listener, 0]}, fdstore_remove=["old"])
        assert manager.recv(100) == b"READY=1"
        data, fds, _, _ = socket.recv_fds(manager, 100, 4)
        assert data == b"FDSTORE=1\nFDNAME=web"
        with ff.listener_from_fd(fds[0]) as kept:
            assert kept.getsockname() == listener.getsockname()
        assert os.path.sameopenfile(fds[1], 0)
        os.close(fds[1])
    assert manager.recv(100) == b"FDSTOREREMOVE=1\nFDNAME=old"


def test_barrier(manager: socket.socket) -> None:
    manager.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)

    def work_off() -> None:
        assert manager.recv(100) == b"READY=1"
        data, fds, _, _ = socket.recv_fds(manager, 100, 4)
        assert data == b"BARRIER=1"
        os.close(fds[0])

    thread = threading.Thread(target=work_off)
    thread.start()
    assert ff.notify(ready=True, barrier=10)
    thread.join()


def test_a_barrier_that_is_not_passed(manager: socket.socket) -> None:
    with pytest.raises(TimeoutError, match=r"the barrier was not passed within 0.01 s"):
        ff.notify(barrier=0.01)


def test_a_manager_that_does_not_read(manager: socket.socket) -> None:
    room = int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text())
    for _ in range(room + 1):
        ff.notify(watchdog=True, timeout=0)
    with pytest.raises(BlockingIOError, match=r"notify .*: Resource temporarily unavailable"):
        ff.notify(watchdog=True, timeout=0)
    with pytest.raises(TimeoutError):
        ff.notify(watchdog=True, timeout=0.01)
    assert received(manager) == {"WATCHDOG": "1"}
    assert ff.notify(watchdog=True, timeout=0)


def test_nobody_wants_to_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not ff.notify(ready=True)


def test_the_variable_can_be_removed(manager: socket.socket) -> None:
    assert ff.notify(ready=True, unset_environment=True)
    assert received(manager) == {"READY": "1"}
    assert not ff.notify(ready=True)


def test_a_manager_that_is_gone(manager: socket.socket) -> None:
    address = os.environ["NOTIFY_SOCKET"]
    manager.close()
    with pytest.raises(ConnectionRefusedError, match=f"notify {address}: Connection refused"):
        ff.notify(ready=True)


@pytest.mark.usefixtures("manager")
def test_what_makes_no_sense(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="notify: no field is given"):
        ff.notify()
    with pytest.raises(ValueError, match="line break in STATUS="):
        ff.notify(status="fine\nMAINPID=1")
    with pytest.raises(ValueError, match="'a:b' is no name for FDNAME"):
        ff.notify(fdstore={"a:b": [0]})
    monkeypatch.setenv("NOTIFY_SOCKET", "relative")
    with pytest.raises(ValueError, match="NOTIFY_SOCKET=relative is neither a path nor abstract"):
        ff.notify(ready=True)

"""listen=: the receiver's side of sd_listen_fds(3), written by the child itself."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator

import pytest
from children import REPORT, Children, descriptors, environment, identity, read_report

import pyforkfd as ff


@pytest.fixture
def listeners() -> Iterator[dict[str, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as http, socket.socket(socket.AF_UNIX) as admin:
        admin.bind("")  # an abstract address of the kernel's choice
        admin.listen()
        yield {"http": http, "admin": admin}


def pidfd_inode(pidfd: int) -> int | None:
    """Where the kernel has pidfs (Linux 6.9), what identifies the process for ever."""
    other = os.pidfd_open(os.getpid())
    try:
        distinct = os.fstat(other).st_ino != os.fstat(pidfd).st_ino
    finally:
        os.close(other)
    return os.fstat(pidfd).st_ino if distinct else None


def test_what_the_child_gets(children: Children, listeners: dict[str, socket.socket]) -> None:
    with children.start(
        [children.program, str(REPORT)], listen=listeners, fds={REPORT: ff.PIPE_FROM_CHILD}
    ) as child:
        seen = read_report(child)
        inode = pidfd_inode(child.pidfd)
    env, held = environment(seen), descriptors(seen)
    assert (env["LISTEN_FDS"], env["LISTEN_FDNAMES"]) == ("2", "http:admin")
    assert int(env["LISTEN_PID"]) == child.pid == seen["pid"]
    assert env.get("LISTEN_PIDFDID") == (None if inode is None else str(inode))
    assert [held[3], held[4]] == [identity(s.fileno()) for s in listeners.values()]
    assert held.keys() == {0, 1, 2, 3, 4}


def test_each_child_of_a_command_gets_its_own(
    children: Children, listeners: dict[str, socket.socket]
) -> None:
    command = ff.Command(
        [children.program, str(REPORT)], listen=listeners, fds={REPORT: ff.PIPE_FROM_CHILD}
    )
    for _ in range(2):
        with command.spawn() as child:
            assert environment(read_report(child))["LISTEN_PID"] == str(child.pid)


@pytest.mark.parametrize("env", [None, {"LISTEN_PID": "1", "LISTEN_FDS": "7", "OTHER": "kept"}])
def test_what_we_were_given_ourselves_is_replaced(
    children: Children,
    listeners: dict[str, socket.socket],
    env: dict[str, str] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LISTEN_PID", "1")
    monkeypatch.setenv("LISTEN_FDS", "7")
    monkeypatch.setenv("OTHER", "kept")
    seen = children.look(listen={"only": listeners["http"]}, env=env)
    entries = [e for e in seen["env"] if e.startswith(("LISTEN_PID=", "LISTEN_FDS="))]
    assert sorted(entries) == ["LISTEN_FDS=1", f"LISTEN_PID={seen['pid']}"]
    assert environment(seen)["OTHER"] == "kept"


def test_none_at_all(children: Children) -> None:
    env = environment(children.look(listen={}, env={}))
    assert (env["LISTEN_FDS"], env["LISTEN_FDNAMES"]) == ("0", "")


def test_the_child_accepts(children: Children, listeners: dict[str, socket.socket]) -> None:
    """A listener works in the child without a second listen()."""
    answer = "import socket; c = socket.socket(fileno=3).accept()[0]; c.sendall(b'hello')"
    address = listeners["http"].getsockname()
    with (
        children.start([sys.executable, "-I", "-c", answer], listen=listeners),
        socket.create_connection(address) as client,
        client.makefile("rb") as received,
    ):
        assert received.read() == b"hello"


@pytest.mark.parametrize("name", ["a:b", "new\nline", "\u00e4"])
def test_names_that_cannot_be_said(name: str) -> None:
    with pytest.raises(ValueError, match="is not a name LISTEN_FDNAMES can carry"):
        ff.Command(["true"], listen={name: 0})


def test_a_number_taken_twice() -> None:
    with pytest.raises(ValueError, match="child's descriptor 3 is also in fds"):
        ff.Command(["true"], listen={"a": 0}, fds={3: 0})

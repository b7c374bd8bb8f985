"""listen_fds(): what a process takes over from the one that started it."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Mapping

import pytest

import pyforkfd as ff

RECEIVER = """
import json, os, sys
import pyforkfd as ff
for name, value in json.loads(sys.argv[1]).items():
    os.environ[name] = value.replace("OURS", str(os.getpid()))
left = lambda: sorted(name for name in os.environ if name.startswith("LISTEN_"))
try:
    got = ff.listen_fds(unset_environment=json.loads(sys.argv[2]))
    print(json.dumps({"got": [[g.name, g.fd, os.get_inheritable(g.fd)] for g in got],
                      "left": left()}))
except (ValueError, OSError) as error:
    print(json.dumps({"error": f"{type(error).__name__}: {error}", "left": left()}))
"""


def receive(
    fds: Mapping[int, ff.FdSource],
    env: Mapping[str, str],
    *,
    listen: Mapping[str, socket.socket] | None = None,
    unset: bool = True,
) -> dict[str, object]:
    with ff.spawn(
        [sys.executable, "-I", "-c", RECEIVER, json.dumps(dict(env)), json.dumps(unset)],
        fds={**fds, 1: ff.PIPE},
        listen=listen,
    ) as child:
        assert child.stdout is not None
        answer = child.stdout.read()
    assert child.status is not None and child.status.success
    result = json.loads(answer)
    assert isinstance(result, dict)
    return result


TWO: dict[int, ff.FdSource] = {3: ff.DEVNULL, 4: ff.DEVNULL}
SAID = {"LISTEN_PID": "OURS", "LISTEN_FDS": "2"}


def test_from_our_own_spawn() -> None:
    with ff.bind("tcp://127.0.0.1:0") as http, ff.bind("tcp://127.0.0.1:0") as admin:
        listen = {"http": http, "admin": admin}
        assert receive({}, {}, listen=listen) == {
            "got": [["http", 3, False], ["admin", 4, False]],
            "left": [],
        }
        kept = receive({}, {}, listen=listen, unset=False)
        assert set(kept["left"]) >= {"LISTEN_FDNAMES", "LISTEN_FDS", "LISTEN_PID"}  # type: ignore[call-overload]


def test_without_names() -> None:
    assert receive(TWO, SAID)["got"] == [["unknown", 3, False], ["unknown", 4, False]]


def test_names_may_repeat() -> None:
    got = receive(TWO, {**SAID, "LISTEN_FDNAMES": "a:a"})
    assert got["got"] == [["a", 3, False], ["a", 4, False]]


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"LISTEN_FDS": "2"},
        {"LISTEN_PID": "OURS"},
        {"LISTEN_PID": "1", "LISTEN_FDS": "2"},
        {**SAID, "LISTEN_FDS": "0"},
    ],
)
def test_nothing_for_us(env: dict[str, str]) -> None:
    assert receive(TWO, env) == {"got": [], "left": []}


def test_a_pid_that_was_recycled() -> None:
    """The pid is ours and the pidfd's inode is not: another process was meant."""
    from pyforkfd import _core

    if _core.own_pidfd_inode() is None:
        pytest.skip("no pidfs (Linux 6.9)")
    assert receive(TWO, {**SAID, "LISTEN_PIDFDID": "1"})["got"] == []


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"LISTEN_PID": "x", "LISTEN_FDS": "2"}, "ValueError: LISTEN_PID=x: not a number"),
        ({**SAID, "LISTEN_FDS": "-1"}, "ValueError: LISTEN_FDS=-1: not a number"),
        (
            {**SAID, "LISTEN_FDNAMES": "a"},
            "ValueError: LISTEN_FDNAMES=a: 1 names for 2 descriptors",
        ),
        (
            {**SAID, "LISTEN_FDS": "9999999999"},
            "ValueError: LISTEN_FDS=9999999999: not a number of descriptors",
        ),
    ],
)
def test_what_makes_no_sense(env: dict[str, str], message: str) -> None:
    assert receive(TWO, env) == {"error": message, "left": []}


def test_one_that_is_not_open() -> None:
    got = receive({3: ff.DEVNULL, 4: ff.CLOSED}, SAID)
    assert str(got["error"]).startswith("ListenerError: descriptor 4 is closed: ")


def test_for_those_who_fork_themselves() -> None:
    with ff.bind("tcp://127.0.0.1:0") as listener:
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.dup2(listener.fileno(), 3, inheritable=True)
                os.dup2(writer, 1)
                env = {**os.environ, **ff.listen_environment(["web"], pid=os.getpid())}
                os.execve(sys.executable, [sys.executable, "-Ic", RECEIVER, "{}", "true"], env)
            finally:
                os._exit(127)
        os.close(writer)
        with os.fdopen(reader) as answer:
            assert json.load(answer) == {"got": [["web", 3, False]], "left": []}
        assert os.waitpid(pid, 0)[1] == 0
    with pytest.raises(ValueError, match="'a:b' is no name"):
        ff.listen_environment(["a:b"], pid=1)

"""Sessions, process groups and terminals."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Iterator

import pytest
from children import REPORT, Children, read_report

import pyforkfd as ff

# A session leader that starts a child in a group of its own, and in the foreground.
JOB_CONTROL = """
import os, sys, json
import pyforkfd as ff
from pyforkfd import _core
_core.force_backend(sys.argv[2])
with ff.spawn([sys.argv[1], "99"], process_group=0, foreground=True,
              fds={99: ff.PIPE_FROM_CHILD}) as child:
    sys.stdout.write(child.pipes[99].read().decode())
"""


@pytest.fixture
def terminal() -> Iterator[int]:
    """The slave of a pseudo-terminal that nobody controls."""
    master, slave = os.openpty()
    yield slave
    os.close(slave)
    os.close(master)


def test_new_session(children: Children) -> None:
    seen = children.look(new_session=True)
    assert seen["sid"] == seen["pgid"] == seen["pid"]
    assert not seen["terminal"]


def test_group_of_its_own(children: Children) -> None:
    seen = children.look(process_group=0)
    assert (seen["pgid"], seen["sid"]) == (seen["pid"], os.getsid(0))
    assert children.look()["pgid"] == os.getpgrp()


def test_group_of_another(children: Children) -> None:
    fds: dict[int, ff.FdSource] = {0: ff.PIPE, REPORT: ff.PIPE_FROM_CHILD}
    args: list[ff.StrPath] = [children.program, str(REPORT), "wait"]
    with children.start(args, process_group=0, fds=fds) as leader:
        assert read_report(leader)["pgid"] == leader.pid
        assert children.look(process_group=leader.pid)["pgid"] == leader.pid


def test_no_such_group(children: Children) -> None:
    with pytest.raises(PermissionError) as caught:
        children.start(["true"], process_group=1)
    assert str(caught.value) == "spawn true: set process group: 1: Operation not permitted"


@pytest.mark.parametrize("by_path", [True, False])
def test_controlling_terminal(children: Children, terminal: int, by_path: bool) -> None:
    seen = children.look(
        new_session=True, controlling_terminal=os.ttyname(terminal) if by_path else terminal
    )
    assert seen["terminal"]
    assert seen["foreground"] == seen["pgid"] == seen["pid"]
    assert set(seen["fds"]) == {"0", "1", "2"}, "the terminal is no descriptor of the child's"


def test_foreground_with_a_terminal_of_its_own(children: Children, terminal: int) -> None:
    seen = children.look(new_session=True, controlling_terminal=terminal, foreground=True)
    assert seen["foreground"] == seen["pid"]


def test_foreground_from_a_group_in_the_background(children: Children, terminal: int) -> None:
    """SIGTTOU would stop the child if its mask were restored before TIOCSPGRP."""
    with ff.spawn(
        [sys.executable, "-I", "-c", JOB_CONTROL, children.program, children.backend],
        new_session=True,
        controlling_terminal=terminal,
        fds={1: ff.PIPE},
    ) as leader:
        assert leader.stdout is not None
        seen = json.loads(leader.stdout.read())
    assert seen["foreground"] == seen["pgid"] == seen["pid"]
    assert seen["sid"] == leader.pid != seen["pid"]


def test_what_is_no_terminal(children: Children) -> None:
    with pytest.raises(ff.SpawnError) as caught:
        children.start(["true"], new_session=True, controlling_terminal="/dev/null")
    assert (caught.value.stage, caught.value.errno) == ("controlling_terminal", errno.ENOTTY)
    assert caught.value.subject == "/dev/null"


def test_a_terminal_that_is_not_ours(children: Children, terminal: int) -> None:
    with pytest.raises(ff.SpawnError) as caught:
        children.start(["true"], foreground=terminal)
    assert (caught.value.stage, caught.value.errno) == ("foreground", errno.ENOTTY)
    assert caught.value.subject == f"descriptor {terminal}"

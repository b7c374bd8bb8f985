"""What makes no sense is refused before anything is started, and is named."""

from __future__ import annotations

import os
from typing import Any

import pytest

import pyforkfd as ff

WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"args": "true"}, TypeError, r"args: a sequence is wanted, not 'true': try \['true'\]"),
    ({"args": []}, ValueError, "args: empty"),
    ({"args": ["a\0b"]}, ValueError, "args: null byte"),
    ({"args": [""]}, ValueError, "args: the program's name is empty"),
    ({"args": [7]}, TypeError, "args: expected str, bytes or os.PathLike"),
    ({"executable": "a\0"}, ValueError, "executable: null byte"),
    ({"executable": -1}, ValueError, "executable: -1 is not a descriptor"),
    ({"argv0": "\0"}, ValueError, "argv0: null byte"),
    ({"env": {"A=B": "c"}}, ValueError, "env: 'A=B' cannot be the name of a variable"),
    ({"env": {"": "c"}}, ValueError, "env: '' cannot be the name"),
    ({"env": {"A": "b\0"}}, ValueError, "env: 'A': null byte"),
    ({"cwd": ""}, ValueError, "cwd: the path is empty"),
    ({"cwd": True}, TypeError, "cwd: True is neither a descriptor nor has a fileno"),
    ({"fds": {-1: 0}}, ValueError, "fds: -1 is not a descriptor number"),
    ({"fds": {"1": 0}}, TypeError, "fds: '1' is not a descriptor number"),
    ({"fds": {5.5: 0}}, TypeError, "fds: 5.5 is not a descriptor number"),
    ({"fds": {5: None}}, TypeError, "child's descriptor 5: None is not a descriptor"),
    ({"fds": {5: "x"}}, TypeError, "child's descriptor 5: 'x' is neither"),
    ({"fds": {5: -3}}, ValueError, "child's descriptor 5: -3 is not a descriptor"),
    ({"fds": {5: ff.SameAs(6)}}, ValueError, "child's descriptor 5: .* names no open descriptor"),
    ({"fds": {1: ff.CLOSED, 2: ff.STDOUT}}, ValueError, "names no open descriptor"),
    ({"fds": {5: ff.SameAs(5)}}, ValueError, "names no open descriptor"),
    ({"fds": {5: ff.Open("a\0")}}, ValueError, "^fds: child's descriptor 5: null byte in"),
    ({"process_group": -1}, ValueError, "process_group: -1 is not a process group"),
    ({"process_group": 0, "new_session": True}, ValueError, "a new session has a group"),
    ({"controlling_terminal": 0}, ValueError, "controlling_terminal: needs new_session=True"),
    ({"umask": 0o1000}, ValueError, "umask: 0o1000 is not within 0o777"),
    ({"umask": -1}, ValueError, "umask: -0o1 is not within 0o777"),
    ({"nice": 20}, ValueError, "nice: 20 is not within -20 to 19"),
    ({"cpu_affinity": []}, ValueError, "cpu_affinity: no processor named"),
    ({"cpu_affinity": [-1]}, ValueError, "cpu_affinity: -1 is not a processor"),
    ({"user": True}, TypeError, "user: True is not an id"),
    ({"user": -1}, ValueError, "user: -1 is not an id"),
    ({"group": 2**32}, ValueError, "group: 4294967296 is not an id"),
    ({"capabilities": ff.Capabilities(ambient="KILL")}, TypeError, "a set of names is wanted"),
    ({"chroot": ""}, ValueError, "chroot: the path is empty"),
    ({"namespaces": ["disk"]}, ValueError, "namespaces: 'disk' is none of cgroup, ipc"),
    ({"uid_map": [(0, 0, 1)]}, ValueError, "uid_map: needs the user namespace"),
    ({"seccomp": b""}, ValueError, "seccomp: 0 bytes are not 1 to 4096 instructions"),
    ({"seccomp": b"1234567"}, ValueError, "seccomp: 7 bytes are not"),
    ({"seccomp": bytes(8 * 4097)}, ValueError, "seccomp: 32776 bytes are not"),
    ({"cgroup": ""}, ValueError, "cgroup: the path is empty"),
    ({"signal_mask": [0]}, ValueError, "signal_mask: 0 is not a signal"),
    ({"default_signals": [65]}, ValueError, "default_signals: 65 is not a signal"),
    ({"ignore_signals": [-1]}, ValueError, "ignore_signals: -1 is not a signal"),
    ({"parent_death_signal": 99}, ValueError, "parent_death_signal: 99 is not a signal"),
    ({"parent_death_scope": "tribe"}, ValueError, "parent_death_scope: 'tribe'"),
]


@pytest.mark.parametrize(("wrong", "kind", "message"), WRONG)
def test_is_named(wrong: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        ff.Command(**{"args": ["true"], **wrong})


def test_an_unknown_option() -> None:
    with pytest.raises(TypeError, match="preexec_fn"):
        ff.spawn(["true"], preexec_fn=os.getpid)  # type: ignore[call-arg]


def test_a_command_is_frozen() -> None:
    command = ff.Command(["true"])
    with pytest.raises(AttributeError):
        command.umask = 0  # type: ignore[misc]

"""os.posix_spawn on our engine: file actions in their order, by every back end."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from children import Children

import pyforkfd as ff
from pyforkfd import subprocess as drop_in

REPORT = 99
Spawn = Callable[..., int]


def seen(spawn: Spawn, program: Path, actions: list[tuple[Any, ...]], **options: Any) -> Any:
    """Descriptors that a child started so has, but for its report's."""
    reader, writer = os.pipe()
    actions = [*actions, (os.POSIX_SPAWN_DUP2, writer, REPORT)]
    pid = spawn(program, [program, str(REPORT)], {}, file_actions=actions, **options)
    os.close(writer)
    with open(reader, "rb") as file:
        told = json.loads(file.read())
    assert os.waitpid(pid, 0)[1] == 0
    del told["fds"][str(REPORT)]
    return {int(n): (d, i) for n, (d, i, _, _) in told["fds"].items()}


def actions_of(other: int, path: Path) -> dict[str, list[tuple[Any, ...]]]:
    dup2, close, opened = os.POSIX_SPAWN_DUP2, os.POSIX_SPAWN_CLOSE, os.POSIX_SPAWN_OPEN
    write = os.O_WRONLY | os.O_CREAT
    cases: dict[str, list[tuple[Any, ...]]] = {
        "none": [],
        "swap": [(dup2, 0, 9), (dup2, other, 0), (dup2, 9, other), (close, 9)],
        "in order": [(dup2, other, 5), (dup2, 0, other), (dup2, 5, 6), (close, 5)],
        "same number": [(dup2, other, other)],
        "open and copy": [(opened, 7, str(path), write, 0o600), (dup2, 7, 1), (close, 7)],
        "open over": [(dup2, other, 7), (opened, 7, str(path), write, 0o600)],
        "close what is not open": [(close, 77)],
    }
    if (close_from := getattr(os, "POSIX_SPAWN_CLOSEFROM", None)) is not None:
        cases["close from"] = [(dup2, other, 120), (dup2, other, 98), (close_from, 110)]
    return cases


@pytest.mark.parametrize("name", actions_of(3, Path()))
def test_file_actions(children: Children, other_fd: int, tmp_path: Path, name: str) -> None:
    actions = actions_of(other_fd, tmp_path / "made")[name]
    stock = seen(os.posix_spawn, children.program, actions)
    assert seen(drop_in.posix_spawn, children.program, actions) == stock


def test_an_action_that_fails(other_fd: int) -> None:
    for actions, kind in (
        ([(os.POSIX_SPAWN_DUP2, 77, 3)], OSError),
        ([(os.POSIX_SPAWN_OPEN, 3, "/nowhere/file", os.O_RDONLY, 0)], FileNotFoundError),
        ([(os.POSIX_SPAWN_CLOSE, -1)], OSError),
    ):
        raised = []
        for spawn in (os.posix_spawn, drop_in.posix_spawn):
            with pytest.raises(kind) as caught:
                spawn("/bin/true", ["true"], {}, file_actions=actions)
            raised.append((caught.value.errno, type(caught.value)))
        assert raised[0] == raised[1]


def test_an_error_has_the_path_and_the_step() -> None:
    with pytest.raises(FileNotFoundError) as caught:
        drop_in.posix_spawnp("nowhere-program", ["x"], None)
    assert caught.value.filename == "nowhere-program"
    assert isinstance(caught.value.__cause__, ff.SpawnError)
    assert caught.value.__cause__.stage == "exec"


def test_attributes_of_all_kinds() -> None:
    script = "import os; os._exit(os.getsid(0) == os.getpid() == os.getpgid(0))"
    args = [sys.executable, "-S", "-c", script]
    scheduler = (None, os.sched_param(0))
    pid = drop_in.posix_spawn(
        sys.executable, args, os.environ, setsid=True, setsigmask=[10], scheduler=scheduler
    )
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        ({"argv": "x"}, TypeError),
        ({"argv": []}, ValueError),
        ({"argv": [""]}, ValueError),
        ({"argv": ["a\0b"]}, ValueError),
        ({"env": 3}, TypeError),
        ({"env": {"A=B": ""}}, ValueError),
        ({"path": "/bin/tr\0ue"}, ValueError),
        ({"path": 3}, TypeError),
        ({"file_actions": [()]}, TypeError),
        ({"file_actions": [(77, 3)]}, TypeError),
        ({"file_actions": [("x",)]}, TypeError),
        ({"file_actions": [(os.POSIX_SPAWN_CLOSE,)]}, TypeError),
        ({"file_actions": [(os.POSIX_SPAWN_CLOSE, "x")]}, TypeError),
        ({"setsigdef": [0]}, ValueError),
        ({"setsigmask": [999]}, ValueError),
        ({"scheduler": (1,)}, TypeError),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_as_it_was(wrong: dict[str, Any], kind: type) -> None:
    given = {"path": "/bin/true", "argv": ["true"], "env": {}, **wrong}
    path, argv, env = (given.pop(name) for name in ("path", "argv", "env"))
    for spawn in (os.posix_spawn, drop_in.posix_spawn):
        with pytest.raises(kind):
            spawn(path, argv, env, **given)

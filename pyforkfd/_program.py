"""The program of a child: its arguments, its environment, and where PATH has it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ._checks import as_fd, pairs, path_or_fd, text
from ._core import SpawnPlan
from ._types import PATHS, HasFileno, StrPath


def compile_program(
    plan: SpawnPlan,
    words: Sequence[StrPath],
    executable: StrPath | int | HasFileno | None,
    argv0: StrPath | None,
    env: Mapping[str, str] | Mapping[bytes, bytes] | None,
    cwd: StrPath | int | HasFileno | None,
) -> None:
    """Add to ``plan`` what is executed, and where."""
    argv = [text(word, "args") for word in words]
    if not argv:
        raise ValueError("args: empty: at least the program's name is needed")
    variables: Mapping[Any, Any] | None = None
    if env is not None:
        variables = dict(checked := pairs(env, "env"))
        plan.env = environment(checked)
    if executable is None or isinstance(executable, PATHS):
        option = "args" if executable is None else "executable"
        program = argv[0] if executable is None else text(executable, option)
        if not program:
            raise ValueError(f"{option}: the program's name is empty")
        plan.candidates = candidates(program, variables)
    else:
        plan.exec_fd = as_fd(executable, "executable", otherwise=" nor is a path")
        program = b"descriptor %d" % plan.exec_fd
    if argv0 is not None:
        argv[0] = text(argv0, "argv0")
    plan.argv = argv
    plan.program = program
    if cwd is not None:
        compile_cwd(plan, cwd)


def compile_cwd(plan: SpawnPlan, cwd: StrPath | int | HasFileno) -> None:
    """Add the working directory to ``plan``."""
    where = path_or_fd(cwd, "cwd")
    if isinstance(where, bytes):
        plan.cwd = where
    else:
        plan.cwd_fd = where


def environment(env: Iterable[tuple[Any, Any]], *, nameless: bool = False) -> list[bytes]:
    """Return the variables of a child as ``NAME=value``.

    Args:
        env: names and values.
        nameless: a name may be empty, as subprocess has it.
    """
    entries = []
    for name, value in env:
        key = text(name, "env")
        if b"=" in key or not (key or nameless):
            raise ValueError(f"env: {name!r} cannot be the name of a variable")
        try:
            entries.append(key + b"=" + text(value, "env"))
        except (TypeError, ValueError):
            text(value, f"env: {name!r}")  # which is not worth its cost where all is well
            raise
    return entries


def candidates(program: bytes, env: Mapping[Any, Any] | None) -> list[bytes]:
    """Return the paths to try, in the order of PATH of the child's environment, execvp(3).

    Args:
        program: its name; one with a slash is the only candidate.
        env: the child's environment; None: ours.
    """
    if b"/" in program:
        return [program]
    found = (os.environ if env is None else env).get("PATH")
    if env is not None and (encoded := env.get(b"PATH")) is not None:
        if found is not None:
            raise ValueError("env: both 'PATH' and b'PATH' are in it")
        found = encoded
    if found is None:
        found = os.defpath
    # An empty element is the current directory.
    return [os.path.join(part, program) for part in os.fsencode(found).split(b":")]

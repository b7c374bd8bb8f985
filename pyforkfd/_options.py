"""The options of a child, named once: for all who pass them on to :class:`Command`.

A new option is a field of :class:`Command` with its line of description, a key of one of the
types below, and a line in ``_spawn.py`` that compiles it; ``tests/unit/test_options.py``
compares the three.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import ForwardRef, Literal, NoReturn, TypedDict, TypeVar

from ._types import (
    Capabilities,
    FdSource,
    HasFileno,
    IdMaps,
    Keep,
    Namespace,
    Scheduler,
    StrPath,
)

F = TypeVar("F", bound=Callable[..., object])


class SharedOptions(TypedDict, total=False):
    """The options of every child: of a Command, of Popen, of a zygote's worker."""

    fds: Mapping[int, FdSource] | None
    listen: Mapping[str, int | HasFileno] | None
    controlling_terminal: StrPath | int | HasFileno | None
    foreground: bool | int | HasFileno
    rlimits: Mapping[int, tuple[int, int]] | None
    nice: int | None
    cpu_affinity: Iterable[int] | None
    scheduler: Scheduler | None
    capabilities: Capabilities | None
    no_new_privs: bool
    parent_death_signal: int | None
    chroot: StrPath | None
    namespaces: Iterable[Namespace]
    seccomp: bytes | None
    cgroup: StrPath | int | HasFileno | None
    signal_mask: Iterable[int] | None
    default_signals: Iterable[int]
    ignore_signals: Iterable[int]


class Options(SharedOptions, total=False):
    """The options of :class:`Command` that the standard ``Popen`` does not have."""

    parent_death_scope: Literal["process", "thread"]
    uid_map: IdMaps
    gid_map: IdMaps


class StandardOptions(TypedDict, total=False):
    """The options of a Command and of a worker that the standard ``Popen`` has with other types."""

    cwd: StrPath | int | HasFileno | None
    new_session: bool
    process_group: int | None
    umask: int | None
    user: str | int | None
    group: str | int | Keep | None
    extra_groups: Iterable[str | int] | Keep | None


class CommandOptions(Options, StandardOptions, total=False):
    """The keyword arguments of :class:`Command`, for functions that pass them on."""

    executable: StrPath | int | HasFileno | None
    argv0: StrPath | None
    env: Mapping[str, str] | Mapping[bytes, bytes] | None
    close_others: bool


class WorkerOptions(SharedOptions, StandardOptions, total=False):
    """The options of :meth:`Zygote.spawn`, for functions that pass them on."""

    env: Mapping[str, str] | None


_OF_ZYGOTE = "a worker has the descriptors of its zygote, and those that fds names"
# What users of subprocess write, and what it is called here.
_INSTEAD = {
    "bufsize": "pipes are buffered files: write io.open(pipe.fileno(), ...) for another buffer",
    "capture_output": "write pyforkfd.run(..., capture=True), or fds={1: PIPE, 2: PIPE}",
    "check": "write pyforkfd.run(..., check=True), or read wait().success",
    "close_fds": "write close_others",
    "creationflags": "it is for Windows",
    "encoding": "pipes carry bytes; output of pyforkfd.run(..., text=True) is UTF-8",
    "errors": "pipes carry bytes; output of pyforkfd.run(..., text=True) loses none",
    "input": "write pyforkfd.run(..., input=...), or fds={0: PIPE}",
    "pass_fds": "write fds={number in the child: descriptor}",
    "pipesize": "set F_SETPIPE_SZ on the pipe, fcntl(2)",
    "preexec_fn": "no Python runs between clone and exec: options describe the child as data "
    "(new_session, process_group, umask, user, rlimits, nice, ignore_signals, ...)",
    "restore_signals": "SIGPIPE and SIGXFSZ are reset; write default_signals for others",
    "shell": "write args=['/bin/sh', '-c', command]",
    "start_new_session": "write new_session",
    "startupinfo": "it is for Windows",
    "stderr": "write fds={2: ...}: pyforkfd.PIPE, DEVNULL, STDOUT or a file",
    "stdin": "write fds={0: ...}: pyforkfd.PIPE, DEVNULL or a file",
    "stdout": "write fds={1: ...}: pyforkfd.PIPE, DEVNULL or a file",
    "text": "pipes carry bytes; write pyforkfd.run(..., text=True)",
    "timeout": "write pyforkfd.run(..., timeout=...), or wait(timeout=...)",
    "universal_newlines": "pipes carry bytes; write pyforkfd.run(..., text=True)",
}
_INSTEAD_IN = {
    "Popen": {
        "argv0": "write args=[argv0, ...] and executable",
        "capture": "write stdout=PIPE, stderr=PIPE",
        "close_others": "write close_fds",
        "new_session": "write start_new_session",
    },
    "Zygote.spawn": {
        "argv0": "a worker is a clone of its zygote, and has its name",
        "close_fds": _OF_ZYGOTE,
        "close_others": _OF_ZYGOTE,
        "executable": "a worker runs the function that its target names",
        "gid_map": "the namespaces of a worker come without maps of ids",
        "parent_death_scope": "write Zygote(parent_death_scope=...)",
        "restore_signals": "write default_signals",
        "uid_map": "the namespaces of a worker come without maps of ids",
    },
}


def names(options: type) -> frozenset[str]:
    """Return the names of the options that a TypedDict lists."""
    return frozenset(options.__optional_keys__)  # type: ignore[attr-defined]


def refuse_unknown(function: str, given: Iterable[str], known: Iterable[str]) -> NoReturn:
    """Raise a TypeError for the first option that does not exist, with the one to write.

    Args:
        function: its name, for the message.
        given: names, of which one at least is not known.
        known: the names that exist.
    """
    import difflib  # here: only a mistake needs it

    name = next(name for name in given if name not in known)
    advice = _INSTEAD_IN.get(function, {}).get(name) or _INSTEAD.get(name)
    if advice is None and (near := difflib.get_close_matches(name, known, 1)):
        advice = f"did you mean {near[0]}?"
    raise TypeError(f"{function}: {name}: no such option" + (f": {advice}" if advice else ""))


def list_options(function: F, options: type, described: type, **defaults: object) -> F:
    """Give a function the signature that lists each of its options by name.

    Type checkers and editors take the names from ``Unpack``; this is for
    :func:`inspect.signature` and those who call it.

    Args:
        function: takes ``**options``.
        options: the TypedDict of these.
        described: the dataclass whose fields have their defaults.
        defaults: those that differ.
    """
    signature = inspect.signature(function)
    others = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    keywords = [
        p.replace(default=defaults[p.name]) if p.name in defaults else p
        for p in _keywords(options, described)
    ]
    function.__signature__ = signature.replace(parameters=[*others, *keywords])  # type: ignore[attr-defined]
    return function


@functools.cache  # it is a good part of what importing us takes
def _keywords(options: type, described: type) -> tuple[inspect.Parameter, ...]:
    listed = names(options)
    return tuple(
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=_written(options, field.name),
        )
        for field in dataclasses.fields(described)
        if field.name in listed
    )


def _written(options: type, name: str) -> object:
    annotation = options.__annotations__[name]
    return annotation.__forward_arg__ if isinstance(annotation, ForwardRef) else annotation

"""The request for one worker: the message to the zygote, and what the application retains."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from signal import SIG_BLOCK, pthread_sigmask
from typing import Any

from pyforkfd import _core
from pyforkfd._core import FdKind
from pyforkfd._errors import SpawnError
from pyforkfd._fds import compile_fds
from pyforkfd._spawn import Command
from pyforkfd._types import PIPE, PIPE_TO_CHILD, FdSource, HasFileno

_PIPES = (FdKind.PIPE_TO_CHILD, FdKind.PIPE_FROM_CHILD)
# Descriptors of a plan that are not in its map.
_OTHERS = ("cwd_fd", "controlling_terminal", "foreground_terminal")
_OF_PROGRAMS = ("argv", "candidates")


@dataclass(slots=True)
class _Recorder:
    """A stand-in for the core's plan, for which a map of descriptors is compiled."""

    actions: list[tuple[int, FdKind, int, bytes, int, int]] = field(default_factory=list)
    listen_names: list[bytes] | None = None

    def add_fd(
        self,
        target: int,
        kind: FdKind,
        source: int = -1,
        path: bytes = b"",
        flags: int = 0,
        mode: int = 0,
    ) -> None:
        self.actions.append((target, kind, source, path, flags, mode))

    def inherit_standard_fds(self) -> None:
        for target in range(3):
            self.add_fd(target, FdKind.INHERIT_IF_OPEN)


@dataclass(slots=True)
class Request:
    """What is sent for one worker.  A context manager: it closes the worker's ends of pipes.

    Attributes:
        body: the message, as plain values.
        fds: borrowed, but for those in ``made``.
        sources: our numbers, in the order of the plan.
        ends: child's number -> our end of its pipe; ours until they are taken.
        writable: those of them that we write.
        born_for_it: the clone itself must know it: of namespaces, of the cgroup to be born in.
    """

    name: str
    body: dict[str, Any]
    fds: list[int]
    sources: list[int]
    ends: dict[int, int]
    writable: frozenset[int]
    made: list[int]
    born_for_it: bool = False

    def __enter__(self) -> Request:
        return self

    def __exit__(self, *exception: object) -> None:
        for fd in [*self.made, *self.ends.values()]:
            os.close(fd)

    def plan(self) -> _core.SpawnPlan:
        """Return the plan that the worker applies, with our numbers of its descriptors."""
        return _core.SpawnPlan.from_state(self.body["plan"])

    def take_ends(self) -> dict[int, int]:
        """Return our ends of the pipes, which the caller owns from now on."""
        ends, self.ends = self.ends, {}
        return ends


def request(
    name: str,
    command: Command,
    fds: Mapping[int, FdSource] | None,
    listen: Mapping[str, int | HasFileno] | None,
    held: Mapping[int, str],
    home: tuple[int, int],
    body: dict[str, Any],
) -> Request:
    """Resolve every descriptor, make the pipes, and compose the message.

    Args:
        name: what errors call the worker.
        command: has every option but ``fds`` and ``listen``.
        fds: as for spawn.
        listen: as for spawn.
        held: what the zygote's own code has open, which no target may hide.
        home: device and inode of the zygote's directory.
        body: what else is to be sent.

    Raises:
        ValueError: a target is held.
        SpawnError: a source is not open.
    """
    recorder = _Recorder()
    numbers = iter(_numbers(compile_fds(recorder, fds, listen)))  # type: ignore[arg-type]
    fields, _, limits = command._plan.state()
    for option in _OF_PROGRAMS:
        fields.pop(option, None)
    fields["program"] = name.encode()
    if "signal_mask" not in fields:
        fields["signal_mask"] = sum(1 << s - 1 for s in pthread_sigmask(SIG_BLOCK, ()))
    writable = frozenset(t for t, s in (fds or {}).items() if s is PIPE_TO_CHILD)
    if fds and fds.get(0) is PIPE:
        writable |= {0}
    made = Request(name, body, [], [], {}, writable, [])
    actions = []
    try:
        for target, kind, source, path, flags, mode in recorder.actions:
            if target in held:
                raise ValueError(
                    f"fds: child's descriptor {target} is {held[target]}, which the zygote's "
                    "code has opened"
                )
            if kind is FdKind.DESCRIPTOR:
                source = next(numbers, source)
                _demand_open(name, source, target)
            elif kind is FdKind.INHERIT_IF_OPEN:
                if not _is_open(target):
                    continue
                kind, source = FdKind.DESCRIPTOR, target
            elif kind in _PIPES:
                source = _pipe(made, target, to_child=kind is FdKind.PIPE_TO_CHILD)
                kind = FdKind.DESCRIPTOR
            if kind is FdKind.DESCRIPTOR:
                made.sources.append(source)
            actions.append((target, int(kind), source, path, flags, mode))
        made.fds.extend(made.sources)
        others = {}
        for option in _OTHERS:
            if (number := fields.get(option)) is not None:
                others[option] = len(made.fds)
                made.fds.append(number)
        if path := fields.pop("cgroup_path", b""):
            others["cgroup_fd"] = len(made.fds)
            made.fds.append(_open_cgroup(name, made, os.fsdecode(path)))
        elif (number := fields.pop("cgroup_fd", None)) is not None:
            others["cgroup_fd"] = len(made.fds)
            made.fds.append(number)
        made.born_for_it = "cgroup_fd" in others or "namespaces" in fields
        body["cwd"] = None
        if directory(".") != home:  # relative paths are ours, and the directory itself
            body["cwd"] = len(made.fds)
            made.fds.append(os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
            made.made.append(made.fds[-1])
        body.update(plan=(fields, actions, limits), sources=len(made.sources), others=others)
        if listen is not None:
            body["listen"] = [os.fsdecode(n) for n in recorder.listen_names or ()]
    except BaseException:
        made.__exit__()
        raise
    return made


def directory(path: str) -> tuple[int, int]:
    """Return device and inode of a directory."""
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _numbers(sources: Any) -> list[int]:
    numbers: list[int] = sources.numbers()
    return numbers


def _is_open(fd: int) -> bool:
    try:
        _core.cloexec(fd)  # the cheapest question; it keeps the GIL
    except OSError:
        return False
    return True


def _demand_open(name: str, source: int, target: int) -> None:
    if not _is_open(source):
        what = f"{source} -> child's {target}"
        raise SpawnError(name, "descriptor_source", errno.EBADF, what, "find descriptor to pass")


def _pipe(made: Request, target: int, *, to_child: bool) -> int:
    reader, writer = os.pipe()
    childs, ours = (reader, writer) if to_child else (writer, reader)
    made.made.append(childs)
    made.ends[target] = ours
    return childs


def _open_cgroup(name: str, made: Request, path: str) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise SpawnError(name, "open_resource", error.errno or 0, path, "open") from None
    made.made.append(fd)
    return fd

"""One worker, described by the application: the request to the zygote, and our pipe ends."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from signal import SIG_BLOCK, pthread_sigmask
from typing import Any

from pyforkfd import _core
from pyforkfd._checks import signal_bits
from pyforkfd._core import FdKind
from pyforkfd._errors import SpawnError
from pyforkfd._fds import FdSources, compile_fds
from pyforkfd._spawn import Command
from pyforkfd._types import FdSource, HasFileno

_PIPES = (FdKind.PIPE_TO_CHILD, FdKind.PIPE_FROM_CHILD)
# Descriptors of a plan that are not in its map.
_OTHERS = ("cwd_fd", "controlling_terminal", "foreground_terminal")
_OF_PROGRAMS = ("argv", "candidates")


@dataclass(slots=True)
class Descriptors:
    """The descriptors of a worker, compiled; takes the place of the core's plan meanwhile.

    Attributes:
        actions: the arguments of add_fd().
        listen_names: the names of the first descriptors from 3 on.
        sources: ours, in the order of those actions that have one.
        writable: the worker's numbers of the pipes that we write to.
    """

    actions: list[tuple[int, FdKind, int, bytes, int, int]] = field(default_factory=list)
    listen_names: list[bytes] | None = None
    sources: FdSources = field(default_factory=FdSources)
    writable: frozenset[int] = frozenset()

    @classmethod
    def compile(
        cls, fds: Mapping[int, FdSource] | None, listen: Mapping[str, int | HasFileno] | None
    ) -> Descriptors:
        """Check and compile the options ``fds`` and ``listen``.

        Raises:
            TypeError, ValueError: one makes no sense.
        """
        compiled = cls()
        compiled.sources = compile_fds(compiled, fds, listen)  # type: ignore[arg-type]
        compiled.writable = frozenset(compiled.sources.writable)
        return compiled

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
    """A request for one worker.  A context manager: it closes the worker's ends of pipes.

    Attributes:
        name: the worker's name in errors.
        body: the message, as plain values.
        fds: descriptors of the message; borrowed, but for those in ``owned``.
        sources: our numbers, in the order of the plan.
        ends: child's number -> our end of its pipe; ours until they are taken.
        writable: the child's numbers of the ends that we write to.
        owned: descriptors of the message that are closed after it.
        born_for_it: whether the clone itself needs the request: for namespaces or a cgroup.
        changes_user: whether the worker is another user's.
    """

    name: str
    body: dict[str, Any]
    fds: list[int]
    sources: list[int]
    ends: dict[int, int]
    writable: frozenset[int]
    owned: list[int]
    born_for_it: bool = False
    changes_user: bool = False

    def __enter__(self) -> Request:
        return self

    def __exit__(self, *exception: object) -> None:
        for fd in [*self.owned, *self.ends.values()]:
            os.close(fd)

    def plan(self) -> _core.SpawnPlan:
        """Return the plan that the worker applies, with our numbers of its descriptors."""
        return _core.SpawnPlan.from_state(self.body["plan"])

    def take_ends(self) -> dict[int, int]:
        """Give our ends of the pipes to the caller, who owns them then."""
        ends, self.ends = self.ends, {}
        return ends


def request(
    name: str,
    command: Command,
    descriptors: Descriptors,
    held: Mapping[int, str],
    home: tuple[int, int],
    body: dict[str, Any],
) -> Request:
    """Resolve every descriptor, make the pipes, and build the request.

    Args:
        name: the worker's name in errors.
        command: every option but ``fds`` and ``listen``.
        descriptors: those of ``fds`` and ``listen``.
        held: descriptors of the zygote's own code, which no target may hide.
        home: device and inode of the zygote's directory.
        body: the rest of the message.

    Raises:
        ValueError: a target is among ``held``.
        SpawnError: a source is not open.
    """
    numbers = iter(descriptors.sources.numbers())
    fields, _, limits = command._plan.state()
    for option in _OF_PROGRAMS:
        fields.pop(option, None)
    fields["program"] = name.encode()
    if "signal_mask" not in fields:
        fields["signal_mask"] = signal_bits(pthread_sigmask(SIG_BLOCK, ()), "signal_mask")
    wanted = Request(name, body, [], [], {}, descriptors.writable, [])
    listening = range(3, 3 + len(descriptors.listen_names or ()))
    actions = []
    try:
        for target, kind, source, path, flags, mode in descriptors.actions:
            if target in held:
                option = "listen" if target in listening else "fds"
                raise ValueError(
                    f"{option}: child's descriptor {target} is {held[target]}, which the zygote's "
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
                source = _pipe(wanted, target, to_child=kind is FdKind.PIPE_TO_CHILD)
                kind = FdKind.DESCRIPTOR
            if kind is FdKind.DESCRIPTOR:
                wanted.sources.append(source)
            actions.append((target, int(kind), source, path, flags, mode))
        wanted.fds.extend(wanted.sources)
        others = {}
        for option in _OTHERS:
            if (number := fields.get(option)) is not None:
                others[option] = len(wanted.fds)
                wanted.fds.append(number)
        if path := fields.pop("cgroup_path", b""):
            others["cgroup_fd"] = len(wanted.fds)
            wanted.fds.append(_open_cgroup(name, wanted, os.fsdecode(path)))
        elif (number := fields.pop("cgroup_fd", None)) is not None:
            others["cgroup_fd"] = len(wanted.fds)
            wanted.fds.append(number)
        wanted.changes_user = "uid" in fields
        wanted.born_for_it = "cgroup_fd" in others or "namespaces" in fields
        body["cwd"] = None
        if directory(".") != home:  # relative paths are ours, and the directory itself
            body["cwd"] = len(wanted.fds)
            wanted.fds.append(os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
            wanted.owned.append(wanted.fds[-1])
        body.update(plan=(fields, actions, limits), sources=len(wanted.sources), others=others)
        if descriptors.listen_names is not None:
            body["listen"] = [os.fsdecode(n) for n in descriptors.listen_names]
    except BaseException:
        wanted.__exit__()
        raise
    return wanted


def directory(path: str) -> tuple[int, int]:
    """Return device and inode of a directory."""
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _is_open(fd: int) -> bool:
    try:
        _core.cloexec(fd)  # the cheapest call; it does not release the GIL
    except OSError:
        return False
    return True


def _demand_open(name: str, source: int, target: int) -> None:
    if not _is_open(source):
        subject = f"{source} -> child's {target}"
        raise SpawnError(name, "descriptor_source", errno.EBADF, subject, "find descriptor to pass")


def _pipe(wanted: Request, target: int, *, to_child: bool) -> int:
    reader, writer = os.pipe()
    childs, ours = (reader, writer) if to_child else (writer, reader)
    wanted.owned.append(childs)
    wanted.ends[target] = ours
    return childs


def _open_cgroup(name: str, wanted: Request, path: str) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise SpawnError(name, "open_resource", error.errno or 0, path, "open") from None
    wanted.owned.append(fd)
    return fd

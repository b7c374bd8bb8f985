"""os.posix_spawn and os.posix_spawnp on our spawn."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pyforkfd import _core
from pyforkfd._checks import UNCHANGEABLE, signal_bits
from pyforkfd._core import FdStep
from pyforkfd._program import candidates, environment
from pyforkfd._types import StrPath

from ._seams import standard_error

_CLOSEFROM = getattr(os, "POSIX_SPAWN_CLOSEFROM", None)  # Python 3.13, glibc 2.34
_NOT_GIVEN: Any = object()
_STOCK = os.posix_spawn


class _PosixSpawn:
    """A function that starts a program as :func:`os.posix_spawn` does, with the GIL released.

    Args:
        name: its own name, for messages.
        along_path: a name without a slash is searched for along our PATH.
    """

    def __init__(self, name: str, *, along_path: bool) -> None:
        self.__name__ = name
        self._along_path = along_path

    def __call__(
        self,
        path: StrPath,
        argv: Sequence[StrPath],
        env: Mapping[Any, Any] | None,
        /,
        *,
        file_actions: Iterable[tuple[Any, ...]] | None = (),
        setpgroup: int | None = _NOT_GIVEN,
        resetids: bool = False,
        setsid: bool = False,
        setsigmask: Iterable[int] = _NOT_GIVEN,
        setsigdef: Iterable[int] = _NOT_GIVEN,
        scheduler: tuple[int | None, os.sched_param] | None = _NOT_GIVEN,
    ) -> int:
        """Start the program.

        Args:
            path: the program.
            argv: its arguments.
            env: its environment; None: ours.
            file_actions: actions on descriptors, executed in their order:
                (os.POSIX_SPAWN_OPEN, fd, path, flags, mode), (os.POSIX_SPAWN_CLOSE, fd),
                (os.POSIX_SPAWN_DUP2, fd, new_fd), (os.POSIX_SPAWN_CLOSEFROM, fd).
                Descriptors are borrowed.
            setpgroup: process group, 0 for one of its own.
            resetids: effective ids become the real ones.
            setsid: a session of its own.
            setsigmask: signals that are blocked in the child.
            setsigdef: signals that are reset to default.
            scheduler: policy or None, and parameters.

        Returns:
            The pid of a child that the caller waits for.

        Raises:
            OSError: with the path as filename; its cause is the :class:`SpawnError`.
        """
        program = _encoded(path)
        plan = _core.SpawnPlan()
        plan.close_others = False
        plan.wants_pidfd = False
        plan.program = program
        plan.argv = _arguments(self.__name__, argv)
        if env is not None:
            if not isinstance(env, Mapping):
                raise TypeError(f"{self.__name__}: environment must be a mapping object or None")
            plan.env = environment(env.items(), nameless=True)
        plan.candidates = candidates(program, None) if self._along_path else [program]
        for action in file_actions or ():
            _add_action(plan, action)
        if setpgroup is not _NOT_GIVEN and setpgroup is not None:
            plan.process_group = setpgroup
        if not isinstance(resetids, int):
            _demand_accepted(resetids)
        if resetids and (os.getuid(), os.getgid()) != (os.geteuid(), os.getegid()):
            plan.uid, plan.gid = os.getuid(), os.getgid()
        plan.new_session = bool(setsid)
        if setsigmask is not _NOT_GIVEN:
            plan.signal_mask = signal_bits(setsigmask, "setsigmask")
        if setsigdef is not _NOT_GIVEN:
            plan.default_signals = signal_bits(setsigdef, "setsigdef") & ~UNCHANGEABLE
        if scheduler is not _NOT_GIVEN and scheduler is not None:
            if not isinstance(scheduler, tuple):
                raise TypeError(f"{self.__name__}: scheduler must be a tuple or None")
            if len(scheduler) != 2:
                raise TypeError("A scheduler tuple must have two elements")
            policy, param = scheduler
            plan.scheduler_policy = os.sched_getscheduler(0) if policy is None else policy
            plan.scheduler_priority = param.sched_priority
        sys.audit("os.posix_spawn", path, argv, env)
        try:
            pid, _, _, _ = _core.spawn(plan, [])
        except _core.SysError as error:
            found = standard_error(error, path, path, None)
            if found.filename is not None:
                raise found from found.__cause__
            raise OSError(found.errno, found.strerror, path) from found
        return pid


posix_spawn = _PosixSpawn("posix_spawn", along_path=False)
posix_spawnp = _PosixSpawn("posix_spawnp", along_path=True)


def _demand_accepted(resetids: Any) -> None:
    """Raise a TypeError where this Python's own function takes a number alone."""
    try:
        _STOCK("", (), {}, resetids=resetids)
    except ValueError:
        pass  # it reached the empty argv, and so accepts the value


def _no_null(value: bytes) -> bytes:
    if b"\0" in value:
        raise ValueError("embedded null byte")
    return value


def _encoded(value: StrPath) -> bytes:
    return _no_null(os.fsencode(value))


def _arguments(name: str, argv: Sequence[StrPath]) -> list[bytes]:
    if not isinstance(argv, (list, tuple)):
        raise TypeError(f"{name}: argv must be a tuple or list")
    if not argv:
        raise ValueError(f"{name}: argv must not be empty")
    encoded = [_encoded(arg) for arg in argv]
    if not encoded[0]:
        raise ValueError(f"{name}: argv first element cannot be empty")
    return encoded


def _descriptor(fd: int) -> int:
    if not isinstance(fd, int):
        raise TypeError(f"file_actions: {fd!r} is not a descriptor")
    if not 0 <= fd < 2**31:
        raise OSError(9, os.strerror(9))
    return fd


def _add_action(plan: _core.SpawnPlan, action: tuple[Any, ...]) -> None:
    if not isinstance(action, tuple) or not action:
        raise TypeError("Each file_actions element must be a non-empty tuple")
    kind, *rest = action
    wanted = {os.POSIX_SPAWN_OPEN: 4, os.POSIX_SPAWN_CLOSE: 1, os.POSIX_SPAWN_DUP2: 2}
    if _CLOSEFROM is not None:
        wanted[_CLOSEFROM] = 1
    if not isinstance(kind, int):
        raise TypeError(f"{kind!r} is not a file_actions identifier")
    if kind not in wanted:
        raise TypeError("Unknown file_actions identifier")
    if len(rest) != wanted[kind]:
        raise TypeError(f"file action {action!r} must have {wanted[kind]} values")
    fd = _descriptor(rest[0])
    if kind == os.POSIX_SPAWN_OPEN:
        path, flags, mode = rest[1:]
        plan.add_file_action(FdStep.CLOSE, -1, fd)  # before, as POSIX demands
        plan.add_file_action(FdStep.OPEN, -1, fd, _encoded(path), flags, mode)
    elif kind == os.POSIX_SPAWN_CLOSE:
        plan.add_file_action(FdStep.CLOSE, -1, fd)
    elif kind == os.POSIX_SPAWN_DUP2:
        target = _descriptor(rest[1])
        plan.add_file_action(FdStep.KEEP if fd == target else FdStep.DUP, fd, target)
    else:
        plan.add_file_action(FdStep.CLOSE_FROM, -1, fd)

"""The options of a child, as types for those who pass them on to :class:`Command`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, TypedDict

from ._spawn import IdMaps, Namespace
from ._types import Capabilities, FdSource, HasFileno, Keep, Scheduler, StrPath


class Options(TypedDict, total=False):
    """What a child can be told beyond what the standard module knows; see :class:`Command`."""

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
    parent_death_scope: Literal["process", "thread"]
    chroot: StrPath | None
    namespaces: Iterable[Namespace]
    uid_map: IdMaps
    gid_map: IdMaps
    seccomp: bytes | None
    cgroup: StrPath | int | HasFileno | None
    signal_mask: Iterable[int] | None
    default_signals: Iterable[int]
    ignore_signals: Iterable[int]


class CommandOptions(Options, total=False):
    """The keyword arguments of :class:`Command`, but for those of its process group."""

    executable: StrPath | int | HasFileno | None
    argv0: StrPath | None
    env: Mapping[str, str] | Mapping[bytes, bytes] | None
    cwd: StrPath | int | HasFileno | None
    close_others: bool
    new_session: bool
    umask: int | None
    user: str | int | None
    group: str | int | Keep | None
    extra_groups: Iterable[str | int] | Keep | None

"""From the map of a child's descriptors to the core's actions."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from ._core import FdKind, SpawnPlan
from ._types import FdSource, HasFileno, Open, SameAs, Special, as_fd

_KINDS = {
    Special.DEVNULL: FdKind.NULL_DEVICE,
    Special.PIPE_TO_CHILD: FdKind.PIPE_TO_CHILD,
    Special.PIPE_FROM_CHILD: FdKind.PIPE_FROM_CHILD,
    Special.CLOSED: FdKind.CLOSED,
}
_STANDARD: dict[int, FdSource | None] = {0: None, 1: None, 2: None}


@dataclass(slots=True)
class FdSources:
    """Sources in the order of the plan's descriptors; objects are asked at every spawn."""

    _sources: list[int | HasFileno] = field(default_factory=list)
    _dynamic: bool = False

    def add(self, source: int | HasFileno) -> int:
        self._sources.append(source)
        if isinstance(source, int):
            return source
        self._dynamic = True
        return source.fileno()

    def numbers(self) -> list[int]:
        """Empty where the plan holds all numbers already."""
        if not self._dynamic:
            return []
        return [s if isinstance(s, int) else s.fileno() for s in self._sources]


def compile_fds(
    plan: SpawnPlan,
    fds: Mapping[int, FdSource] | None,
    listen: Mapping[str, int | HasFileno] | None,
) -> FdSources:
    """Add every descriptor of the child to ``plan``, in ascending order."""
    if not fds and listen is None:
        plan.inherit_standard_fds()
        return FdSources()
    wanted = dict(_STANDARD)
    if fds:
        wanted.update(fds)
    if listen is not None:
        for target, (name, source) in enumerate(listen.items(), start=3):
            if target in wanted:
                raise ValueError(f"listen: child's descriptor {target} is also in fds")
            if ":" in name or not name.isprintable() or not name.isascii():
                raise ValueError(f"listen: {name!r} is not a name LISTEN_FDNAMES can carry")
            wanted[target] = source
        plan.listen_names = [name.encode() for name in listen]
    for target in wanted:
        if isinstance(target, bool) or not isinstance(target, int):
            raise TypeError(f"fds: {target!r} is not a descriptor number")
        if not 0 <= target < 2**31:
            raise ValueError(f"fds: {target} is not a descriptor number")
    sources = FdSources()
    for target in sorted(wanted):
        _add(plan, target, wanted[target], sources, wanted)
    return sources


def _add(
    plan: SpawnPlan,
    target: int,
    source: FdSource | None,
    sources: FdSources,
    wanted: Mapping[int, FdSource | None],
) -> None:
    what = f"fds: child's descriptor {target}"
    if source is None:
        if target > 2:
            raise TypeError(f"{what}: None is not a descriptor")
        plan.add_fd(target, FdKind.INHERIT_IF_OPEN)
    elif isinstance(source, Special):
        if source is Special.PIPE:
            source = Special.PIPE_TO_CHILD if target == 0 else Special.PIPE_FROM_CHILD
        if source is Special.INHERIT:
            plan.add_fd(target, FdKind.DESCRIPTOR, sources.add(target))
        else:
            plan.add_fd(target, _KINDS[source])
    elif isinstance(source, Open):
        path = os.fsencode(source.path)
        if b"\0" in path:
            raise ValueError(f"{what}: null byte in path {path!r}")
        plan.add_fd(target, FdKind.OPEN, path=path, flags=source.flags, mode=source.mode)
    elif isinstance(source, SameAs):
        other = wanted.get(source.target, SameAs(target))
        if isinstance(other, SameAs) or other is Special.CLOSED:
            raise ValueError(f"{what}: {source} names no open descriptor of the child")
        plan.add_fd(target, FdKind.SAME_AS, source.target)
    else:
        as_fd(source, what)
        plan.add_fd(target, FdKind.DESCRIPTOR, sources.add(source))

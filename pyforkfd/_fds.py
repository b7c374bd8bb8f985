"""From the map of a child's descriptors to the core's actions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ._checks import MAX_INT, as_fd, integer, pairs, show, text
from ._core import FdKind, SpawnPlan
from ._types import PATHS, FdSource, HasFileno, Open, SameAs, Special

_KINDS = {
    Special.DEVNULL: FdKind.NULL_DEVICE,
    Special.PIPE_TO_CHILD: FdKind.PIPE_TO_CHILD,
    Special.PIPE_FROM_CHILD: FdKind.PIPE_FROM_CHILD,
    Special.CLOSED: FdKind.CLOSED,
}
# For SpawnPlan.add_plain_fds(), which has the numbers too.
_PLAIN = (*_KINDS.items(), (Special.PIPE, None))
_STANDARD: dict[int, FdSource | None] = {0: None, 1: None, 2: None}
# The numbers by which subprocess means something else than a descriptor.
_OF_SUBPROCESS = {-1: "PIPE", -2: "STDOUT", -3: "DEVNULL"}


@dataclass(slots=True)
class FdSources:
    """Sources in the order of the plan's descriptors; an object's number is read at each spawn."""

    _sources: list[tuple[int | HasFileno, str]] = field(default_factory=list)
    _dynamic: bool = False
    writable: set[int] = field(default_factory=set)
    """The child's numbers of the pipes that we write to."""

    def add(self, source: int | HasFileno, name: str) -> int:
        """Add one more, and return its number as it is now.

        Args:
            source: borrowed.
            name: the option that has it, for messages.
        """
        number = as_fd(source, name)
        self._sources.append((source, name))
        if not isinstance(source, int):
            self._dynamic = True
        return number

    def numbers(self) -> list[int]:
        """Return the numbers of all; none where the plan holds them already."""
        if not self._dynamic:
            return []
        return [s if isinstance(s, int) else as_fd(s, name) for s, name in self._sources]


def compile_fds(
    plan: SpawnPlan,
    fds: Mapping[int, FdSource] | None,
    listen: Mapping[str, int | HasFileno] | None,
) -> FdSources:
    """Add every descriptor of the child to ``plan``, in ascending order."""
    if fds is None and listen is None:
        plan.inherit_standard_fds()
        return FdSources()
    plain = listen is None and isinstance(plan, SpawnPlan)  # a zygote has a plan of its own
    if plain and (writable := plan.add_plain_fds(fds, _PLAIN)) is not None:
        return FdSources(writable=set(writable))
    wanted = dict(_STANDARD)
    if fds is not None:
        for target, source in pairs(fds, "fds"):
            number = target
            if type(target) is not int or not 0 <= target <= MAX_INT:
                number = integer(target, "fds", 0, MAX_INT, "a descriptor number")
            if source is None:
                raise TypeError(f"{_named(number)}: None is not a descriptor")
            wanted[number] = source
    names: dict[int, str] = {}  # of those that listen has brought
    if listen is not None:
        for target, (name, source) in enumerate(pairs(listen, "listen"), start=3):
            if not isinstance(name, str):
                raise TypeError(f"listen: {show(name)} is not a name")
            if target in wanted:
                raise ValueError(f"listen: child's descriptor {target} is also in fds")
            if ":" in name or not name.isprintable() or not name.isascii():
                raise ValueError(f"listen: {name!r} is not a name LISTEN_FDNAMES can carry")
            names[target] = name
            wanted[target] = source
        plan.listen_names = [name.encode() for name in names.values()]
    sources = FdSources()
    for target in sorted(wanted):
        if target in names:
            number = sources.add(wanted[target], f"listen: {names[target]!r}")  # type: ignore[arg-type]
            plan.add_fd(target, FdKind.DESCRIPTOR, number)
        else:
            _add(plan, target, wanted[target], sources, wanted)
    return sources


def _named(target: int) -> str:
    return f"fds: child's descriptor {target}"


def _add(
    plan: SpawnPlan,
    target: int,
    source: FdSource | None,
    sources: FdSources,
    wanted: Mapping[int, FdSource | None],
) -> None:
    if source is None:  # of 0, 1 and 2: not in the map
        plan.add_fd(target, FdKind.INHERIT_IF_OPEN)
    elif isinstance(source, Special):
        if source is Special.PIPE:
            source = Special.PIPE_TO_CHILD if target == 0 else Special.PIPE_FROM_CHILD
        if source is Special.PIPE_TO_CHILD:
            sources.writable.add(target)
        if source is Special.INHERIT:
            plan.add_fd(target, FdKind.DESCRIPTOR, sources.add(target, _named(target)))
        else:
            plan.add_fd(target, _KINDS[source])
    elif isinstance(source, Open):
        name = f"{_named(target)}: Open"
        plan.add_fd(
            target,
            FdKind.OPEN,
            path=text(source.path, _named(target)),
            flags=integer(source.flags, name, 0, MAX_INT, "a combination of os.O_..."),
            mode=integer(source.mode, name, 0, 0o7777, "a mode within 0o7777", oct),
        )
    elif isinstance(source, SameAs):
        same = integer(
            source.target, f"{_named(target)}: SameAs", 0, MAX_INT, "a descriptor number"
        )
        other = wanted.get(same, source)
        if isinstance(other, SameAs) or other is Special.CLOSED:
            raise ValueError(f"{_named(target)}: {source} names no open descriptor of the child")
        plan.add_fd(target, FdKind.SAME_AS, same)
    else:
        plan.add_fd(target, FdKind.DESCRIPTOR, _add_borrowed(sources, source, _named(target)))


def _add_borrowed(sources: FdSources, source: int | HasFileno, name: str) -> int:
    try:
        return sources.add(source, name)
    except TypeError as error:
        if isinstance(source, PATHS):
            raise TypeError(f"{error}: for a file write pyforkfd.Open({show(source)})") from None
        raise
    except ValueError as error:
        if isinstance(source, int) and source in _OF_SUBPROCESS:
            meant = _OF_SUBPROCESS[source]
            raise ValueError(
                f"{error}: if subprocess.{meant} is meant, write pyforkfd.{meant}"
            ) from None
        raise

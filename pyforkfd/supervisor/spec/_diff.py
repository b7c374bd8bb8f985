"""The difference between a new specification and the one that runs: pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TypeVar

from ._spec import Component, Service

T = TypeVar("T")

# No worker was started with these: the supervisor alone uses them, and takes the new ones.
_OF_THE_SUPERVISOR = frozenset(
    """workers readiness boot_timeout drain_timeout stop_signal stop_timeout dump_signal
    reload_signal restart recycle heartbeat memory_guard on_crash""".split()
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """Names of components, listeners or zygotes by their change; each sorted.

    Attributes:
        added: names that only the new specification has.
        removed: names that only the old one has.
        changed: names of which both have different values.
    """

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The changes from one specification to another.

    Attributes:
        components: of the changed ones, or of a listener or zygote of theirs, a worker would be
            started differently: they need a new generation.
        adjusted: components of which only the supervisor's part has changed (number of
            workers, time-outs, policies): no worker has to leave.
        listeners: the sockets of the changed ones must be bound anew.
        zygotes: the changed ones must be started anew.
        sections: other keys of the service that changed: "control", "log", "rollback", ...
    """

    components: Names = Names()
    adjusted: tuple[str, ...] = ()
    listeners: Names = Names()
    zygotes: Names = Names()
    sections: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(
            self.components or self.adjusted or self.listeners or self.zygotes or self.sections
        )


def diff(old: Service, new: Service) -> Difference:
    """Compare two valid specifications; the difference is false where nothing has changed."""
    listeners = _compare(old.listeners, new.listeners)
    zygotes = _compare(old.zygotes, new.zygotes)
    components = _compare(old.components, new.components)
    renewed, adjusted = [], []
    for name in sorted(old.components.keys() & new.components.keys()):
        before, after = old.components[name], new.components[name]
        if (
            _of_the_worker(before) != _of_the_worker(after)
            or not set(after.listen).isdisjoint((*listeners.changed, *listeners.added))
            or after.zygote in zygotes.changed
            or (after.function is not None and old.app_dir != new.app_dir)
        ):
            renewed.append(name)
        elif before != after:
            adjusted.append(name)
    return Difference(
        components=replace(components, changed=tuple(renewed)),
        adjusted=tuple(adjusted),
        listeners=listeners,
        zygotes=zygotes,
        sections=tuple(
            field.name
            for field in fields(Service)
            if field.name not in ("components", "listeners", "zygotes")
            and getattr(old, field.name) != getattr(new, field.name)
        ),
    )


def _of_the_worker(component: Component) -> dict[str, object]:
    return {
        field.name: getattr(component, field.name)
        for field in fields(Component)
        if field.name not in _OF_THE_SUPERVISOR
    }


def _compare(old: Mapping[str, T], new: Mapping[str, T]) -> Names:
    return Names(
        added=tuple(sorted(new.keys() - old.keys())),
        removed=tuple(sorted(old.keys() - new.keys())),
        changed=tuple(sorted(name for name in old.keys() & new.keys() if old[name] != new[name])),
    )

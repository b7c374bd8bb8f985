"""Workers that lack something: pressure triggers on their cgroups, and who hears of them."""

from __future__ import annotations

import logging
import select
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from pyforkfd._closing import Closing
from pyforkfd._fd import Fd
from pyforkfd.supervisor._reactor import Reactor
from pyforkfd.supervisor.spec._limits import PRESSURE_WINDOW, RESOURCES, Resource
from pyforkfd.supervisor.state._model import Worker

from ._file import CgroupError
from ._leaf import Leaf
from ._pressure import trigger

log = logging.getLogger("pyforkfd.supervisor")

_QUIET = 60.0  # seconds: one that goes on lacking something is not said every time
_WINDOW_US = round(PRESSURE_WINDOW * 1e6)
_FOR = {"cpu": "a processor", "io": "a disk", "memory": "memory"}


class Lacks(Closing):
    """Watches what running workers lack, where their specification asks for it."""

    def __init__(
        self,
        reactor: Reactor,
        told: Callable[[Worker, Resource, float], None],
        there: Iterable[Resource] = RESOURCES,
    ) -> None:
        """Watch nobody yet.

        Args:
            reactor: borrowed.
            told: called once per two seconds in which a worker waited for too long, with
                the time.
            there: what the kernel tells of at all.
        """
        self._reactor = reactor
        self._told = told
        self._there = frozenset(there)
        self._triggers: dict[int, list[Fd]] = {}
        self._said: dict[tuple[int, Resource], float] = {}

    def watch(self, worker: Worker, leaf: Leaf) -> None:
        """From now on, until :meth:`forget`; what is impossible is a warning."""
        for resource, share in worker.spec.pressure.wanted().items():
            if resource not in self._there:
                continue
            try:
                fd = leaf.pressure_trigger(resource, round(share * _WINDOW_US), _WINDOW_US)
            except CgroupError as error:
                log.warning("%s: worker %d: %s", worker.component, worker.id, error)
                continue
            self._triggers.setdefault(worker.id, []).append(fd)
            self._reactor.add(fd.fileno(), self._caller(worker, resource, fd), select.EPOLLPRI)

    def _caller(self, worker: Worker, resource: Resource, fd: Fd) -> Callable[[int], None]:
        def call(events: int) -> None:
            if events & select.EPOLLERR:  # its cgroup was removed, which is said for ever
                self._end(worker.id, fd)
                return
            now = time.monotonic()
            self._say(worker, resource, now)
            self._told(worker, resource, now)

        return call

    def _say(self, worker: Worker, resource: Resource, now: float) -> None:
        key = (worker.id, resource)
        if now - self._said.get(key, -_QUIET) >= _QUIET:
            self._said[key] = now
            share = worker.spec.pressure.wanted()[resource]
            log.warning(
                "%s: worker %d: waited for %s more than %g %% of %g s",
                *(worker.component, worker.id, _FOR[resource], share * 100, PRESSURE_WINDOW),
            )

    def _end(self, number: int, fd: Fd) -> None:
        self._triggers[number].remove(fd)
        self._reactor.remove(fd.fileno())
        fd.close()

    def forget(self, number: int) -> None:
        """Watch a worker no more."""
        for fd in self._triggers.pop(number, []):
            self._reactor.remove(fd.fileno())
            fd.close()
        for resource in RESOURCES:
            self._said.pop((number, resource), None)

    def close(self) -> None:
        """Watch nobody any more."""
        for number in list(self._triggers):
            self.forget(number)


def lacking(cgroup: Path, wanted: Iterable[Resource]) -> dict[Resource, CgroupError]:
    """Of which of them the kernel does not tell in this cgroup, and why.

    A trigger is made of each, since only then the kernel says whether we may have one.
    """
    found: dict[Resource, CgroupError] = {}
    for resource in wanted:
        try:
            trigger(cgroup, resource, _WINDOW_US, _WINDOW_US).close()
        except CgroupError as error:
            found[resource] = error
    return found

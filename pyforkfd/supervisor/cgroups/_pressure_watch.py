"""Pressure on workers: triggers on their cgroups, watched by the loop."""

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

_QUIET = 60.0  # seconds between two warnings of one worker and resource
_WINDOW_US = round(PRESSURE_WINDOW * 1e6)
_WORDS = {"cpu": "a processor", "io": "a disk", "memory": "memory"}


class PressureWatch(Closing):
    """The pressure triggers of running workers, where their specification has ``pressure``."""

    def __init__(
        self,
        reactor: Reactor,
        report: Callable[[Worker, Resource, float], None],
        available: Iterable[Resource] = RESOURCES,
    ) -> None:
        """Start with no worker.

        Args:
            reactor: borrowed.
            report: called with the time, once per two seconds in which a worker waited for
                longer than its bound.
            available: the resources for which the kernel has triggers here.
        """
        self._reactor = reactor
        self._report = report
        self._available = frozenset(available)
        self._triggers: dict[int, list[Fd]] = {}  # by worker id
        self._warned: dict[tuple[int, Resource], float] = {}

    def watch(self, worker: Worker, leaf: Leaf) -> None:
        """Watch a worker until :meth:`forget`; a trigger that cannot be made is a warning.

        Args:
            worker: the worker.
            leaf: its cgroup, borrowed for the call.
        """
        for resource, share in worker.spec.pressure.wanted().items():
            if resource not in self._available:
                continue
            try:
                fd = leaf.pressure_trigger(resource, round(share * _WINDOW_US), _WINDOW_US)
            except CgroupError as error:
                log.warning("%s: worker %d: %s", worker.component, worker.id, error)
                continue
            try:
                self._reactor.add(fd.fileno(), self._handler(worker, resource, fd), select.EPOLLPRI)
            except OSError as error:  # no memory, or no watch of epoll(7), for it
                fd.close()
                text = "%s: worker %d: pressure on %s is not watched: %s"
                log.warning(text, worker.component, worker.id, resource, error)
                continue
            self._triggers.setdefault(worker.id, []).append(fd)

    def _handler(self, worker: Worker, resource: Resource, fd: Fd) -> Callable[[int], None]:
        def handle(events: int) -> None:
            if events & select.EPOLLERR:  # the cgroup was removed; the event would repeat for ever
                self._triggers[worker.id].remove(fd)
                self._end(fd)
                return
            now = time.monotonic()
            self._warn(worker, resource, now)
            self._report(worker, resource, now)

        return handle

    def _warn(self, worker: Worker, resource: Resource, now: float) -> None:
        key = (worker.id, resource)
        if now - self._warned.get(key, -_QUIET) >= _QUIET:
            self._warned[key] = now
            share = worker.spec.pressure.wanted()[resource]
            log.warning(
                "%s: worker %d: waited for %s more than %g %% of %g s",
                *(worker.component, worker.id, _WORDS[resource], share * 100, PRESSURE_WINDOW),
            )

    def _end(self, fd: Fd) -> None:
        self._reactor.remove(fd.fileno())
        fd.close()

    def forget(self, worker_id: int) -> None:
        """End the triggers of a worker; an unknown one is no error."""
        for fd in self._triggers.pop(worker_id, []):
            self._end(fd)
        for resource in RESOURCES:
            self._warned.pop((worker_id, resource), None)

    def close(self) -> None:
        """End all triggers."""
        for worker_id in list(self._triggers):
            self.forget(worker_id)


def unavailable(cgroup: Path, wanted: Iterable[Resource]) -> dict[Resource, CgroupError]:
    """Return the resources for which the kernel has no trigger in this cgroup, and why.

    A trigger is made for each: only then the kernel refuses what this process may not have.
    """
    found: dict[Resource, CgroupError] = {}
    for resource in wanted:
        try:
            trigger(cgroup, resource, _WINDOW_US, _WINDOW_US).close()
        except CgroupError as error:
            found[resource] = error
    return found

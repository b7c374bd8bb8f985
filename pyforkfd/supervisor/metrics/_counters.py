"""The counters of components and their workers, ended ones included.

Pure but for the slots of workers: no clock, no I/O, and nothing of Prometheus.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, get_args

from pyforkfd._page import Slot
from pyforkfd.supervisor.spec._limits import RESOURCES, Resource
from pyforkfd.supervisor.state._events import Cause

from ._account import Account
from ._families import FAMILIES, Family

BOOT_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds in seconds of the histogram of boot times, without the infinite one."""

CAUSES: tuple[Cause, ...] = get_args(Cause)
"""The causes of a worker's end.  Each is shown from the start, with 0: its first is a change."""

_STATE_VERSION = 1


@dataclass(frozen=True, slots=True)
class Histogram:
    """The counts of one histogram.

    Attributes:
        counts: count of the values in each bucket of :data:`BOOT_BUCKETS`, and above the last.
        sum: of all values.
    """

    counts: tuple[int, ...]
    sum: float


Value: TypeAlias = int | float | Histogram
Samples: TypeAlias = list[tuple[tuple[str, ...], Value]]


@dataclass(slots=True)
class _Component:
    wanted: int = 0
    degraded: bool = False
    requests: int = 0  # this and the next two: of workers that have ended
    errors: int = 0
    lost: int = 0
    restarts: int = 0
    crashes: dict[str, int] = field(default_factory=dict)
    exits: dict[str, int] = field(default_factory=dict)
    pressure: dict[str, int] = field(default_factory=dict)
    boots: list[int] = field(default_factory=lambda: [0] * (len(BOOT_BUCKETS) + 1))
    boot_sum: float = 0.0


class Metrics:
    """The supervisor's counters: updated by its loop, collected by every scrape.

    :meth:`started` claims a worker's slot, :meth:`ended` adds the worker's counts to the
    component's totals.  So a component's counters never go down when a worker is replaced.
    One thread, and no call waits.

    Args:
        memory: worker id -> bytes, None where they are not known; called at every scrape.
        log_lost: the log records that this process has lost, by sink; called likewise.

    Attributes:
        generation: the service's current generation.
    """

    def __init__(
        self,
        *,
        memory: Callable[[int], int | None] | None = None,
        log_lost: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        self.generation = 0
        self._memory = memory
        self._log_lost = log_lost
        self._log_lost_before: dict[str, int] = {}  # by predecessors
        self._components: dict[str, _Component] = {}
        self._changed: set[str] = set()  # components, since the last changes()
        self._workers: dict[int, Account] = {}
        self._reloads: dict[str, int] = {}

    def component(
        self, name: str, *, wanted: int | None = None, degraded: bool | None = None
    ) -> None:
        """Register a component, or update its state.

        Args:
            name: of the component.
            wanted: number of its workers; None: as before, at first 0.
            degraded: whether restarts were given up; None: as before, at first not.
        """
        entry = self._component(name)
        entry.wanted = entry.wanted if wanted is None else wanted
        entry.degraded = entry.degraded if degraded is None else degraded

    def degraded(self) -> list[str]:
        """Return the names of the degraded components."""
        return [name for name, entry in self._components.items() if entry.degraded]

    def is_degraded(self, component: str) -> bool:
        """Return whether restarts of a component were given up."""
        entry = self._components.get(component)
        return entry is not None and entry.degraded

    def started(
        self, *, component: str, worker_id: int, generation: int, slot: Slot | None
    ) -> None:
        """Register a worker that is about to be started, and claim its slot.

        Args:
            component: of the worker.
            worker_id: above 0, of no other worker ever.
            generation: of the worker.
            slot: that it will count in.  None: its start and its end are counted, its requests
                are not.

        Raises:
            ValueError: the worker is registered already.
        """
        self._register(Account(component, worker_id, generation, slot))
        if slot is not None:
            slot.claim(worker=worker_id, generation=generation)

    def adopted(
        self, *, component: str, worker_id: int, generation: int, slot: Slot | None
    ) -> None:
        """Register a worker that runs already, with the counts of its slot: after an upgrade.

        Args:
            component: of the worker.
            worker_id: of the worker.
            generation: of the worker.
            slot: that it counts in; None: it has none.

        Raises:
            ValueError: the worker is registered already.
        """
        self._register(Account(component, worker_id, generation, slot, adopted=True))

    def _register(self, worker: Account) -> None:
        if worker.worker_id in self._workers:
            raise ValueError(f"worker {worker.worker_id} is registered already")
        self._component(worker.component)
        self._workers[worker.worker_id] = worker

    def _component(self, name: str) -> _Component:
        """Return the counters of a component, which are to be changed."""
        self._changed.add(name)
        if (entry := self._components.get(name)) is None:
            entry = self._components[name] = _Component()
        return entry

    def account(self, worker_id: int) -> Account:
        """Return the counts of a running worker; borrowed.

        Raises:
            KeyError: the worker is not registered.
        """
        return self._workers[worker_id]

    def ready(self, worker_id: int, *, boot_seconds: float | None = None) -> None:
        """Count that a worker serves.

        Args:
            worker_id: unknown ones are no error: a worker may have ended meanwhile.
            boot_seconds: since its start, where this is the first time; None: not counted.
        """
        if (worker := self._workers.get(worker_id)) is None:
            return
        worker.ready = True
        if boot_seconds is not None:
            component = self._component(worker.component)
            component.boots[bisect_left(BOOT_BUCKETS, boot_seconds)] += 1
            component.boot_sum += boot_seconds

    def unready(self, worker_id: int) -> None:
        """Count that a worker does not serve any more: it drains, or is paused."""
        if (worker := self._workers.get(worker_id)) is not None:
            worker.ready = False

    def ended(self, worker_id: int, *, cause: Cause, expected: bool) -> None:
        """Count the end of a worker: add its counts to the component's.

        Args:
            worker_id: of the worker.
            cause: of its end.
            expected: the end was requested, so that it is not a crash.

        Raises:
            KeyError: the worker is not registered.
        """
        worker = self._workers.pop(worker_id)
        component = self._component(worker.component)
        if worker.read() is not None:
            component.lost += worker.in_flight
        component.requests += worker.requests
        component.errors += worker.errors
        _count(component.exits, cause)
        if not expected:
            _count(component.crashes, cause)

    def restarted(self, component: str) -> None:
        """Count the start of a worker in place of one that crashed."""
        self._component(component).restarts += 1

    def pressure(self, component: str, resource: Resource) -> None:
        """Count a wait for a resource that was longer than its bound."""
        _count(self._component(component).pressure, resource)

    def reloaded(self, outcome: str) -> None:
        """Count the end of a reload.

        Args:
            outcome: ``done``, or the kind of failure; a label.
        """
        _count(self._reloads, outcome)

    def collect(self, now_ns: int) -> Iterator[tuple[Family, Samples]]:
        """Return every metric with its values now, in the order of :data:`FAMILIES`.

        Args:
            now_ns: CLOCK_MONOTONIC, time.monotonic_ns().
        """
        rows: dict[str, Samples] = {name: [] for name in FAMILIES}
        rows["forkfd_generation"].append(((), self.generation))
        for outcome, count in sorted(self._reloads.items()):
            rows["forkfd_reloads_total"].append(((outcome,), count))
        for sink, count in self._all_log_lost().items():
            rows["forkfd_log_lost_total"].append(((sink,), count))
        live = {name: _Live() for name in self._components}
        for worker_id, worker in self._workers.items():
            sums = live[worker.component]
            sums.workers += 1
            sums.ready += worker.ready
            labels = (worker.component, str(worker_id))
            for name, value in self._worker_values(worker, now_ns):
                rows[name].append((labels, value))
            sums.requests += worker.requests
            sums.errors += worker.errors
        for component_name, component in self._components.items():
            for name, number in _component_values(component, live[component_name]):
                rows[name].append(((component_name,), number))
            for name, keys, counts in (
                ("process_crash_total", CAUSES, component.crashes),
                ("forkfd_exits_total", CAUSES, component.exits),
                ("forkfd_pressure_total", RESOURCES, component.pressure),
            ):
                for key, count in (dict.fromkeys(keys, 0) | counts).items():
                    rows[name].append(((component_name, key), count))
        for name, samples in rows.items():
            yield FAMILIES[name], samples

    def _worker_values(self, worker: Account, now_ns: int) -> Iterable[tuple[str, Value]]:
        yield "forkfd_worker_generation", worker.generation
        yield "forkfd_worker_ready", int(worker.ready)
        if (snapshot := worker.read()) is not None:
            yield "forkfd_worker_requests_total", worker.requests
            yield "forkfd_worker_errors_total", worker.errors
            yield "forkfd_worker_in_flight", worker.in_flight
            if snapshot.beat_ns:
                age = max(0, now_ns - snapshot.beat_ns) / 1e9
                yield "forkfd_worker_heartbeat_age_seconds", age
        if self._memory is not None and (used := self._memory(worker.worker_id)) is not None:
            yield "forkfd_worker_memory_bytes", used

    def _all_log_lost(self) -> dict[str, int]:
        now, before = self._log_lost(), self._log_lost_before
        return {sink: now.get(sink, 0) + before.get(sink, 0) for sink in {**now, **before}}

    def state(self) -> dict[str, Any]:
        """Return the totals for a successor, as values that JSON knows; workers not included."""
        return self._totals(self._components)

    def changes(self) -> dict[str, Any]:
        """Return the totals of the components that changed since the last call."""
        changed, self._changed = self._changed, set()
        return self._totals(changed)

    def _totals(self, names: Iterable[str]) -> dict[str, Any]:
        # A worker's counts stay in the page, and are adopted with its slot.
        return {
            "version": _STATE_VERSION,
            "reloads": dict(self._reloads),
            "log_lost": self._all_log_lost(),
            "components": {
                name: {key: getattr(self._components[name], key) for key in _Component.__slots__}
                for name in names
            },
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the totals of a predecessor.

        Args:
            state: what its :meth:`state` returned.

        Raises:
            ValueError: the state is of another version; nothing has changed.
        """
        if state.get("version") != _STATE_VERSION:
            raise ValueError(
                f"metrics: state of version {state.get('version')}: this is {_STATE_VERSION}"
            )
        components = {}
        for name, values in state["components"].items():
            component = components[name] = _Component(**values)
            if len(component.boots) != len(BOOT_BUCKETS) + 1:
                component.boots, component.boot_sum = _Component().boots, 0.0
        self._components = components
        self._reloads = dict(state["reloads"])
        self._log_lost_before = dict(state.get("log_lost", {}))


@dataclass(slots=True)
class _Live:
    """Sums over the running workers of a component."""

    workers: int = 0
    ready: int = 0
    requests: int = 0
    errors: int = 0


def _component_values(component: _Component, live: _Live) -> Iterable[tuple[str, Value]]:
    yield "forkfd_degraded", int(component.degraded)
    yield "forkfd_workers", live.workers
    yield "forkfd_workers_wanted", component.wanted
    yield "forkfd_workers_ready", live.ready
    yield "forkfd_requests_total", component.requests + live.requests
    yield "forkfd_errors_total", component.errors + live.errors
    yield "forkfd_requests_lost_total", component.lost
    yield "forkfd_restarts_total", component.restarts
    yield "forkfd_boot_seconds", Histogram(tuple(component.boots), component.boot_sum)


def _count(counts: dict[str, int], key: str) -> None:
    counts[key] = counts.get(key, 0) + 1

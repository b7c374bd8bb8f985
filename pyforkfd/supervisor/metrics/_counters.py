"""The supervisor's numbers: what components and their workers have done, the dead included.

Pure but for the page of slots: no clock, no I/O, and nothing of Prometheus.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from pyforkfd._page import SharedPage, SlotSnapshot
from pyforkfd.supervisor.spec._limits import RESOURCES, Resource
from pyforkfd.supervisor.state._events import Cause

BOOT_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds in seconds of the histogram of boot times, without the infinite one."""

CAUSES: tuple[Cause, ...] = get_args(Cause)
"""Of a worker's end; each is shown from the start, with 0, so that the first one is a change."""

_STATE_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One metric: its name as it is shown, and what it means.

    Attributes:
        name: counters end in ``_total``.
        kind: of what sort.
        labels: their names.
        help: one sentence.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    help: str


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of one histogram.

    Attributes:
        counts: how many fell into each bucket of :data:`BOOT_BUCKETS`, and above the last.
        sum: of all values.
    """

    counts: tuple[int, ...]
    sum: float


Value: TypeAlias = int | float | Histogram
Samples: TypeAlias = list[tuple[tuple[str, ...], Value]]

_C, _CW = ("component",), ("component", "worker")


def _families(*rows: tuple[str, str, tuple[str, ...], str]) -> dict[str, Family]:
    return {
        name: Family(name=name, kind=kind, labels=labels, help=text)  # type: ignore[arg-type]
        for name, kind, labels, text in rows
    }


FAMILIES: dict[str, Family] = _families(
    ("forkfd_generation", "gauge", (), "Current generation of the service."),
    ("forkfd_degraded", "gauge", _C, "1: restarts were given up, the component is degraded."),
    ("forkfd_reloads_total", "counter", ("outcome",), "Reloads, by how they ended."),
    ("forkfd_workers", "gauge", _C, "Workers that are there, ready or not."),
    ("forkfd_workers_wanted", "gauge", _C, "Workers that are to be there."),
    ("forkfd_workers_ready", "gauge", _C, "Workers that serve."),
    ("forkfd_requests_total", "counter", _C, "Requests answered, by workers that ended too."),
    ("forkfd_errors_total", "counter", _C, "Requests that failed, likewise."),
    ("forkfd_requests_lost_total", "counter", _C, "Requests in flight when their worker ended."),
    ("forkfd_restarts_total", "counter", _C, "Workers started in place of one that crashed."),
    ("process_crash_total", "counter", ("component", "cause"), "Ends that nobody asked for."),
    ("forkfd_exits_total", "counter", ("component", "cause"), "All ends of workers."),
    ("forkfd_pressure_total", "counter", ("component", "resource"), "Waits that were too long."),
    ("forkfd_boot_seconds", "histogram", _C, "From the start of a worker until it was ready."),
    ("forkfd_worker_generation", "gauge", _CW, "Generation of a worker."),
    ("forkfd_worker_ready", "gauge", _CW, "1: the worker serves."),
    ("forkfd_worker_requests_total", "counter", _CW, "Requests that a worker answered."),
    ("forkfd_worker_errors_total", "counter", _CW, "Requests of a worker that failed."),
    ("forkfd_worker_in_flight", "gauge", _CW, "Requests that a worker is answering."),
    ("forkfd_worker_heartbeat_age_seconds", "gauge", _CW, "Since a worker last said it moves."),
    ("forkfd_worker_memory_bytes", "gauge", _CW, "Memory of a worker's cgroup, or its own."),
)
"""Every metric, by name, in the order in which they are shown."""


@dataclass(slots=True)
class _Component:
    wanted: int = 0
    degraded: bool = False
    requests: int = 0  # these three of workers that have ended
    errors: int = 0
    lost: int = 0
    restarts: int = 0
    crashes: dict[str, int] = field(default_factory=dict)
    exits: dict[str, int] = field(default_factory=dict)
    lacks: dict[str, int] = field(default_factory=dict)
    boots: list[int] = field(default_factory=lambda: [0] * (len(BOOT_BUCKETS) + 1))
    boot_sum: float = 0.0


@dataclass(slots=True)
class _Worker:
    component: str
    generation: int
    slot: int | None
    ready: bool = False
    # The most that was ever read: a worker that writes nonsense cannot take a total down.
    requests: int = 0
    errors: int = 0


class Metrics:
    """What the supervisor counts; its loop tells, and whoever scrapes asks.

    It gives out the slots of the page: :meth:`started` claims one, :meth:`ended` adds what its
    worker counted to the component's totals and clears it.  So a component's counters never go
    down when a worker is replaced.  One thread, and nothing here waits.

    Args:
        page: borrowed.
        memory: worker -> bytes, None where they are not known; asked at every scrape.
    """

    def __init__(
        self, page: SharedPage, *, memory: Callable[[int], int | None] | None = None
    ) -> None:
        self._page = page
        self._memory = memory
        self._slots = [page.slot(index) for index in range(len(page))]
        self._free = list(reversed(range(len(page))))
        self._components: dict[str, _Component] = {}
        self._workers: dict[int, _Worker] = {}
        self._reloads: dict[str, int] = {}

    def component(
        self, name: str, *, wanted: int | None = None, degraded: bool | None = None
    ) -> None:
        """Say that there is such a component, how many workers it is to have, how it is.

        Args:
            name: of the component.
            wanted: None: as before, at first 0.
            degraded: restarts were given up; None: as before, at first not.
        """
        known = self._components.setdefault(name, _Component())
        known.wanted = known.wanted if wanted is None else wanted
        known.degraded = known.degraded if degraded is None else degraded

    def degraded(self) -> list[str]:
        """The components that are."""
        return [name for name, known in self._components.items() if known.degraded]

    def started(self, *, component: str, worker_id: int, generation: int) -> int | None:
        """A worker is about to be started: claim a slot for it.

        Args:
            component: whose it is.
            worker_id: its number, above 0, of no other worker ever.
            generation: of the worker.

        Returns:
            The slot's number; None: all are taken, and of this worker only its life is counted.

        Raises:
            ValueError: there is such a worker.
        """
        slot = self._free[-1] if self._free else None
        self.adopted(component=component, worker_id=worker_id, generation=generation, slot=slot)
        if slot is not None:
            self._slots[slot].claim(worker=worker_id, generation=generation)
        return slot

    def adopted(self, *, component: str, worker_id: int, generation: int, slot: int | None) -> None:
        """A worker runs already, with what its slot holds: after an upgrade.

        Args:
            component: whose it is.
            worker_id: its number.
            generation: of the worker.
            slot: its slot's number; None: it has none.

        Raises:
            ValueError: there is such a worker, or the slot is another's or not there.
        """
        if worker_id in self._workers:
            raise ValueError(f"worker {worker_id} is there already")
        if slot is not None:
            try:
                self._free.remove(slot)
            except ValueError:
                raise ValueError(f"worker {worker_id}: slot {slot} is not free") from None
        self._components.setdefault(component, _Component())
        self._workers[worker_id] = _Worker(component, generation, slot)

    def ready(self, worker_id: int, *, boot_seconds: float | None = None) -> None:
        """A worker serves.

        Args:
            worker_id: its number; unknown ones are no error, for they may have ended meanwhile.
            boot_seconds: since its start, where this is the first time; None: not counted.
        """
        if (known := self._workers.get(worker_id)) is None:
            return
        known.ready = True
        if boot_seconds is not None:
            of = self._components[known.component]
            of.boots[bisect_left(BOOT_BUCKETS, boot_seconds)] += 1
            of.boot_sum += boot_seconds

    def unready(self, worker_id: int) -> None:
        """A worker does not serve any more: it drains, or is paused."""
        if (known := self._workers.get(worker_id)) is not None:
            known.ready = False

    def ended(self, worker_id: int, *, cause: Cause, expected: bool) -> None:
        """A worker has been reaped: its numbers become the component's, its slot is free.

        Args:
            worker_id: its number.
            cause: of its end.
            expected: it was told to end, so that this is no crash.

        Raises:
            KeyError: there is no such worker.
        """
        known = self._workers[worker_id]
        of = self._components[known.component]
        snapshot = None if known.slot is None else self._slots[known.slot].snapshot()
        if snapshot is not None and snapshot.worker == worker_id:
            _look(known, snapshot)
            of.lost += _in_flight(snapshot)
        of.requests += known.requests
        of.errors += known.errors
        of.exits[cause] = of.exits.get(cause, 0) + 1
        if not expected:
            of.crashes[cause] = of.crashes.get(cause, 0) + 1
        del self._workers[worker_id]
        if known.slot is not None:
            self._slots[known.slot].clear()
            self._free.append(known.slot)

    def restarted(self, component: str) -> None:
        """A worker is started in place of one that crashed."""
        self._components.setdefault(component, _Component()).restarts += 1

    def lacked(self, component: str, resource: Resource) -> None:
        """A worker has waited for too long for what it lacks."""
        lacks = self._components.setdefault(component, _Component()).lacks
        lacks[resource] = lacks.get(resource, 0) + 1

    def reloaded(self, outcome: str) -> None:
        """A reload has ended.

        Args:
            outcome: ``done``, or how it failed; a label.
        """
        self._reloads[outcome] = self._reloads.get(outcome, 0) + 1

    def collect(self, now_ns: int) -> Iterator[tuple[Family, Samples]]:
        """Every metric with its values now, in the order of :data:`FAMILIES`.

        Args:
            now_ns: CLOCK_MONOTONIC, as time.monotonic_ns() has it.
        """
        rows: dict[str, Samples] = {name: [] for name in FAMILIES}
        rows["forkfd_generation"].append(((), self._page.generation))
        for outcome, count in sorted(self._reloads.items()):
            rows["forkfd_reloads_total"].append(((outcome,), count))
        live = {name: _Live() for name in self._components}
        snapshots = self._page.snapshots()
        for worker, known in self._workers.items():
            mine = live[known.component]
            mine.workers += 1
            mine.ready += known.ready
            labels = (known.component, str(worker))
            snapshot = None if known.slot is None else snapshots[known.slot]
            for name, value in self._of_worker(worker, known, snapshot, now_ns):
                rows[name].append((labels, value))
            mine.requests += known.requests
            mine.errors += known.errors
        for component, of in self._components.items():
            for name, number in _of_component(of, live[component]):
                rows[name].append(((component,), number))
            for name, causes in (
                ("process_crash_total", of.crashes),
                ("forkfd_exits_total", of.exits),
            ):
                for cause, n in (dict.fromkeys(CAUSES, 0) | causes).items():
                    rows[name].append(((component, cause), n))
            for resource, n in (dict.fromkeys(RESOURCES, 0) | of.lacks).items():
                rows["forkfd_pressure_total"].append(((component, resource), n))
        for name, samples in rows.items():
            yield FAMILIES[name], samples

    def _of_worker(
        self, worker: int, known: _Worker, snapshot: SlotSnapshot | None, now_ns: int
    ) -> Iterable[tuple[str, Value]]:
        yield "forkfd_worker_generation", known.generation
        yield "forkfd_worker_ready", int(known.ready)
        if snapshot is not None and snapshot.worker == worker:
            _look(known, snapshot)
            yield "forkfd_worker_requests_total", known.requests
            yield "forkfd_worker_errors_total", known.errors
            yield "forkfd_worker_in_flight", _in_flight(snapshot)
            if snapshot.beat_ns:
                age = max(0, now_ns - snapshot.beat_ns) / 1e9
                yield "forkfd_worker_heartbeat_age_seconds", age
        if self._memory is not None and (used := self._memory(worker)) is not None:
            yield "forkfd_worker_memory_bytes", used

    def state(self) -> dict[str, Any]:
        """Totals for the program that takes over, of what JSON knows; workers not included."""
        # A worker's numbers stay in the page, and are adopted with its slot.
        return {
            "version": _STATE_VERSION,
            "reloads": dict(self._reloads),
            "components": {
                name: {key: getattr(of, key) for key in _Component.__slots__}
                for name, of in self._components.items()
            },
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` of the program before us gave.

        Raises:
            ValueError: it is of another version; nothing has changed.
        """
        if state.get("version") != _STATE_VERSION:
            raise ValueError(f"metrics: state of version {state.get('version')} is not known")
        components = {}
        for name, values in state["components"].items():
            of = components[name] = _Component(**values)
            if len(of.boots) != len(BOOT_BUCKETS) + 1:
                of.boots, of.boot_sum = _Component().boots, 0.0
        self._components = components
        self._reloads = dict(state["reloads"])


@dataclass(slots=True)
class _Live:
    """Sums over the workers that are there."""

    workers: int = 0
    ready: int = 0
    requests: int = 0
    errors: int = 0


def _of_component(of: _Component, live: _Live) -> Iterable[tuple[str, Value]]:
    yield "forkfd_degraded", int(of.degraded)
    yield "forkfd_workers", live.workers
    yield "forkfd_workers_wanted", of.wanted
    yield "forkfd_workers_ready", live.ready
    yield "forkfd_requests_total", of.requests + live.requests
    yield "forkfd_errors_total", of.errors + live.errors
    yield "forkfd_requests_lost_total", of.lost
    yield "forkfd_restarts_total", of.restarts
    yield "forkfd_boot_seconds", Histogram(tuple(of.boots), of.boot_sum)


def _look(known: _Worker, snapshot: SlotSnapshot) -> None:
    known.requests = max(known.requests, snapshot.requests)
    known.errors = max(known.errors, snapshot.errors)


def _in_flight(snapshot: SlotSnapshot) -> int:
    """One request less than begun reads as 2**64 - 1: an end() too many."""
    return snapshot.in_flight if snapshot.in_flight < 2**63 else 0

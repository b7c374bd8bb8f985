"""The periodic checks of workers: their pages, the memory, the counters."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

from pyforkfd._closing import Closing
from pyforkfd._page import SharedPage, SlotSnapshot
from pyforkfd.supervisor.metrics._counters import Metrics
from pyforkfd.supervisor.spec._limits import Resource
from pyforkfd.supervisor.spec._spec import Component
from pyforkfd.supervisor.state._events import Cause, Crashed, Event, Reloaded, Retire, WentStale
from pyforkfd.supervisor.state._model import Crew, Phase, State, Worker, spread
from pyforkfd.supervisor.state._queries import given_up_in

from ._memory_guard import Guard, Orders
from ._pages import Pages
from ._stale import Watched, scan

_WATCHED = (Phase.READY, Phase.PAUSED)
_MEMORY_INTERVAL = 1.0  # seconds
_FUTURE_NS = 1_000_000_000  # by which a time in a slot may be ahead of our clock


class Watch(Closing):
    """The periodic checks of all workers, and their counters.

    Attributes:
        metrics: the counters.
    """

    def __init__(self, pages: Pages, metrics: Metrics, memory: Callable[[int], int | None]) -> None:
        """Start with no worker.

        Args:
            pages: in which workers count and beat; taken.
            metrics: the counters of these.
            memory: worker id -> bytes in use, None where they are not known.
        """
        self.metrics = metrics
        self._pages = pages
        self._memory = memory
        self._registered: set[int] = set()
        self._guards: dict[str, Guard] = {}
        self._memory_at = 0.0

    def started(self, worker: Worker) -> None:
        """Register a worker that is about to be started; a second time, do nothing."""
        if worker.id not in self._registered:
            self._registered.add(worker.id)
            self.metrics.started(
                component=worker.component,
                worker_id=worker.id,
                generation=worker.generation,
                slot=self._pages.make(worker.id),
            )

    def adopt(self, workers: Iterable[Worker]) -> None:
        """Register workers that run already, with the pages that they have."""
        for worker in workers:
            self._registered.add(worker.id)
            self.metrics.adopted(
                component=worker.component,
                worker_id=worker.id,
                generation=worker.generation,
                slot=self._pages.adopt(worker.id),
            )
        self._pages.adopted_all()

    def page_of(self, worker_id: int) -> SharedPage | None:
        """Return the page of a worker; borrowed.  None: it has none."""
        return self._pages.get(worker_id)

    def beat(self, worker_id: int) -> None:
        """Record a heartbeat that a worker without the page has sent."""
        slot = self.metrics.account(worker_id).slot if worker_id in self._registered else None
        if slot is not None:
            slot.beat()

    def beat_age(self, worker_id: int, now: float) -> float | None:
        """Return the seconds since a worker's last heartbeat; None: there was none."""
        if worker_id not in self._registered:
            return None
        snapshot = self.metrics.account(worker_id).read()
        if snapshot is None or not snapshot.beat_ns:
            return None
        return max(0.0, now - snapshot.beat_ns / 1e9)

    def changed(
        self, before: State, after: State, workers: Collection[int], crews: Collection[str]
    ) -> None:
        """Update the counters after a step of the state machine.

        Args:
            before: the state before the step.
            after: the state after it.
            workers: ids of the workers that the step has added, changed or removed.
            crews: components whose crew it has added, changed or removed.
        """
        self.metrics.generation = after.generation
        self._pages.set_generation(after.generation)
        touched = set(crews)
        for worker_id in workers:
            old, worker = before.workers.get(worker_id), after.workers.get(worker_id)
            was_ready = old is not None and old.phase is Phase.READY
            if worker is None:
                touched.update([] if old is None else [old.component])
                continue
            touched.add(worker.component)
            if worker.phase is Phase.READY and not was_ready:
                booted = old is not None and old.phase is Phase.BOOTING
                self.metrics.ready(
                    worker_id, boot_seconds=worker.since - worker.born if booted else None
                )
            elif was_ready and worker.phase is not Phase.READY:
                self.metrics.unready(worker_id)
        for name in touched:
            crew = after.crews.get(name)
            if crew is not None and before.crews.get(name) is not crew:
                self._crew(name, crew)
            degraded = crew is not None and bool(given_up_in(after, crew))
            if degraded != self.metrics.is_degraded(name):
                self.metrics.component(name, degraded=degraded)

    def _crew(self, name: str, crew: Crew) -> None:
        self.metrics.component(name, wanted=crew.count)
        config = crew.spec.memory_guard
        if config is None:
            self._guards.pop(name, None)
        elif (guard := self._guards.get(name)) is not None:
            guard.config = config
        else:
            self._guards[name] = Guard(config)

    def ended(self, worker_id: int, cause: Cause, *, expected: bool) -> None:
        """Count the end of a worker that was reaped.

        Args:
            worker_id: of the worker.
            cause: of its end.
            expected: the end was requested, so that it is not a crash.
        """
        self._registered.discard(worker_id)
        self.metrics.ended(worker_id, cause=cause, expected=expected)
        self._pages.forget(worker_id)

    def pressure(self, worker: Worker, resource: Resource, now: float) -> None:
        """Count a wait for a resource beyond its bound, and notify the memory guard.

        Args:
            worker: that waited.
            resource: that it waited for.
            now: time.monotonic().
        """
        self.metrics.pressure(worker.component, resource)
        guard = self._guards.get(worker.component)
        if resource == "memory" and guard is not None:
            guard.pressure(worker.id, now)

    def count(self, action: Crashed | Reloaded) -> None:
        """Count an action of the state machine."""
        if isinstance(action, Crashed):
            self.metrics.restarted(action.component)
        else:
            self.metrics.reloaded("aborted" if action.why else "done")

    def poll(self, state: State, now: float) -> Iterator[Event]:
        """Check all slots: for stale workers, nonsense, and those that have served enough.

        To be called every 200 ms.

        Args:
            state: of the state machine.
            now: time.monotonic().

        Returns:
            Events for the state machine.
        """
        workers = [
            worker
            for worker in state.workers.values()
            if worker.phase in _WATCHED and worker.id in self._registered
        ]
        snapshots: list[SlotSnapshot] = []
        watched: dict[int, Watched] = {}
        for worker in workers:
            account = self.metrics.account(worker.id)
            if (snapshot := account.read()) is None:
                if account.damage or worker.id in self._pages.damaged:
                    yield from self._damaged(worker, account.damage or "its header is overwritten")
                continue
            if why := _ahead(snapshot, time.monotonic_ns()):
                yield from self._damaged(worker, why)
                continue
            watched[len(snapshots)] = Watched(
                worker_id=worker.id,
                ready_ns=int(worker.since * 1e9),
                must_beat=worker.spec.heartbeat.required,
                stale_ns=int(worker.spec.heartbeat.stale_after * 1e9),
            )
            snapshots.append(snapshot)
            if not worker.retiring and (why := _served_enough(worker, snapshot.requests)):
                yield Retire(worker.id, why)
        for stale in scan(snapshots, watched, int(now * 1e9)):
            yield WentStale(stale.worker_id, str(stale))

    def _damaged(self, worker: Worker, why: str) -> Iterator[Event]:
        """Evict a worker whose page makes no sense: no other worker can write to it."""
        if not self._pages.is_shared(worker.id):
            yield WentStale(worker.id, f"the worker has overwritten its page: {why}")

    def poll_memory(self, state: State, now: float) -> tuple[list[Event], list[Orders]]:
        """Check the memory of all workers; once a second, calls in between do nothing.

        Args:
            state: of the state machine.
            now: time.monotonic().

        Returns:
            Events for the state machine, and orders for workers.
        """
        if now < self._memory_at + _MEMORY_INTERVAL:
            return [], []
        self._memory_at = now
        events: list[Event] = []
        orders: list[Orders] = []
        for name, crew in state.crews.items():
            guard = self._guards.get(name)
            if guard is None and crew.spec.recycle.memory is None:
                continue
            used = self._used(name, state)
            events += _too_large(crew.spec, used, state.workers)
            if guard is None:
                continue
            for each in guard.sample(used, now):
                if "recycle" in each.orders:
                    why = f"uses {used[each.worker_id]} bytes for too long"
                    events.append(Retire(each.worker_id, why))
                orders.append(each)
        return events, orders

    def _used(self, component: str, state: State) -> dict[int, int]:
        ready = [
            worker.id
            for worker in state.workers.values()
            if worker.component == component and worker.phase is Phase.READY
        ]
        sizes = {worker_id: self._memory(worker_id) for worker_id in ready}
        return {worker_id: size for worker_id, size in sizes.items() if size is not None}

    def close(self) -> None:
        """Close the pages."""
        self._pages.close()


def _ahead(snapshot: SlotSnapshot, now_ns: int) -> str:
    """Return why a time in a slot makes no sense; empty: it does.

    Args:
        snapshot: taken before the clock was read.
        now_ns: CLOCK_MONOTONIC.
    """
    for name, ns in (("heartbeat", snapshot.beat_ns), ("readiness", snapshot.ready_ns)):
        if ns > now_ns + _FUTURE_NS:
            return f"its {name} is {(ns - now_ns) / 1e9:.1f} s in the future"
    return ""


def _served_enough(worker: Worker, requests: int) -> str:
    """Return the reason if the worker has served enough requests, else an empty text."""
    recycle = worker.spec.recycle
    if recycle.requests is None:
        return ""
    limit = recycle.requests * (1.0 - recycle.jitter * spread(worker.id))
    return f"{requests} requests" if requests >= limit else ""


def _too_large(
    spec: Component, used: Mapping[int, int], workers: Mapping[int, Worker]
) -> Iterator[Event]:
    limit = spec.recycle.memory
    if limit is None:
        return
    for worker_id, size in used.items():
        if size >= limit and not workers[worker_id].retiring:
            yield Retire(worker_id, f"uses {size} bytes")

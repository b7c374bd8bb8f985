"""The periodic checks of workers: the page, the memory, the counters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from pyforkfd._closing import Closing
from pyforkfd._page import SharedPage, SlotSnapshot
from pyforkfd.supervisor.metrics._counters import Metrics
from pyforkfd.supervisor.spec._limits import Resource
from pyforkfd.supervisor.spec._spec import Component
from pyforkfd.supervisor.state._events import Cause, Crashed, Event, Reloaded, Retire, WentStale
from pyforkfd.supervisor.state._model import Crew, Phase, State, Worker, given_up, spread

from ._memory_guard import Guard, Orders
from ._stale import Watched, scan

_WATCHED = (Phase.READY, Phase.PAUSED)
_MEMORY_INTERVAL = 1.0  # seconds


class Watch(Closing):
    """The periodic checks of all workers, and their counters.

    Attributes:
        metrics: the counters.
        page: the page in which workers count and beat; owned.
    """

    def __init__(
        self, page: SharedPage, metrics: Metrics, memory: Callable[[int], int | None]
    ) -> None:
        """Start with no worker.

        Args:
            page: taken.
            metrics: the counters on that page.
            memory: worker id -> bytes in use, None where they are not known.
        """
        self.page = page
        self.metrics = metrics
        self._memory = memory
        self._slots: dict[int, int | None] = {}  # worker id -> slot; None: the page was full
        self._guards: dict[str, Guard] = {}
        self._memory_at = 0.0

    def started(self, worker: Worker) -> None:
        """Register a worker that is about to be started; a second time, do nothing."""
        if worker.id not in self._slots:
            self._slots[worker.id] = self.metrics.started(
                component=worker.component, worker_id=worker.id, generation=worker.generation
            )

    def adopt(self, workers: Iterable[Worker]) -> None:
        """Register workers that run already, with the slots that the page has for them."""
        slots = {snapshot.worker: slot for slot, snapshot in enumerate(self.page.snapshots())}
        for worker in workers:
            slot = slots.get(worker.id)
            self.metrics.adopted(
                component=worker.component,
                worker_id=worker.id,
                generation=worker.generation,
                slot=slot,
            )
            self._slots[worker.id] = slot

    def slot_of(self, worker_id: int) -> int | None:
        """Return the index of a worker's slot; None: it has none."""
        return self._slots.get(worker_id)

    def beat(self, worker_id: int) -> None:
        """Record a heartbeat that a worker without the page has sent."""
        if (slot := self._slots.get(worker_id)) is not None:
            self.page.slot(slot).beat()

    def beat_age(self, worker_id: int, now: float) -> float | None:
        """Return the seconds since a worker's last heartbeat; None: there was none."""
        if (slot := self._slots.get(worker_id)) is None:
            return None
        beat = self.page.slot(slot).snapshot().beat_ns
        return now - beat / 1e9 if beat else None

    def changed(self, before: State, after: State) -> None:
        """Update the counters after a step of the state machine.

        Args:
            before: the state before the step.
            after: the state after it.
        """
        for worker_id, worker in after.workers.items():
            old = before.workers.get(worker_id)
            was_ready = old is not None and old.phase is Phase.READY
            if worker.phase is Phase.READY and not was_ready:
                booted = old is not None and old.phase is Phase.BOOTING
                self.metrics.ready(
                    worker_id, boot_seconds=worker.since - worker.born if booted else None
                )
            elif was_ready and worker.phase is not Phase.READY:
                self.metrics.unready(worker_id)
        for name, crew in after.crews.items():
            if before.crews.get(name) is not crew:
                self._crew(name, crew)
        degraded = given_up(after).keys()
        for name in degraded ^ set(self.metrics.degraded()):
            self.metrics.component(name, degraded=name in degraded)

    def _crew(self, name: str, crew: Crew) -> None:
        self.metrics.component(name, wanted=crew.count)
        config = crew.spec.memory_guard
        if config is None:
            self._guards.pop(name, None)
        elif name not in self._guards:
            self._guards[name] = Guard(config)

    def ended(self, worker_id: int, cause: Cause, *, expected: bool) -> None:
        """Count the end of a worker that was reaped.

        Args:
            worker_id: of the worker.
            cause: of its end.
            expected: the end was requested, so that it is not a crash.
        """
        self._slots.pop(worker_id, None)
        self.metrics.ended(worker_id, cause=cause, expected=expected)

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
        """Check for stale workers and for those that have served enough; every 200 ms.

        Args:
            state: of the state machine.
            now: time.monotonic().

        Returns:
            Events for the state machine.
        """
        watched = {
            slot: Watched(
                worker_id=worker_id,
                ready_ns=int(worker.since * 1e9),
                must_beat=worker.spec.heartbeat.required,
                stale_ns=int(worker.spec.heartbeat.stale_after * 1e9),
            )
            for worker_id, slot in self._slots.items()
            if slot is not None
            and (worker := state.workers.get(worker_id)) is not None
            and worker.phase in _WATCHED
        }
        if not watched:
            return
        snapshots = self.page.snapshots()
        for stale in scan(snapshots, watched, int(now * 1e9)):
            yield WentStale(stale.worker_id, str(stale))
        for slot, entry in watched.items():
            worker = state.workers[entry.worker_id]
            if not worker.retiring and (why := _served_enough(worker, snapshots[slot])):
                yield Retire(worker.id, why)

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
        """Close the page."""
        self.page.close()


def _served_enough(worker: Worker, snapshot: SlotSnapshot) -> str:
    """Return the reason if the worker has served enough requests, else an empty text."""
    recycle = worker.spec.recycle
    if recycle.requests is None:
        return ""
    limit = recycle.requests * (1.0 - recycle.jitter * spread(worker.id))
    return f"{snapshot.requests} requests" if snapshot.requests >= limit else ""


def _too_large(
    spec: Component, used: Mapping[int, int], workers: Mapping[int, Worker]
) -> Iterator[Event]:
    limit = spec.recycle.memory
    if limit is None:
        return
    for worker_id, size in used.items():
        if size >= limit and not workers[worker_id].retiring:
            yield Retire(worker_id, f"uses {size} bytes")

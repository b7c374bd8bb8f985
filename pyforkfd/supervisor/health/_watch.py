"""What is seen of workers without their saying a word: the page, the memory, the counters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from pyforkfd._closing import Closing
from pyforkfd._page import SharedPage, SlotSnapshot
from pyforkfd.supervisor.metrics._counters import Metrics
from pyforkfd.supervisor.spec._limits import Resource
from pyforkfd.supervisor.spec._spec import Component
from pyforkfd.supervisor.state._events import Cause, Crashed, Event, Reloaded, Retire, WentStale
from pyforkfd.supervisor.state._model import Crew, Phase, State, Worker, spread

from ._memory_guard import Guard, Told
from ._stale import Watched, scan

_WATCHED = (Phase.READY, Phase.PAUSED)
_LOOK_AT_MEMORY = 1.0  # seconds


class Watch(Closing):
    """Looks at every worker at intervals, and keeps the counters.

    Attributes:
        metrics: the counters.
        page: where workers count and beat; owned.
    """

    def __init__(
        self, page: SharedPage, metrics: Metrics, memory: Callable[[int], int | None]
    ) -> None:
        """Watch nobody yet.

        Args:
            page: taken.
            metrics: on that page.
            memory: worker -> bytes that it uses, None where that cannot be known.
        """
        self.page = page
        self.metrics = metrics
        self._memory = memory
        self._slots: dict[int, int | None] = {}  # worker -> slot; None: the page was full
        self._guards: dict[str, Guard] = {}
        self._memory_at = 0.0

    def started(self, worker: Worker) -> None:
        """A worker is about to be started, or still is: it has a slot from now on."""
        if worker.id not in self._slots:
            self._slots[worker.id] = self.metrics.started(
                component=worker.component, worker_id=worker.id, generation=worker.generation
            )

    def adopt(self, workers: Iterable[Worker]) -> None:
        """These run already; the page knows which slots they have."""
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
        """The number of a worker's slot."""
        return self._slots.get(worker_id)

    def beat(self, worker_id: int) -> None:
        """A worker that cannot reach the page has said that it moves."""
        if (slot := self._slots.get(worker_id)) is not None:
            self.page.slot(slot).beat()

    def beat_age(self, worker_id: int, now: float) -> float | None:
        """Seconds since a worker's last beat; None: there was none."""
        if (slot := self._slots.get(worker_id)) is None:
            return None
        beat = self.page.slot(slot).snapshot().beat_ns
        return now - beat / 1e9 if beat else None

    def changed(self, before: State, after: State) -> None:
        """Take over what a step of the heart has changed."""
        for number, worker in after.workers.items():
            old = before.workers.get(number)
            was = old is not None and old.phase is Phase.READY
            if worker.phase is Phase.READY and not was:
                boots = old is not None and old.phase is Phase.BOOTING
                self.metrics.ready(
                    number, boot_seconds=worker.since - worker.born if boots else None
                )
            elif was and worker.phase is not Phase.READY:
                self.metrics.unready(number)
        for name, crew in after.crews.items():
            if before.crews.get(name) is not crew:
                self._crew(name, crew)

    def _crew(self, name: str, crew: Crew) -> None:
        self.metrics.component(name, wanted=crew.count, degraded=crew.fatal)
        config = crew.spec.memory_guard
        if config is None:
            self._guards.pop(name, None)
        elif name not in self._guards:
            self._guards[name] = Guard(config)

    def ended(self, worker_id: int, cause: Cause, *, expected: bool) -> None:
        """A worker was reaped."""
        self._slots.pop(worker_id, None)
        self.metrics.ended(worker_id, cause=cause, expected=expected)

    def lacks(self, worker: Worker, resource: Resource, now: float) -> None:
        """A worker has waited for too long for what it lacks, at time.monotonic()."""
        self.metrics.lacked(worker.component, resource)
        guard = self._guards.get(worker.component)
        if resource == "memory" and guard is not None:
            guard.waited(worker.id, now)

    def told(self, action: Crashed | Reloaded) -> None:
        """What the heart has said, for the counters."""
        if isinstance(action, Crashed):
            self.metrics.restarted(action.component)
        else:
            self.metrics.reloaded("aborted" if action.why else "done")

    def look(self, state: State, now: float) -> Iterator[Event]:
        """Who is stale, and who has done enough; every 200 ms.

        Args:
            state: of the heart.
            now: time.monotonic().
        """
        watched = {
            slot: Watched(
                worker_id=number,
                ready_ns=int(worker.since * 1e9),
                must_beat=worker.spec.heartbeat.required,
                stale_ns=int(worker.spec.heartbeat.stale_after * 1e9),
            )
            for number, slot in self._slots.items()
            if slot is not None
            and (worker := state.workers.get(number)) is not None
            and worker.phase in _WATCHED
        }
        if not watched:
            return
        snapshots = self.page.snapshots()
        for stale in scan(snapshots, watched, int(now * 1e9)):
            yield WentStale(stale.worker_id, str(stale))
        for slot, of in watched.items():
            worker = state.workers[of.worker_id]
            if not worker.retiring and (why := _done(worker, snapshots[slot])):
                yield Retire(worker.id, why)

    def look_at_memory(self, state: State, now: float) -> tuple[list[Event], list[Told]]:
        """Who has grown too much; every second, and nothing in between.

        Returns:
            Events for the heart, and what workers are to be told.
        """
        if now < self._memory_at + _LOOK_AT_MEMORY:
            return [], []
        self._memory_at = now
        events: list[Event] = []
        said: list[Told] = []
        for name, crew in state.crews.items():
            guard = self._guards.get(name)
            if guard is None and crew.spec.recycle.memory is None:
                continue
            used = self._used(name, state)
            events += _too_big(crew.spec, used, state.workers)
            if guard is None:
                continue
            for told in guard.look(used, now):
                if "recycle" in told.orders:
                    why = f"it uses {used[told.worker_id]} bytes for too long"
                    events.append(Retire(told.worker_id, why))
                said.append(told)
        return events, said

    def _used(self, component: str, state: State) -> dict[int, int]:
        ready = [
            worker.id
            for worker in state.workers.values()
            if worker.component == component and worker.phase is Phase.READY
        ]
        sizes = {number: self._memory(number) for number in ready}
        return {number: size for number, size in sizes.items() if size is not None}

    def close(self) -> None:
        """Close the page."""
        self.page.close()


def _done(worker: Worker, snapshot: SlotSnapshot) -> str:
    """Why it has served enough requests, or nothing."""
    recycle = worker.spec.recycle
    if recycle.requests is None:
        return ""
    limit = recycle.requests * (1.0 - recycle.jitter * spread(worker.id))
    return f"{snapshot.requests} requests" if snapshot.requests >= limit else ""


def _too_big(
    spec: Component, used: Mapping[int, int], workers: Mapping[int, Worker]
) -> Iterator[Event]:
    limit = spec.recycle.memory
    if limit is None:
        return
    for number, size in used.items():
        if size >= limit and not workers[number].retiring:
            yield Retire(number, f"it uses {size} bytes")

"""The heart: (state, event, now) -> (state, actions).  No I/O, no clock, no chance.

An event changes what is known; then the state is *settled*: whatever differs from what is
wanted becomes an action.  So there is one place that starts workers and one that dismisses
them, whichever of crash, reload, scaling, recycling and stop come together.
"""

from __future__ import annotations

from dataclasses import replace

from ._events import (
    Action,
    Announce,
    BecameReady,
    Cause,
    Crashed,
    Ended,
    Event,
    Forget,
    Leaving,
    Reload,
    Reloaded,
    Retire,
    RollBack,
    Scale,
    Spawned,
    SpawnFailed,
    Stop,
    Tell,
    WentStale,
)
from ._model import STAYING, Crew, Pending, Phase, State, Worker
from ._settle import Draft, age, wanted_count

_STARTED = 1.0  # seconds; a program that lives on for so long is taken to have started
_SHORT_LIFE = 1.0  # seconds; a worker that is done sooner is not started again at once


def step(state: State, event: Event, now: float) -> tuple[State, list[Action]]:
    """Take one event.

    Args:
        state: as the last step left it.
        event: what has happened.
        now: seconds on a clock that never goes back.

    Returns:
        The new state, and what to do, in this order.
    """
    draft = _Step(state, now)
    draft.take(event)
    draft.settle()
    return draft.result()


class _Step(Draft):
    """What each event changes."""

    def take(self, event: Event) -> None:
        match event:
            case Spawned():
                self._spawned(event)
            case SpawnFailed(worker, why):
                self._ended(worker, "spawn_failed", why)
            case Ended(worker, cause, detail):
                self._ended(worker, cause, detail)
            case BecameReady(worker, speaks):
                self._ready(worker, speaks)
            case WentStale(worker, why):
                self._stale(worker, why)
            case Leaving(worker):
                self._leaving(worker)
            case Retire(worker, why):
                self._retire(worker, why)
            case Reload():
                self._reload(event)
            case RollBack():
                self._roll_back()
            case Scale(component, count):
                self._scale(component, count)
            case Stop(at_once):
                self._stop(at_once or self.stopping)

    def _spawned(self, event: Spawned) -> None:
        worker = self.workers.get(event.worker_id)
        if worker is None:
            return
        deadline = worker.deadline
        waited = worker.pid is None and worker.phase is Phase.BOOTING  # for its zygote, perhaps
        if waited and worker.spec.readiness == "started":
            deadline = self.now + _STARTED
        self.workers[worker.id] = replace(worker, pid=event.pid, deadline=deadline)

    def _stale(self, worker_id: int, why: str) -> None:
        worker = self.workers.get(worker_id)
        if worker is not None and worker.phase in (Phase.READY, Phase.PAUSED):
            self._condemn(worker, "stale", why)

    def _leaving(self, worker_id: int) -> None:
        """A worker leaves by itself: it is not ready from now on, and is replaced at once.

        Of one that boots, and of one that is to leave anyway, the end says enough.
        """
        worker = self.workers.get(worker_id)
        if worker is None or worker.phase not in (Phase.READY, Phase.PAUSED):
            return
        self._note(worker, "info", "leaves by itself")
        self._put(replace(worker, leaving=True), Phase.DRAINING, worker.spec.drain_timeout)
        self._count_end(worker, "done", "it leaves by itself", at_peace=True)

    def _ended(self, worker_id: int, cause: Cause, detail: str) -> None:
        worker = self.workers.pop(worker_id, None)
        if worker is None:
            return
        self.actions.append(Forget(worker_id))
        if worker.condemned is not None:
            cause = worker.condemned
        asked = worker.phase not in STAYING and worker.condemned is None
        failed = worker.leaving and worker.phase is Phase.DRAINING and cause != "done"
        if asked and not failed and cause not in ("core", "oom"):
            self._note(worker, "info", f"has left: {detail}")
            return
        at_peace = cause == "done" and worker.phase is not Phase.BOOTING
        if worker.phase is Phase.BOOTING and cause in ("done", "exit"):
            detail += " before it was ready"
        if at_peace or (cause == "done" and worker.spec.restart.policy != "always"):
            self._note(worker, "info", f"has ended by itself: {detail}")
        else:
            self.actions.append(
                Crashed(worker_id, worker.component, cause, detail, worker.position)
            )
        if not asked or failed:
            self._count_end(worker, cause, detail, at_peace)

    def _count_end(self, worker: Worker, cause: Cause, detail: str, at_peace: bool) -> None:
        """Decide whether and when a worker that nobody dismissed is replaced."""
        if (pending := self.pending) is not None and worker.generation == pending.generation:
            crew = pending.crews[worker.component]
            if cause == "done" and crew.spec.restart.policy != "always":
                crew = replace(crew, finished=crew.finished | {worker.position})
                crews = {**pending.crews, worker.component: crew}
                self.pending = replace(pending, crews=crews)
            else:
                self._abort(f"{worker.component}: worker {worker.id}: {cause}: {detail}")
            return
        found = self.crews.get(worker.component)
        if found is not None and found.generation == worker.generation:
            if worker.leaving:  # counted as done when it announced that; it was not
                found = replace(found, finished=found.finished - {worker.position})
            self.crews[worker.component] = self._after_end(found, worker, cause, at_peace)

    def _after_end(self, crew: Crew, worker: Worker, cause: Cause, at_peace: bool) -> Crew:
        restart = crew.spec.restart
        position = worker.position
        if restart.policy == "never" or (restart.policy == "on-failure" and cause == "done"):
            return replace(crew, finished=crew.finished | {position})
        lived = self.now - worker.since if worker.phase is not Phase.BOOTING else 0.0
        if at_peace and lived >= _SHORT_LIFE:
            return crew
        crashes = (*(t for t in crew.crashes if t > self.now - restart.within), self.now)
        failures = 0 if lived > restart.backoff_cap else crew.failures.get(position, 0)
        # One crash of a worker that served is replaced at once: somebody waits for it.
        doublings = failures - (worker.phase is not Phase.BOOTING)
        pause = 0.0
        if doublings >= 0:
            pause = min(restart.backoff_cap, restart.backoff * 2.0 ** min(doublings, 32))
        fatal = len(crashes) > restart.max_restarts
        if fatal:
            self._note(
                worker,
                "error",
                f"{len(crashes)} crashes within {restart.within:g} s: "
                f"{crew.spec.name} is not started any more",
            )
        return replace(
            crew,
            crashes=crashes,
            failures={**crew.failures, position: failures + 1},
            not_before={} if fatal else {**crew.not_before, position: self.now + pause},
            fatal=fatal,
        )

    def _reload(self, event: Reload) -> None:
        if self.stopping:
            self.actions.append(Reloaded(self.generation, "the supervisor is stopping"))
            return
        if self.pending is not None:
            self._abort("another reload came before it was ready")
        self.generation += 1
        wanted = event.components
        if wanted is None:
            wanted = {name: crew.spec for name, crew in self.crews.items()}
        crews, adjusted = {}, {}
        for name, spec in wanted.items():
            old = self.crews.get(name)
            if old is not None and event.only is not None and name not in event.only:
                adjusted[name] = spec
                continue
            count = wanted_count(old, spec)
            sharded = old is not None and old.sharded
            crews[name] = Crew(
                spec=spec,
                count=count,
                widest=count,
                generation=self.generation,
                sharded=sharded if event.sharded is None else name in event.sharded,
            )
        self.pending = Pending(
            generation=self.generation,
            crews=crews,
            removed=frozenset(self.crews.keys() - wanted.keys()),
            adjusted=adjusted,
            rollback=self.state.rollback if event.rollback is None else event.rollback,
            max_generations=event.max_generations or self.state.max_generations,
        )
        self.actions.append(Announce("reloading"))

    def _roll_back(self) -> None:
        if self.previous is None or self.stopping:
            self.actions.append(Reloaded(self.generation, "no generation is paused"))
            return
        if self.pending is not None:
            self._abort("rolled back before it was ready")
        previous, self.previous = self.previous, None
        for worker in list(self.workers.values()):
            crew = previous.crews.get(worker.component)
            if worker.phase is Phase.PAUSED and crew and crew.generation == worker.generation:
                self.actions.append(Tell(worker.id, "resume"))
                self._put(worker, Phase.READY, age(worker))
        for name in previous.added:
            del self.crews[name]
        self.crews.update(previous.crews)
        restored = max((crew.generation for crew in previous.crews.values()), default=0)
        self.actions.append(Reloaded(restored))

    def _scale(self, component: str, count: int) -> None:
        def scaled(crew: Crew) -> Crew:
            kept = frozenset(p for p in crew.finished if p < count)
            return replace(crew, count=count, widest=max(count, crew.widest), finished=kept)

        if component in self.crews:
            self.crews[component] = scaled(self.crews[component])
        if self.pending is not None and component in self.pending.crews:
            crews = {**self.pending.crews, component: scaled(self.pending.crews[component])}
            self.pending = replace(self.pending, crews=crews)

    # What follows from the state

"""What follows from a state: whatever differs from what is wanted becomes an action."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pyforkfd.supervisor.spec._spec import Component

from ._events import (
    Action,
    Announce,
    Cause,
    Exit,
    Kill,
    Lend,
    Note,
    Reloaded,
    Signal,
    Spawn,
    TakeBack,
    Tell,
)
from ._model import SERVING, STAYING, Crew, Pending, Phase, Previous, State, Worker, missing, spread

_DUMP_TIME = 1.0  # seconds for a stack dump to be written

Level = Literal["info", "warning", "error"]


class Draft:
    """A state on its way to the next: changed by one event, then settled."""

    def __init__(self, state: State, now: float) -> None:
        self.state = state
        self.now = now
        self.actions: list[Action] = []
        self.crews = dict(state.crews)
        self.workers = dict(state.workers)
        self.pending = state.pending
        self.previous = state.previous
        self.stopping = state.stopping
        self.exit_code = state.exit_code
        self.generation = state.generation
        self.next_worker = state.next_worker

    def result(self) -> tuple[State, list[Action]]:
        return self._now(), self.actions

    def _now(self) -> State:
        return replace(
            self.state,
            crews=self.crews,
            workers=self.workers,
            pending=self.pending,
            previous=self.previous,
            stopping=self.stopping,
            exit_code=self.exit_code,
            generation=self.generation,
            next_worker=self.next_worker,
        )

    def settle(self) -> None:
        for worker in list(self.workers.values()):
            if worker.deadline is not None and worker.deadline <= self.now:
                self._overdue(worker)
        if self.previous is not None and self.previous.until <= self.now:
            self.previous = None
        if self.pending is not None and all(map(self._complete, self.pending.crews.values())):
            self._switch(self.pending)
        if not self.stopping:
            for name, crew in list(self.crews.items()):
                self.crews[name] = self._fill(crew)
            if self.pending is not None:
                for crew in self.pending.crews.values():
                    self._fill(crew)
        for worker in list(self.workers.values()):
            if worker.phase in STAYING and not self._belongs(worker):
                self._dismiss(worker)
        self._limit_generations()
        lent = self._lend()
        announced = self._announce()
        self.state = replace(self.state, lent=lent, announced=announced, exited=self._exit())

    def _overdue(self, worker: Worker) -> None:
        patience = worker.spec
        match worker.phase:
            case Phase.BOOTING if patience.readiness == "started" and worker.pid is not None:
                self._ready(worker.id, speaks=False)
            case Phase.BOOTING:
                why = f"not ready within {patience.boot_timeout:g} s"
                self._condemn(worker, "boot_timeout", why)
            case Phase.READY:
                self.workers[worker.id] = replace(worker, deadline=None)
                self._retire(worker.id, f"{patience.recycle.age:g} s old")
            case Phase.DRAINING:
                self._note(worker, "warning", f"not finished in {patience.drain_timeout:g} s")
                self._signal_to_stop(worker, patience.stop_timeout)
            case Phase.STOPPING:
                self._note(worker, "warning", "does not stop: killing it with its children")
                self._kill(worker)
            case Phase.DUMPING:
                self._kill(worker)

    def _complete(self, crew: Crew) -> bool:
        ready = {worker.position for worker in self._of(crew, Phase.READY)}
        return (ready | crew.finished).issuperset(range(crew.count))

    def _switch(self, pending: Pending) -> None:
        """All of the new generation is ready; the old may go, or pause."""
        added = frozenset(pending.crews.keys() - self.crews.keys())
        replaced = {
            name: crew
            for name, crew in self.crews.items()
            if name in pending.crews or name in pending.removed
        }
        self.crews = {n: c for n, c in self.crews.items() if n not in pending.removed}
        self.crews.update(pending.crews)
        for name, spec in pending.adjusted.items():
            self._adjust(name, spec)
        self.pending = self.previous = None
        self.state = replace(
            self.state, rollback=pending.rollback, max_generations=pending.max_generations
        )
        self.actions.append(Reloaded(pending.generation))
        self.actions.append(Announce("ready"))
        if self.state.rollback <= 0:
            return
        old = [worker for crew in replaced.values() for worker in self._of(crew, Phase.READY)]
        if mute := [worker for worker in old if not worker.speaks]:
            self._note(mute[0], "warning", "cannot pause, so no roll back is kept")
            return
        for worker in old:
            self.actions.append(Tell(worker.id, "pause"))
            self._put(worker, Phase.PAUSED, None)
        until = self.now + self.state.rollback
        self.previous = Previous(crews=replaced, added=added, until=until)

    def _adjust(self, name: str, spec: Component) -> None:
        """Its workers stay, for nothing has changed that they were started from."""
        crew = self.crews[name]
        count = wanted_count(crew, spec)
        widest = max(count, crew.widest)
        self.crews[name] = replace(crew, spec=spec, count=count, widest=widest)
        for worker in self._of(crew, *STAYING):
            self.workers[worker.id] = replace(worker, spec=spec)

    def _fill(self, crew: Crew) -> Crew:
        """Start what is missing, and let go what was replaced."""
        serving = self._of(crew, *SERVING)
        replacing = False
        # What has passed is as good as absent, and would be due for ever.
        not_before = {p: when for p, when in crew.not_before.items() if when > self.now}
        for position in range(crew.count):
            here = [worker for worker in serving if worker.position == position]
            fresh = [worker for worker in here if not worker.retiring]
            if any(worker.phase is Phase.READY for worker in fresh):
                for worker in here:
                    if worker.retiring:
                        self._dismiss(worker)
                continue
            if fresh:
                replacing = replacing or len(fresh) < len(here)
                continue
            if crew.fatal or position in crew.finished:
                continue
            if position in not_before:
                continue
            if here:  # retiring: one after the other, and a reload replaces them anyway
                if replacing or self.pending is not None:
                    continue
                replacing = True
            self._spawn(crew, position)
        return replace(crew, not_before=not_before)

    def _spawn(self, crew: Crew, position: int) -> None:
        spec = crew.spec
        worker = Worker(
            id=self.next_worker,
            spec=spec,
            position=position,
            generation=crew.generation,
            phase=Phase.BOOTING,
            born=self.now,
            since=self.now,
            deadline=self.now + spec.boot_timeout,
        )
        self.next_worker += 1
        self.workers[worker.id] = worker
        self.actions.append(Spawn(worker.id))

    def _belongs(self, worker: Worker) -> bool:
        if self.stopping:
            return False
        if worker.phase is Phase.PAUSED:
            crews = [] if self.previous is None else [self.previous.crews]
        else:
            crews = [self.crews] if self.pending is None else [self.crews, self.pending.crews]
        found = [crew for group in crews if (crew := group.get(worker.component))]
        return any(self._is_of(worker, crew) for crew in found)

    def _is_of(self, worker: Worker, crew: Crew) -> bool:
        if worker.generation != crew.generation:
            return False
        # Scaled down: it goes when those that stay are ready.
        surplus = worker.phase is Phase.READY and not self._complete(crew)
        return worker.position < crew.count or surplus

    def _limit_generations(self) -> None:
        alive = sorted({worker.generation for worker in self.workers.values()}, reverse=True)
        for worker in list(self.workers.values()):
            leaves = worker.phase not in STAYING and worker.phase is not Phase.KILLED
            if leaves and worker.generation in alive[self.state.max_generations :]:
                why = f"generation {worker.generation} is one too many: killing it"
                self._note(worker, "warning", why)
                self._kill(worker)

    def _lend(self) -> dict[tuple[str, int], int]:
        """Shards of positions where nobody is ready go to a sibling, one owner each."""
        lent = {}
        for name, crew in self.crews.items():
            if self.stopping or not crew.sharded:
                continue
            ready = self._of(crew, Phase.READY)
            owned = {worker.position for worker in ready}
            takers = {worker.id: 0 for worker in ready if worker.speaks}
            homeless = [p for p in range(crew.widest) if p not in owned]
            for position in homeless:
                if (taker := self.state.lent.get((name, position))) in takers:
                    lent[name, position] = taker
                    takers[taker] += 1
            for position in homeless:
                if takers and (name, position) not in lent:
                    taker = min(takers, key=lambda number: (takers[number], number))
                    lent[name, position] = taker
                    takers[taker] += 1
        for key, number in self.state.lent.items():
            if lent.get(key) != number and number in self.workers:
                self.actions.append(TakeBack(number, key[1]))
        for key, number in lent.items():
            if self.state.lent.get(key) != number:
                self.actions.append(Lend(number, key[1]))
        return lent

    def _announce(self) -> bool:
        if self.state.announced or self.stopping or missing(self._now()):
            return self.state.announced
        self.actions.append(Announce("ready"))
        return True

    def _exit(self) -> bool:
        if not self.stopping and self._hopeless():
            self.exit_code = 1
            self.actions.append(Note("error", "no component can be kept running: giving up"))
            self._stop(at_once=False)
        if not self.stopping or self.workers or self.state.exited:
            return self.state.exited
        self.actions.append(Exit(self.exit_code))
        return True

    def _hopeless(self) -> bool:
        served = any(worker.phase in STAYING for worker in self.workers.values())
        return not served and bool(self.crews) and all(c.fatal for c in self.crews.values())

    # Small changes, of which the others are made

    def _put(self, worker: Worker, phase: Phase, patience: float | None) -> None:
        deadline = None if patience is None else self.now + patience
        self.workers[worker.id] = replace(worker, phase=phase, since=self.now, deadline=deadline)

    def _note(self, worker: Worker, level: Level, text: str) -> None:
        self.actions.append(Note(level, text, worker.component, worker.id))

    def _of(self, crew: Crew, *phases: Phase) -> list[Worker]:
        return [
            worker
            for worker in self.workers.values()
            if worker.phase in phases
            and worker.generation == crew.generation
            and worker.component == crew.spec.name
        ]

    def _ready(self, worker_id: int, speaks: bool) -> None:
        worker = self.workers.get(worker_id)
        if worker is None:
            return
        worker = replace(worker, speaks=worker.speaks or speaks)
        self.workers[worker_id] = worker
        if worker.phase is not Phase.BOOTING:
            return
        self._put(worker, Phase.READY, age(worker))
        self._note(worker, "info", f"ready after {self.now - worker.born:.3f} s")

    def _retire(self, worker_id: int, why: str) -> None:
        worker = self.workers.get(worker_id)
        if worker is not None and worker.phase in SERVING and not worker.retiring:
            self.workers[worker_id] = replace(worker, retiring=True)
            self._note(worker, "info", f"to be replaced: {why}")

    def _condemn(self, worker: Worker, cause: Cause, why: str) -> None:
        """It will not answer: let it show its stack, then end it."""
        worker = replace(worker, condemned=cause)
        if self.pending is not None and worker.generation == self.pending.generation:
            self._abort(f"{worker.component}: worker {worker.id}: {why}")
        if (dump := worker.spec.dump_signal) is None:
            self._note(worker, "error", f"{why}: killing it")
            self._kill(worker)
            return
        self._note(worker, "error", f"{why}: dumping its stack, then killing it")
        self.actions.append(Signal(worker.id, dump))
        self._put(worker, Phase.DUMPING, _DUMP_TIME)

    def _dismiss(self, worker: Worker) -> None:
        spec = worker.spec
        if worker.speaks and worker.phase is not Phase.BOOTING:
            self.actions.append(Tell(worker.id, "drain"))
            self._put(worker, Phase.DRAINING, spec.drain_timeout)
        else:
            # The signal is all that a program which knows nothing of us has to drain by.
            drain = spec.drain_timeout if worker.phase is Phase.READY else 0.0
            self._signal_to_stop(worker, drain + spec.stop_timeout)

    def _signal_to_stop(self, worker: Worker, patience: float) -> None:
        self.actions.append(Signal(worker.id, worker.spec.stop_signal))
        self._put(worker, Phase.STOPPING, patience)

    def _kill(self, worker: Worker) -> None:
        if worker.phase is not Phase.KILLED:
            self._put(worker, Phase.KILLED, None)
            self.actions.append(Kill(worker.id))

    def _abort(self, why: str) -> None:
        """Nothing changes: the workers of the pending generation belong to none any more."""
        assert self.pending is not None
        self.actions.append(Reloaded(self.pending.generation, why))
        if self.state.announced and not self.stopping:
            self.actions.append(Announce("ready"))
        self.pending = None

    def _stop(self, at_once: bool) -> None:
        if not self.stopping:
            self.stopping = True
            self.actions.append(Announce("stopping"))
        if self.pending is not None:
            self._abort("the supervisor is stopping")
        self.previous = None
        if at_once:
            for worker in list(self.workers.values()):
                self._kill(worker)


def age(worker: Worker) -> float | None:
    """How long it may stay."""
    recycle = worker.spec.recycle
    if recycle.age is None:
        return None
    return recycle.age * (1.0 - recycle.jitter * spread(worker.id))


def wanted_count(old: Crew | None, spec: Component) -> int:
    """What it was scaled to, unless the specification has another number than before."""
    if old is not None and old.spec.workers == spec.workers:
        return old.count
    return spec.workers

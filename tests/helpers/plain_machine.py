"""The settling of a draft as it is easiest to read: a check of everything, at every step.

The supervisor's own checks what has changed, and must do just the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from pyforkfd.supervisor.state._changes import dismiss, kill
from pyforkfd.supervisor.state._draft import Draft
from pyforkfd.supervisor.state._events import (
    Action,
    Event,
    Lend,
    TakeBack,
)
from pyforkfd.supervisor.state._model import (
    SERVING,
    STAYING,
    Crew,
    Phase,
    State,
    Worker,
)
from pyforkfd.supervisor.state._settle import announce, belongs, leave, overdue, spawn, switch
from pyforkfd.supervisor.state._step import take


def plain_step(state: State, event: Event, now: float) -> tuple[State, Sequence[Action]]:
    """Take one event, as the state machine's own step."""
    draft = _PlainDraft.of(state, now)
    take(draft, event)
    _settle(draft)
    return draft.result(), draft.actions


class _PlainDraft(Draft):
    """A draft that asks no index for the members of a crew."""

    __slots__ = ()

    def members(self, crew: Crew, phase: Phase | None = None) -> list[Worker]:
        return [
            worker
            for worker in self.workers.values()
            if worker.phase in (SERVING if phase is None else {phase})
            and worker.generation == crew.generation
            and worker.component == crew.spec.name
        ]


def _settle(draft: Draft) -> None:
    if not draft.stopping:
        for name, crew in list(draft.crews.items()):
            _end_backoffs(draft, name, crew)
    for worker in list(draft.workers.values()):
        if worker.deadline is not None and worker.deadline <= draft.now:
            overdue(draft, worker)
    if draft.previous is not None and draft.previous.until <= draft.now:
        draft.previous = None
    pending = draft.pending
    if pending is not None and all(_is_complete(draft, crew) for crew in pending.crews.values()):
        switch(draft, pending)
    if not draft.stopping:
        for crew in draft.crews.values():
            _fill(draft, crew)
        if draft.pending is not None:
            for crew in draft.pending.crews.values():
                _fill(draft, crew)
    for worker in list(draft.workers.values()):
        if worker.phase in STAYING and not belongs(draft, worker, _is_complete):
            dismiss(draft, worker)
    _limit_generations(draft)
    _lend(draft)
    announce(draft, missing=_is_missing(draft))
    leave(draft, staying=sum(worker.phase in STAYING for worker in draft.workers.values()))


def _is_complete(draft: Draft, crew: Crew) -> bool:
    ready = {worker.position for worker in draft.members(crew, Phase.READY)}
    return (ready | crew.finished).issuperset(range(crew.count))


def _end_backoffs(draft: Draft, name: str, crew: Crew) -> None:
    """End the back-offs that have passed: they would be due for ever."""
    over = [p for p, s in crew.setbacks.items() if s.until is not None and s.until <= draft.now]
    if over:
        ended = {p: replace(crew.setbacks[p], until=None) for p in over}
        draft.put_crew(name, replace(crew, setbacks={**crew.setbacks, **ended}))


def _fill(draft: Draft, crew: Crew) -> None:
    """Start the workers that a crew is short of, and dismiss those that were replaced."""
    serving = draft.members(crew)
    waiting = {p for p, setbacks in crew.setbacks.items() if setbacks.until is not None}
    at: dict[int, list[Worker]] = {}
    for worker in serving:
        at.setdefault(worker.position, []).append(worker)
    replacing = any(_is_replaced(at.get(position, [])) for position in range(crew.count))
    for position in range(crew.count):
        here = at.get(position, [])
        fresh = [worker for worker in here if not worker.retiring]
        if any(worker.phase is Phase.READY for worker in fresh):
            for worker in here:
                if worker.retiring:
                    dismiss(draft, worker)
            continue
        if fresh:
            continue
        if position in crew.finished or position in waiting:
            continue
        if here:  # retiring: one after the other, and a reload replaces them anyway
            if replacing or draft.pending is not None:
                continue
            replacing = True
        spawn(draft, crew, position)


def _is_replaced(here: list[Worker]) -> bool:
    """Whether a worker waits here for one that boots."""
    fresh = [worker for worker in here if not worker.retiring]
    ready = any(worker.phase is Phase.READY for worker in fresh)
    return bool(fresh) and len(fresh) < len(here) and not ready


def _limit_generations(draft: Draft) -> None:
    """Kill workers that leave, of generations older than the newest that may be alive."""
    alive = sorted({worker.generation for worker in draft.workers.values()}, reverse=True)
    too_old = alive[draft.max_generations :]
    if not too_old:
        return
    for worker in list(draft.workers.values()):
        leaves = worker.phase not in STAYING and worker.phase is not Phase.KILLED
        if leaves and worker.generation in too_old:
            why = f"generation {worker.generation} is one too many: killing it"
            draft.note(worker, "warning", why)
            kill(draft, worker)


def _lend(draft: Draft) -> None:
    """Lend the shards of positions where no worker is ready, each to one sibling."""
    before, lent = draft.lent, {}
    for name, crew in draft.crews.items():
        if draft.stopping or not crew.sharded:
            continue
        ready = draft.members(crew, Phase.READY)
        owned = {worker.position for worker in ready}
        takers = {worker.id: 0 for worker in ready if worker.speaks}
        free = [position for position in range(crew.widest) if position not in owned]
        for position in free:
            if (taker := before.get((name, position))) in takers:
                lent[name, position] = taker
                takers[taker] += 1
        for position in free:
            if takers and (name, position) not in lent:
                taker = min(takers, key=lambda worker_id: (takers[worker_id], worker_id))
                lent[name, position] = taker
                takers[taker] += 1
    for key, worker_id in sorted(before.items()):
        if lent.get(key) != worker_id and worker_id in draft.workers:
            draft.actions.append(TakeBack(worker_id, key[1]))
    for key, worker_id in sorted(lent.items()):
        if before.get(key) != worker_id:
            draft.actions.append(Lend(worker_id, key[1]))
    draft.lent = lent


def _is_missing(draft: Draft) -> bool:
    ready = Counter(
        (worker.component, worker.generation)
        for worker in draft.workers.values()
        if worker.phase is Phase.READY
    )
    return any(
        crew.count - len(crew.finished) - ready[name, crew.generation] > 0
        for name, crew in draft.crews.items()
    )

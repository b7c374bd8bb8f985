"""The settling of a draft as it is easiest to read: a check of everything, at every step.

The supervisor's own checks what has changed, and must do just the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from pyforkfd.supervisor.spec._spec import Component
from pyforkfd.supervisor.state._changes import dismiss, kill, stop, wanted_count
from pyforkfd.supervisor.state._draft import Draft
from pyforkfd.supervisor.state._events import (
    Action,
    Announce,
    Event,
    Exit,
    Lend,
    Note,
    Reloaded,
    SendOrder,
    Spawn,
    TakeBack,
)
from pyforkfd.supervisor.state._model import (
    SERVING,
    STAYING,
    Crew,
    Pending,
    Phase,
    Previous,
    State,
    Worker,
)
from pyforkfd.supervisor.state._settle import overdue
from pyforkfd.supervisor.state._step import take


def plain_step(state: State, event: Event, now: float) -> tuple[State, Sequence[Action]]:
    """Take one event, as the state machine's own step."""
    draft = Draft.of(state, now)
    take(draft, event)
    _settle(draft)
    return draft.result(), draft.actions


def _members(draft: Draft, crew: Crew, *phases: Phase) -> list[Worker]:
    return [
        worker
        for worker in draft.workers.values()
        if worker.phase in phases
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
        _switch(draft, pending)
    if not draft.stopping:
        for crew in draft.crews.values():
            _fill(draft, crew)
        if draft.pending is not None:
            for crew in draft.pending.crews.values():
                _fill(draft, crew)
    complete: dict[tuple[str, int], bool] = {}  # of the crews, computed once
    for worker in list(draft.workers.values()):
        if worker.phase in STAYING and not _belongs(draft, worker, complete):
            dismiss(draft, worker)
    _limit_generations(draft)
    _lend(draft)
    _announce(draft)
    _exit(draft)


def _is_complete(draft: Draft, crew: Crew) -> bool:
    ready = {worker.position for worker in _members(draft, crew, Phase.READY)}
    return (ready | crew.finished).issuperset(range(crew.count))


def _switch(draft: Draft, pending: Pending) -> None:
    """Go over to a generation that is ready; the old one leaves, or pauses."""
    added = frozenset(pending.crews.keys() - draft.crews.keys())
    replaced = {
        name: crew
        for name, crew in draft.crews.items()
        if name in pending.crews or name in pending.removed
    }
    for name in pending.removed & draft.crews.keys():
        draft.remove_crew(name)
    for name, crew in pending.crews.items():
        draft.put_crew(name, crew)
    for name, spec in pending.adjusted.items():
        _adjust(draft, name, spec)
    draft.end_pending()
    draft.previous = None
    draft.rollback = pending.rollback
    draft.max_generations = pending.max_generations
    draft.actions.append(Reloaded(pending.generation))
    draft.actions.append(Announce("ready"))
    if draft.rollback <= 0 or pending.back:
        return
    old = [worker for crew in replaced.values() for worker in _members(draft, crew, Phase.READY)]
    if unable := [worker for worker in old if not worker.speaks]:
        draft.note(unable[0], "warning", "cannot pause, so no roll back is possible")
        return
    for worker in old:
        draft.actions.append(SendOrder(worker.id, "pause"))
        draft.enter(worker, Phase.PAUSED, None)
    draft.previous = Previous(crews=replaced, added=added, until=draft.now + draft.rollback)


def _adjust(draft: Draft, name: str, spec: Component) -> None:
    """Give a component a specification that its workers need not be started anew for."""
    crew = draft.crews[name]
    draft.put_crew(name, replace(crew, spec=spec).resized(wanted_count(crew, spec)))
    for worker in _members(draft, crew, *STAYING):
        draft.put(replace(worker, spec=spec))


def _end_backoffs(draft: Draft, name: str, crew: Crew) -> None:
    """End the back-offs that have passed: they would be due for ever."""
    over = [p for p, s in crew.setbacks.items() if s.until is not None and s.until <= draft.now]
    if over:
        ended = {p: replace(crew.setbacks[p], until=None) for p in over}
        draft.put_crew(name, replace(crew, setbacks={**crew.setbacks, **ended}))


def _fill(draft: Draft, crew: Crew) -> None:
    """Start the workers that a crew is short of, and dismiss those that were replaced."""
    serving = _members(draft, crew, *SERVING)
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
        _spawn(draft, crew, position)


def _is_replaced(here: list[Worker]) -> bool:
    """Whether a worker waits here for one that boots."""
    fresh = [worker for worker in here if not worker.retiring]
    ready = any(worker.phase is Phase.READY for worker in fresh)
    return bool(fresh) and len(fresh) < len(here) and not ready


def _spawn(draft: Draft, crew: Crew, position: int) -> None:
    spec = crew.spec
    worker = Worker(
        id=draft.next_worker,
        spec=spec,
        position=position,
        generation=crew.generation,
        phase=Phase.BOOTING,
        born=draft.now,
        since=draft.now,
        deadline=draft.now + spec.boot_timeout,
    )
    draft.next_worker += 1
    draft.put(worker)
    draft.actions.append(Spawn(worker.id))


def _belongs(draft: Draft, worker: Worker, complete: dict[tuple[str, int], bool]) -> bool:
    """Return whether a crew that is wanted, or paused, has a worker.

    Args:
        draft: borrowed.
        worker: one that stays.
        complete: component and generation of crews -> whether they are complete; is added to.
    """
    if draft.stopping:
        return False
    if worker.phase is Phase.PAUSED:
        groups = [] if draft.previous is None else [draft.previous.crews]
    else:
        groups = [draft.crews] if draft.pending is None else [draft.crews, draft.pending.crews]
    crews = [crew for group in groups if (crew := group.get(worker.component))]
    return any(_is_member(draft, worker, crew, complete) for crew in crews)


def _is_member(
    draft: Draft, worker: Worker, crew: Crew, complete: dict[tuple[str, int], bool]
) -> bool:
    if worker.generation != crew.generation:
        return False
    if worker.position < crew.count:
        return True
    # Scaled down: it leaves when those that stay are ready.
    key = crew.spec.name, crew.generation
    if key not in complete:
        complete[key] = _is_complete(draft, crew)
    return worker.phase is Phase.READY and not complete[key]


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
        ready = _members(draft, crew, Phase.READY)
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


def _missing(draft: Draft) -> bool:
    ready = Counter(
        (worker.component, worker.generation)
        for worker in draft.workers.values()
        if worker.phase is Phase.READY
    )
    return any(
        crew.count - len(crew.finished) - ready[name, crew.generation] > 0
        for name, crew in draft.crews.items()
    )


def _announce(draft: Draft) -> None:
    """Announce the service's readiness, once, when no worker is missing."""
    if not draft.announced and not draft.stopping and not _missing(draft):
        draft.announced = True
        draft.actions.append(Announce("ready"))


def _exit(draft: Draft) -> None:
    """Stop where no component can be started; exit when the last worker was reaped."""
    if not draft.stopping and _is_hopeless(draft):
        draft.exit_code = 1
        draft.actions.append(Note("error", "no component can be kept running: giving up"))
        stop(draft, at_once=False)
    if draft.stopping and not draft.workers and not draft.exited:
        draft.exited = True
        draft.actions.append(Exit(draft.exit_code))


def _is_hopeless(draft: Draft) -> bool:
    """Return whether a service that was never ready has been given up as a whole.

    One that has been ready is not: what it needs is away, and it is tried until that is back.
    """
    if draft.announced or not draft.crews:
        return False
    if any(worker.phase in STAYING for worker in draft.workers.values()):
        return False
    return all(
        crew.given_up and (crew.given_up | crew.finished).issuperset(range(crew.count))
        for crew in draft.crews.values()
    )

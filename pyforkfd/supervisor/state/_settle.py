"""The settling of a draft: whatever differs from what is wanted becomes an action."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from pyforkfd.supervisor.spec._spec import Component

from ._changes import (
    become_ready,
    condemn,
    dismiss,
    kill,
    retire,
    signal_to_stop,
    stop,
    wanted_count,
)
from ._draft import Draft
from ._events import Announce, Exit, Note, Reloaded, SendOrder, Spawn
from ._index import Roster, index_of
from ._lending import lend
from ._model import STAYING, Crew, Pending, Phase, Previous, Worker
from ._queries import missing_of


def settle(draft: Draft) -> None:
    """Add every action that the draft's state calls for, and the changes that go with it.

    Only what was stirred is checked: all else is as an earlier step has settled it.
    """
    late, due = draft.index.expired(draft.now, draft.workers, {} if draft.stopping else draft.crews)
    for name, _, position in due:  # before other crews take the place of these
        _end_backoff(draft, name, position)
    for worker in late:
        overdue(draft, worker)
    if draft.previous is not None and draft.previous.until <= draft.now:
        draft.previous = None
    pending = draft.pending
    if pending is not None and all(_is_complete(draft, crew) for crew in pending.crews.values()):
        switch(draft, pending)
    before = draft.before
    if draft.previous is not before.previous or draft.stopping != before.stopping:
        draft.all_stirred = True
    if not draft.stopping:
        for crew, stirred in _stirred_crews(draft):
            _fill(draft, crew, stirred)
    for worker_id in _stirred_workers(draft):
        worker = draft.workers[worker_id]
        if worker.phase in STAYING and not belongs(draft, worker, _is_complete):
            dismiss(draft, worker)
    _limit_generations(draft)
    lend(draft)
    announce(draft, missing=bool(missing_of(draft.crews, draft.index)))
    draft.index.settled = True
    leave(draft, staying=draft.index.staying)


def _stirred_crews(draft: Draft) -> list[tuple[Crew, Iterable[int]]]:
    """List the crews that may be short of a worker, with the positions to check, in order."""
    groups = [draft.crews] if draft.pending is None else [draft.crews, draft.pending.crews]
    if draft.all_stirred:
        return [(crew, range(crew.count)) for group in groups for crew in group.values()]
    found: list[tuple[Crew, Iterable[int]]] = []
    for group in groups:
        names = dict.fromkeys(name for name, _ in draft.stirred)
        for name in names if len(names) == 1 else [name for name in group if name in names]:
            crew = group.get(name)
            if crew is not None and (positions := draft.stirred.get((name, crew.generation))):
                found.append((crew, positions))
    return found


def _stirred_workers(draft: Draft) -> list[int]:
    """List the ids of the workers that may not be wanted any more, in order."""
    if draft.all_stirred:
        return sorted(draft.workers)
    found = draft.touched_workers & draft.workers.keys()
    for crew, _ in _stirred_crews(draft):
        roster = draft.index.roster((crew.spec.name, crew.generation))
        if roster.beyond and not roster.unmet:
            found.update(roster.surplus())
    return sorted(found)


def overdue(draft: Draft, worker: Worker) -> None:
    """End a phase that has lasted too long."""
    spec = worker.spec
    match worker.phase:
        case Phase.BOOTING if spec.readiness == "started" and worker.pid is not None:
            become_ready(draft, worker.id, speaks=False)
        case Phase.BOOTING:
            why = f"not ready within {spec.boot_timeout:g} s{_readiness_advice(worker)}"
            condemn(draft, worker, "boot_timeout", why)
        case Phase.READY:
            draft.put(replace(worker, deadline=None))
            retire(draft, worker.id, f"{spec.recycle.age:g} s old")
        case Phase.DRAINING:
            draft.note(worker, "warning", f"not finished in {spec.drain_timeout:g} s")
            signal_to_stop(draft, worker, spec.stop_timeout)
        case Phase.STOPPING:
            draft.note(worker, "warning", "does not stop: killing it with its children")
            kill(draft, worker)
        case Phase.DUMPING:
            kill(draft, worker)


def _readiness_advice(worker: Worker) -> str:
    """Return what to write where a program may have no readiness protocol; else nothing."""
    spec = worker.spec
    if worker.pid is None or spec.command is None or spec.readiness != "notify":
        return ""
    value = "accept" if spec.listen else "started"
    return f' (it sent no READY=1: for a program that sends none, write readiness = "{value}")'


def _is_complete(draft: Draft, crew: Crew) -> bool:
    return draft.index.roster((crew.spec.name, crew.generation)).unmet == 0


def switch(draft: Draft, pending: Pending) -> None:
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
    old = [worker for crew in replaced.values() for worker in draft.members(crew, Phase.READY)]
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
    for worker in draft.members(crew):
        draft.put(replace(worker, spec=spec))


def _end_backoff(draft: Draft, name: str, position: int) -> None:
    """Note that a position may be tried now: its back-off would be due for ever."""
    crew = draft.crews[name]
    over = replace(crew.setbacks[position], until=None)
    draft.put_crew(name, crew.setback(position, over), position)


def _fill(draft: Draft, crew: Crew, positions: Iterable[int]) -> None:
    """Start the workers that a crew is short of, and dismiss those that were replaced.

    Args:
        draft: borrowed.
        crew: of the present or of the pending generation.
        positions: to check.
    """
    roster = draft.index.roster((crew.spec.name, crew.generation))
    successor_at = _next_replaced(draft, crew, roster)
    wanted = {position for position in positions if position < crew.count}
    if successor_at is not None:
        wanted.add(successor_at)
    for position in sorted(wanted):
        here = roster.at.get(position, ())
        fresh = [worker for worker in here if not worker.retiring]
        if any(worker.phase is Phase.READY for worker in fresh):
            for worker in here:
                if worker.retiring:
                    dismiss(draft, worker)
        elif (not here and _may_start(crew, position)) or position == successor_at:
            spawn(draft, crew, position)


def _next_replaced(draft: Draft, crew: Crew, roster: Roster) -> int | None:
    """Return the position of the next worker to be replaced: one after the other.

    None while one is being replaced, and while a generation boots, which replaces them anyway.
    """
    if draft.pending is not None or roster.replacing or not roster.alone:
        return None
    first = min(roster.alone)
    if _may_start(crew, first):
        return first
    return min((p for p in roster.alone if _may_start(crew, p)), default=None)


def _may_start(crew: Crew, position: int) -> bool:
    """Return whether a position is not finished, and in no back-off."""
    setbacks = crew.setbacks.get(position)
    return position not in crew.finished and (setbacks is None or setbacks.until is None)


def spawn(draft: Draft, crew: Crew, position: int) -> None:
    """Start a worker at a position."""
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


def belongs(draft: Draft, worker: Worker, is_complete: Callable[[Draft, Crew], bool]) -> bool:
    """Return whether a crew that is wanted, or paused, has a worker that stays.

    Args:
        draft: borrowed.
        worker: one that stays.
        is_complete: returns whether all positions of a crew are served or finished.
    """
    if draft.stopping:
        return False
    if worker.phase is Phase.PAUSED:
        groups = [] if draft.previous is None else [draft.previous.crews]
    else:
        groups = [draft.crews] if draft.pending is None else [draft.crews, draft.pending.crews]
    for group in groups:
        crew = group.get(worker.component)
        if crew is None or crew.generation != worker.generation:
            continue
        if worker.position < crew.count:
            return True
        # Scaled down: it leaves when those that stay are ready.
        if worker.phase is Phase.READY and not is_complete(draft, crew):
            return True
    return False


def _limit_generations(draft: Draft) -> None:
    """Kill workers that leave, of generations older than the newest that may be alive."""
    alive = draft.index.generations
    if len(alive) <= draft.max_generations:
        return
    before = index_of(draft.before).generations
    same = alive.keys() == before.keys() and draft.max_generations == draft.before.max_generations
    too_old = set(sorted(alive, reverse=True)[draft.max_generations :])
    some = draft.touched_workers & draft.workers.keys() if same else draft.workers
    for worker_id in sorted(some):
        worker = draft.workers[worker_id]
        leaves = worker.phase not in STAYING and worker.phase is not Phase.KILLED
        if leaves and worker.generation in too_old:
            why = f"generation {worker.generation} is one too many: killing it"
            draft.note(worker, "warning", why)
            kill(draft, worker)


def announce(draft: Draft, *, missing: bool) -> None:
    """Announce the service's readiness, once, when no worker is missing."""
    if not draft.announced and not draft.stopping and not missing:
        draft.announced = True
        draft.actions.append(Announce("ready"))


def leave(draft: Draft, *, staying: int) -> None:
    """Stop where no component can be started; exit when the last worker was reaped.

    Args:
        draft: borrowed.
        staying: how many workers do not leave.
    """
    if not draft.stopping and not staying and _is_hopeless(draft):
        draft.exit_code = 1
        draft.actions.append(Note("error", "no component can be kept running: giving up"))
        stop(draft, at_once=False)
        draft.index.settled = False
    if draft.stopping and not draft.workers and not draft.exited:
        draft.exited = True
        draft.actions.append(Exit(draft.exit_code))


def _is_hopeless(draft: Draft) -> bool:
    """Return whether a service that was never ready has been given up as a whole.

    One that has been ready is not: what it needs is away, and it is tried until that is back.
    """
    if draft.announced or not draft.crews:
        return False
    return all(
        crew.given_up and (crew.given_up | crew.finished).issuperset(range(crew.count))
        for crew in draft.crews.values()
    )

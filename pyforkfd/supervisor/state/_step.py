"""The state machine: (state, event, now) -> (state, actions).  No I/O, no clock, no chance.

An event changes what is known; then the state is *settled*: whatever differs from what is
wanted becomes an action.  So there is one place that starts workers and one that dismisses
them, whichever of crash, reload, scaling, recycling and stop come together.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from ._changes import abort_reload, age_limit, become_ready, condemn, retire, stop, wanted_count
from ._draft import Draft
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
    SendOrder,
    Spawned,
    SpawnFailed,
    Stop,
    Tick,
    WentStale,
)
from ._index import index_of
from ._model import STAYING, Crew, Pending, Phase, State, Worker
from ._queries import due
from ._setbacks import after_crash, end_shortage, run_short
from ._settle import settle

_STARTED = 1.0  # seconds; a program that lives on for so long is taken to have started
_SHORT_LIFE = 1.0  # seconds; a worker that is done sooner is not started again at once


@dataclass(frozen=True, slots=True)
class Step:
    """A step of the state machine.

    Attributes:
        state: the new state; the very same as before where the step changes nothing.
        actions: what to do, in this order.
        workers: ids of the workers that were added, changed or removed.
        crews: components whose crew was added, changed or removed.
    """

    state: State
    actions: Sequence[Action]
    workers: Collection[int] = ()
    crews: Collection[str] = ()


def step(state: State, event: Event, now: float) -> tuple[State, Sequence[Action]]:
    """Take one event.

    Args:
        state: as the last step left it.
        event: what has happened.
        now: seconds on a clock that never goes back.

    Returns:
        The new state, and what to do, in this order.
    """
    taken = advance(state, event, now)
    return taken.state, taken.actions


def advance(state: State, event: Event, now: float) -> Step:
    """Take one event, as :func:`step`; return what has changed as well."""
    if isinstance(event, Tick) and index_of(state).settled and not _is_due(state, now):
        return Step(state, [])
    draft = Draft.of(state, now)
    take(draft, event)
    settle(draft)
    return Step(
        state=draft.result(),
        actions=draft.actions,
        workers=draft.touched_workers,
        crews=draft.touched_crews,
    )


def _is_due(state: State, now: float) -> bool:
    first = due(state)
    return first is not None and first <= now


def take(draft: Draft, event: Event) -> None:
    """Change a draft by an event, and by nothing that follows from it."""
    match event:
        case Spawned(worker_id, pid):
            _spawned(draft, worker_id, pid)
        case SpawnFailed(worker_id, why, shortage=True):
            run_short(draft, worker_id, why)
        case SpawnFailed(worker_id, why):
            _end(draft, worker_id, "spawn_failed", why)
        case Ended(worker_id, cause, detail):
            _end(draft, worker_id, cause, detail)
        case BecameReady(worker_id, speaks):
            become_ready(draft, worker_id, speaks)
        case WentStale(worker_id, why):
            worker = draft.workers.get(worker_id)
            if worker is not None and worker.phase in (Phase.READY, Phase.PAUSED):
                condemn(draft, worker, "stale", why)
        case Leaving(worker_id):
            _leave(draft, worker_id)
        case Retire(worker_id, why):
            retire(draft, worker_id, why)
        case Reload():
            _reload(draft, event)
        case RollBack():
            _roll_back(draft)
        case Scale(component, count):
            _scale(draft, component, count)
        case Stop(now):
            stop(draft, at_once=now or draft.stopping)


def _spawned(draft: Draft, worker_id: int, pid: int) -> None:
    """Note a worker's pid; a program that reports no readiness is ready a second after that."""
    worker = draft.workers.get(worker_id)
    if worker is None:
        return
    deadline = worker.deadline
    waited = worker.pid is None and worker.phase is Phase.BOOTING  # for its zygote, perhaps
    if waited and worker.spec.readiness == "started":
        deadline = draft.now + _STARTED
    draft.put(replace(worker, pid=pid, deadline=deadline))
    end_shortage(draft, worker)


def _end(draft: Draft, worker_id: int, cause: Cause, detail: str) -> None:
    """Remove a worker that has ended, and count what that means for its crew."""
    worker = draft.remove(worker_id)
    if worker is None:
        return
    draft.actions.append(Forget(worker_id))
    if worker.condemned is not None:
        cause = worker.condemned
    dismissed = worker.phase not in STAYING and worker.condemned is None
    failed = worker.leaving and worker.phase is Phase.DRAINING and cause != "done"
    if dismissed and not failed and cause not in ("core", "oom"):
        draft.note(worker, "info", f"has left: {detail}")
        return
    at_peace = cause == "done" and worker.phase is not Phase.BOOTING
    if worker.phase is Phase.BOOTING and cause in ("done", "exit"):
        detail += " before it was ready"
    if at_peace or (cause == "done" and worker.spec.restart.policy != "always"):
        draft.note(worker, "info", f"has ended by itself: {detail}")
    else:
        draft.actions.append(Crashed(worker_id, worker.component, cause, detail, worker.position))
    if not dismissed or failed:
        _count_end(draft, worker, cause, detail, at_peace)


def _leave(draft: Draft, worker_id: int) -> None:
    """Note that a worker leaves by itself: it is not ready any more, and is replaced at once.

    Of one that boots, and of one that is to leave anyway, only the end counts.
    """
    worker = draft.workers.get(worker_id)
    if worker is None or worker.phase not in (Phase.READY, Phase.PAUSED):
        return
    draft.note(worker, "info", "leaves by itself")
    draft.enter(replace(worker, leaving=True), Phase.DRAINING, worker.spec.drain_timeout)
    _count_end(draft, worker, "done", "it leaves by itself", at_peace=True)


def _count_end(draft: Draft, worker: Worker, cause: Cause, detail: str, at_peace: bool) -> None:
    """Decide whether and when a worker that was not dismissed is replaced."""
    if (pending := draft.pending) is not None and pending.has(worker):
        _end_in_pending(draft, pending, worker, cause, detail)
        return
    crew = draft.crews.get(worker.component)
    if crew is not None and crew.generation == worker.generation:
        if worker.leaving:  # it was counted as done when it announced its end
            crew = replace(crew, finished=crew.finished - {worker.position})
        after = _after_end(draft, crew, worker, cause, at_peace)
        draft.put_crew(worker.component, after, worker.position)


def _end_in_pending(
    draft: Draft, pending: Pending, worker: Worker, cause: Cause, detail: str
) -> None:
    """Give up the generation that boots, unless its worker had only to be done."""
    crew = pending.crews[worker.component]
    if cause == "done" and crew.spec.restart.policy != "always":
        crew = replace(crew, finished=crew.finished | {worker.position})
        draft.put_pending_crew(crew, worker.position)
    else:
        abort_reload(draft, f"{cause}: {detail}", worker)


def _after_end(draft: Draft, crew: Crew, worker: Worker, cause: Cause, at_peace: bool) -> Crew:
    """Return a crew as the end of a worker leaves it: restart policy and back-off."""
    restart = crew.spec.restart
    position = worker.position
    if restart.policy == "never" or (restart.policy == "on-failure" and cause == "done"):
        return replace(crew, finished=crew.finished | {position})
    lived = draft.now - worker.since if worker.phase is not Phase.BOOTING else 0.0
    if at_peace and lived >= _SHORT_LIFE:
        return crew
    return crew.setback(position, after_crash(draft, crew, worker, lived))


def _reload(draft: Draft, event: Reload) -> None:
    """Begin a generation."""
    if draft.stopping:
        draft.actions.append(Reloaded(draft.generation, "the supervisor is stopping"))
        return
    if draft.pending is not None:
        abort_reload(draft, "another reload came before it was ready")
    draft.generation += 1
    wanted = event.components
    if wanted is None:
        wanted = {name: crew.spec for name, crew in draft.crews.items()}
    crews, adjusted = {}, {}
    for name, spec in wanted.items():
        old = draft.crews.get(name)
        if old is not None and event.only is not None and name not in event.only:
            adjusted[name] = spec
            continue
        count = wanted_count(old, spec)
        sharded = old is not None and old.sharded
        crews[name] = Crew(
            spec=spec,
            count=count,
            widest=count,
            generation=draft.generation,
            sharded=sharded if event.sharded is None else name in event.sharded,
        )
    draft.begin(
        Pending(
            generation=draft.generation,
            crews=crews,
            removed=frozenset(draft.crews.keys() - wanted.keys()),
            adjusted=adjusted,
            rollback=draft.rollback if event.rollback is None else event.rollback,
            max_generations=event.max_generations or draft.max_generations,
        )
    )
    draft.actions.append(Announce("reloading"))


def _roll_back(draft: Draft) -> None:
    """Let the paused generation serve again, at once if all of it is still there.

    Where some of it has ended meanwhile, or was never ready, the present generation stays until
    that has been started anew.
    """
    if draft.previous is None or draft.stopping:
        draft.actions.append(Reloaded(draft.generation, "no generation is paused"))
        return
    if draft.pending is not None:
        abort_reload(draft, "rolled back before it was ready")
    previous, draft.previous = draft.previous, None
    for worker in list(draft.workers.values()):
        crew = previous.crews.get(worker.component)
        if worker.phase is Phase.PAUSED and crew and crew.generation == worker.generation:
            draft.actions.append(SendOrder(worker.id, "resume"))
            draft.enter(worker, Phase.READY, age_limit(worker))
    draft.begin(
        Pending(
            generation=max((crew.generation for crew in previous.crews.values()), default=0),
            crews={name: replace(crew, setbacks={}) for name, crew in previous.crews.items()},
            removed=previous.added,
            adjusted={},
            rollback=draft.rollback,
            max_generations=draft.max_generations,
            back=True,
        )
    )


def _scale(draft: Draft, component: str, count: int) -> None:
    """Want another number of workers, now and in the generation that boots."""
    if (crew := draft.crews.get(component)) is not None:
        draft.put_crew(component, crew.resized(count))
    pending = draft.pending
    if pending is not None and (crew := pending.crews.get(component)) is not None:
        draft.put_pending_crew(crew.resized(count))

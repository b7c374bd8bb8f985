"""Failures at a position: the back-off after a crash, giving up, shortages of the supervisor."""

from __future__ import annotations

from dataclasses import replace

from ._changes import abort_reload
from ._draft import Draft
from ._events import Forget
from ._model import STAYING, Crew, Phase, Setbacks, Worker

_MOST_DOUBLINGS = 32  # beyond any cap, and no overflow
_LEAST_RETRY = 1.0  # seconds; the shortest pause of a position that was given up
_LEAST_BACKOFF = 0.01  # seconds; what such a pause doubles from where backoff is less
_SHORTAGE_PAUSE, _SHORTAGE_CAP = 0.1, 5.0  # seconds


def after_crash(draft: Draft, crew: Crew, worker: Worker, lived: float) -> Setbacks:
    """Return the setbacks of a position as the crash of its worker leaves them.

    Args:
        draft: gets a note where the position is given up.
        crew: of the worker.
        worker: that has ended.
        lived: seconds for which it served.
    """
    restart = crew.spec.restart
    before = crew.setbacks.get(worker.position, Setbacks())
    if lived > restart.backoff_cap:
        before = replace(before, failures=0, given_up=False)
    crashes = (*(t for t in before.crashes if t > draft.now - restart.within), draft.now)
    # The first crash of a worker that served is replaced at once: requests wait for it.
    doublings = before.failures - (worker.phase is not Phase.BOOTING)
    pause = 0.0
    if doublings >= 0:
        pause = min(restart.backoff_cap, _doubled(restart.backoff, doublings))
    given_up = before.given_up or len(crashes) > restart.max_restarts
    if given_up:
        pause = max(_LEAST_RETRY, _doubled(max(restart.backoff, _LEAST_BACKOFF), before.failures))
        pause = min(restart.retry_cap, pause)
        why = "again" if before.given_up else f"{len(crashes)} crashes in {restart.within:g} s"
        text = f"position {worker.position} is given up ({why}): next try in {pause:.3g} s"
        draft.note(worker, "error", text)
    return replace(
        before,
        crashes=crashes,
        failures=before.failures + 1,
        given_up=given_up,
        shortages=0,
        shortage="",
        until=draft.now + pause,
    )


def _doubled(seconds: float, times: int) -> float:
    return float(seconds * 2.0 ** min(times, _MOST_DOUBLINGS))


def run_short(draft: Draft, worker_id: int, why: str) -> None:
    """Put off a start for which the supervisor was short of a resource: it is no crash.

    The first shortage of a component is logged, further ones are not until it is over.  A
    generation that boots is given up: what it has used so far may be what was short.
    """
    worker = draft.remove(worker_id)
    if worker is None:
        return
    draft.actions.append(Forget(worker_id))
    if worker.phase not in STAYING:
        draft.note(worker, "info", f"has left: {why}")
        return
    if draft.pending is not None and draft.pending.has(worker):
        abort_reload(draft, f"not started: {why}", worker)
        return
    crew = draft.crews.get(worker.component)
    if crew is None or crew.generation != worker.generation:
        return
    if not crew.is_short:
        text = f"not started, a shortage of the supervisor: {why}: trying again until it is over"
        draft.note(worker, "error", text)
    before = crew.setbacks.get(worker.position, Setbacks())
    pause = min(_SHORTAGE_CAP, _doubled(_SHORTAGE_PAUSE, before.shortages))
    after = replace(before, shortages=before.shortages + 1, shortage=why, until=draft.now + pause)
    draft.put_crew(worker.component, crew.setback(worker.position, after), worker.position)


def end_shortage(draft: Draft, worker: Worker) -> None:
    """Note that a worker was started, which ends the shortage of its position."""
    crew = draft.crews.get(worker.component)
    if crew is None or crew.generation != worker.generation:
        return
    before = crew.setbacks.get(worker.position)
    if before is None or not before.shortage:
        return
    crew = crew.setback(worker.position, replace(before, shortages=0, shortage=""))
    draft.put_crew(worker.component, crew, worker.position)
    if not crew.is_short:
        draft.note(worker, "info", "the shortage is over: all workers are started")

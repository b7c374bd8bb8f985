"""Changes of a draft that both an event and the settling after it can bring about."""

from __future__ import annotations

from dataclasses import replace

from pyforkfd.supervisor.spec._spec import Component

from ._draft import Draft
from ._events import Announce, Cause, Kill, Reloaded, SendOrder, Signal
from ._model import SERVING, Crew, Phase, Worker, spread

_DUMP_TIME = 1.0  # seconds for a stack dump to be written


def become_ready(draft: Draft, worker_id: int, speaks: bool) -> None:
    """Let a worker that boots be ready; note whether it reads orders."""
    worker = draft.workers.get(worker_id)
    if worker is None:
        return
    if speaks and not worker.speaks:
        worker = replace(worker, speaks=True)
        draft.put(worker)
    if worker.phase is not Phase.BOOTING:
        return
    draft.enter(worker, Phase.READY, age_limit(worker))
    draft.note(worker, "info", f"ready after {draft.now - worker.born:.3f} s")


def retire(draft: Draft, worker_id: int, why: str) -> None:
    """Have a serving worker replaced: it leaves when another is ready in its position."""
    worker = draft.workers.get(worker_id)
    if worker is not None and worker.phase in SERVING and not worker.retiring:
        draft.put(replace(worker, retiring=True))
        draft.note(worker, "info", f"to be replaced: {why}")


def condemn(draft: Draft, worker: Worker, cause: Cause, why: str) -> None:
    """End a worker that does not react: it dumps its stack, then it is killed."""
    worker = replace(worker, condemned=cause)
    if draft.pending is not None and draft.pending.has(worker):
        abort_reload(draft, why, worker)
    if (dump_signal := worker.spec.dump_signal) is None:
        draft.note(worker, "error", f"{why}: killing it")
        kill(draft, worker)
        return
    draft.note(worker, "error", f"{why}: dumping its stack, then killing it")
    draft.actions.append(Signal(worker.id, dump_signal))
    draft.enter(worker, Phase.DUMPING, _DUMP_TIME)


def dismiss(draft: Draft, worker: Worker) -> None:
    """Let a worker finish what it has begun, then leave."""
    spec = worker.spec
    if worker.speaks and worker.phase is not Phase.BOOTING:
        draft.actions.append(SendOrder(worker.id, "drain"))
        draft.enter(worker, Phase.DRAINING, spec.drain_timeout)
    else:
        # A program without our protocol has nothing but the signal to drain by.
        drain = spec.drain_timeout if worker.phase is Phase.READY else 0.0
        signal_to_stop(draft, worker, drain + spec.stop_timeout)


def signal_to_stop(draft: Draft, worker: Worker, patience: float) -> None:
    """Send a worker its stop_signal; it has so many seconds to end."""
    draft.actions.append(Signal(worker.id, worker.spec.stop_signal))
    draft.enter(worker, Phase.STOPPING, patience)


def kill(draft: Draft, worker: Worker) -> None:
    """Kill a worker with its children, once."""
    if worker.phase is not Phase.KILLED:
        draft.enter(worker, Phase.KILLED, None)
        draft.actions.append(Kill(worker.id))


def abort_reload(draft: Draft, why: str, worker: Worker | None = None) -> None:
    """Give up the generation that boots; its workers belong to no crew from then on.

    Args:
        draft: with a generation that boots.
        why: the reason.
        worker: that failed for this reason; None: none did.
    """
    assert draft.pending is not None
    generation = draft.pending.generation
    if worker is None:
        draft.actions.append(Reloaded(generation, why))
    else:
        why = f"{worker.component}: worker {worker.id}: {why}"
        draft.actions.append(Reloaded(generation, why, worker.component, worker.id))
    if draft.announced and not draft.stopping:
        draft.actions.append(Announce("ready"))
    draft.end_pending()


def stop(draft: Draft, *, at_once: bool) -> None:
    """End all workers: they are dismissed as the draft is settled, or killed at once."""
    if not draft.stopping:
        draft.stopping = True
        draft.actions.append(Announce("stopping"))
    if draft.pending is not None:
        abort_reload(draft, "the supervisor is stopping")
    draft.previous = None
    if at_once:
        for worker in list(draft.workers.values()):
            kill(draft, worker)


def age_limit(worker: Worker) -> float | None:
    """Return for how many seconds a worker may serve; None: for ever."""
    recycle = worker.spec.recycle
    if recycle.age is None:
        return None
    return recycle.age * (1.0 - recycle.jitter * spread(worker.id))


def wanted_count(old: Crew | None, spec: Component) -> int:
    """Return how many workers a component is to have after a reload.

    That is the number that it was scaled to, unless the specification's own has changed.
    """
    if old is not None and old.spec.workers == spec.workers:
        return old.count
    return spec.workers

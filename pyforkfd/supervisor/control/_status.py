"""How a service is, in plain values for people and programs: pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from pyforkfd.supervisor.state._events import Cause
from pyforkfd.supervisor.state._model import Crew, Phase, State, Worker, missing

Condition: TypeAlias = Literal["ready", "starting", "reloading", "degraded", "stopping"]
"""How a service is as a whole: the worst that is true, "reloading" and "stopping" first."""


@dataclass(slots=True)
class Death:
    """The last of a position's workers that died.

    Attributes:
        worker: its id.
        cause: why, as a label.
        detail: why, for people.
        at: when, on the state's clock.
    """

    worker_id: int
    cause: Cause
    detail: str
    at: float


@dataclass(slots=True)
class Deaths:
    """Crashes since the start: (component, position) -> how many, and the last."""

    counts: dict[tuple[str, int], int] = field(default_factory=dict)
    last: dict[tuple[str, int], Death] = field(default_factory=dict)

    def add(self, component: str, position: int, death: Death) -> None:
        """Take note of one."""
        key = component, position
        self.counts[key] = self.counts.get(key, 0) + 1
        self.last[key] = death


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a worker's rooms know of it.

    Attributes:
        text: its own STATUS=.
        beat_age: seconds since its heart has beaten; None: it never did, or nobody looks.
        memory: bytes of its cgroup; None: not known.
    """

    text: str = ""
    beat_age: float | None = None
    memory: int | None = None


def describe(
    state: State,
    now: float,
    *,
    service: str,
    pid: int,
    started: float,
    seen: Mapping[int, Seen] | None = None,
    deaths: Deaths | None = None,
) -> dict[str, Any]:
    """Everything that ``pyforkfd status`` shows.

    Args:
        state: as the heart has it.
        now: on its clock.
        service: its name.
        pid: the supervisor's.
        started: when it began, on the same clock.
        seen: worker -> what is known of it besides.
        deaths: crashes so far.

    Returns:
        Values that JSON has: ``service``, ``pid``, ``age``, ``condition``, ``reasons``,
        ``generation``, ``rollback`` (seconds for which one is possible, or None) and
        ``components``, each with its ``workers``.
    """
    condition, reasons = judge(state)
    deaths = deaths or Deaths()
    names = dict.fromkeys([*state.crews, *(worker.component for worker in state.workers.values())])
    return {
        "service": service,
        "pid": pid,
        "age": now - started,
        "condition": condition,
        "reasons": reasons,
        "generation": state.generation,
        "rollback": None if state.previous is None else max(0.0, state.previous.until - now),
        "components": [_component(name, state, now, seen or {}, deaths) for name in names],
    }


def judge(state: State) -> tuple[Condition, list[str]]:
    """The condition of a service, and a sentence for each thing that is not as wanted."""
    reasons = []
    given_up = [crew for crew in state.crews.values() if crew.fatal]
    short = missing(state)
    for crew in given_up:
        restart = crew.spec.restart
        reasons.append(
            f"{crew.spec.name}: more than {restart.max_restarts} crashes within "
            f"{restart.within:g} s: not started any more"
        )
    for name, count in short.items():
        reasons.append(f"{name}: {count} of {state.crews[name].count} workers are not ready")
    if (pending := state.pending) is not None:
        for name, crew in pending.crews.items():
            reasons.append(
                f"generation {pending.generation} boots: {name}: "
                f"{_ready(state, crew)} of {crew.count} workers are ready"
            )
    if state.stopping:
        left = len(state.workers)
        return "stopping", [f"{left} worker{'s' * (left != 1)} still to end", *reasons]
    if pending is not None:
        return "reloading", reasons
    if given_up:
        return "degraded", reasons
    if not state.announced:
        return "starting", reasons
    return ("degraded" if short else "ready"), reasons


def summary(state: State) -> str:
    """One line, for STATUS= of the service manager."""
    condition, _ = judge(state)
    counts = ", ".join(
        f"{name} {_ready(state, crew)}/{crew.count}" for name, crew in state.crews.items()
    )
    return f"{condition}: {counts}; generation {state.generation}"


def _ready(state: State, crew: Crew) -> int:
    return sum(
        worker.phase is Phase.READY
        and worker.component == crew.spec.name
        and worker.generation == crew.generation
        for worker in state.workers.values()
    )


def _component(
    name: str, state: State, now: float, seen: Mapping[int, Seen], deaths: Deaths
) -> dict[str, Any]:
    crew = state.crews.get(name)
    workers = [worker for worker in state.workers.values() if worker.component == name]
    workers.sort(key=lambda worker: (worker.generation, worker.position, worker.id))
    last = max(
        (death for (component, _), death in deaths.last.items() if component == name),
        key=lambda death: death.at,
        default=None,
    )
    return {
        "name": name,
        "wanted": 0 if crew is None else crew.count,
        "ready": 0 if crew is None else _ready(state, crew),
        "generation": None if crew is None else crew.generation,
        "fatal": crew is not None and crew.fatal,
        "finished": 0 if crew is None else len(crew.finished),
        "crashes": sum(n for (component, _), n in deaths.counts.items() if component == name),
        "last_death": _death(last, now),
        "workers": [
            _worker(worker, now, seen.get(worker.id, Seen()), deaths) for worker in workers
        ],
    }


def _worker(worker: Worker, now: float, seen: Seen, deaths: Deaths) -> dict[str, Any]:
    key = worker.component, worker.position
    return {
        "id": worker.id,
        "pid": worker.pid,
        "phase": worker.phase.value,
        "retiring": worker.retiring,
        "position": worker.position,
        "generation": worker.generation,
        "age": now - worker.born,
        "restarts": deaths.counts.get(key, 0),
        "last_death": _death(deaths.last.get(key), now),
        "status": seen.text,
        "beat_age": seen.beat_age,
        "memory": seen.memory,
    }


def _death(death: Death | None, now: float) -> dict[str, Any] | None:
    if death is None:
        return None
    return {
        "worker": death.worker_id,
        "cause": death.cause,
        "detail": death.detail,
        "ago": now - death.at,
    }

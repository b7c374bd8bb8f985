"""The state of a service in plain values, for people and programs: pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from pyforkfd.supervisor.state._events import Cause
from pyforkfd.supervisor.state._model import Crew, State, Worker
from pyforkfd.supervisor.state._queries import given_up, given_up_in, missing, roster_of

Condition: TypeAlias = Literal["ready", "starting", "reloading", "degraded", "stopping"]
"""The condition of a whole service: the worst that holds, "stopping" and "reloading" first."""


@dataclass(slots=True)
class Death:
    """The death of the worker that last died at its position.

    Attributes:
        worker_id: the worker.
        cause: the cause, as a label.
        detail: the cause, for people.
        at: the time, on the state's clock.
    """

    worker_id: int
    cause: Cause
    detail: str
    at: float


@dataclass(slots=True)
class Deaths:
    """Crashes since the start, by component and position.

    Attributes:
        counts: (component, position) -> number of crashes.
        last: (component, position) -> the last one.
    """

    counts: dict[tuple[str, int], int] = field(default_factory=dict)
    last: dict[tuple[str, int], Death] = field(default_factory=dict)

    def add(self, component: str, position: int, death: Death) -> None:
        """Count one."""
        key = component, position
        self.counts[key] = self.counts.get(key, 0) + 1
        self.last[key] = death


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerDetails:
    """Details of a worker that the state machine does not have.

    Attributes:
        text: the STATUS= that the worker reported.
        beat_age: seconds since its last heartbeat; None: there was none, or none is read.
        memory: bytes that it uses; None: not known.
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
    details: Mapping[int, WorkerDetails] | None = None,
    deaths: Deaths | None = None,
) -> dict[str, Any]:
    """Describe the state of a service, as ``pyforkfd status`` shows it.

    Args:
        state: the state machine's.
        now: the time on its clock.
        service: name of the service.
        pid: pid of the supervisor.
        started: time of the supervisor's start, on the same clock.
        details: worker's id -> further details.
        deaths: crashes since the start.

    Returns:
        JSON values: ``service``, ``pid``, ``age``, ``condition``, ``reasons``,
        ``generation``, ``rollback`` (seconds for which one is possible, or None) and
        ``components``, each with its ``workers``, and with the positions that were
        ``given_up`` or are ``short`` of a resource: ``position``, ``next_try`` (seconds, or
        None: being tried) and ``why`` (the shortage).
    """
    condition, reasons = judge(state, now)
    deaths = deaths or Deaths()
    workers: dict[str, list[Worker]] = {name: [] for name in state.crews}
    for worker in state.workers.values():
        workers.setdefault(worker.component, []).append(worker)
    return {
        "service": service,
        "pid": pid,
        "age": now - started,
        "condition": condition,
        "reasons": reasons,
        "generation": state.generation,
        "rollback": None if state.previous is None else max(0.0, state.previous.until - now),
        "components": [
            _component(name, members, state, now, details or {}, deaths)
            for name, members in workers.items()
        ],
    }


def judge(state: State, now: float) -> tuple[Condition, list[str]]:
    """Return the condition of a service, and a reason for each component that is not ready.

    Args:
        state: the state machine's.
        now: the time on its clock.
    """
    reasons = []
    lost = given_up(state)
    short = missing(state)
    for name, positions in lost.items():
        crew = state.crews[name]
        restart = crew.spec.restart
        reasons.append(
            f"{name}: more than {restart.max_restarts} crashes within {restart.within:g} s: "
            f"{_some(positions, crew)} given up; {_next_try(crew, positions, now)}"
        )
    for name, crew in state.crews.items():
        if positions := sorted(crew.short):
            reasons.append(
                f"{name}: {_some(positions, crew)} not started, a shortage of the supervisor: "
                f"{crew.setbacks[positions[0]].shortage}; {_next_try(crew, positions, now)}"
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
    if lost:
        return "degraded", reasons
    if not state.announced:
        return "starting", reasons
    return ("degraded" if short else "ready"), reasons


def _some(positions: Iterable[int], crew: Crew) -> str:
    count = len(list(positions))
    return f"{count} of {crew.count} workers {'is' if count == 1 else 'are'}"


def _next_try(crew: Crew, positions: Iterable[int], now: float) -> str:
    seconds = _until(crew, positions, now)
    return "being tried now" if seconds is None else f"next try in {math.ceil(seconds)} s"


def _until(crew: Crew, positions: Iterable[int], now: float) -> float | None:
    """Return the seconds until the first of the positions is tried; None: one is being tried."""
    times = [crew.setbacks[position].until for position in positions]
    found = [until for until in times if until is not None]
    return max(0.0, min(found) - now) if len(found) == len(times) else None


def summary(state: State, now: float) -> str:
    """Return the state in one line, for STATUS= of the service manager.

    Args:
        state: the state machine's.
        now: the time on its clock.
    """
    condition, _ = judge(state, now)
    counts = ", ".join(
        f"{name} {_ready(state, crew)}/{crew.count}" for name, crew in state.crews.items()
    )
    return f"{condition}: {counts}; generation {state.generation}"


def _ready(state: State, crew: Crew) -> int:
    return roster_of(state, crew).ready


def _component(
    name: str,
    workers: list[Worker],
    state: State,
    now: float,
    details: Mapping[int, WorkerDetails],
    deaths: Deaths,
) -> dict[str, Any]:
    crew = state.crews.get(name)
    lost = [] if crew is None else given_up_in(state, crew)
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
        "fatal": bool(lost),
        "given_up": [] if crew is None else _waiting(crew, lost, now),
        "short": [] if crew is None else _waiting(crew, sorted(crew.short), now),
        "finished": 0 if crew is None else len(crew.finished),
        "crashes": sum(n for (component, _), n in deaths.counts.items() if component == name),
        "last_death": _death(last, now),
        "workers": [
            _worker(worker, now, details.get(worker.id, WorkerDetails()), deaths)
            for worker in workers
        ],
    }


def _waiting(crew: Crew, positions: Iterable[int], now: float) -> list[dict[str, Any]]:
    return [
        {
            "position": position,
            "next_try": _until(crew, [position], now),
            "why": crew.setbacks[position].shortage,
        }
        for position in positions
    ]


def _worker(worker: Worker, now: float, details: WorkerDetails, deaths: Deaths) -> dict[str, Any]:
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
        "status": details.text,
        "beat_age": details.beat_age,
        "memory": details.memory,
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

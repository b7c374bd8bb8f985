"""What a supervisor knows of its workers: frozen values that the state machine replaces."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from pyforkfd.supervisor.spec._spec import Component, Service

from ._events import Cause


class Phase(enum.Enum):
    """Where a worker is in its life; from DRAINING on it is leaving."""

    BOOTING = "booting"
    READY = "ready"
    PAUSED = "paused"
    DRAINING = "draining"  # finishes what it has begun
    STOPPING = "stopping"  # sent stop_signal
    DUMPING = "dumping"  # sent dump_signal
    KILLED = "killed"


STAYING = frozenset({Phase.BOOTING, Phase.READY, Phase.PAUSED})
SERVING = frozenset({Phase.BOOTING, Phase.READY})


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """One process that was asked for.

    Attributes:
        id: never used twice.
        spec: what it was started from.
        position: which of its component's workers it is, from 0.
        generation: of its component, when it was started.
        phase: where it is in its life.
        born: when it was asked for.
        since: when its phase began.
        pid: None until it has become its program.
        speaks: it reads orders from its channel.
        retiring: it leaves as soon as another is ready in its position.
        leaving: it has announced that it leaves by itself.
        condemned: why we end it, where that is its own fault.
        deadline: when its phase has lasted too long.
    """

    id: int
    spec: Component
    position: int
    generation: int
    phase: Phase
    born: float
    since: float
    pid: int | None = None
    speaks: bool = False
    retiring: bool = False
    leaving: bool = False
    condemned: Cause | None = None
    deadline: float | None = None

    @property
    def component(self) -> str:
        """The name of its component."""
        return self.spec.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Crew:
    """The workers of one component in one generation, as they are wanted.

    Attributes:
        spec: what they are started from.
        count: how many are wanted.
        widest: how many were ever wanted: as many shards have been in use.
        generation: theirs.
        crashes: when, within the time that ``spec.restart`` looks back on.
        failures: position -> crashes in a row.
        not_before: position -> when the next may start there.
        finished: positions whose worker ended and is not to be replaced.
        fatal: too many crashes: nothing is started any more.
        sharded: of some listener each position has a socket of its own.
    """

    spec: Component
    count: int
    generation: int
    widest: int = 0
    crashes: tuple[float, ...] = ()
    failures: Mapping[int, int] = field(default_factory=dict)
    not_before: Mapping[int, float] = field(default_factory=dict)
    finished: frozenset[int] = frozenset()
    fatal: bool = False
    sharded: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """A generation that boots; its components go over to it when all of it is ready.

    Attributes:
        generation: its number.
        crews: those that boot.
        removed: components that are not wanted any more.
        adjusted: components whose workers stay, and go by this from then on.
        rollback: of the state, from then on.
        max_generations: likewise.
    """

    generation: int
    crews: Mapping[str, Crew]
    removed: frozenset[str]
    adjusted: Mapping[str, Component]
    rollback: float
    max_generations: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Previous:
    """A generation that is paused, for a roll back.

    Attributes:
        crews: those that were replaced or removed.
        added: components that were not there before.
        until: when it is to leave.
    """

    crews: Mapping[str, Crew]
    added: frozenset[str]
    until: float


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Everything the heart knows.  Two equal states decide alike.

    Attributes:
        crews: component -> what is wanted of it.
        workers: id -> worker, until it is reaped.
        pending: the generation that boots, if any.
        previous: the generation that is paused, if any.
        generation: the newest number.
        next_worker: the next id.
        lent: (component, position) -> the worker that accepts from that position's shards
            while nobody is ready there.
        rollback: how long a replaced generation stays paused, in seconds.
        max_generations: more are not kept alive at once.
        announced: the service manager was told that we are ready.
        stopping: no worker is wanted any more.
        exit_code: ours, when it is time.
        exited: Exit was said.
    """

    crews: Mapping[str, Crew]
    workers: Mapping[int, Worker] = field(default_factory=dict)
    pending: Pending | None = None
    previous: Previous | None = None
    generation: int = 1
    next_worker: int = 1
    lent: Mapping[tuple[str, int], int] = field(default_factory=dict)
    rollback: float = 0.0
    max_generations: int = 3
    announced: bool = False
    stopping: bool = False
    exit_code: int = 0
    exited: bool = False


def initial(service: Service) -> State:
    """Nothing runs yet; the first step starts all of it."""
    shards = sharded(service)
    return State(
        crews={
            name: Crew(
                spec=spec,
                count=spec.workers,
                widest=spec.workers,
                generation=1,
                sharded=name in shards,
            )
            for name, spec in service.components.items()
        },
        rollback=service.rollback,
        max_generations=service.max_generations,
    )


def sharded(service: Service) -> frozenset[str]:
    """Components of which some listener has one socket for each position."""
    return frozenset(
        name
        for name, spec in service.components.items()
        if any(service.listeners[listener].shards for listener in spec.listen)
    )


def missing(state: State) -> dict[str, int]:
    """Component -> how many ready workers fewer than wanted it has, where it has fewer."""
    found = {}
    for name, crew in state.crews.items():
        ready = sum(
            1
            for worker in state.workers.values()
            if worker.component == name
            and worker.phase is Phase.READY
            and worker.generation == crew.generation
        )
        if (short := crew.count - len(crew.finished) - ready) > 0:
            found[name] = short
    return found


def due(state: State) -> float | None:
    """When the next step is needed even if nothing happens."""
    times = [worker.deadline for worker in state.workers.values() if worker.deadline is not None]
    if not state.stopping:  # or nothing is started any more
        for crew in state.crews.values():
            times.extend(crew.not_before.values())
    if state.previous is not None:
        times.append(state.previous.until)
    return min(times, default=None)


def spread(worker_id: int) -> float:
    """From 0 to 1 by its id: workers that were started together shall not leave together."""
    return (worker_id * 0.6180339887498949) % 1.0  # golden ratio: far apart for neighbours

"""The state of a supervisor: frozen values, which the state machine replaces."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pyforkfd.supervisor.spec._spec import Component, Service

from ._events import Cause


class Phase(enum.Enum):
    """The phase of a worker's life; from DRAINING on it is leaving."""

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
    """A worker, from the action that starts its process until that is reaped.

    Attributes:
        id: never used twice.
        spec: the component as it was when the worker was started, or adjusted since.
        position: its place among its component's workers, from 0.
        generation: of its component, when it was started.
        phase: of its life.
        born: when the state machine decided to start it.
        since: when its phase began.
        pid: None until it has become its program.
        speaks: whether it reads orders from its channel.
        retiring: whether it leaves as soon as another is ready in its position.
        leaving: whether it has announced that it leaves by itself.
        condemned: why it is ended, where the reason is its own fault.
        deadline: when its phase has lasted too long; None: it may last.
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
class Setbacks:
    """The failures at one position of a crew, and the time of its next start.

    Attributes:
        crashes: times of the crashes within ``spec.restart.within``.
        failures: crashes in a row: each doubles the back-off.
        given_up: whether there were too many, until a worker has lived there for longer than
            ``spec.restart.backoff_cap``: one more crash, and the next pause is longer.
        shortages: starts in a row for which the supervisor itself was short of a resource.
        shortage: the error of the last of them; empty: there is no shortage.
        until: when the next worker may start; None: at once.
    """

    crashes: tuple[float, ...] = ()
    failures: int = 0
    given_up: bool = False
    shortages: int = 0
    shortage: str = ""
    until: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Crew:
    """A crew: the workers of one component in one generation, as they are wanted.

    Attributes:
        spec: the component that they are started from.
        count: how many are wanted.
        widest: how many were ever wanted: as many shards have been in use.
        generation: theirs.
        setbacks: position -> its failures; only of positions that had one.
        finished: positions whose worker ended and is not to be replaced.
        sharded: whether each position has a socket of its own of some listener.
    """

    spec: Component
    count: int
    generation: int
    widest: int = 0
    setbacks: Mapping[int, Setbacks] = field(default_factory=dict)
    finished: frozenset[int] = frozenset()
    sharded: bool = False

    @property
    def given_up(self) -> frozenset[int]:
        """The positions that were given up; a worker may be ready there again."""
        return frozenset(p for p, setbacks in self.setbacks.items() if setbacks.given_up)

    @property
    def short(self) -> frozenset[int]:
        """The positions that wait because the supervisor was short of a resource."""
        return frozenset(p for p, setbacks in self.setbacks.items() if setbacks.shortage)

    @property
    def is_short(self) -> bool:
        """Whether some position waits because the supervisor was short of a resource."""
        return any(setbacks.shortage for setbacks in self.setbacks.values())

    def setback(self, position: int, setbacks: Setbacks) -> Crew:
        """Return the crew with other setbacks at a position."""
        return replace(self, setbacks={**self.setbacks, position: setbacks})

    def resized(self, count: int) -> Crew:
        """Return the crew with another count; positions beyond it are forgotten."""
        return replace(
            self,
            count=count,
            widest=max(count, self.widest),
            finished=frozenset(p for p in self.finished if p < count),
            setbacks={p: setbacks for p, setbacks in self.setbacks.items() if p < count},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """A generation that boots; its components go over to it when all of it is ready.

    Attributes:
        generation: its number.
        crews: those that boot.
        removed: components that are not wanted any more.
        adjusted: components whose workers stay, with their specification from then on.
        rollback: that of the state from then on.
        max_generations: that of the state from then on.
        back: whether it is an earlier one, that served before and is rolled back to.
    """

    generation: int
    crews: Mapping[str, Crew]
    removed: frozenset[str]
    adjusted: Mapping[str, Component]
    rollback: float
    max_generations: int
    back: bool = False

    def has(self, worker: Worker) -> bool:
        """Return whether a worker is of a crew that boots."""
        crew = self.crews.get(worker.component)
        return crew is not None and crew.generation == worker.generation


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
    """Everything that the state machine decides by.  Two equal states decide alike.

    Attributes:
        crews: component -> its crew that is wanted now.
        workers: id -> worker, until it is reaped.
        pending: the generation that boots, if any.
        previous: the generation that is paused, if any.
        generation: the newest number.
        next_worker: the next id.
        lent: (component, position) -> id of the worker that accepts from that position's
            shards while no worker is ready there.
        rollback: how long a replaced generation stays paused, in seconds.
        max_generations: how many may be alive at once.
        announced: whether readiness was reported to the service manager.
        stopping: whether no worker is wanted any more.
        exit_code: the supervisor's, when all workers have ended.
        exited: whether there was an Exit action.
        index: look-ups that the step has made from the rest, which alone counts; None: none yet.
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
    index: object = field(default=None, init=False, repr=False, compare=False)


def initial(service: Service) -> State:
    """Return the state of a service that does not run; the first step starts all of it."""
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
    """Return the components of which some listener has one socket for each position."""
    return frozenset(
        name
        for name, spec in service.components.items()
        if any(service.listeners[listener].shards for listener in spec.listen)
    )


def spread(worker_id: int) -> float:
    """Return a fraction from 0 to 1 by a worker's id.

    So workers that were started together do not leave together.
    """
    return (worker_id * 0.6180339887498949) % 1.0  # golden ratio: far apart for neighbours

"""What can happen to a supervisor, and what it can do about it: plain values, no more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from pyforkfd.supervisor.spec._spec import Component

Cause: TypeAlias = Literal[
    "exit", "done", "signal", "core", "oom", "stale", "boot_timeout", "spawn_failed"
]
"""Why a worker died: the label of process_crash_total."""

Order: TypeAlias = Literal["drain", "pause", "resume"]
"""What a worker that reads its channel is told."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class Spawned:
    """A worker has become its program."""

    worker_id: int
    pid: int


@dataclass(frozen=True, slots=True)
class SpawnFailed:
    """A worker could not be started; nothing is left of it."""

    worker_id: int
    why: str


@dataclass(frozen=True, slots=True)
class BecameReady:
    """A worker serves.

    Attributes:
        worker_id: its id.
        speaks: it reads orders from its channel.
    """

    worker_id: int
    speaks: bool = False


@dataclass(frozen=True, slots=True)
class Ended:
    """A worker has ended and was reaped.

    Attributes:
        worker_id: its id.
        cause: as far as its exit status and its cgroup can tell.
        detail: for people: "exit code 3".
    """

    worker_id: int
    cause: Cause
    detail: str


@dataclass(frozen=True, slots=True)
class WentStale:
    """A worker's heartbeat has stopped, or its deadline has passed."""

    worker_id: int
    why: str


@dataclass(frozen=True, slots=True)
class Leaving:
    """A worker has announced that it leaves by itself."""

    worker_id: int


@dataclass(frozen=True, slots=True)
class Retire:
    """A worker is to be replaced and then to leave."""

    worker_id: int
    why: str


@dataclass(frozen=True, slots=True)
class Reload:
    """Replace workers by a new generation.

    Attributes:
        components: what is to run then, whole; None: what runs now.
        only: those whose workers are replaced; None: all.  Of others nothing may have changed
            that their workers were started from.
        sharded: components with listeners of which each position has its own; None: those
            that have them now.
        rollback: seconds that what is replaced stays paused; None: as now.
        max_generations: more are not kept alive at once; None: as now.
    """

    components: Mapping[str, Component] | None = None
    only: frozenset[str] | None = None
    sharded: frozenset[str] | None = None
    rollback: float | None = None
    max_generations: int | None = None


@dataclass(frozen=True, slots=True)
class RollBack:
    """Go back to the generation that is paused."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Run more or fewer workers of a component."""

    component: str
    count: int


@dataclass(frozen=True, slots=True)
class Stop:
    """End.  A second one, or ``now``, does not wait for workers to finish."""

    now: bool = False


Event: TypeAlias = (
    Tick
    | Spawned
    | SpawnFailed
    | BecameReady
    | Ended
    | WentStale
    | Leaving
    | Retire
    | Reload
    | RollBack
    | Scale
    | Stop
)


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start this worker; answer Spawned or SpawnFailed."""

    worker_id: int


@dataclass(frozen=True, slots=True)
class Tell:
    """Send an order over its channel."""

    worker_id: int
    order: Order


@dataclass(frozen=True, slots=True)
class Signal:
    """Send a signal to the process; one that is not there yet is given up: SpawnFailed."""

    worker_id: int
    signum: int


@dataclass(frozen=True, slots=True)
class Kill:
    """SIGKILL to the whole tree of the worker; see Signal for one that is not there yet."""

    worker_id: int


@dataclass(frozen=True, slots=True)
class Forget:
    """The worker is no more: free what belonged to it."""

    worker_id: int


@dataclass(frozen=True, slots=True)
class Lend:
    """Let a worker accept from another's shards until they are taken back."""

    worker_id: int
    position: int


@dataclass(frozen=True, slots=True)
class TakeBack:
    """Let a worker no longer accept from the shards that were lent to it."""

    worker_id: int
    position: int


@dataclass(frozen=True, slots=True)
class Crashed:
    """For the counters, the log and the hooks: a worker died that was not to."""

    worker_id: int
    component: str
    cause: Cause
    detail: str
    position: int = 0


@dataclass(frozen=True, slots=True)
class Reloaded:
    """How a reload or a roll back ended; ``why`` is empty where it worked."""

    generation: int
    why: str = ""


@dataclass(frozen=True, slots=True)
class Announce:
    """Tell the service manager."""

    what: Literal["ready", "reloading", "stopping"]


@dataclass(frozen=True, slots=True)
class Note:
    """A line for the log."""

    level: Literal["info", "warning", "error"]
    text: str
    component: str = ""
    worker_id: int | None = None


@dataclass(frozen=True, slots=True)
class Exit:
    """Everything has ended; so shall we."""

    code: int


Action: TypeAlias = (
    Spawn
    | Tell
    | Signal
    | Kill
    | Forget
    | Lend
    | TakeBack
    | Crashed
    | Reloaded
    | Announce
    | Note
    | Exit
)

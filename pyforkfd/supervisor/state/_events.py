"""The events that the state machine takes and the actions that it returns: plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from pyforkfd.supervisor.spec._spec import Component

Cause: TypeAlias = Literal[
    "exit", "done", "signal", "core", "oom", "stale", "boot_timeout", "spawn_failed"
]
"""The cause of a worker's death: the label of process_crash_total."""

Order: TypeAlias = Literal["drain", "pause", "resume"]
"""The orders of the state machine to a worker that reads its channel."""


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
    """A worker could not be started; nothing of it is left.

    Attributes:
        worker_id: its id.
        why: the error.
        shortage: whether the supervisor itself was short of descriptors, memory or processes,
            which is no fault of the worker and may be over soon.
    """

    worker_id: int
    why: str
    shortage: bool = False


@dataclass(frozen=True, slots=True)
class BecameReady:
    """A worker serves.

    Attributes:
        worker_id: its id.
        speaks: whether it reads orders from its channel.
    """

    worker_id: int
    speaks: bool = False


@dataclass(frozen=True, slots=True)
class Ended:
    """A worker has ended and was reaped.

    Attributes:
        worker_id: its id.
        cause: as far as its exit status and its cgroup show it.
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
        components: all components of the new generation; None: those that run now.
        only: components whose workers are replaced; None: all.  In the others nothing may
            have changed that their workers were started from.
        sharded: components with listeners of which each position has a socket of its own;
            None: those that have them now.
        rollback: seconds for which the replaced generation stays paused; None: as now.
        max_generations: how many may be alive at once; None: as now.
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
    """End all workers.  A second Stop, or ``now``, does not wait for them to finish."""

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
    """Start a worker; the answer is Spawned or SpawnFailed."""

    worker_id: int

    @property
    def worker(self) -> int:
        """The worker's id."""
        return self.worker_id


@dataclass(frozen=True, slots=True)
class SendOrder:
    """Send an order to a worker over its channel."""

    worker_id: int
    order: Order


@dataclass(frozen=True, slots=True)
class Signal:
    """Send a signal to a worker's process.

    A worker that has no process yet is given up: the answer is SpawnFailed.
    """

    worker_id: int
    signum: int


@dataclass(frozen=True, slots=True)
class Kill:
    """Send SIGKILL to a worker and all its descendants; without a process: as for Signal."""

    worker_id: int


@dataclass(frozen=True, slots=True)
class Forget:
    """Free what belonged to a worker that was reaped or never started."""

    worker_id: int


@dataclass(frozen=True, slots=True)
class Lend:
    """Let a worker accept from the shards of another position until they are taken back."""

    worker_id: int
    position: int


@dataclass(frozen=True, slots=True)
class TakeBack:
    """End the loan of a position's shards to a worker."""

    worker_id: int
    position: int


@dataclass(frozen=True, slots=True)
class Crashed:
    """Count, log and run the hooks for a worker that died unexpectedly."""

    worker_id: int
    component: str
    cause: Cause
    detail: str
    position: int = 0


@dataclass(frozen=True, slots=True)
class Reloaded:
    """Report the outcome of a reload or a roll back.

    Attributes:
        generation: that serves, or was given up.
        why: the reason why it was given up; empty after success.
        component: of the worker that failed.
        worker_id: of the worker that failed; None: none did.
    """

    generation: int
    why: str = ""
    component: str = field(default="", compare=False)
    worker_id: int | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Announce:
    """Report to the service manager."""

    what: Literal["ready", "reloading", "stopping"]


@dataclass(frozen=True, slots=True)
class Note:
    """Write a line to the log."""

    level: Literal["info", "warning", "error"]
    text: str
    component: str = ""
    worker_id: int | None = None


@dataclass(frozen=True, slots=True)
class Exit:
    """End the supervisor with an exit code: the last worker was reaped."""

    code: int


Action: TypeAlias = (
    Spawn
    | SendOrder
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

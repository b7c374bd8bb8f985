"""The messages between a supervisor and its workers: one plain value for each.

How they travel is in ``_protocol``.  Descriptors that come with a message are no part of its
value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

MAX_STATUS = 4000
"""The longest status text, in bytes: it also fits into a datagram of NOTIFY_SOCKET."""

# Orders: from the supervisor to a worker.


@dataclass(frozen=True, slots=True)
class Drain:
    """Accept nothing new, finish what has begun, end."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Stop accepting, and retain everything: a roll back may come."""


@dataclass(frozen=True, slots=True)
class Resume:
    """Accept again after :class:`Pause`."""


@dataclass(frozen=True, slots=True)
class StopAccepting:
    """Stop accepting: the worker uses too much memory."""


@dataclass(frozen=True, slots=True)
class ResumeAccepting:
    """Accept again after :class:`StopAccepting`."""


@dataclass(frozen=True, slots=True)
class Accept:
    """Accept from shards of an absent sibling too: descriptors by ``LISTENER/POSITION``."""


@dataclass(frozen=True, slots=True)
class Return:
    """Stop accepting from shards of a sibling: descriptors as of :class:`Accept`."""


@dataclass(frozen=True, slots=True)
class Listeners:
    """The worker's listeners: descriptors by name.  The first message, where it is sent."""


@dataclass(frozen=True, slots=True)
class Collect:
    """Collect garbage."""


@dataclass(frozen=True, slots=True)
class BufferLogs:
    """Retain records below WARNING in memory."""


@dataclass(frozen=True, slots=True)
class FlushLogs:
    """Write the buffered records and all that follow."""


@dataclass(frozen=True, slots=True)
class SwitchLog:
    """Write records to another file: its descriptor.  Confirmed by :class:`LogSwitched`.

    Attributes:
        turn: how often the file was replaced.
    """

    turn: int


@dataclass(frozen=True, slots=True)
class Peer:
    """Another component went from no ready worker to some, or back.

    Attributes:
        component: its name.
        ready: how many of its workers are ready.
    """

    component: str
    ready: int


# Events: from a worker to the supervisor.


@dataclass(frozen=True, slots=True)
class Ready:
    """The worker serves, and reads orders."""


@dataclass(frozen=True, slots=True)
class Stopping:
    """The worker leaves by itself."""


@dataclass(frozen=True, slots=True)
class Status:
    """A line for people.

    Attributes:
        text: the line; ValueError where it is longer than MAX_STATUS or more than a line.
    """

    text: str

    def __post_init__(self) -> None:
        if self.text.splitlines() not in ([], [self.text]):
            raise ValueError(f"status: line break in {self.text[:80]!r}")
        if (size := len(self.text.encode())) > MAX_STATUS:
            raise ValueError(f"status: {size} bytes: at most {MAX_STATUS} are shown")


@dataclass(frozen=True, slots=True)
class LogSwitched:
    """All records from now on go to the file of :class:`SwitchLog`.

    Attributes:
        turn: as in the order.
    """

    turn: int


# Both ways.


@dataclass(frozen=True, slots=True)
class Message:
    """A message of the application.

    Attributes:
        data: any JSON.
    """

    data: Any


OrderMessage: TypeAlias = (
    Drain
    | Pause
    | Resume
    | StopAccepting
    | ResumeAccepting
    | Accept
    | Return
    | Listeners
    | Collect
    | BufferLogs
    | FlushLogs
    | SwitchLog
    | Peer
    | Message
)
EventMessage: TypeAlias = Ready | Stopping | Status | LogSwitched | Message
